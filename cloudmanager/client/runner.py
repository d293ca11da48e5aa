"""Runs the coroutines of the verbs: in the calling thread, in asyncio, or several at a time.

These coroutines await only ``Future``, so they need no event loop. ``Steps`` runs one from one
pause to the next; the functions differ only in how they wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .future import Future, Pause

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class Steps(Generic[T]):
    """A coroutine that is run step by step.

    Attributes:
        pause: what the coroutine waits for; None once it has ended.
        value: its result, once it has ended.
    """

    value: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.pause: Pause | None = None
        self.resume()

    def resume(self, error: BaseException | None = None) -> None:
        """Run the coroutine until its next pause, or its end.

        Args:
            error: raised inside of the coroutine: why the wait was interrupted.
        """
        try:
            if error is None:
                self.pause = self._coroutine.send(None)
            else:
                self.pause = self._coroutine.throw(error)
        except StopIteration as end:
            self.pause, self.value = None, end.value


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a verb in this thread and return its result; an interrupt is raised inside of it."""
    steps = Steps(coroutine)
    while (pause := steps.pause) is not None:
        try:
            pause.future.wait(pause.seconds_left())
        except BaseException as error:
            steps.resume(error)
        else:
            steps.resume()
    return steps.value


async def run_in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a verb in the running event loop; a cancellation is raised inside of it."""
    steps = Steps(coroutine)
    while (pause := steps.pause) is not None:
        try:
            await _wait_in_loop(pause)
        except BaseException as error:
            steps.resume(error)
        else:
            steps.resume()
    return steps.value


async def wait_done(future: Future[Any]) -> None:
    """Wait until a future is set, without blocking the event loop."""
    await _wait_in_loop(Pause(future))


async def _wait_in_loop(pause: Pause) -> None:
    import asyncio  # takes 50 ms: only for programs that use it

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    seconds = pause.seconds_left()
    timer = None if seconds is None else loop.call_later(seconds, over.set)
    with calling(lambda: call_in_loop(loop, over.set), [pause.future]):
        try:
            await over.wait()
        finally:
            if timer is not None:
                timer.cancel()


def call_in_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object
) -> None:
    """Schedule ``callback`` in a loop, from any thread; do nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)


@contextlib.contextmanager
def calling(callback: Callable[[], object], futures: Iterable[Future[Any]]) -> Iterator[None]:
    """Within the block, call ``callback`` when one of the futures is set, in the thread that does.

    It is called at once for a future that is set already.
    """
    futures = list(futures)
    try:
        for future in futures:
            future.add_done_callback(callback)
        yield
    finally:
        for future in futures:
            future.remove_done_callback(callback)


async def gather(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Run several coroutines concurrently, without asyncio; return their results in order.

    If one raises, or the wait is interrupted, the others are closed, which interrupts their jobs.
    """
    try:
        running = [Steps(coroutine) for coroutine in coroutines]
        while pauses := [steps.pause for steps in running if steps.pause is not None]:
            await first_over(pauses)
            for steps in running:
                if steps.pause is not None and steps.pause.over:
                    steps.resume()
        return [steps.value for steps in running]
    finally:
        for coroutine in coroutines:
            coroutine.close()


async def first_over(pauses: Iterable[Pause], wake: Future[None] | None = None) -> None:
    """Wait until at least one of some pauses is over, or until ``wake`` is set."""
    pauses = list(pauses)
    first = wake or Future[None]()
    deadlines = [pause.deadline for pause in pauses if pause.deadline is not None]
    with calling(lambda: first.set_result(None), [pause.future for pause in pauses]):
        if not first.done:
            await Pause(first, min(deadlines, default=None))
