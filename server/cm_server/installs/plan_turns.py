"""Turns of the plans that are being made: their files and archives are in memory meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cm_server.limits import Limits


class PlanTurns:
    """Lets a few plans be made at the same time; the others wait.

    Args:
        limits: how many, in all and for one token.
    """

    def __init__(self, limits: Limits) -> None:
        self._per_token = limits.plans_at_once_per_token
        self._all = asyncio.Semaphore(limits.plans_at_once)
        self._of_tokens: dict[str, asyncio.Semaphore] = {}
        self._waiting: dict[str, int] = {}  # by token: how many wait or are being made

    @contextlib.asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """Wait for the turn of one plan of a token.

        Args:
            owner: the hash of the token.
        """
        own = self._of_tokens.setdefault(owner, asyncio.Semaphore(self._per_token))
        self._waiting[owner] = self._waiting.get(owner, 0) + 1
        try:
            async with own, self._all:
                yield
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner], self._of_tokens[owner]
