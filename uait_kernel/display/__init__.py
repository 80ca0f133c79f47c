"""How results look in a notebook, in a terminal and in a saved file."""
