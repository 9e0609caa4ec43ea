"""The stable endpoint that clients connect to."""
