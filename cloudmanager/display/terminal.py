"""Show a cell in a terminal: live while it runs, grouped by equal outcomes in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TextIO

from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS, Event, JobGroup
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Results

from .cell_view import DEFAULT_OPTIONS, CellView, DisplayOptions, printable_output
from .folding import StyledLine, plain_text

if TYPE_CHECKING:
    from rich.live import Live

#: Seconds between two updates of the live display: looks live and costs a few percent of a core.
REFRESH_SECONDS: Final = 0.12
#: Role of a piece of text (``folding.ROLES``) -> parameters of SGR (ECMA-48, 8.3.117).
_COLOURS: Final = {
    "name": "1",  # bold
    "rule": "2",  # faint
    "note": "2",
    "bad": "31",  # red
    "bad name": "1;31",
    "warn": "33",  # yellow
    "warn name": "1;33",
    "done": "32",  # green
}


def can_answer() -> bool:
    """Whether a user can answer ``input()`` of a board; for ``submit(answers=…)``."""
    return sys.stdin is not None and sys.stdin.isatty()


def follow_cell(
    group: JobGroup,
    out: TextIO | None = None,
    options: DisplayOptions = DEFAULT_OPTIONS,
    *,
    background: bool = False,
) -> Results:
    """Show a cell until all boards are done; return the results.

    Output of a single board is written as it arrives. Several boards share a live region in a
    terminal, which the final text replaces. Ctrl-C interrupts the boards.

    Args:
        group: the jobs, submitted with ``listen=True`` unless ``background``.
        out: where to write (default: standard output).
        options: how the jobs are shown.
        background: poll the jobs instead of reading their events; Ctrl-C stops the display only.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the boards were interrupted and their outcomes shown.
        CloudmanagerError: the server refused the cell. Failures of boards are not raised.
    """
    out = out or sys.stdout
    view = CellView(group, options)
    display: _StreamDisplay | _LiveDisplay
    if len(group.jobs) == 1 and options.grouping != "order" and not background:
        display = _StreamDisplay(view, out)
    else:
        display = _LiveDisplay(view, out)
    return run_display(group, view, display.draw, display.ask, display.close, background=background)


def colour_lines(lines: Iterable[StyledLine], out: TextIO) -> str:
    """Return the text of styled lines, with colours if ``out`` is a terminal that has them."""
    lines = list(lines)
    if not _wants_colours(out):
        return plain_text(lines)
    return plain_text([[(_colour_text(text, role), role) for text, role in line] for line in lines])


def _colour_text(text: str, role: str) -> str:
    colour = _COLOURS.get(role)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and text else text


def _wants_colours(out: TextIO) -> bool:
    """Whether to use colours on ``out`` (https://no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def run_display(
    group: JobGroup,
    view: CellView,
    draw: Callable[[Event | None], None],
    ask: Callable[[str], str | None],
    close: Callable[[], None],
    *,
    background: bool = False,
) -> Results:
    """Update a view until all jobs have ended, and return the results.

    The loop of every live display: in a terminal, a notebook, the dashboard.

    Args:
        group: the jobs.
        view: updated with the jobs' events.
        draw: called after each event, and with None about every ``REFRESH_SECONDS``.
        ask: shows a prompt to the user and returns the answer, or None if there is no answer.
        close: called once at the end, also after an exception.
        background: poll the jobs instead of reading their events, and do not interrupt them.

    Raises:
        KeyboardInterrupt: after the boards were interrupted and their outcomes received; if
            ``background``, immediately, and the boards continue.
    """
    try:
        try:
            if background:
                _poll_jobs(group, view, draw)
            else:
                _handle_events(group, view, draw, ask)
        except KeyboardInterrupt:
            if background:
                raise
            _interrupt_and_drain(group, view, draw)
            raise
    finally:
        close()
    return group.results()


def _handle_events(group: JobGroup, view: CellView, draw: Any, ask: Any) -> None:
    for event in group.events(REFRESH_SECONDS):
        if event is not None:
            view.handle_event(event)
        draw(event)
        if event is not None and event.kind == "input":
            group.answer(event.job, ask(sanitize_text(f"{event.job.board}: {event.text}")))


