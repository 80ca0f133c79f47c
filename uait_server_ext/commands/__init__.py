"""Sub-commands of `uait`, one module each."""
