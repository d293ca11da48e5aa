"""Boards have key rotations, may connect without TLS, and may enrol themselves by tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Give existing boards the first generation of key, and no enrolment token."""
    with op.batch_alter_table("boards", recreate="always") as boards:
        boards.add_column(sa.Column("gen", sa.Integer, nullable=False, server_default="0"))
        boards.add_column(sa.Column("nonce", sa.LargeBinary))
        boards.add_column(sa.Column("plain", sa.Boolean, nullable=False, server_default="0"))
        boards.add_column(sa.Column("token", sa.Text, nullable=False, server_default=""))
    with op.batch_alter_table("boards", recreate="always") as boards:
        for name in ("gen", "plain", "token"):
            boards.alter_column(name, server_default=None)
    op.add_column("tokens", sa.Column("uses", sa.Integer))
