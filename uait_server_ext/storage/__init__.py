"""Where bytes are kept: files written in one piece, the SQL database. Knows no domain."""
