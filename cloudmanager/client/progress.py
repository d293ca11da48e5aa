"""Reports the progress of a verb in the thread that runs the verb."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .future import Future
from .runner import Steps, first_over

T = TypeVar("T")

#: Called with a board, how much is done for it, and its total. For a transfer these are bytes; for
#: a cell the total is 1, so that the sums over all boards are boards. It is called in the thread
#: that runs the verb (with ``AsyncFleet``, that of the event loop), for each board with the last
#: state since the previous call. If it raises, the boards are interrupted and the verb raises.
ProgressCallback = Callable[[str, int, int], object]


class ProgressRelay:
    """Passes progress from the link's thread to the thread that runs a verb.

    Args:
        callback: the caller's ``progress=``.
    """

    def __init__(self, callback: ProgressCallback) -> None:
        self._callback = callback
        self._unreported: dict[str, tuple[int, int]] = {}
        self._changed = Future[None]()

    def update(self, board: str, done: int, total: int) -> None:
        """Set the progress of a board; from any thread."""
        self._unreported[board] = done, total
        self._changed.set_result(None)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a verb that calls ``update``, and report its progress meanwhile."""
        steps = Steps(coroutine)
        while (pause := steps.pause) is not None:
            try:
                self._changed = Future()  # first: what changes from here on wakes this thread
                if not self._unreported:
                    await first_over([pause], self._changed)
                self._report()
            except BaseException as error:
                steps.resume(error)
            else:
                if pause.over:
                    steps.resume()
        self._report()
        return steps.value

    def _report(self) -> None:
        while self._unreported:
            board = next(iter(self._unreported))
            self._callback(board, *self._unreported.pop(board))
