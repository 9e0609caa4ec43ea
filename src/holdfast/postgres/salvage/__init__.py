"""The rows of lost transactions: read from an isolated copy that is taken through the log step by step.

`run` is the whole of it; `steps` says what is read when; `copy` is the server; `tables` reads; `script` writes SQL.
"""
