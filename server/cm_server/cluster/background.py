"""Tasks that use the store while the event loop goes on; one of each kind at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup


class BackgroundTasks:
    """Runs coroutines.

    If the store is unavailable, that is logged once a minute (the next heartbeat retries).
    """

    def __init__(self) -> None:
        self._problems = cleanup.ProblemLog()
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_kind: dict[str, asyncio.Task[None]] = {}

    def start(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Run a coroutine."""
        task = asyncio.ensure_future(self._run_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before its start
        return task

    def start_one(self, kind: str, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine, unless an earlier one of its kind still waits for the store."""
        running = self._by_kind.get(kind)
        if running is not None and not running.done():
            work.close()
        else:
            self._by_kind[kind] = self.start(work)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in list(self._tasks):
            task.cancel()

    async def _run_guarded(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except ServerError as error:
            text = "cannot exchange state with other servers: %s"
            self._problems.write(logging.WARNING, "", text, error.reason)
        except Exception as error:
            cleanup.log_failure("the exchange of state with other servers", error)
