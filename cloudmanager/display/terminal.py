"""Show a cell in a terminal: live while it runs, grouped by equal outcomes in the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TextIO

from cloudmanager.client.jobs import Event, JobGroup
from cloudmanager.client.runner import run_blocking
from cloudmanager.results.results import Results

from . import following
from .cell_view import DEFAULT_OPTIONS, CellView, DisplayOptions, printable_output
from .folding import StyledLine, plain_text
from .following import REFRESH_SECONDS, CellOutput
from .text_tables import TextTable

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table as RichTable
    from rich.text import Text

#: Role of a piece of text (``folding.ROLES``) -> style in the notation of rich.
_ROLE_STYLES: Final = {
    "name": "bold",
    "rule": "dim",
    "note": "dim",
    "bad": "red",
    "bad name": "bold red",
    "warn": "yellow",
    "warn name": "bold yellow",
    "done": "green",
}
_MAX_NAME_CHARS: Final = 32  # of a table's first column, shown if the terminal is that wide
_MAX_MIN_CHARS: Final = 12  # of the other columns but the last
_MIN_LAST_CHARS: Final = 8  # of the last column; with less room, it is left out
_GAP_CHARS: Final = 2  # between two columns
_STATE_HEADINGS: Final = ("state", "outcome")
#: First word of a state or an outcome -> style.
_CELL_STYLES: Final = {
    "offline": "dim",
    "asleep": "dim",
    "overdue": "red",
    "lost": "red",
    "busy": "cyan",
    "error": "red",
    "timeout": "yellow",
    "interrupted": "yellow",
    "refused": "yellow",
    "revoked": "dim",
    "expired": "dim",
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
    view = CellView(group, options)
    output = make_output(group, view, out or sys.stdout, background=background)
    return run_blocking(following.follow_cell(group, view, output, background=background))


def make_output(
    group: JobGroup, view: CellView, out: TextIO, *, background: bool = False
) -> CellOutput:
    """Return the output of a cell for a terminal or a pipe; see ``follow_cell``."""
    if len(group.jobs) == 1 and view.options.grouping != "order" and not background:
        return _StreamDisplay(view, out)
    return _LiveDisplay(view, out)


def colour_lines(lines: Iterable[StyledLine], out: TextIO) -> str:
    """Return the text of styled lines, with colours if ``out`` is a terminal that has them."""
    lines = list(lines)
    if not wants_colours(out):
        return plain_text(lines)
    return plain_text([[(_colour_text(text, role), role) for text, role in line] for line in lines])


def _colour_text(text: str, role: str) -> str:
    if role not in _ROLE_STYLES or not text:
        return text
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(_ROLE_STYLES[role]).render(text, color_system=ColorSystem.STANDARD)


def print_text(text: str, out: TextIO | None = None) -> None:
    """Print a text; a table for the width of the terminal, if ``out`` is one."""
    out = out or sys.stdout
    if isinstance(text, TextTable) and out.isatty():
        console = _open_console(out)
        table, text = _fit_table(text, console.width)
        console.print(table, end="")
        if not text:
            return
    print(text, file=out)


def print_error(text: str, out: TextIO | None = None, *, role: str = "bad name") -> None:
    """Print a message of `mbm` on standard error; its first word has a colour in a terminal."""
    out = out or sys.stderr
    print(colour_lines([[("mbm:", role), (f" {text}", "")]], out), file=out, flush=True)


def _least_widths(table: TextTable) -> list[int]:
    """Return the least width of each column but the last one, which is cut first."""
    # Of the first column, people type what it has.
    limits = [_MAX_NAME_CHARS, *[_MAX_MIN_CHARS] * (len(table.headings) - 1)]
    columns = zip(table.headings, *table.rows, strict=True)
    return [min(max(map(len, cells)), limit) for cells, limit in zip(columns, limits, strict=True)][
        :-1
    ]


def _count_fitting_columns(table: TextTable, width: int) -> int:
    """Return how many columns fit: at least one; the last one may be cut to a few characters."""
    used = _MIN_LAST_CHARS
    for count, least in enumerate(_least_widths(table), 1):
        used += least + _GAP_CHARS
        if used > width:
            return count
    return len(table.headings)


def _fit_table(table: TextTable, width: int) -> tuple[RichTable, str]:
    """Return a table for a terminal of this width, and a note about it; "" if there is none."""
    count = _count_fitting_columns(table, width)
    hidden = ", ".join(table.headings[count:])
    note = f"… no room for {hidden}; `--json` shows all" if hidden else ""
    return _rich_table(table, count), "\n".join(filter(None, (table.note, note)))


def _rich_table(table: TextTable, count: int) -> RichTable:
    """Return the first columns of a table for rich."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    least_widths: list[int | None] = [*_least_widths(table)[: count - 1], None]
    for heading, least in zip(table.headings[:count], least_widths, strict=True):
        is_last = least is None
        # rich narrows only columns that it may wrap; the cells themselves are not wrapped.
        header = Text(heading, no_wrap=True, overflow="ellipsis")
        drawn.add_column(header, overflow="ellipsis", no_wrap=not is_last, min_width=least)
    for row in table.rows:
        columns = zip(table.headings[:count], row[:count], strict=True)
        drawn.add_row(
            *(
                Text(cell, _cell_style(heading, cell), no_wrap=True, overflow="ellipsis")
                for heading, cell in columns
            )
        )
    return drawn


