"""Add the table of boards' logs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Add the table."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "logs",
        sa.Column("id", number, primary_key=True),
        sa.Column("board", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("logs_board", "logs", ["board", "id", "size"])
