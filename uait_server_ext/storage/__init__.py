"""Where bytes are kept: files written in one piece. Knows no domain."""