def _poll_jobs(group: JobGroup, view: CellView, draw: Any) -> None:
    while not group.wait(REFRESH_SECONDS):
        view.poll_jobs()
        draw(None)
    view.poll_jobs()


def _interrupt_and_drain(group: JobGroup, view: CellView, draw: Any) -> None:
    """Interrupt the boards and receive their outcomes for up to ``INTERRUPT_GRACE_SECONDS``."""
    group.interrupt()
    view.show_failures()  # KeyboardInterrupt is raised instead of them
    deadline = time.monotonic() + INTERRUPT_GRACE_SECONDS
    for event in group.events(REFRESH_SECONDS):
        if event is not None:
            view.handle_event(event)
            if event.kind == "input":
                group.answer(event.job, None)
        draw(event)
        if time.monotonic() > deadline:
            return


class _StreamDisplay:
    """Writes the output of a single board as it arrives, then its value or traceback."""

    def __init__(self, view: CellView, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._at_line_start = True

    def draw(self, event: Event | None) -> None:
        """Write the output or outcome of an event."""
        if event is None or event.kind not in ("output", "ended"):
            self._out.flush()
        elif event.kind == "output":
            self._write(printable_output(event.text))
        elif lines := self._view.end_lines(event.job.board, _width()):
            text = colour_lines(lines, self._out)
            self._write(f"{text}\n" if self._at_line_start else f"\n{text}\n")

    def ask(self, prompt: str) -> str | None:
        """Ask the user at the terminal."""
        self._out.flush()
        self._at_line_start = True
        return _read_input(prompt)

    def close(self) -> None:
        """End the last line, if the output did not."""
        self._write("" if self._at_line_start else "\n")
        self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._at_line_start = text.endswith("\n") if text else self._at_line_start


class _LiveDisplay:
    """Shows several boards in a live region, if in a terminal, and writes the final text."""

    def __init__(self, view: CellView, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._next_draw = time.monotonic() + REFRESH_SECONDS
        self._live: Live | None = None
        self._drawn_text = ""

    def draw(self, _: Event | None) -> None:
        """Update the live region, at most every ``REFRESH_SECONDS``."""
        now = time.monotonic()
        if now < self._next_draw or not self._out.isatty():
            return
        self._next_draw = now + REFRESH_SECONDS
        text = colour_lines(_last_lines(self._view.lines(_width()), _height()), self._out)
        if self._live is None:
            self._live = _open_live(self._out)
        elif text == self._drawn_text:
            return
        self._live.update(_rich_text(text), refresh=True)
        self._drawn_text = text

    def ask(self, prompt: str) -> str | None:
        """Ask the user at the terminal; the live region is removed meanwhile."""
        self._hide()
        return _read_input(prompt)

    def close(self) -> None:
        """Replace the live region by the final text."""
        self._hide()
        text = colour_lines(self._view.lines(_width(), final=True), self._out)
        self._out.write(f"{text}\n" if text else "")
        self._out.flush()

    def _hide(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _open_live(out: TextIO) -> Live:
    from rich.console import Console  # importing rich takes 60 ms
    from rich.live import Live

    console = Console(file=out, highlight=False, markup=False, emoji=False)
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
    live.start()
    return live


def _rich_text(text: str) -> Any:
    from rich.text import Text

    return Text.from_ansi(text, no_wrap=True, overflow="ellipsis")


def _last_lines(lines: list[StyledLine], max_lines: int) -> list[StyledLine]:
    """Return the last lines that fit on a screen; at least one, however tall it is."""
    shown: list[StyledLine] = []
    for line in reversed(lines):
        max_lines -= plain_text([line]).count("\n") + 1
        if max_lines < 0 and shown:
            break
        shown.append(line)
    return shown[::-1]


def _width() -> int:
    return shutil.get_terminal_size().columns


def _height() -> int:
    return shutil.get_terminal_size().lines - 1  # the last line is for the cursor


def _read_input(prompt: str) -> str | None:
    """Ask the user; return None without a terminal, or after Ctrl-D."""
    if not can_answer():
        return None
    with contextlib.suppress(EOFError):
        return input(prompt)
    return None
