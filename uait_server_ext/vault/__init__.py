"""Secrets: sealed, versioned, leased, every access recorded before a value is released."""
