"""What carries older databases over; run by Alembic, see ``schema``."""
