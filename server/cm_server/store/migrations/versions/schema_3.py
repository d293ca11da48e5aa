"""The oldest rows of the audit log can be deleted when they are 30 days old."""

from __future__ import annotations

from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Replace the triggers; set the version number by which older programs refuse the tables."""
    op.execute("DROP TRIGGER audit_no_delete")
    op.execute(
        "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
        "WHEN OLD.at > CAST(strftime('%s', 'now') AS INTEGER) - 2592000 "
        "OR EXISTS (SELECT 1 FROM audit WHERE id < OLD.id) "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )
    op.execute(
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    )
    op.execute("PRAGMA user_version=3")