def _cell_style(heading: str, cell: str) -> str:
    """Return the style of a cell: that of a state such as "busy, 2 queued"."""
    if heading not in _STATE_HEADINGS:
        return ""
    return _CELL_STYLES.get(re.split("[^a-z]", cell, maxsplit=1)[0], "")


def wants_colours(out: TextIO) -> bool:
    """Whether to use colours on ``out`` (https://no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _StreamDisplay:
    """Writes the output of a single board as it arrives, then its value or traceback."""

    def __init__(self, view: CellView, out: TextIO) -> None:
        self._view = view
        self._out = out
        self._at_line_start = True

    def handle_event(self, event: Event) -> None:
        """Write the output or outcome of an event."""
        if event.kind == "output":
            self._write(printable_output(event.text))
        elif event.kind == "ended" and (lines := self._view.end_lines(event.job.board, _width())):
            text = colour_lines(lines, self._out)
            self._write(f"{text}\n" if self._at_line_start else f"\n{text}\n")

    def draw(self) -> None:
        """Pass what was written to the terminal."""
        self._out.flush()

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
        self._drawn_lines: list[StyledLine] = []

    def handle_event(self, event: Event) -> None:
        """Do nothing: the view has the new state."""

    def draw(self) -> None:
        """Update the live region, at most every ``REFRESH_SECONDS``."""
        now = time.monotonic()
        if now < self._next_draw or not self._out.isatty():
            return
        self._next_draw = now + REFRESH_SECONDS
        lines = _last_lines(self._view.lines(_width()), _height())
        if self._live is None:
            self._live = _open_live(self._out)
        elif lines == self._drawn_lines:
            return
        self._live.update(_rich_text(lines), refresh=True)
        self._drawn_lines = lines

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


class LiveTable:
    """A table in a terminal that is drawn again and again; the last one stays."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live: Live | None = None
        self._last: str = ""

    def __enter__(self) -> LiveTable:
        return self

    def draw(self, text: str) -> None:
        """Draw a table, or another text, in the place of the last one; as far as it fits."""
        if self._live is None:
            self._live = _open_live(self._out)
        self._last = text
        drawn = (
            _stack(text, self._live.console.width) if isinstance(text, TextTable) else _dim(text)
        )
        self._live.update(drawn, refresh=True)

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            print_text(self._last, self._out)


def _stack(table: TextTable, width: int) -> Group:
    """Return a table for a terminal of this width, above the note about it."""
    from rich.console import Group

    drawn, note = _fit_table(table, width)
    return Group(drawn, *([_dim(note)] if note else []))


def _dim(text: str) -> Text:
    from rich.text import Text

    return Text(text, "dim")


def _open_console(out: TextIO) -> Console:
    from rich.console import Console  # importing rich takes 60 ms

    colours: Any = "auto" if wants_colours(out) else None
    return Console(file=out, color_system=colours, highlight=False, markup=False, emoji=False)


def _open_live(out: TextIO) -> Live:
    from rich.live import Live

    live = Live(
        console=_open_console(out), auto_refresh=False, transient=True, redirect_stdout=False
    )
    live.start()
    return live


def _rich_text(lines: list[StyledLine]) -> Text:
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(lines):
        text.append("\n" * (number > 0))
        for piece, role in line:
            text.append(piece, style=_ROLE_STYLES.get(role, ""))
    return text


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
