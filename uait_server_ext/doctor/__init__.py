"""The security audit of a server: what protects it, checked now, from outside and on its files.

`report.py` has the words, `local.py` looks at files and versions, `people.py` at the database,
`live.py` asks the running server, `kernels.py` starts a kernel on it and looks at that.
"""
