"""Run the `uait` command as `python -m uait_server_ext`."""

from .cli import main

main()
