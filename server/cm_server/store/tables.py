"""The store's tables. Their version and the migrations of older ones are in schema.py."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from . import schema
from .installed_packages import METADATA

metadata = METADATA


def _on_postgresql(index: sa.Index, **options: Any) -> None:
    """Set what an index has in PostgreSQL only, when its table is created there.

    An argument such as ``postgresql_where`` would import that dialect, a twentieth of a start.
    """

    def set_options(_table: sa.Table, connection: sa.Connection, **_: Any) -> None:
        if connection.dialect.name == "postgresql":
            index.dialect_options["postgresql"].update(options)

    sa.event.listen(index.table, "before_create", set_options)


_BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite's INTEGER has 64 bits

boards = sa.Table(
    "boards",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("enrolled", sa.Float, nullable=False),  # seconds since 1970, as all times here
    sa.Column("last_seen", sa.Float),
    sa.Column("gen", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary),
    sa.Column("plain", sa.Boolean, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    # With several servers (shared_store.py): which one has its link, and how often that changed.
    sa.Column("holder", sa.Text),
    sa.Column("epoch", _BigInt),
    # What people know of it, and the name of the token that has reserved it.
    sa.Column("serial", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("reserved_by", sa.Text),
    sa.Column("reserved_until", sa.Float),
    # Of a board that sleeps: how long it stays awake the next time, if it wakes before
    # ``stay_until``; without ``stay_seconds``, it stays awake until then. When it wakes is among
    # its facts.
    sa.Column("stay_seconds", sa.Float),
    sa.Column("stay_until", sa.Float),
    # Its generation (desired state), and how far it has got there.
    sa.Column("generation", sa.Text),
    sa.Column("generation_state", sa.Text),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),  # the boards on which it may be used
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
    sa.Column("uses", sa.Integer),
)
_VALID = sa.text("revoked IS NULL")
# Names of valid tokens are unique. Revoked ones keep their rows, so that a refusal can name them.
_name_index = sa.Index("tokens_name", tokens.c.name, unique=True, sqlite_where=_VALID)
_on_postgresql(_name_index, where=_VALID)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _BigInt, primary_key=True, autoincrement=False),
    sa.Column("board", sa.Text, nullable=False),  # its id: another board may get its name later
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("status", sa.Text),
    sa.Column("error", sa.Text),
    # With several servers: which one owns it, and the board's epoch in which it was sent.
    sa.Column("server", sa.Text),
    sa.Column("epoch", _BigInt),
    # What ran where: the SHA-256 of its text; JSON of what it is and which notebook it comes from
    # (jobs/job_texts.py); the hash of its caller's token.
    sa.Column("text", sa.Text),
    sa.Column("notebook", sa.Text),
    sa.Column("token", sa.Text),
)
_OPEN = sa.text("ended IS NULL")
_on_postgresql(sa.Index("jobs_open", jobs.c.board, sqlite_where=_OPEN), where=_OPEN)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", _BigInt, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # a token's name; "" for an unknown peer
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("boards", sa.Integer),
    sa.Column("first_job", _BigInt),
    sa.Column("last_job", _BigInt),
    sa.Column("outcome", sa.Text, nullable=False),
)
#: Rows of the audit log cannot be changed. They can be deleted when they are 30 days old, the
#: oldest first: see ``PruningStore.prune_audit``. Name of an SQLite trigger -> when it refuses.
_AUDIT_RULES = {
    "update": "BEFORE UPDATE ON audit",
    "delete": "BEFORE DELETE ON audit "
    "WHEN OLD.at > CAST(strftime('%s', 'now') AS INTEGER) - 2592000 "
    "OR EXISTS (SELECT 1 FROM audit WHERE id < OLD.id)",
    "replace": "BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)",
}
#: The same for PostgreSQL, where an INSERT cannot replace a row, but TRUNCATE could delete all.
_AUDIT_FUNCTION = """
CREATE FUNCTION audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF TG_OP = 'DELETE' AND OLD.at <= extract(epoch FROM now()) - 2592000
AND NOT EXISTS (SELECT 1 FROM audit WHERE id < OLD.id) THEN RETURN OLD; END IF;
RAISE EXCEPTION 'the audit log is append-only'; END $$
"""
_AUDIT_TRIGGERS = (
    "CREATE TRIGGER audit_guard BEFORE UPDATE OR DELETE ON audit "
    "FOR EACH ROW EXECUTE FUNCTION audit_guard()",
    "CREATE TRIGGER audit_whole BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_guard()",
)


def _audit_guards(dialect: str) -> list[str]:
    """Return the statements that create the triggers which keep the audit log append-only."""
    if dialect == "postgresql":
        return [_AUDIT_FUNCTION, *_AUDIT_TRIGGERS]
    abort = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    return [f"CREATE TRIGGER audit_no_{name} {when} {abort}" for name, when in _AUDIT_RULES.items()]


def _guard_audit(_table: sa.Table, connection: sa.Connection, **_options: Any) -> None:
    for statement in _audit_guards(connection.dialect.name):
        connection.exec_driver_sql(statement)


sa.event.listen(audit, "after_create", _guard_audit)

#: The servers that share this store, each with the time of its last heartbeat.
servers = sa.Table(
    "servers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),  # by the database's own clock
)

#: Values that the servers share, such as secrets and the state of pruning.
shared = sa.Table(
    "shared",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
#: The next number of a job.
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("next", _BigInt, nullable=False),
)

#: The texts of cells, each once, as long as the history of jobs has them.
texts = sa.Table(
    "texts",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),  # when it was last run
)

#: What boards should be: files, packages, settings. Never changed; the files are in ``blobs``.
generations = sa.Table(
    "generations",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),  # of the manifest
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),  # the name of a token
)
rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("number", _BigInt, primary_key=True),
    sa.Column("group", sa.Text, nullable=False),
    sa.Column("generation", sa.Text, nullable=False),
    sa.Column("previous", sa.Text),  # the generation before; None for the first one of a group
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),  # it is in this state
    sa.Column("token", sa.Text, nullable=False),  # the hash of the token that asked
    # The server that carries it out, and how often that changed.
    sa.Column("owner", sa.Text),
    sa.Column("epoch", _BigInt, nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)
sa.Index("rollouts_group", rollouts.c.group, rollouts.c.number)
rollout_boards = sa.Table(
    "rollout_boards",
    metadata,
    sa.Column("rollout", _BigInt, primary_key=True, autoincrement=False),
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)
sa.Index("rollout_boards_board", rollout_boards.c.board)

#: The values that boards emit, kept for days, and their minutes, for months: see sample_tables.py.
#: Only PostgreSQL's are used; a server with a store of its own has files (sample_files.py).
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("board", sa.Text, nullable=False),  # its id
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
)
sa.Index("samples_board", samples.c.board, samples.c.name, samples.c.time)
_on_postgresql(sa.Index("samples_time", samples.c.time), using="brin")
sample_minutes = sa.Table(
    "sample_minutes",
    metadata,
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("time", sa.Float, primary_key=True),  # when the minute begins
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("sum", sa.Float, nullable=False),
    sa.Column("min", sa.Float, nullable=False),
    sa.Column("max", sa.Float, nullable=False),
    sa.Column("last", sa.Float, nullable=False),
    sa.Column("last_time", sa.Float, nullable=False),
)
_on_postgresql(sa.Index("sample_minutes_time", sample_minutes.c.time), using="brin")
version = schema.add_version_table(metadata)
