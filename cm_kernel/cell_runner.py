"""Following a cell on the kernel's own loop: it serves widgets and Tab meanwhile.

One board's cell looks like any kernel's: its output is a stream, its value a result. Several
boards share one display that changes in place, as the magics show it.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any, Final, Protocol

from cloudmanager.client.async_fleet import call_in_loop
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS, Event, Job, JobGroup
from cloudmanager.display.cell_view import CellView, DisplayOptions, printable_output
from cloudmanager.display.layout import head_text, plain_text
from cloudmanager.display.terminal import REFRESH_SECONDS
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Result, Results
from cm_magics import rich_values
from cm_magics.cell_display import CellDisplay, is_live, render_interrupt

from .host import KernelHost
from .interrupts import ANY_TIME

MAX_STREAM_CHARS: Final = (
    64 * 1024
)  # characters that a cell may stream; of a longer output the end follows
_END_CHARS: Final = 4 * 1024  # characters of that end
_GATHER_SECONDS: Final = 0.05  # seconds in which pieces of output become one message


class CellOutput(Protocol):
    """Where a cell is shown."""

    def handle_event(self, event: Event) -> None:
        """Take one event; the view has it already."""

    def draw(self) -> None:
        """Show what is to be shown by now."""

    def ask(self, prompt: str) -> str | None:
        """Ask the person; None where there is none."""

    def close(self) -> None:
        """Leave the final state."""


class LoopRunner:
    """Waits for a cell on the loop; with ``with_head`` a single board's output has a head too."""

    def __init__(self, kernel: KernelHost, *, with_head: bool) -> None:
        self._kernel = kernel
        self._with_head = with_head
        self._loop = asyncio.get_running_loop()
        self._events: collections.deque[Event | None] = collections.deque()
        self._event_arrived = asyncio.Event()

    def submit_arguments(self) -> dict[str, Any]:
        """Return what ``submit`` is told."""
        return {"on_event": self._on_event}

    def _on_event(self, event: Event | None) -> None:
        """Take an event, in the link's thread."""
        self._events.append(event)
        if len(self._events) == 1 or event is None:
            call_in_loop(self._loop, self._event_arrived.set)

    async def follow_cell(
        self, group: JobGroup, options: DisplayOptions, *, background: bool
    ) -> Results:
        """Show what a cell does until all boards are done; see ``cm_magics.show.follow``."""
        view = CellView(group, options)
        alone = len(group.jobs) == 1 and options.grouping != "order"
        shown: CellOutput = (
            _StreamOutput(self._kernel, view, options, with_head=self._with_head)
            if alone
            else _SharedOutput(view)
        )
        try:
            try:
                await self._handle_events(group, view, shown)
            except (KeyboardInterrupt, asyncio.CancelledError):
                await self._interrupt_and_drain(group, view, shown)
                raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            stop = KeyboardInterrupt()
            render_interrupt(stop, group, background=False)
            raise stop from None
        finally:
            shown.close()
        return group.results(0)

    async def _handle_events(self, group: JobGroup, view: CellView, output: CellOutput) -> None:
        while (event := await self._next_event(output)) is not None:
            view.handle_event(event)
            output.handle_event(event)
            if event.kind == "input":
                with self._kernel.interrupts.allow_only(ANY_TIME):  # it blocks
                    answer = output.ask(sanitize_text(f"{event.job.board}: {event.text}"))
                group.answer(event.job, answer)

    async def _interrupt_and_drain(
        self, group: JobGroup, view: CellView, output: CellOutput
    ) -> None:
        """Interrupt the boards and take their outcomes, for a short while."""
        group.interrupt()
        view.show_failures()
        deadline = self._loop.call_later(INTERRUPT_GRACE_SECONDS, self._on_event, None)
        try:
            while (event := await self._next_event(output)) is not None:
                view.handle_event(event)
                output.handle_event(event)
                if event.kind == "input":
                    group.answer(event.job, None)
        finally:
            deadline.cancel()

    async def _next_event(self, output: CellOutput) -> Event | None:
        """Return the next event, or None after the last; draw while there is none."""
        while not self._events:
            output.draw()
            self._event_arrived.clear()
            if self._events:
                break
            tick = self._loop.call_later(REFRESH_SECONDS, self._event_arrived.set)
            await self._event_arrived.wait()
            tick.cancel()
        return self._events.popleft()


