"""Creates, finds, checks and revokes tokens. No sockets, no SQL.

A token has a name, a role, a target, and may expire. The server creates the local user's token,
which is called ``local`` and kept in a file that only that user can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import check_name, parse_target
from cm_server.limits import Limits
from cm_server.store.rows import TokenRow

from . import credentials
from .audit import AuditEntry

if TYPE_CHECKING:
    from cm_server.store.store import Store
    from cm_server.store.store_queue import StoreQueue

log = logging.getLogger("cm_server")

READ_SECONDS = 0.2  # between two reads of the tokens because a caller's one is unknown
LOCAL_TOKEN_NAME = "local"  # the name of the local user's token
_MAX_NUMBER_CHARS = 10  # of the number in a name that the server chooses


@dataclass(frozen=True)
class NewToken:
    """A token that a caller wants to create; the values come from it and may be of any type.

    Attributes:
        name: for lists and the audit log.
        role: viewer, operator or admin; board for an enrolment token.
        target: the boards that it reaches, or the names that it may enrol.
        seconds: lifetime; None for no end.
        uses: how many boards may enrol themselves with it, if its role is board.
    """

    name: Any
    role: Any
    target: Any
    seconds: Any
    uses: Any = None


class Tokens:
    """All valid tokens, and those that expired or were revoked most recently.

    Args:
        store_queue: of the store, where the tokens' hashes are kept.
        limits: how many tokens there are, and for how long.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store_queue = store_queue
        self._limits = limits
        self._clock = clock
        self._rows: dict[str, TokenRow] = {}
        self._home: Path | None = None  # where the local user's token is kept
        self._local_name = LOCAL_TOKEN_NAME
        self._renewing = asyncio.Lock()
        self._read_at = 0.0  # by the monotonic clock: when ``read_new`` read them last
        self._reading: asyncio.Future[None] | None = None
        self.apply_rows(store_queue.store.tokens())  # the server does not serve yet

    def apply_rows(self, rows: Sequence[TokenRow]) -> None:
        """Know the tokens that are in the store now.

        Args:
            rows: all of them, oldest first.
        """
        valid = [row for row in rows if not self._invalid_reason(row)]
        # Those with the latest end are kept. While the clock is wrong, valid tokens may seem to be
        # expired; they end last, so that they are still known when the clock is right again.
        invalid = sorted((row for row in rows if self._invalid_reason(row)), key=_end_time)
        self._rows = {row.hash: row for row in (*invalid[-self._limits.tokens :], *valid)}

    async def read_new(self) -> None:
        """Read the tokens again, since another server may have just created one.

        Strangers can cause it: they share one read every ``READ_SECONDS``.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read_later())
        await asyncio.shield(self._reading)

    async def _read_later(self) -> None:
        await asyncio.sleep(max(self._read_at + READ_SECONDS - time.monotonic(), 0))
        self._read_at = time.monotonic()
        with contextlib.suppress(ServerError):  # the store is unavailable: nothing new is known
            self.apply_rows(await self._store_queue.run(lambda store: store.tokens()))

    def find_caller_token(self, header: str | None) -> TokenRow | None:
        """Return the token in a caller's ``Authorization`` header; None if it is unknown.

        It may be invalid: see ``refusal_reason``. An enrolment token is not a caller's token.
        """
        row = credentials.find_bearer_token(header, self._rows, self._limits.token_chars)
        return row if row is not None and row.uses is None else None

    def find_enrolment_token(self, token: str) -> TokenRow | None:
        """Return an enrolment token's row; None if it is unknown or a caller's token.

        It may be invalid: see ``refusal_reason``.
        """
        row = credentials.match_token(token, self._rows, self._limits.token_chars)
        return row if row is not None and row.uses is not None else None

    def count_use(self, row: TokenRow) -> None:
        """Count one use of an enrolment token, which the store has counted already."""
        self._rows[row.hash] = row._replace(uses=(row.uses or 1) - 1)

    def by_hash(self, token_hash: str) -> TokenRow | None:
        """Return the token with this hash, valid or not; None where none is known."""
        return self._rows.get(token_hash)

    def refusal_reason(self, token: TokenRow) -> str:
        """Return why a token is not valid now; "" if it is valid."""
        row = self._rows.get(token.hash)
        if row is None:
            return f"the token {token.name!r} is not known here"
        if row.revoked is None and row.expires is None:
            return ""  # the usual case: each cell is checked three times
        return self._invalid_reason(row)

    def _invalid_reason(self, row: TokenRow) -> str:
        return self._revoked_reason(row) or self._expired_reason(row)

    def _revoked_reason(self, row: TokenRow) -> str:
        if row.revoked is not None:
            return f"the token {row.name!r} was revoked on {_format_time(row.revoked)}"
        return ""

    def _expired_reason(self, row: TokenRow) -> str:
        if row.expires is not None and row.expires <= self._clock():
            return f"the token {row.name!r} expired on {_format_time(row.expires)}"
        return ""

    def seconds_left(self, row: TokenRow) -> float | None:
        """Return the seconds until a token expires, by the wall clock; None if it never does."""
        return None if row.expires is None else row.expires - self._clock()

    def install_local_token(self, home: Path, name: str = LOCAL_TOKEN_NAME) -> None:
        """Store the local user's token, and revoke earlier ones of that name.

        A token that another server's user revoked is replaced. Call it before the server serves.

        Args:
            home: the server's folder, where the token is kept.
            name: of the token.
        """
        self._home, self._local_name = home, name
        token = read_local_token(home)
        known = self._rows.get(credentials.token_hash(token))
        if known is not None and known.revoked is None:
            return
        if known is not None:
            token = _replace_local_token(home)
        store = self._store_queue.store
        entry = AuditEntry(name, "this machine", "token-create", name, self._limits.audit_chars)
        for row in self.find_unrevoked(name):
            self._rows[row.hash] = row._replace(revoked=self._clock())
            store.revoke_token(row.hash, self._clock())
        row = TokenRow(credentials.token_hash(token), name, "admin", created=self._clock())
        store.add_token(row, entry.to_row())
        self._rows[row.hash] = row

    async def renew_local_token(self) -> None:
        """Replace the local user's token if it was revoked, at this server or another one."""
        async with self._renewing:
            if self._home is None or self.find_unrevoked(self._local_name):
                return
            name, token = self._local_name, credentials.new_token()
            row = TokenRow(credentials.token_hash(token), name, "admin", created=self._clock())
            entry = AuditEntry(name, "this machine", "token-create", name, self._limits.audit_chars)
            audit_row = entry.to_row()
            await self._store_queue.run(lambda store: store.add_token(row, audit_row), durable=True)
            config.write_private(config.token_file(self._home), token + "\n")
            self._rows[row.hash] = row

    async def create(self, request: NewToken, audit_entry: AuditEntry) -> str:
        """Create a token and return it; only its hash is stored.

        An expired token of the same name is revoked: it would be valid again after the clock was
        set back.

        Args:
            request: what the caller wants.
            audit_entry: for the audit log; its target and detail are set here.

        Raises:
            TargetError: the name or the target is not legal.
            ServerError: the role or the lifetime is not legal, or the name is taken.
        """
        row = self._new_row(request.name, request.role, request.target, request.seconds)
        row = row._replace(uses=self._check_uses(request.role, request.uses))
        until = f", expires {_format_time(row.expires)}" if row.expires else ""
        audit_entry.target, audit_entry.detail = row.name, f"{row.role} on {row.target}{until}"
        token = credentials.new_token()
        row = row._replace(hash=credentials.token_hash(token))
        audit_row = audit_entry.to_row()
        expired = next(iter(self.find_unrevoked(row.name)), None)  # ``_new_row`` allows no other
        replaced = expired.hash if expired is not None else ""
        await self._store_queue.run(
            lambda store: store.add_token(row, audit_row, replaced), refusable=True, durable=True
        )
        audit_entry.written = True
        if expired is not None:
            self._rows[expired.hash] = expired._replace(revoked=row.created)
        self._rows[row.hash] = row
        return token

    def unused_name(self, prefix: str) -> str:
        """Return a name such as ``enrol-7`` that no known token has or had.

        Args:
            prefix: what is before the number, which is larger than that of any such name.
        """
        numbers = [0]
        for row in self._rows.values():
            before, _, number = row.name.rpartition("-")
            if before == prefix and number.isdecimal() and len(number) < _MAX_NUMBER_CHARS:
                numbers.append(int(number))
        return f"{prefix}-{max(numbers) + 1}"

    def _new_row(self, name: Any, role: Any, target: Any, seconds: Any) -> TokenRow:
        if (
            not isinstance(name, str)
            or not isinstance(target, str)
            or credentials.TOKEN_PATTERN.search(name)
        ):
            raise ServerError(
                "a token needs a name and a target; the name may not look like a token"
            )
        check_name(name)
        if name in (LOCAL_TOKEN_NAME, self._local_name):
            raise ServerError(
                f"{name} is the token of the user who runs the server; choose another name"
            )
        if self._has_valid(name):
            raise ServerError(
                f"there is a token called {name} already; revoke it, or choose another name"
            )
        if role not in (*credentials.ROLES, credentials.BOARD_ROLE):
            raise ServerError(f"the role must be one of {', '.join(credentials.ROLES)}")
        if sum(not self._invalid_reason(row) for row in self._rows.values()) >= self._limits.tokens:
            raise ServerError(f"there are {self._limits.tokens} tokens already; revoke some")
        now = self._clock()
        expires = None if seconds is None else now + self._check_lifetime(seconds)
        return TokenRow("", name, role, parse_target(target.strip()).text, now, expires)

    def _has_valid(self, name: str) -> bool:
        """Return whether a token of that name is valid now."""
        return any(not self._expired_reason(row) for row in self.find_unrevoked(name))

    def _check_uses(self, role: str, uses: Any) -> int | None:
        """Return how many boards an enrolment token may enrol; None for a caller's token."""
        if role != credentials.BOARD_ROLE:
            return None
        if type(uses) is not int or not 0 < uses <= self._limits.enrol_names:
            raise ServerError(f"a token may enrol 1 to {self._limits.enrol_names} boards")
        return uses

    def _check_lifetime(self, seconds: Any) -> float:
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= self._limits.token_seconds:
            raise ServerError("a token's lifetime must be above 0 seconds and at most ten years")
        return float(seconds)

    async def revoke(self, name: Any, audit_entry: AuditEntry) -> TokenRow:
        """Revoke the token of a name, and return its row.

        Raises:
            ServerError: there is no valid token of that name, or it is the local user's.
        """
        audit_entry.target = str(name)
        if name == LOCAL_TOKEN_NAME:
            raise ServerError(
                "the local user's token is a file: delete it and restart the server, "
                "which creates another"
            )
        rows = self.find_unrevoked(str(name))
        if not rows:
            raise ServerError(f"there is no token called {str(name)[:64]!r}")
        revoked = rows[0]._replace(revoked=self._clock())
        audit_row = audit_entry.to_row()
        await self._store_queue.run(
            lambda store: store.revoke_token(revoked.hash, revoked.revoked or 0.0, audit_row),
            refusable=True,
            durable=True,
        )
        audit_entry.written = True
        self._rows[revoked.hash] = revoked
        return revoked

    def find_unrevoked(self, name: str) -> list[TokenRow]:
        """Return the tokens of that name that are not revoked: at most one."""
        return [row for row in self._rows.values() if row.name == name and row.revoked is None]

    def describe(self) -> list[dict[str, Any]]:
        """Return all tokens as callers may see them: without the token or its hash."""
        return [
            {
                "name": row.name,
                "role": row.role,
                "target": row.target,
                "created": row.created,
                "expires": row.expires,
                "revoked": row.revoked,
                "uses": row.uses,
                "state": _token_state(row, self._invalid_reason(row)),
            }
            for row in self._rows.values()
        ]


def read_local_token(home: Path) -> str:
    """Return the local user's token; create it, in a file that only the user can read."""
    path = config.token_file(home)
    token = config.read_token(path)
    if token is None and path.exists():
        log.warning("%s has no token that only this user can have written: it is replaced", path)
    return token or _replace_local_token(home)


def _replace_local_token(home: Path) -> str:
    """Return a new token of the local user, which replaces the one in the file."""
    token = credentials.new_token()
    config.write_private(config.token_file(home), token + "\n")
    return token


def _end_time(row: TokenRow) -> float:
    """Return when an invalid token was revoked or expired, whichever came first."""
    return min(at for at in (row.revoked, row.expires) if at is not None)


def _token_state(row: TokenRow, invalid_reason: str) -> str:
    return "valid" if not invalid_reason else "expired" if row.revoked is None else "revoked"


def _format_time(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
