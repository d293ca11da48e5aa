"""Migrations of older databases, run by Alembic; see schema.py."""
