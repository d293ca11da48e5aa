"""Boards' logs in lines: ``LogLine``, ``Logs``, and ``LogFollower``, which goes on for ever.

A log is what a board prints outside of cells: its program, tasks, messages at start. The server
sends pieces of text that end anywhere; here they become lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple, overload

from cloudmanager.protocol.spans import time_since
from cloudmanager.protocol.text import fold_names, sanitize_text

from .exchange import Exchange
from .runner import run_blocking
from .watch import Update, Watch

Since = str | float | datetime | None  # a time: see `time_since`
_UNFINISHED_SECONDS: Final = 1.0  # after which a line without its end is shown
_MAX_LINE_CHARS: Final = 16 * 1024  # of a line; then it ends: some programs print no line ends
#: Pieces of boards of other servers arrive so much later than the newest ones, at most: they are
#: written and read once a second, and wait for a slow database.
_LATE_SECONDS: Final = 15.0


class LogPiece(NamedTuple):
    """Text as the server received it from a board.

    Attributes:
        board: the board's name.
        at: seconds since 1970, by the server's clock.
        lost: how many bytes were lost before it.
        text: any part of one or more lines.
    """

    board: str
    at: float
    lost: int
    text: str


class LogLine(NamedTuple):
    """A line that a board printed outside of cells.

    Attributes:
        board: the board's name.
        at: when the server received it, in seconds since 1970.
        text: the line, without its end.
        lost: how many bytes were lost before it.
    """

    board: str
    at: float
    text: str
    lost: int = 0


class Logs(Sequence[LogLine]):
    """Lines of one or more boards, the oldest first."""

    def __init__(self, lines: Iterable[LogLine]) -> None:
        self._lines = list(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[LogLine]:
        return iter(self._lines)

    @overload
    def __getitem__(self, index: int) -> LogLine: ...

    @overload
    def __getitem__(self, index: slice) -> Logs: ...

    def __getitem__(self, index: int | slice) -> LogLine | Logs:
        found = self._lines[index]
        return Logs(found) if isinstance(found, list) else found

    def __str__(self) -> str:
        """Return the lines as text, each with its board."""
        return "\n".join(f"{line.board}: {sanitize_text(line.text)}" for line in self)

    def __repr__(self) -> str:
        """Return number and boards of the lines, in one line."""
        if not self:
            return "<no lines>"
        count = f"{len(self):,} line{'' if len(self) == 1 else 's'}"
        return f"<{count} of {fold_names(line.board for line in self)}>"


class _Unfinished:
    """The beginning of a line whose end has not been received."""

    __slots__ = ("at", "lost", "received", "text")

    def __init__(self, at: float, lost: int, text: str) -> None:
        self.at, self.lost, self.text = at, lost, text
        self.received = time.monotonic()


class LineJoiner:
    """Makes lines of the pieces of several boards."""

    def __init__(self) -> None:
        self._unfinished: dict[str, _Unfinished] = {}

    def add(self, piece: LogPiece) -> Iterator[LogLine]:
        """Yield the lines that end in this piece."""
        if piece.lost:  # what was lost may have had the end of the line
            yield from self._end_line(piece.board)
        begun = self._unfinished.pop(piece.board, None)
        at, lost, text = piece.at, piece.lost, piece.text
        if begun is not None:
            at, lost, text = begun.at, begun.lost, begun.text + text
        *whole, rest = text.replace("\r\n", "\n").split("\n")
        for line in whole:
            yield LogLine(piece.board, at, line, lost)
            at, lost = piece.at, 0
        if rest or lost:
            self._unfinished[piece.board] = _Unfinished(at, lost, rest)
        if len(rest) > _MAX_LINE_CHARS:
            yield from self._end_line(piece.board)

    def _end_line(self, board: str) -> Iterator[LogLine]:
        begun = self._unfinished.pop(board, None)
        if begun is not None:
            yield LogLine(board, begun.at, begun.text, begun.lost)

    def end_lines(self, age: float = 0.0) -> Iterator[LogLine]:
        """Yield lines without an end that are older than ``age`` seconds, as they are."""
        before = time.monotonic() - age
        for board in [name for name, each in self._unfinished.items() if each.received <= before]:
            yield from self._end_line(board)


def join_lines(pieces: Iterable[LogPiece]) -> Logs:
    """Return the lines of all pieces."""
    joiner = LineJoiner()
    lines = [line for piece in pieces for line in joiner.add(piece)]
    return Logs([*lines, *joiner.end_lines()])


async def read_logs(exchange: Exchange, target: str, since: float) -> list[LogPiece]:
    """Return what the server has of boards' logs, page by page.

    Args:
        exchange: with the server.
        target: the boards, connected or not.
        since: only what was printed at or after this time, in seconds since 1970.
    """
    pieces: list[LogPiece] = []
    body = {"target": target, "since": since, "after": 0}
    while True:
        page = await exchange.request("logs", body)
        pieces += [LogPiece(*row) for row in page["logs"]]
        if page["complete"]:
            return pieces
        body["after"] = page["after"]


class LogFollower(Iterator[LogLine]):
    """An endless iterator over new lines of the boards of a target; ``close`` ends it.

    When the link breaks, it reconnects, and continues where it was.

    Args:
        connect: returns the exchange with the server; connects if there is no link.
        target: the boards, connected or not; resolved again at each change.
        since: lines from this time on are read first, see ``Boards.logs``; None: new lines only.
        on_lost: called with a sentence when the server cannot be reached.
    """

    def __init__(
        self,
        connect: Callable[[], Exchange],
        target: str,
        since: Since = None,
        *,
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connect = connect
        self._target = target
        self._since: float | None = None if since is None else time_since(since)
        self._reads_stored = since is not None
        self._on_lost = on_lost
        self._newest_at = 0.0  # of the newest piece
        self._latest: dict[LogPiece, None] = {}  # those of the last `_LATE_SECONDS`
        self._read: set[LogPiece] = set()  # those that the watch may send once more
        self._watch = Watch(connect, target, samples=False, logs=True, idle=_UNFINISHED_SECONDS)
        self._lines = (line for lines in self.batches() for line in lines)

    def __enter__(self) -> LogFollower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> LogLine:
        """Wait for the next line.

        Raises:
            StopIteration: the follower was closed.
            CloudmanagerError: the server refused it.
        """
        return next(self._lines)

    def close(self) -> None:
        """End it, from any thread; this also ends a wait for a line."""
        self._watch.close()

    def batches(self) -> Iterator[list[LogLine]]:
        """Iterate over lists of lines that were received together, instead of single lines."""
        joiner = LineJoiner()
        for update in self._watch:
            if update.lost:
                self._on_lost(update.lost)
            lines = [line for piece in self._new_pieces(update) for line in joiner.add(piece)]
            is_gap = update.logs_left_out > 0  # the ends of lines may be missing
            lines += joiner.end_lines(0 if is_gap else _UNFINISHED_SECONDS)
            if lines:
                yield lines
        yield list(joiner.end_lines())

    def _new_pieces(self, update: Update) -> Iterator[LogPiece]:
        """Yield an update's pieces; on a new link, first those that were missed before it."""
        if update.whole:
            if self._since is None:
                self._since = update.time
            pieces: list[LogPiece] = []
            if self._reads_stored:
                since = max(self._since, self._newest_at - _LATE_SECONDS)
                pieces = run_blocking(read_logs(self._connect(), self._target, since))
            self._reads_stored = True
            yield from self._remember(piece for piece in pieces if piece not in self._latest)
            self._read = set(pieces)
        pieces = [LogPiece(*row) for row in update.logs]
        yield from self._remember(piece for piece in pieces if piece not in self._read)
        self._read.difference_update(pieces)

    def _remember(self, pieces: Iterable[LogPiece]) -> Iterator[LogPiece]:
        """Yield the pieces, and remember where to continue on the next link."""
        for piece in pieces:
            self._newest_at = max(self._newest_at, piece.at)
            self._latest[piece] = None
            while (oldest := next(iter(self._latest))).at < self._newest_at - _LATE_SECONDS:
                del self._latest[oldest]
            yield piece
