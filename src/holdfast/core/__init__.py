"""Decisions as pure functions: the leadership table, quorums, verdicts."""
