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

from .layout import Line, printable

_LINES: Final = {False: 100, True: 1000}  # that are shown; live, final
_LONGEST: Final = 4096  # characters of a line; a longer one goes on in the next


class Record:
    """The lines of all boards."""

    def __init__(self, boards: Iterable[str] = ()) -> None:
        self._kept: deque[_Entry] = deque(maxlen=_LINES[True])
        self._begun: dict[str, str] = {}  # lines without an end so far
        self._count = 0
        self._wide = max(map(len, boards), default=0)

    def print(self, board: str, text: str) -> None:
        """Take output."""
        *lines, begun = (self._begun.pop(board, "") + printable(text)).split("\n")
        while len(begun) > _LONGEST:
            lines.append(begun[:_LONGEST])
            begun = begun[_LONGEST:]
        for line in lines:
            self._add(board, [(line, "")])
        if begun:
            self._begun[board] = begun

    def say(self, board: str, lines: Iterable[Line]) -> None:
        """Take what is said about a board: how it ended, most of all. Ends a begun line."""
        if board in self._begun:
            self.print(board, "\n")
        for line in lines:
            for each in _split(line):
                self._add(board, each)

    def lines(self, *, final: bool, kept: str = "") -> Iterator[Line]:
        """Lay it out; ``kept`` says where the rest is, as in ``Page``."""
        begun = [_Entry(board, [(text, "")]) for board, text in self._begun.items()]
        shown = [*self._kept, *begun][-_LINES[final] :]
        before = self._count + len(begun) - len(shown)
        if before > 0:
            where = f", {kept.replace('{board}', shown[0].board)}" if final else ""
            yield [(f"… {before:,} lines more{where}", "note")]
        for board, line in shown:
            yield [(f"{board:<{self._wide}}", "name"), ("  ", ""), *line]

    def _add(self, board: str, line: Line) -> None:
        self._wide = max(self._wide, len(board))
        self._kept.append(_Entry(board, line))
        self._count += 1


class _Entry(NamedTuple):
    board: str
    line: Line


def _split(line: Line) -> Iterator[Line]:
    """Split a line whose text has newlines in it."""
    now: Line = []
    for text, role in line:
        first, *more = text.split("\n")
        now.append((first, role))
        for each in more:
            yield now
            now = [(each, role)]
    yield now
