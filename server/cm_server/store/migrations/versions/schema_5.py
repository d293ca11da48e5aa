"""Several servers may share a store: add the holders of boards and the owners of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Add columns and tables that stay empty with a single server."""
    op.add_column("boards", sa.Column("holder", sa.Text))
    op.add_column("boards", sa.Column("epoch", sa.Integer))
    op.add_column("jobs", sa.Column("server", sa.Text))
    op.add_column("jobs", sa.Column("epoch", sa.Integer))
    op.create_table(
        "servers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )
    op.create_table(
        "shared",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("next", sa.Integer, nullable=False),
    )
