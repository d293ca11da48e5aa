"""What boards said, line by line in the order of coming, each behind its board's name; pure.

    demo-1  reading the sensor
    demo-2  reading the sensor
    demo-1  Out: 23.5

Its memory is bounded: the beginning is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .layout import StyledLine, printable_output

_MAX_LINES: Final = {False: 100, True: 1000}  # that are shown; live, final
_MAX_LINE_CHARS: Final = 4096  # characters of a line; a longer one goes on in the next


class InterleavedLog:
    """The lines of all boards."""

    def __init__(self, boards: Iterable[str] = ()) -> None:
        self._entries: deque[_LogEntry] = deque(maxlen=_MAX_LINES[True])
        self._partial_lines: dict[str, str] = {}  # lines without an end so far
        self._count = 0
        self._name_width = max(map(len, boards), default=0)

    def add_output(self, board: str, text: str) -> None:
        """Take output."""
        *lines, begun = (self._partial_lines.pop(board, "") + printable_output(text)).split("\n")
        while len(begun) > _MAX_LINE_CHARS:
            lines.append(begun[:_MAX_LINE_CHARS])
            begun = begun[_MAX_LINE_CHARS:]
        for line in lines:
            self._add_line(board, [(line, "")])
        if begun:
            self._partial_lines[board] = begun

    def add_lines(self, board: str, lines: Iterable[StyledLine]) -> None:
        """Take what is said about a board: how it ended, most of all. Ends a begun line."""
        if board in self._partial_lines:
            self.add_output(board, "\n")
        for line in lines:
            for each in _split_newlines(line):
                self._add_line(board, each)

    def lines(self, *, final: bool, full_output_hint: str = "") -> Iterator[StyledLine]:
        """Lay it out; ``full_output_hint`` says where the rest is, as in ``Page``."""
        begun = [_LogEntry(board, [(text, "")]) for board, text in self._partial_lines.items()]
        shown = [*self._entries, *begun][-_MAX_LINES[final] :]
        before = self._count + len(begun) - len(shown)
        if before > 0:
            where = f", {full_output_hint.replace('{board}', shown[0].board)}" if final else ""
            yield [(f"… {before:,} lines more{where}", "note")]
        for board, line in shown:
            yield [(f"{board:<{self._name_width}}", "name"), ("  ", ""), *line]

    def _add_line(self, board: str, line: StyledLine) -> None:
        self._name_width = max(self._name_width, len(board))
        self._entries.append(_LogEntry(board, line))
        self._count += 1


class _LogEntry(NamedTuple):
    board: str
    line: StyledLine


def _split_newlines(line: StyledLine) -> Iterator[StyledLine]:
    """Split a line whose text has newlines in it."""
    now: StyledLine = []
    for text, role in line:
        first, *more = text.split("\n")
        now.append((first, role))
        for each in more:
            yield now
            now = [(each, role)]
    yield now
