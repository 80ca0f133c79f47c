"""Runs: notebooks executed as batch work, each in a process of its own."""
