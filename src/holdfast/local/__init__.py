"""A whole cluster on one machine: files, secrets, supervisor."""
