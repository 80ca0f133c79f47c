"""What keeps one part's trouble, or one caller's appetite, from becoming everybody's."""
