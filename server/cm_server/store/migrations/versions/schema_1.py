"""Tokens have a target and an expiry; add the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = "0"


def upgrade() -> None:
    """Set the target of existing tokens to all boards, as it was."""
    with op.batch_alter_table("tokens", recreate="always") as tokens:
        tokens.add_column(
            sa.Column("target", sa.Text, nullable=False, server_default="all"),
            insert_after="role",
        )
        tokens.add_column(sa.Column("expires", sa.Float))
        tokens.add_column(sa.Column("revoked", sa.Float))
    with op.batch_alter_table("tokens", recreate="always") as tokens:
        tokens.alter_column("target", server_default=None)
    op.create_index(
        "tokens_name", "tokens", ["name"], unique=True, sqlite_where=sa.text("revoked IS NULL")
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("boards", sa.Integer),
        sa.Column("first_job", sa.Integer),
        sa.Column("last_job", sa.Integer),
        sa.Column("outcome", sa.Text, nullable=False),
    )
    for act in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{act.lower()} BEFORE {act} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
