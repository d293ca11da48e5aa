"""The first tables: boards, tokens, jobs. Only marks a database with the version."""

from __future__ import annotations

revision = "0"
down_revision = None


def upgrade() -> None:
    """Change nothing."""
