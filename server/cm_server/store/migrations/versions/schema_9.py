"""The values that boards emit, and their minutes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "9"
down_revision = "8"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "samples",
        sa.Column("board", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("value", sa.Float, nullable=False),
    )
    op.create_index("samples_board", "samples", ["board", "name", "time"])
    op.create_index("samples_time", "samples", ["time"], postgresql_using="brin")
    op.create_table(
        "sample_minutes",
        sa.Column("board", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("time", sa.Float, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("sum", sa.Float, nullable=False),
        sa.Column("min", sa.Float, nullable=False),
        sa.Column("max", sa.Float, nullable=False),
        sa.Column("last", sa.Float, nullable=False),
        sa.Column("last_time", sa.Float, nullable=False),
    )
    op.create_index("sample_minutes_time", "sample_minutes", ["time"], postgresql_using="brin")
