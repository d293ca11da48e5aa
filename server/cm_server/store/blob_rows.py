"""The store's table of blobs: bytes that other rows refer to, each once, by their hash. SQL.

Each blob has users: a submission that waits, or a generation. The last one that ends takes the
blob with it, in the same transaction.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import sqlalchemy as sa

from .installed_packages import METADATA

_LOCK_ID: Final = 18267  # of PostgreSQL's advisory lock; 18266 is that of new tables

_BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite's INTEGER has 64 bits

_blobs = sa.Table(
    "blobs",
    METADATA,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("size", _BigInt, nullable=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
    sa.Column("used", sa.Float, nullable=False),  # when it was stored last, in seconds since 1970
)
_uses = sa.Table(
    "blob_uses",
    METADATA,
    sa.Column("user", sa.Text, primary_key=True),  # such as "submission 17"
    sa.Column("blob", sa.Text, primary_key=True),  # its SHA-256
)
sa.Index("blob_uses_blob", _uses.c.blob)


def blob_hash(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class BlobRows:
    """The table of blobs, and who uses which.

    All methods belong to a transaction of the calling code, which commits it.

    Args:
        connection: the store's connection.
        insert: SQLAlchemy's ``insert`` of the database, with ON CONFLICT.
    """

    def __init__(self, connection: sa.Connection, insert: Callable[[sa.Table], Any]) -> None:
        self._connection = connection
        self._insert = insert

    def lock(self) -> None:
        """Let other servers wait with changes of blobs until the transaction ends.

        Otherwise one could remove a blob while another one begins to use it. Call it first.
        """
        if self._connection.dialect.name == "postgresql":
            self._connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_ID})")

    def total_bytes(self) -> int:
        """Return the bytes of all blobs."""
        return int(self._connection.execute(sa.select(sa.func.sum(_blobs.c.size))).scalar() or 0)

    def pin(self, user: str, blobs: Mapping[str, bytes]) -> None:
        """Store blobs, unless they are stored, and note who uses them.

        Args:
            user: whose they are.
            blobs: SHA-256 -> bytes.
        """
        now = time.time()
        for digest, data in blobs.items():
            row = self._insert(_blobs).values(sha256=digest, size=len(data), bytes=data, used=now)
            self._connection.execute(
                row.on_conflict_do_update(index_elements=["sha256"], set_={"used": now})
            )
            use = self._insert(_uses).values(user=user, blob=digest)
            self._connection.execute(use.on_conflict_do_nothing())

    def read_of(self, user: str) -> dict[str, bytes]:
        """Return the blobs that a user has, by SHA-256."""
        query = sa.select(_blobs.c.sha256, _blobs.c.bytes).join(
            _uses, _uses.c.blob == _blobs.c.sha256
        )
        rows = self._connection.execute(query.where(_uses.c.user == user)).all()
        return {digest: bytes(data) for digest, data in rows}

    def starts_of(self, digests: Collection[str], max_bytes: int) -> dict[str, bytes]:
        """Return the first bytes of blobs, by SHA-256; those that are not stored are left out.

        Args:
            digests: their SHA-256; not more than one statement accepts.
            max_bytes: of each.
        """
        start = sa.func.substr(_blobs.c.bytes, 1, max_bytes, type_=sa.LargeBinary)
        query = sa.select(_blobs.c.sha256, start).where(_blobs.c.sha256.in_(digests))
        return {digest: bytes(data) for digest, data in self._connection.execute(query).all()}

    def unpin(self, users: Collection[str]) -> None:
        """Delete the blobs of users, except for those that others use, too."""
        if not users:
            return
        used = sa.select(_uses.c.blob).where(_uses.c.user.in_(users))
        digests = [row[0] for row in self._connection.execute(used).all()]
        self._connection.execute(sa.delete(_uses).where(_uses.c.user.in_(users)))
        unused = ~sa.exists().where(_uses.c.blob == _blobs.c.sha256)
        for digest in digests:
            self._connection.execute(sa.delete(_blobs).where(_blobs.c.sha256 == digest, unused))
