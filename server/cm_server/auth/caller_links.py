"""The links of callers, and the end of those whose token is no longer valid. No sockets here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cloudmanager.protocol import frames
from cm_server.store.rows import TokenRow
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation, StoreQueue

from .permission import Permission
from .tokens import Tokens


class CallerLink(Protocol):
    """A caller's link, as far as its token matters."""

    @property
    def token(self) -> TokenRow:
        """The token with which it was opened."""

    def close(self, code: int, reason: str) -> None:
        """Close the link with a WebSocket close code."""


class CallerLinks:
    """All open links of callers.

    Args:
        store_queue: of the store, which has the tokens.
        tokens: as they were read from the store.
        permission: ends the jobs that a token does not permit any more.
    """

    def __init__(
        self, store_queue: StoreQueue[Store], tokens: Tokens, permission: Permission
    ) -> None:
        self._store_queue = store_queue
        self._tokens = tokens
        self._permission = permission
        self._links: set[CallerLink] = set()

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[CallerLink]:
        return iter(self._links)

    def add(self, link: CallerLink) -> None:
        """Add a link that was opened."""
        self._links.add(link)

    def discard(self, link: CallerLink) -> None:
        """Remove a link that is closed."""
        self._links.discard(link)

    def count_of(self, token: TokenRow) -> int:
        """Return how many links were opened with a token."""
        return sum(link.token.hash == token.hash for link in self._links)

    def close_revoked(self, token: TokenRow) -> int:
        """End a revoked token's queued jobs and close its links; return the number of links."""
        self._permission.review()
        links = [link for link in self._links if link.token.hash == token.hash]
        for link in links:
            self._close_invalid(link)
        return len(links)

    async def reload_tokens(self) -> None:
        """Reload the tokens from the store; close the links of those that are no longer valid."""
        operation = self._store_queue.run(lambda store: store.tokens())
        operation.when_done(self._apply_tokens)
        await operation
        await self._tokens.renew_local_token()

    def _apply_tokens(self, operation: Operation[list[TokenRow]]) -> None:
        if operation.error is not None:
            return
        self._tokens.apply_rows(operation.result())
        self._permission.review()
        for link in list(self._links):
            if self._tokens.refusal_reason(link.token):
                self._close_invalid(link)

    def _close_invalid(self, link: CallerLink) -> None:
        link.close(frames.CLOSE_REVOKED, self._tokens.refusal_reason(link.token))

    def close_all(self, why: str) -> None:
        """Close all links: the server stops, or starts again."""
        for link in list(self._links):
            link.close(frames.CLOSE_GOING_AWAY, why)
