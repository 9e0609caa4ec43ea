"""Captures: what is taken of a failed node before anything touches it."""
