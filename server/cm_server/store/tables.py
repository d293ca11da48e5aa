"""The store's tables. Their version, and what makes it of older ones, are schema.py's."""

from __future__ import annotations

import sqlalchemy as sa

from . import schema
from .installed_packages import METADATA

metadata = METADATA

_BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite's are as long as it takes

boards = sa.Table(
    "boards",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("enrolled", sa.Float, nullable=False),  # seconds since the epoch, as all times here
    sa.Column("last_seen", sa.Float),
    sa.Column("gen", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary),
    sa.Column("plain", sa.Boolean, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    # Of several servers (leases.py): which one has its link, and how often that changed.
    sa.Column("holder", sa.Text),
    sa.Column("epoch", _BigInt),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),  # the boards that it reaches
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
    sa.Column("uses", sa.Integer),
)
_VALID = sa.text("revoked IS NULL")
# A name is one token's at a time; the revoked ones stay, to be refused by name.
sa.Index("tokens_name", tokens.c.name, unique=True, sqlite_where=_VALID, postgresql_where=_VALID)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _BigInt, primary_key=True, autoincrement=False),
    sa.Column("board", sa.Text, nullable=False),  # the board's id: a name may change hands
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("status", sa.Text),
    sa.Column("error", sa.Text),
    # Of several servers: which one ends it, and the board's epoch in which it was sent.
    sa.Column("server", sa.Text),
    sa.Column("epoch", _BigInt),
)
_OPEN = sa.text("ended IS NULL")
sa.Index("jobs_open", jobs.c.board, sqlite_where=_OPEN, postgresql_where=_OPEN)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", _BigInt, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # a token's name; "" for nobody we know
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("boards", sa.Integer),
    sa.Column("first_job", _BigInt),
    sa.Column("last_job", _BigInt),
    sa.Column("outcome", sa.Text, nullable=False),
)
#: Its rows stay as they are. What is a month old may go, the oldest first: see ``prune``.
_AUDIT_RULES = {
    "update": "BEFORE UPDATE ON audit",
    "delete": "BEFORE DELETE ON audit "
    "WHEN OLD.at > CAST(strftime('%s', 'now') AS INTEGER) - 2592000 "
    "OR EXISTS (SELECT 1 FROM audit WHERE id < OLD.id)",
    "replace": "BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)",
}
#: The same for PostgreSQL, where an INSERT replaces nothing and TRUNCATE would.
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


def _on_audit_created(dialect: str, text: str) -> None:
    ddl = sa.DDL(text.replace("%", "%%"))  # type: ignore[no-untyped-call]
    sa.event.listen(audit, "after_create", ddl.execute_if(dialect=dialect))


for _name, _when in _AUDIT_RULES.items():
    _abort = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    _on_audit_created("sqlite", f"CREATE TRIGGER audit_no_{_name} {_when} {_abort}")
for _text in (_AUDIT_FUNCTION, *_AUDIT_TRIGGERS):
    _on_audit_created("postgresql", _text)

#: The servers that share this store, each with when it last said that it is there.
servers = sa.Table(
    "servers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),  # by the database's own clock
)

#: What they have in common: secrets, and the next number of a job.
shared = sa.Table(
    "shared",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("next", _BigInt, nullable=False),
)
version = schema.add_version_table(metadata)
