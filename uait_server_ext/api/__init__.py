"""The edge: the only package, with app.py and identity/jupyter_*.py, that knows of HTTP."""
