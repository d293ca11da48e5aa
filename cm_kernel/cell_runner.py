"""Wait for a cell in the kernel's event loop, which serves widgets and Tab meanwhile.

The cell of one board looks as in any kernel: its output is a stream, its value an execute_result.
Several boards share one display that is updated in place, as with the magics.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any, Final, Protocol

from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS, Event, Job, JobGroup
from cloudmanager.client.runner import call_in_loop
from cloudmanager.display.cell_view import CellView, DisplayOptions, printable_output
from cloudmanager.display.folding import WAITING_FOR_BOARD, head_text, plain_text
from cloudmanager.display.terminal import REFRESH_SECONDS
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Result, Results
from cm_magics import rich_values
from cm_magics.cell_display import CellDisplay, is_live, render_interrupt

from .host import KernelHost
from .interrupts import ANY_TIME

#: Characters of a cell's output that are streamed; of a longer output, only the end is added.
MAX_STREAM_CHARS: Final = 64 * 1024
_END_CHARS: Final = 4 * 1024  # characters of that end
_GATHER_SECONDS: Final = 0.05  # output within this time is sent as one message


class CellOutput(Protocol):
    """Shows the output of a cell in the notebook."""

    def handle_event(self, event: Event) -> None:
        """Handle an event that the view has handled already."""

    def draw(self) -> None:
        """Show what has changed, if enough time has passed."""

    def ask(self, prompt: str) -> str | None:
        """Ask the user; return None if the frontend accepts no input."""

    def close(self) -> None:
        """Show the final state."""


class LoopRunner:
    """Waits for a cell in the event loop, and shows its output.

    Args:
        kernel: sends the messages.
        with_head: whether the output of a single board begins with a heading too.
    """

    def __init__(self, kernel: KernelHost, *, with_head: bool) -> None:
        self._kernel = kernel
        self._with_head = with_head
        self._loop = asyncio.get_running_loop()
        self._events: collections.deque[Event | None] = collections.deque()
        self._event_arrived = asyncio.Event()

    def submit_arguments(self) -> dict[str, Any]:
        """Return the arguments for ``submit`` that deliver the cell's events to this runner."""
        return {"on_event": self._on_event}

    def _on_event(self, event: Event | None) -> None:
        """Queue an event; called in the thread of the link to the server."""
        self._events.append(event)
        if len(self._events) == 1 or event is None:
            call_in_loop(self._loop, self._event_arrived.set)

    async def follow_cell(
        self, group: JobGroup, options: DisplayOptions, *, background: bool
    ) -> Results:
        """Show the output of a cell until all boards are done; return the results.

        Raises:
            KeyboardInterrupt: the stop button was pressed; the boards were interrupted.
        """
        view = CellView(group, options)
        output: CellOutput
        if len(group.jobs) == 1 and options.grouping != "order":
            output = _StreamOutput(self._kernel, view, options, with_head=self._with_head)
        else:
            output = _SharedOutput(view)
        try:
            try:
                await self._handle_events(group, view, output)
            except (KeyboardInterrupt, asyncio.CancelledError):
                await self._interrupt_and_drain(group, view, output)
                raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupt = KeyboardInterrupt()
            render_interrupt(interrupt, group, background=False)
            raise interrupt from None
        finally:
            output.close()
        return group.results(0)

    async def _handle_events(self, group: JobGroup, view: CellView, output: CellOutput) -> None:
        while (event := await self._next_event(output)) is not None:
            view.handle_event(event)
            output.handle_event(event)
            if event.kind == "input":
                with self._kernel.interrupts.allow_only(ANY_TIME):  # input() blocks the loop
                    answer = output.ask(sanitize_text(f"{event.job.board}: {event.text}"))
                group.answer(event.job, answer)

    async def _interrupt_and_drain(
        self, group: JobGroup, view: CellView, output: CellOutput
    ) -> None:
        """Interrupt the boards, and show their results for at most INTERRUPT_GRACE_SECONDS."""
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
        """Return the next event, or None after the last; draw while waiting."""
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
    """The output of several boards: one display, updated in place."""

    def __init__(self, view: CellView) -> None:
        self._display = CellDisplay(view, live=is_live())
        self.ask = self._display.ask
        self.close = self._display.close

    def handle_event(self, event: Event) -> None:
        self._display.draw(event)

    def draw(self) -> None:
        self._display.draw(None)


class _StreamOutput:
    """The output of one board: a stream, then its value as an execute_result."""

    def __init__(
        self, kernel: KernelHost, view: CellView, options: DisplayOptions, *, with_head: bool
    ) -> None:
        self._kernel = kernel
        self._view = view
        self._options = options
        self._head_pending = with_head
        self._unsent_text: list[str] = []
        self._next_send = 0.0  # time.monotonic() before which draw() sends nothing
        self._chars_left = MAX_STREAM_CHARS
        self._at_line_start = True  # whether the cursor is at the start of a line
        self._omitted_chars = 0  # characters beyond MAX_STREAM_CHARS
        self._job: Job | None = None

    def handle_event(self, event: Event) -> None:
        self._job = event.job
        if event.kind == "output":
            self._add_output(printable_output(event.text))
        elif event.kind == "queued" and self._head_pending:
            queue_text = f"queued {printable_output(event.text)}"
            state = queue_text if event.text else WAITING_FOR_BOARD
            self._write_head(f"{event.job.board} · {state}")
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
        except (EOFError, RuntimeError):  # RuntimeError: StdinNotImplementedError of IPython
            return None

    def close(self) -> None:
        self._send_text()

    def _add_output(self, text: str) -> None:
        if self._head_pending and self._job is not None:
            self._write_head(self._job.board)
        streamed = text[: self._chars_left]
        self._omitted_chars += len(text) - len(streamed)
        self._chars_left -= len(streamed)
        self._write(streamed)

    def _write_head(self, title: str) -> None:
        self._head_pending = False
        self._write(f"{head_text(title)}\n")

    def _write(self, text: str) -> None:
        if text:
            self._unsent_text.append(text)
            self._at_line_start = text.endswith("\n")

    def _send_text(self) -> None:
        text = "".join(self._unsent_text)
        self._unsent_text = []
        if text:
            content = {"name": "stdout", "text": text}
            self._kernel.send_response(self._kernel.iopub_socket, "stream", content)

    def _on_end(self, result: Result) -> None:
        if self._omitted_chars:
            where = self._options.full_output_hint.replace("{board}", result.board)
            end = printable_output(result.stdout[-_END_CHARS:])
            self._write(
                f"\n… {self._omitted_chars:,} more characters, {where}; the last of them:\n{end}"
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
        content = {"execution_count": count, "data": data, "metadata": {}}
        self._kernel.send_response(self._kernel.iopub_socket, "execute_result", content)
