"""Following a cell in a terminal: live while it runs, folded in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TextIO

from cloudmanager.client.jobs import STOP_SECONDS, Event, JobGroup
from cloudmanager.protocol.text import clean
from cloudmanager.results.results import Results

from .cell_view import LOOKS, Looks, View, printable
from .layout import Line, plain

if TYPE_CHECKING:
    from rich.live import Live

#: Seconds between two pictures: what looks live, at a cost of a few percent of a core.
TICK: Final = 0.12
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


def follow(
    group: JobGroup, out: TextIO | None = None, looks: Looks = LOOKS, *, late: bool = False
) -> Results:
    """Show what a cell does until all boards are done; return the results.

    One board's output is written as it comes. Several boards' is a live region in a terminal,
    and one folded text in the end. Ctrl-C interrupts the boards.

    Args:
        group: what was submitted, with ``listen=True``.
        out: where to write; standard output when not given.
        looks: how it is to look.
        late: as ``watch`` takes it; Ctrl-C ends only the waiting then.

    Raises:
        KeyboardInterrupt: after the boards were interrupted and their outcomes shown.
        CloudmanagerError: the server refused the cell. A board's failure is not raised.
    """
    out = out or sys.stdout
    view = View(group, looks)
    stream = len(group.jobs) == 1 and looks.grouped != "order" and not late
    screen: _Stream | _Region = _Stream(view, out) if stream else _Region(view, out)
    return watch(group, view, screen.draw, screen.ask, screen.close, late=late)


def painted(lines: Iterable[Line], out: TextIO) -> str:
    """Return lines as one text, coloured where ``out`` is a terminal that wants colours."""
    lines = list(lines)
    if not _colourful(out):
        return plain(lines)
    return plain([[(_paint(text, role), role) for text, role in line] for line in lines])


def _paint(text: str, role: str) -> str:
    colour = _COLOURS.get(role)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and text else text


def _colourful(out: TextIO) -> bool:
    """Whether colours are wanted (https://no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def watch(
    group: JobGroup,
    view: View,
    draw: Callable[[Event | None], None],
    ask: Callable[[str], str | None],
    close: Callable[[], None],
    *,
    late: bool = False,
) -> Results:
    """Feed a view until all jobs ended; the loop behind every live display.

    Args:
        group: what to follow.
        view: what to feed.
        draw: called after each event, and about every ``TICK`` with None.
        ask: puts a prompt before a person and returns the answer; None if nobody is there.
        close: called once when nothing more is drawn, however this ends.
        late: the group runs by itself, and nobody reads its events: only look at it.

    Raises:
        KeyboardInterrupt: after the boards were interrupted and their outcomes taken; if
            ``late``, at once, and the boards go on.
    """
    try:
        try:
            if late:
                _look(group, view, draw)
            else:
                _pump(group, view, draw, ask)
        except KeyboardInterrupt:
            if late:
                raise
            _stop(group, view, draw)
            raise
    finally:
        close()
    return group.results()


def _pump(group: JobGroup, view: View, draw: Any, ask: Any) -> None:
    for event in group.events(TICK):
        if event is not None:
            view.take(event)
        draw(event)
        if event is not None and event.kind == "input":
            group.answer(event.job, ask(clean(f"{event.job.board}: {event.text}")))


def _look(group: JobGroup, view: View, draw: Any) -> None:
    while not group.wait(TICK):
        view.look()
        draw(None)
    view.look()


def _stop(group: JobGroup, view: View, draw: Any) -> None:
    """Interrupt the boards and take their outcomes, for a short while."""
    group.interrupt()
    view.show_failures()  # it is not the boards' errors that are raised now
    deadline = time.monotonic() + STOP_SECONDS
    for event in group.events(TICK):
        if event is not None:
            view.take(event)
            if event.kind == "input":
                group.answer(event.job, None)
        draw(event)
        if time.monotonic() > deadline:
            return


class _Stream:
    """One board: its output as it comes."""

    def __init__(self, view: View, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._fresh = True  # whether the cursor is at the start of a line

    def draw(self, event: Event | None) -> None:
        """Write what is new."""
        if event is None or event.kind not in ("output", "ended"):
            self._out.flush()
        elif event.kind == "output":
            self._write(printable(event.text))
        elif ending := self._view.ending(event.job.board, _width()):
            text = painted(ending, self._out)
            self._write(f"{text}\n" if self._fresh else f"\n{text}\n")

    def ask(self, prompt: str) -> str | None:
        """Ask the person at the terminal."""
        self._out.flush()
        self._fresh = True
        return _input(prompt)

    def close(self) -> None:
        """End the last line."""
        self._write("" if self._fresh else "\n")
        self._out.flush()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._fresh = text.endswith("\n") if text else self._fresh


class _Region:
    """Several boards: a live region in a terminal, and the folded text in the end."""

    def __init__(self, view: View, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._due = time.monotonic() + TICK
        self._live: Live | None = None
        self._drawn = ""

    def draw(self, _: Event | None) -> None:
        """Draw anew if it is time to."""
        now = time.monotonic()
        if now < self._due or not self._out.isatty():
            return
        self._due = now + TICK
        text = painted(_last(self._view.lines(_width()), _height()), self._out)
        if self._live is None:
            self._live = _open_live(self._out)
        elif text == self._drawn:
            return
        self._live.update(_rich(text), refresh=True)
        self._drawn = text

    def ask(self, prompt: str) -> str | None:
        """Ask the person at the terminal; the region makes room for that."""
        self._hide()
        return _input(prompt)

    def close(self) -> None:
        """Leave the final text."""
        self._hide()
        text = painted(self._view.lines(_width(), final=True), self._out)
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


def _rich(text: str) -> Any:
    from rich.text import Text

    return Text.from_ansi(text, no_wrap=True, overflow="ellipsis")


def _last(lines: list[Line], most: int) -> list[Line]:
    """Return the last lines that a screen has room for."""
    tall: list[Line] = []
    for line in reversed(lines):
        text = plain([line])
        most -= text.count("\n") + 1
        if most < 0 and tall:
            break
        tall.append(line)
    return tall[::-1]


def _width() -> int:
    return shutil.get_terminal_size().columns


def _height() -> int:
    return shutil.get_terminal_size().lines - 1  # the last is the cursor's


def _input(prompt: str) -> str | None:
    """Ask at the terminal; None where nobody is there, or answers Ctrl-D."""
    if not can_answer():
        return None
    with contextlib.suppress(EOFError):
        return input(prompt)
    return None
