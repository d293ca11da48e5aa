"""The output of cells in the kernel.

The cell of one board looks as in any kernel: its output is a stream, its value an execute_result.
Several boards share one display that is updated in place, as with the magics.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from cloudmanager.client.jobs import Event, Job, JobGroup
from cloudmanager.display.cell_view import CellView, printable_output
from cloudmanager.display.folding import WAITING_FOR_BOARD, head_text, plain_text
from cloudmanager.display.following import CellOutput
from cloudmanager.results.results import Result
from cm_magics import rich_values
from cm_magics.cell_display import CellDisplay, is_live, remember_value

from .host import KernelHost
from .interrupts import ANY_TIME

#: Characters of a cell's output that are streamed; of a longer output, only the end is added.
MAX_STREAM_CHARS: Final = 64 * 1024
_END_CHARS: Final = 4 * 1024  # characters of that end
_GATHER_SECONDS: Final = 0.05  # output within this time is sent as one message


class OutputMaker:
    """Makes the outputs of cells in this kernel; for ``BoardMagics.board_cell``.

    Args:
        kernel: sends the messages.
        with_head: whether the output of a single board begins with a heading too.
        silent: whether to show only what the boards print, and no values.
        for_magic: whether a magic runs the cell: it shows or keeps the value on a single board.
    """

    def __init__(
        self,
        kernel: KernelHost,
        *,
        with_head: bool,
        silent: bool = False,
        for_magic: bool = False,
    ) -> None:
        self._kernel = kernel
        self._with_head = with_head and not silent
        self._silent = silent
        self._sink: _KernelSink
        if for_magic:
            self._sink = _MagicSink(kernel)
        else:
            self._sink = _SilentSink(kernel) if silent else _KernelSink(kernel)
        self._group: JobGroup | None = None

    def __call__(self, group: JobGroup, view: CellView, _: bool) -> CellOutput:
        """Return the output of a cell."""
        self._group = group
        if self._silent or (len(group.jobs) == 1 and view.options.grouping != "order"):
            return _StreamOutput(self._kernel, self._sink, view, with_head=self._with_head)
        return _SharedOutput(self._kernel, view)

    def value_for_magic(self) -> Any:
        """Return the value on a single board that the magic shows or keeps; else None."""
        if self._group is None or len(self._group.jobs) != 1 or self._sink.value_was_shown:
            return None
        return self._group.results(0).value

    def remember_value(self) -> None:
        """Assign ``_`` and ``Out[n]`` in the notebook's own Python; see ``cell_display``."""
        if self._group is not None and not self._silent:
            remember_value(self._kernel.shell, self._group.results(0))


class _KernelSink:
    """Sends the output and the value of one board as a stream and an execute_result."""

    value_was_shown = False

    def __init__(self, kernel: KernelHost) -> None:
        self._kernel = kernel

    def send_text(self, text: str) -> None:
        content = {"name": "stdout", "text": text}
        self._kernel.send_response(self._kernel.iopub_socket, "stream", content)

    def send_value(self, data: dict[str, Any]) -> None:
        """Show the MIME bundle of a value."""
        count = self._kernel.execution_count - 1
        content = {"execution_count": count, "data": data, "metadata": {}}
        self._kernel.send_response(self._kernel.iopub_socket, "execute_result", content)
        self.value_was_shown = True


class _SilentSink(_KernelSink):
    """Sends the stream only, for a request with ``silent=True``."""

    def send_value(self, data: dict[str, Any]) -> None:
        pass


class _MagicSink(_KernelSink):
    """Writes to ``sys.stdout``, which ``%%capture`` replaces.

    The magic shows the value itself, unless it is a picture or a tree.
    """

    def send_text(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def send_value(self, data: dict[str, Any]) -> None:
        if set(data) != {"text/plain"}:
            self._kernel.shell.display_pub.publish(data)
            self.value_was_shown = True


class _SharedOutput:
    """The output of several boards: one display, updated in place."""

    def __init__(self, kernel: KernelHost, view: CellView) -> None:
        self._kernel = kernel
        self._display = CellDisplay(view, live=is_live())
        self.handle_event = self._display.handle_event
        self.draw, self.close = self._display.draw, self._display.close

    def ask(self, prompt: str) -> str | None:
        with self._kernel.interrupts.allow_only(ANY_TIME):  # input() blocks the loop
            return self._display.ask(prompt)


class _StreamOutput:
    """The output of one board: a stream, then its value as an execute_result."""

    def __init__(
        self, kernel: KernelHost, sink: _KernelSink, view: CellView, *, with_head: bool
    ) -> None:
        self._kernel = kernel
        self._sink = sink
        self._view = view
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
            with self._kernel.interrupts.allow_only(ANY_TIME):  # input() blocks the loop
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
            self._sink.send_text(text)

    def _on_end(self, result: Result) -> None:
        if self._omitted_chars:
            where = self._view.options.full_output_hint.replace("{board}", result.board)
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
            self._sink.send_value(rich_values.mime_bundle(result))
