"""The agent beside one PostgreSQL: observe, decide, apply, record."""
