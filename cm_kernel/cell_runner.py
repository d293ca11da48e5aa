"""Following a cell on the kernel's own loop: it serves widgets and Tab meanwhile.

One board's cell looks like any kernel's: its output is a stream, its value a result. Several
boards share one display that changes in place, as the magics show it.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any, Final, Protocol

from cloudmanager.client.async_fleet import soon
from cloudmanager.client.jobs import STOP_SECONDS, Event, Job, JobGroup
from cloudmanager.display.cell_view import Looks, View, printable
from cloudmanager.display.layout import head_text, plain
from cloudmanager.display.terminal import TICK
from cloudmanager.protocol.text import clean
from cloudmanager.results.results import Result, Results
from cm_magics import rich_values
from cm_magics.cell_display import Screen, is_live, render_stop

from .host import KernelHost
from .interrupts import STEPS

STREAM: Final = 64 * 1024  # characters that a cell may stream; of a longer output the end follows
_END: Final = 4 * 1024  # characters of that end
_GATHER: Final = 0.05  # seconds in which pieces of output become one message


class Shown(Protocol):
    """Where a cell is shown."""

    def take(self, event: Event) -> None:
        """Take one event; the view has it already."""

    def draw(self) -> None:
        """Show what is to be shown by now."""

    def ask(self, prompt: str) -> str | None:
        """Ask the person; None where there is none."""

    def close(self) -> None:
        """Leave the final state."""


class InLoop:
    """Waits for one cell on the loop. ``headed``: even one board's name stands over its output."""

    def __init__(self, kernel: KernelHost, *, headed: bool) -> None:
        self._kernel = kernel
        self._headed = headed
        self._loop = asyncio.get_running_loop()
        self._events: collections.deque[Event | None] = collections.deque()
        self._heard = asyncio.Event()

    def heard(self) -> dict[str, Any]:
        """Return what ``submit`` is told."""
        return {"tell": self._tell}

    def _tell(self, event: Event | None) -> None:
        """Take an event, in the link's thread."""
        self._events.append(event)
        if len(self._events) == 1 or event is None:
            soon(self._loop, self._heard.set)

    async def follow(self, group: JobGroup, looks: Looks, *, late: bool) -> Results:
        """Show what a cell does until all boards are done; see ``cm_magics.show.follow``."""
        view = View(group, looks)
        alone = len(group.jobs) == 1 and looks.grouped != "order"
        shown: Shown = (
            _Stream(self._kernel, view, looks, headed=self._headed) if alone else _Display(view)
        )
        try:
            try:
                await self._pump(group, view, shown)
            except (KeyboardInterrupt, asyncio.CancelledError):
                await self._stop(group, view, shown)
                raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            stop = KeyboardInterrupt()
            render_stop(stop, group, late=False)
            raise stop from None
        finally:
            shown.close()
        return group.results(0)

    async def _pump(self, group: JobGroup, view: View, shown: Shown) -> None:
        while (event := await self._next(shown)) is not None:
            view.take(event)
            shown.take(event)
            if event.kind == "input":
                with self._kernel.interrupts.only(STEPS):  # it blocks
                    answer = shown.ask(clean(f"{event.job.board}: {event.text}"))
                group.answer(event.job, answer)

    async def _stop(self, group: JobGroup, view: View, shown: Shown) -> None:
        """Interrupt the boards and take their outcomes, for a short while."""
        group.interrupt()
        view.show_failures()
        deadline = self._loop.call_later(STOP_SECONDS, self._tell, None)
        try:
            while (event := await self._next(shown)) is not None:
                view.take(event)
                shown.take(event)
                if event.kind == "input":
                    group.answer(event.job, None)
        finally:
            deadline.cancel()

    async def _next(self, shown: Shown) -> Event | None:
        """Return the next event, or None after the last; draw while there is none."""
        while not self._events:
            shown.draw()
            self._heard.clear()
            if self._events:
                break
            tick = self._loop.call_later(TICK, self._heard.set)
            await self._heard.wait()
            tick.cancel()
        return self._events.popleft()


class _Display:
    """Several boards: one display, changed in place."""

    def __init__(self, view: View) -> None:
        self._screen = Screen(view, live=is_live())
        self.ask, self.close = self._screen.ask, self._screen.close

    def take(self, event: Event) -> None:
        self._screen.draw(event)

    def draw(self) -> None:
        self._screen.draw(None)


class _Stream:
    """One board: its output as it comes, then its value."""

    def __init__(self, kernel: KernelHost, view: View, looks: Looks, *, headed: bool) -> None:
        self._kernel = kernel
        self._view = view
        self._looks = looks
        self._headed = headed
        self._text: list[str] = []  # not sent yet
        self._due = 0.0
        self._room = STREAM
        self._fresh = True  # whether the cursor is at the start of a line
        self._left = 0  # characters that had no room
        self._job: Job | None = None

    def take(self, event: Event) -> None:
        self._job = event.job
        if event.kind == "output":
            self._print(printable(event.text))
        elif event.kind == "queued" and self._headed:
            waits = f"queued {printable(event.text)}" if event.text else "waiting for it to dial in"
            self._head(f"{event.job.board} · {waits}")
        elif event.kind == "ended" and event.job.result is not None:
            self._end(event.job.result)

    def draw(self) -> None:
        now = time.monotonic()
        if self._text and now >= self._due:
            self._send()
            self._due = now + _GATHER

    def ask(self, prompt: str) -> str | None:
        self._send()
        self._fresh = True
        try:
            return input(prompt)
        except (EOFError, RuntimeError):  # IPython's word for: nobody is there
            return None

    def close(self) -> None:
        self._send()

    def _print(self, text: str) -> None:
        if self._headed and self._job is not None:
            self._head(self._job.board)
        shown = text[: self._room]
        self._left += len(text) - len(shown)
        self._room -= len(shown)
        self._write(shown)

    def _head(self, words: str) -> None:
        self._headed = False
        self._write(f"{head_text(words)}\n")

    def _write(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._fresh = text.endswith("\n")

    def _send(self) -> None:
        text, self._text = "".join(self._text), []
        if text:
            told = {"name": "stdout", "text": text}
            self._kernel.send_response(self._kernel.iopub_socket, "stream", told)

    def _end(self, result: Result) -> None:
        if self._left:
            where = self._looks.kept.replace("{board}", result.board)
            end = printable(result.stdout[-_END:])
            self._write(f"\n… {self._left:,} characters more, {where}; the last of them:\n{end}")
        lines = [] if result.ok else self._view.ending(result.board)
        if lines:
            self._write(("" if self._fresh else "\n") + plain(lines) + "\n")
        if result.ok and result.text:
            if self._headed:
                self._head(result.board)
            self._send()
            self._result(rich_values.bundle(result))

    def _result(self, data: dict[str, Any]) -> None:
        count = self._kernel.execution_count - 1
        told = {"execution_count": count, "data": data, "metadata": {}}
        self._kernel.send_response(self._kernel.iopub_socket, "execute_result", told)
