"""The output of several boards line by line as it arrives, each line after its board's name.

    demo-1  reading the sensor
    demo-2  reading the sensor
    demo-1  Out: 23.5

No I/O. Memory is bounded: only the last lines are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .folding import StyledLine, more_text, printable_output

#: Number of lines that are shown, by whether the text is final.
_MAX_LINES: Final = {False: 100, True: 1000}
_MAX_LINE_CHARS: Final = 4096  # a longer line is split


class InterleavedLog:
    """The lines of all boards, in order of arrival.

    Args:
        boards: names of the boards, for the width of the first column.
    """

    def __init__(self, boards: Iterable[str] = ()) -> None:
        self._entries: deque[_LogEntry] = deque(maxlen=_MAX_LINES[True])
        self._partial_lines: dict[str, str] = {}  # board -> last line, while it has no newline
        self._count = 0
        self._name_width = max(map(len, boards), default=0)

    def add_output(self, board: str, text: str) -> None:
        """Add output of a board."""
        text = self._partial_lines.pop(board, "") + printable_output(text)
        *lines, partial = text.split("\n")
        while len(partial) > _MAX_LINE_CHARS:
            lines.append(partial[:_MAX_LINE_CHARS])
            partial = partial[_MAX_LINE_CHARS:]
        for line in lines:
            self._add_line(board, [(line, "")])
        if partial:
            self._partial_lines[board] = partial

    def add_lines(self, board: str, lines: Iterable[StyledLine]) -> None:
        """Add lines about a board, such as its outcome; a partial line of it is ended first."""
        if board in self._partial_lines:
            self.add_output(board, "\n")
        for line in lines:
            for each in _split_newlines(line):
                self._add_line(board, each)

    def lines(self, *, final: bool, full_output_hint: str = "") -> Iterator[StyledLine]:
        """Yield the last lines.

        Args:
            final: whether no more output will arrive; the final text is longer.
            full_output_hint: where the user finds the omitted lines, see ``FULL_OUTPUT_HINT``.
        """
        partial = [_LogEntry(board, [(text, "")]) for board, text in self._partial_lines.items()]
        shown = [*self._entries, *partial][-_MAX_LINES[final] :]
        omitted = self._count + len(partial) - len(shown)
        if omitted > 0:
            where = f", {full_output_hint.replace('{board}', shown[0].board)}" if final else ""
            yield [(f"… {more_text(omitted, 'line')}{where}", "note")]
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
    """Split a styled line at the newlines in its text."""
    current: StyledLine = []
    for text, role in line:
        first, *rest = text.split("\n")
        current.append((first, role))
        for part in rest:
            yield current
            current = [(part, role)]
    yield current
