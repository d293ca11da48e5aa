"""Shares of what the server has a limited number of: so much in all, and so much for one token.

A part is reserved for administrators, so that tokens with fewer rights, however many, cannot keep
an administrator from revoking them. No sockets, no SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cm_server.store.rows import TokenRow

ADMIN_ROLE = "admin"  # the role for which a part is reserved


@dataclass
class Quota:
    """How much there is of something.

    Attributes:
        what: its name in the plural, for the sentence of a refusal.
        total: for all tokens together.
        per_token: for one token.
        reserved: part of the total that only administrators may use; a quarter of it at most.
    """

    what: str
    total: int
    per_token: int
    reserved: int
    _reserve: int = field(init=False, repr=False)  # what only administrators may use

    def __post_init__(self) -> None:
        self._reserve = min(self.reserved, self.total // 4)

    def refusal_reason(self, token: TokenRow, own: int, used: int, amount: int = 1) -> str:
        """Return why a token may not have more; "" if it may.

        Args:
            token: who asks.
            own: how much it has.
            used: how much all tokens have.
            amount: how much more it asks for.
        """
        if own + amount <= self.per_token and used + amount <= self.total - self._reserve:
            return ""  # the usual case: checked first, because each cell asks twice
        if self.exceeds_share(own + amount):
            return f"the token {token.name!r} has {own:,} {self.what} already"
        if used + amount > self.total:
            return f"the server has {used:,} {self.what} already"
        if used + amount > self.total - self._reserved_from(token):
            return (
                f"the server has {used:,} {self.what} already, "
                "and the last ones are reserved for administrators"
            )
        return ""

    def exceeds_share(self, amount: int) -> bool:
        """Return whether this is more than one token may have."""
        return amount > self.per_token

    def _reserved_from(self, token: TokenRow) -> int:
        """Return how much a token may not use, because it is reserved for others."""
        return 0 if token.role == ADMIN_ROLE else self._reserve


class Shares:
    """How much of something each token has now.

    Args:
        quota: how much there is.
    """

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._used: dict[str, int] = {}  # by the hash of the token
        self.total = 0

    def refusal_reason(self, token: TokenRow, amount: int = 1) -> str:
        """Return why a token may not have more; "" if it may."""
        return self._quota.refusal_reason(token, self.used_by(token.hash), self.total, amount)

    def exceeds_share(self, token: TokenRow) -> bool:
        """Return whether a token has more than its share."""
        return self._quota.exceeds_share(self.used_by(token.hash))

    def used_by(self, owner: str) -> int:
        """Return how much the token with this hash has."""
        return self._used.get(owner, 0)

    def add(self, owner: str, amount: int = 1) -> None:
        """Count what a token has got; a negative amount for what it gave back."""
        self.total += amount
        used = self._used.get(owner, 0) + amount
        if used:
            self._used[owner] = used
        else:
            self._used.pop(owner, None)
