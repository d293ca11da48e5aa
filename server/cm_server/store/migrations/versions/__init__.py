"""Alembic scripts, one for each version of the tables."""
