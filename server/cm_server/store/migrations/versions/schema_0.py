"""The first tables: boards, tokens, jobs. What has them is marked so, and nothing is to be done."""

from __future__ import annotations

revision = "0"
down_revision = None


def upgrade() -> None:
    """Leave them as they are."""
