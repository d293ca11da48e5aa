"""Callers' tokens: made, found, expired, revoked. No sockets, no SQL.

Each has a name, a role, a target that it reaches, and perhaps an end. The local user's own is
called ``local`` and stands in a file that is his alone; the server makes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import check_name, parse_target
from cm_server import limits
from cm_server.store.rows import TokenRow

from . import credentials
from .audit import AuditEntry

if TYPE_CHECKING:
    from cm_server.store.store import Store

LOCAL_TOKEN_NAME = "local"  # the name of the local user's token


class Tokens:
    """Every token that opens something, and those that did.

    Args:
        store: where they are kept, hashed.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._rows: dict[str, TokenRow] = {}
        self.reload()

    def reload(self) -> None:
        """Read what the store has."""
        rows = self._store.tokens()
        # By the time of their end: a clock that is wrong makes valid tokens look expired, and
        # those end last, so that they are still here when it is right again.
        dead = sorted((row for row in rows if self._invalid_reason(row)), key=_end_of)[
            -limits.TOKENS :
        ]
        live = [row for row in rows if not self._invalid_reason(row)]
        self._rows = {row.hash: row for row in (*dead, *live)}

    def find_caller_token(self, header: str | None) -> TokenRow | None:
        """Return the caller whose token an ``Authorization`` header holds; see ``refusal``."""
        row = credentials.find_bearer_token(header, self._rows)
        return row if row is not None and row.uses is None else None

    def find_enrolment_token(self, token: str) -> TokenRow | None:
        """Return the row of a token that enrols boards; see ``refusal``."""
        row = credentials.match_token(token, self._rows)
        return row if row is not None and row.uses is not None else None

    def count_use(self, row: TokenRow) -> None:
        """Note that it has enrolled a board; the store knows already."""
        self._rows[row.hash] = row._replace(uses=(row.uses or 1) - 1)

    def by_hash(self, token_hash: str) -> TokenRow | None:
        """Return the token with this hash, valid or not; None where none is known."""
        return self._rows.get(token_hash)

    def refusal_reason(self, token: TokenRow) -> str:
        """Say why a token opens nothing now; "" where it does."""
        row = self._rows.get(token.hash)
        return self._invalid_reason(row) if row else f"the token {token.name!r} is not known here"

    def _invalid_reason(self, row: TokenRow) -> str:
        if row.revoked is not None:
            return f"the token {row.name!r} was revoked on {_format_time(row.revoked)}"
        if row.expires is not None and row.expires <= self._clock():
            return f"the token {row.name!r} expired on {_format_time(row.expires)}"
        return ""

    def seconds_left(self, row: TokenRow) -> float | None:
        """Return the seconds until a token expires, by the clock as it is now; None for never."""
        return None if row.expires is None else row.expires - self._clock()

    def install_local_token(self, token: str, name: str = LOCAL_TOKEN_NAME) -> None:
        """See that the local user's token opens the door, and none that was his before."""
        if credentials.token_hash(token) in self._rows:
            return
        note = AuditEntry(name, "this machine", "token-create", name)
        for row in self._find_unrevoked(name):
            self._revoke(row, None)
        row = TokenRow(credentials.token_hash(token), name, "admin", created=self._clock())
        self._store.add_token(row, note.to_row())
        self._rows[row.hash] = row

    def create(
        self,
        name: Any,
        role: Any,
        target: Any,
        seconds: Any,
        audit_entry: AuditEntry,
        *,
        uses: Any = None,
    ) -> str:
        """Make a token and return it; from now on only its bearer knows it.

        Args:
            name: what it is called, in lists and in the audit log.
            role: viewer, operator or admin.
            target: the boards that it reaches.
            seconds: after which it opens nothing any more; None for never.
            audit_entry: the row that the audit log gets.
            uses: how many boards may enrol themselves with it; its role is ``board`` then.

        Raises:
            TargetError: the name or the target is none.
            ServerError: the role or the time is none, or the name is taken.
        """
        row = self._new_row(name, role, target, seconds)._replace(uses=_check_uses(role, uses))
        until = f", expires {_format_time(row.expires)}" if row.expires else ""
        audit_entry.target, audit_entry.detail = row.name, f"{row.role} on {row.target}{until}"
        token = credentials.new_token()
        row = row._replace(hash=credentials.token_hash(token))
        self._store.add_token(row, audit_entry.to_row())
        audit_entry.written = True
        self._rows[row.hash] = row
        return token

    def _new_row(self, name: Any, role: Any, target: Any, seconds: Any) -> TokenRow:
        if (
            not isinstance(name, str)
            or not isinstance(target, str)
            or credentials.TOKEN_PATTERN.search(name)
        ):
            raise ServerError("a token has a name, and the boards that it reaches are a target")
        check_name(name)
        if self._find_unrevoked(name) or name == LOCAL_TOKEN_NAME:
            why = f"there is a token called {name} already"
            raise ServerError(f"{why}; revoke it, or choose another name")
        if role not in (*credentials.ROLES, credentials.BOARD_ROLE):
            raise ServerError(f"a role is one of {', '.join(credentials.ROLES)}")
        if sum(not self._invalid_reason(row) for row in self._rows.values()) >= limits.TOKENS:
            raise ServerError(f"there are {limits.TOKENS} tokens already; revoke some")
        now = self._clock()
        expires = None if seconds is None else now + _check_lifetime(seconds)
        return TokenRow("", name, role, parse_target(target.strip()).text, now, expires)

    def revoke(self, name: Any, audit_entry: AuditEntry) -> TokenRow:
        """Let a token open nothing any more, and return it.

        Raises:
            ServerError: there is none of that name, or it is the local user's.
        """
        audit_entry.target = str(name)
        if name == LOCAL_TOKEN_NAME:
            why = "the local user's token is a file"
            raise ServerError(f"{why}: delete it and start the server again, then it is another")
        rows = self._find_unrevoked(str(name))
        if not rows:
            raise ServerError(f"there is no token called {str(name)[:64]!r}")
        row = self._revoke(rows[0], audit_entry)
        audit_entry.written = True
        return row

    def _revoke(self, row: TokenRow, audit_entry: AuditEntry | None) -> TokenRow:
        revoked = row._replace(revoked=self._clock())
        self._store.revoke_token(
            row.hash, self._clock(), audit_entry.to_row() if audit_entry else None
        )
        self._rows[row.hash] = revoked
        return revoked

    def _find_unrevoked(self, name: str) -> list[TokenRow]:
        """Return the token of that name that is not revoked, if there is one."""
        return [row for row in self._rows.values() if row.name == name and row.revoked is None]

    def describe(self) -> list[dict[str, Any]]:
        """Return every token as callers see it: all but the token."""
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


def _end_of(row: TokenRow) -> float:
    ends = [at for at in (row.revoked, row.expires) if at is not None]
    return min(ends)


def _check_uses(role: str, uses: Any) -> int | None:
    if role != credentials.BOARD_ROLE:
        return None
    if type(uses) is not int or not 0 < uses <= limits.ENROL_NAMES:
        raise ServerError(f"a token enrols 1 to {limits.ENROL_NAMES} boards")
    return uses


def _token_state(row: TokenRow, invalid_reason: str) -> str:
    return "valid" if not invalid_reason else "expired" if row.revoked is None else "revoked"


def _check_lifetime(seconds: Any) -> float:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= limits.TOKEN_SECONDS:
        raise ServerError("a token expires after seconds above 0 and at most ten years")
    return float(seconds)


def _format_time(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
