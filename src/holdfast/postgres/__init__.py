"""One PostgreSQL server: process, settings, probes, replication, rewind, clone."""
