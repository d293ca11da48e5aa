"""Following a cell in a terminal: live while it runs, folded in the end."""

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
from .layout import StyledLine, plain_text

if TYPE_CHECKING:
    from rich.live import Live

#: Seconds between two pictures: what looks live, at a cost of a few percent of a core.
REFRESH_SECONDS: Final = 0.12
#: Role of a piece of text (``layout.ROLES``) -> what a terminal is told (ECMA-48, 8.3.117).
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
    """Whether a person is there to answer ``input()``; for ``submit(answers=…)``."""
    return sys.stdin is not None and sys.stdin.isatty()


def follow_cell(
    group: JobGroup,
    out: TextIO | None = None,
    options: DisplayOptions = DEFAULT_OPTIONS,
    *,
    background: bool = False,
) -> Results:
    """Show what a cell does until all boards are done; return the results.

    One board's output is written as it comes. Several boards' is a live region in a terminal,
    and one folded text in the end. Ctrl-C interrupts the boards.

    Args:
        group: what was submitted, with ``listen=True``.
        out: where to write; standard output when not given.
        options: how it is to look.
        background: as ``watch`` takes it; Ctrl-C ends only the waiting then.

    Raises:
        KeyboardInterrupt: after the boards were interrupted and their outcomes shown.
        CloudmanagerError: the server refused the cell. A board's failure is not raised.
    """
    out = out or sys.stdout
    view = CellView(group, options)
    stream = len(group.jobs) == 1 and options.grouping != "order" and not background
    screen: _StreamDisplay | _LiveDisplay = (
        _StreamDisplay(view, out) if stream else _LiveDisplay(view, out)
    )
    return run_display(group, view, screen.draw, screen.ask, screen.close, background=background)


def colour_lines(lines: Iterable[StyledLine], out: TextIO) -> str:
    """Return lines as one text, coloured where ``out`` is a terminal that wants colours."""
    lines = list(lines)
    if not _wants_colours(out):
        return plain_text(lines)
    return plain_text([[(_colour_text(text, role), role) for text, role in line] for line in lines])


def _colour_text(text: str, role: str) -> str:
    colour = _COLOURS.get(role)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and text else text


def _wants_colours(out: TextIO) -> bool:
    """Whether colours are wanted (https://no-color.org)."""
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
    """Feed a view until all jobs ended; the loop behind every live display.

    Args:
        group: what to follow.
        view: what to feed.
        draw: called after each event, and about every ``TICK`` with None.
        ask: puts a prompt before a person and returns the answer; None if nobody is there.
        close: called once when nothing more is drawn, however this ends.
        background: the group runs by itself, and nobody reads its events: only look at it.

    Raises:
        KeyboardInterrupt: after the boards were interrupted and their outcomes taken; if
            ``background``, at once, and the boards go on.
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
    """Interrupt the boards and take their outcomes, for a short while."""
    group.interrupt()
    view.show_failures()  # it is not the boards' errors that are raised now
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
    """One board: its output as it comes."""

    def __init__(self, view: CellView, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._at_line_start = True  # whether the cursor is at the start of a line

    def draw(self, event: Event | None) -> None:
        """Write what is new."""
        if event is None or event.kind not in ("output", "ended"):
            self._out.flush()
        elif event.kind == "output":
            self._write(printable_output(event.text))
        elif ending := self._view.end_lines(event.job.board, _width()):
            text = colour_lines(ending, self._out)
            self._write(f"{text}\n" if self._at_line_start else f"\n{text}\n")

    def ask(self, prompt: str) -> str | None:
        """Ask the person at the terminal."""
        self._out.flush()
        self._at_line_start = True
        return _read_input(prompt)

    def close(self) -> None:
        """End the last line."""
        self._write("" if self._at_line_start else "\n")
        self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._at_line_start = text.endswith("\n") if text else self._at_line_start


class _LiveDisplay:
    """Several boards: a live region in a terminal, and the folded text in the end."""

    def __init__(self, view: CellView, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._next_draw = time.monotonic() + REFRESH_SECONDS
        self._live: Live | None = None
        self._drawn_text = ""

    def draw(self, _: Event | None) -> None:
        """Draw anew if it is time to."""
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
        """Ask the person at the terminal; the region makes room for that."""
        self._hide()
        return _read_input(prompt)

    def close(self) -> None:
        """Leave the final text."""
        self._hide()
        text = colour_lines(self._view.lines(_width(), final=True), self._out)
        self._out.write(f"{text}\n" if text else "")
        self._out.flush()

    def _hide(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _open_live(out: TextIO) -> Live:
    from rich.console import Console  # rich takes 60 ms to import
    from rich.live import Live

    console = Console(file=out, highlight=False, markup=False, emoji=False)
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
    live.start()
    return live


def _rich_text(text: str) -> Any:
    from rich.text import Text

    return Text.from_ansi(text, no_wrap=True, overflow="ellipsis")


def _last_lines(lines: list[StyledLine], max_lines: int) -> list[StyledLine]:
    """Return the last lines that a screen has room for."""
    tall: list[StyledLine] = []
    for line in reversed(lines):
        text = plain_text([line])
        max_lines -= text.count("\n") + 1
        if max_lines < 0 and tall:
            break
        tall.append(line)
    return tall[::-1]


def _width() -> int:
    return shutil.get_terminal_size().columns


def _height() -> int:
    return shutil.get_terminal_size().lines - 1  # the last is the cursor's


def _read_input(prompt: str) -> str | None:
    """Ask at the terminal; None where nobody is there, or answers Ctrl-D."""
    if not can_answer():
        return None
    with contextlib.suppress(EOFError):
        return input(prompt)
    return None
