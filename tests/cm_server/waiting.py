"""Let tests that are not coroutines, or must not give way, wait for the queue of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from cm_server.store.store_queue import StoreQueue

T = TypeVar("T")


def finish(queue: StoreQueue[Any], work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing but the queue of a store."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            value: T = end.value
            return value
        assert queue.drain()
