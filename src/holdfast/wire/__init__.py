"""PostgreSQL protocol v3 as sans-I/O machines."""
