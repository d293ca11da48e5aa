"""Inventory and reservations of boards; restarts, crashes and secrets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"


def upgrade() -> None:
    """Add columns of boards, and four tables."""
    op.add_column("boards", sa.Column("serial", sa.Text))
    op.add_column("boards", sa.Column("note", sa.Text))
    op.add_column("boards", sa.Column("reserved_by", sa.Text))
    op.add_column("boards", sa.Column("reserved_until", sa.Float))
    op.create_table(
        "restarts",
        sa.Column("board", sa.Text, primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("cause", sa.Text, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_table(
        "crashes",
        sa.Column("board", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("first", sa.Float, nullable=False),
        sa.Column("last", sa.Float, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
    )
    op.create_table(
        "secret_uses",
        sa.Column("board", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
    )
