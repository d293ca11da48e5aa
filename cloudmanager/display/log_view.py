"""Boards' logs as text: one line each, equal lines of several boards folded into one. No I/O.

Boards are not trusted: all text from them passes ``sanitize_text``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from cloudmanager.client.log_lines import LogLine
from cloudmanager.protocol.text import fold_names, sanitize_text

_FOLD_SECONDS: Final = 2.0  # between equal lines of two boards that are shown as one


class _Group:
    """Equal lines of several boards."""

    __slots__ = ("boards", "line")

    def __init__(self, line: LogLine) -> None:
        self.line = line
        self.boards = [line.board]

    def accepts(self, line: LogLine) -> bool:
        """Return whether a line is equal, of another board, and of about the same time."""
        is_equal = (line.text, line.lost) == (self.line.text, self.line.lost)
        is_near = line.at - self.line.at <= _FOLD_SECONDS
        return is_equal and is_near and line.board not in self.boards


def log_rows(lines: Iterable[LogLine], *, with_boards: bool = True) -> list[str]:
    """Return lines as text, in the order of their times: time, boards, text.

    Equal lines that several boards print at about the same time are one row, as when many boards
    start the same program.

    Args:
        lines: of one or more boards.
        with_boards: whether the rows name the boards.
    """
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}  # the newest group of each text
    for line in sorted(lines, key=lambda line: line.at):
        group = latest.get(line.text)
        if group is None or not group.accepts(line):
            group = latest[line.text] = _Group(line)
            groups.append(group)
        else:
            group.boards.append(line.board)
    return [_row(group, with_boards) for group in groups]


def _row(group: _Group, with_boards: bool) -> str:
    line = group.line
    lost = f"({line.lost:,} bytes lost) " if line.lost else ""
    text = sanitize_text(line.text.replace("\r", "\\r"))
    boards = f"{fold_names(group.boards)}: " if with_boards else ""
    return f"{_time_text(line.at)} {boards}{lost}{text}"


def _time_text(at: float) -> str:
    """Return a time of today as 14:05:09, another one with its date."""
    then = time.localtime(at)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", then)
