"""Work that waits for boards, boards that sleep, generations and rollouts, texts of cells."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "8"
down_revision = "7"


def upgrade() -> None:
    """Add columns of boards and jobs, and eight tables."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    for column in (
        sa.Column("stay_seconds", sa.Float),
        sa.Column("stay_until", sa.Float),
        sa.Column("generation", sa.Text),
        sa.Column("generation_state", sa.Text),
    ):
        op.add_column("boards", column)
    for name in ("text", "notebook", "token"):
        op.add_column("jobs", sa.Column(name, sa.Text))
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("size", number, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
    )
    op.create_table(
        "blob_uses",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("blob", sa.Text, primary_key=True),
    )
    op.create_index("blob_uses_blob", "blob_uses", ["blob"])
    op.create_table(
        "texts",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "waiting",
        sa.Column("id", number, primary_key=True),
        sa.Column("job", number, nullable=False),
        sa.Column("board", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("submission", number, nullable=False),
        sa.Column("size", number, nullable=False),
        sa.Column("fresh", sa.Boolean, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_index("waiting_job", "waiting", ["job"], unique=True)
    op.create_index("waiting_board", "waiting", ["board", "id"])
    op.create_index("waiting_token", "waiting", ["token"])
    op.create_index("waiting_submission", "waiting", ["submission"])
    op.create_index("waiting_expires", "waiting", ["expires"])
    op.create_table(
        "outputs",
        sa.Column("job", number, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("truncated", sa.Boolean, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_table(
        "generations",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("number", number, primary_key=True),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("previous", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("epoch", number, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
    )
    op.create_index("rollouts_group", "rollouts", ["group", "number"])
    op.create_table(
        "rollout_boards",
        sa.Column("rollout", number, primary_key=True, autoincrement=False),
        sa.Column("board", sa.Text, primary_key=True),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
    )
    op.create_index("rollout_boards_board", "rollout_boards", ["board"])