class _SharedOutput:
    """Several boards: one display, changed in place."""

    def __init__(self, view: CellView) -> None:
        self._screen = CellDisplay(view, live=is_live())
        self.ask, self.close = self._screen.ask, self._screen.close

    def handle_event(self, event: Event) -> None:
        self._screen.draw(event)

    def draw(self) -> None:
        self._screen.draw(None)


class _StreamOutput:
    """One board: its output as it comes, then its value."""

    def __init__(
        self, kernel: KernelHost, view: CellView, options: DisplayOptions, *, with_head: bool
    ) -> None:
        self._kernel = kernel
        self._view = view
        self._options = options
        self._head_pending = with_head
        self._unsent_text: list[str] = []  # not sent yet
        self._next_send = 0.0
        self._chars_left = MAX_STREAM_CHARS
        self._at_line_start = True  # whether the cursor is at the start of a line
        self._omitted_chars = 0  # characters that had no room
        self._job: Job | None = None

    def handle_event(self, event: Event) -> None:
        self._job = event.job
        if event.kind == "output":
            self._add_output(printable_output(event.text))
        elif event.kind == "queued" and self._head_pending:
            waits = (
                f"queued {printable_output(event.text)}"
                if event.text
                else "waiting for it to dial in"
            )
            self._write_head(f"{event.job.board} · {waits}")
        elif event.kind == "ended" and event.job.result is not None:
            self._on_end(event.job.result)

    def draw(self) -> None:
        now = time.monotonic()
        if self._unsent_text and now >= self._next_send:
            self._send_text()
            self._next_send = now + _GATHER_SECONDS

    def ask(self, prompt: str) -> str | None:
        self._send_text()
        self._at_line_start = True
        try:
            return input(prompt)
        except (EOFError, RuntimeError):  # IPython's word for: nobody is there
            return None

    def close(self) -> None:
        self._send_text()

    def _add_output(self, text: str) -> None:
        if self._head_pending and self._job is not None:
            self._write_head(self._job.board)
        shown = text[: self._chars_left]
        self._omitted_chars += len(text) - len(shown)
        self._chars_left -= len(shown)
        self._write(shown)

    def _write_head(self, title: str) -> None:
        self._head_pending = False
        self._write(f"{head_text(title)}\n")

    def _write(self, text: str) -> None:
        if text:
            self._unsent_text.append(text)
            self._at_line_start = text.endswith("\n")

    def _send_text(self) -> None:
        text, self._unsent_text = "".join(self._unsent_text), []
        if text:
            told = {"name": "stdout", "text": text}
            self._kernel.send_response(self._kernel.iopub_socket, "stream", told)

    def _on_end(self, result: Result) -> None:
        if self._omitted_chars:
            where = self._options.full_output_hint.replace("{board}", result.board)
            end = printable_output(result.stdout[-_END_CHARS:])
            self._write(
                f"\n… {self._omitted_chars:,} characters more, {where}; the last of them:\n{end}"
            )
        lines = [] if result.ok else self._view.end_lines(result.board)
        if lines:
            self._write(("" if self._at_line_start else "\n") + plain_text(lines) + "\n")
        if result.ok and result.text:
            if self._head_pending:
                self._write_head(result.board)
            self._send_text()
            self._send_result(rich_values.mime_bundle(result))

    def _send_result(self, data: dict[str, Any]) -> None:
        count = self._kernel.execution_count - 1
        told = {"execution_count": count, "data": data, "metadata": {}}
        self._kernel.send_response(self._kernel.iopub_socket, "execute_result", told)
