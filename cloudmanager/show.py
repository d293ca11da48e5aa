"""How results look: equal outcomes of several boards are one block; pure, no I/O.

    ── demo-[1-38,40] ─────────────────────
    reading the sensor
    Out: 23.5
    ── demo-39 · error ────────────────────
    Traceback (most recent call last):
      File "<cell>", line 2, in <module>
        read()
    OSError: [Errno 110] ETIMEDOUT
    not there: demo-41

The notebook, a terminal and `mbm` show the same text. What came from boards is made safe to
show. The cost of a text is bounded, whatever the boards print, so that a live display does not
grow with the square of the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from .jobs import Event, JobGroup, Result, Results
from .text import clean, fold

WIDTH: Final = 80  # characters, where nobody knows better
KEPT: Final = "in r['{board}'].stdout"  # where the whole output is

_RULE: Final = 48  # characters of a head, if its words fit
_TAIL: Final = 16 * 1024  # characters of output that are kept while a board runs: a screen or five
_BODY: Final = 64 * 1024  # characters of output that a block shows in the end
_VALUE: Final = 16 * 1024  # characters of a value or of a traceback that are shown
_LINES: Final = {False: 100, True: 1000}  # that all blocks show together; live, final
_FEWEST: Final = {False: 4, True: 20}  # lines that each block may show, however many there are
_BLOCKS: Final = {False: 20, True: 100}  # that are shown; the boards of the others are named
_ROWS: Final = 4  # blocks of one line each that are shown as a table


def printable(text: str) -> str:
    """Make output safe to show: what a CR would overwrite stays, on a line of its own."""
    return clean(text.replace("\r", "\n"))


class View:
    """What a cell's jobs look like by now. Feed it the group's events.

    Args:
        group: the jobs; it may be shown before the first event came.
        failures: "show"; "raise": if there is one board, its failure is left to the exception;
            "ignore": failures are not shown.
        kept: where the whole output is, such as ``KEPT``; for the note on what is left out.
        clock: seconds from anywhere.
    """

    def __init__(
        self,
        group: JobGroup,
        *,
        failures: str = "show",
        kept: str = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._failures = failures
        self._kept = kept
        self._clock = clock
        self._born = clock()
        self._told: dict[str, _Told] = {}

    def take(self, event: Event) -> None:
        """Take one event of the group."""
        told = self._of(event.job.board)
        if event.kind == "output":
            told.print(event.text)
        elif event.kind == "queued":
            told.state = f"queued {printable(event.text)}".rstrip()
        elif event.kind == "started":
            told.state, told.since = "running", self._clock()
        elif event.kind == "truncated":
            told.truncated = True
        elif event.kind == "ended" and event.job.result is not None:
            self._told[event.job.board] = _Told.of(event.job.result)

    def text(self, width: int = WIDTH, *, final: bool = False) -> str:
        """Return all blocks as one text without a newline at its end; "" for nothing to show.

        Args:
            width: characters of a line; heads keep to it where they can, output does not.
            final: nothing more will come: show more of it.
        """
        boards = {board: self._of(board) for board in self._group.jobs}
        return self._page(width, final).text(boards, self._group.left_out)

    def ending(self, board: str, width: int = WIDTH) -> str:
        """Return what comes after the output of a board that ended: value or traceback."""
        return self._page(width, final=True).ending(board, self._of(board))

    def _page(self, width: int, final: bool) -> _Page:
        return _Page(width, final, self._failures, self._kept, self._clock())

    def _of(self, board: str) -> _Told:
        return self._told.setdefault(board, _Told(self._born))


def results_text(results: Results, width: int = WIDTH, *, kept: str = KEPT) -> str:
    """Return the text of results, as ``View.text`` shows them in the end."""
    boards = {board: _Told.of(result) for board, result in results.items()}
    return _Page(width, True, "show", kept, 0.0).text(boards, results.left_out)


class _Told:
    """What one board has told so far."""

    def __init__(self, since: float) -> None:
        self.state = "running"
        self.since = since
        self.result: Result | None = None
        self.truncated = False
        self.tail = ""
        self._count = 0  # newlines printed
        self._hash = blake2b(digest_size=16)

    @classmethod
    def of(cls, result: Result) -> _Told:
        """Return what a board has told that ended."""
        told = cls(0.0)
        told.print(result.stdout, keep=_BODY)
        told.state, told.result, told.truncated = result.status, result, result.truncated
        return told

    def print(self, text: str, *, keep: int = _TAIL) -> None:
        """Take output; its end is kept."""
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        self._count += text.count("\n") + text.count("\r")
        if len(self.tail) + len(text) > 2 * keep:
            self.tail = self.tail[-keep:] + text[-keep:]
        else:
            self.tail += text

    @property
    def key(self) -> tuple[object, ...]:
        """Return what is equal for boards whose outcome so far is equal."""
        told: tuple[object, ...] = (self.state, self._hash.digest(), self.truncated)
        if self.result is not None:
            why = "" if self.state == "offline" else self.result.why
            told += (self.result.text, self.result.traceback, self.result.cut, why)
        return told

    @property
    def well(self) -> bool:
        """Whether it has not failed."""
        return self.result is None or self.result.ok

    def lines(self, most: int) -> tuple[list[str], int]:
        """Return the last lines of the output, and how many come before them."""
        if not self.tail:
            return [], 0
        # What the end of the last line is not worth: an empty line after its newline.
        text = self.tail[:-1] if self.tail[-1] in "\r\n" else self.tail
        total = self._count + (text is self.tail)
        shown = printable(text).split("\n")[-most:]
        return shown, total - len(shown)


class _Block(NamedTuple):
    """Boards that told the same, and what."""

    boards: list[str]
    told: list[_Told]

    @property
    def one(self) -> _Told:
        return self.told[0]


class _Page(NamedTuple):
    """One text: how it is to be made."""

    width: int
    final: bool
    failures: str
    kept: str
    now: float

    def text(self, boards: dict[str, _Told], left_out: Sequence[str]) -> str:
        """Lay everything out."""
        return "\n".join(self._lines(boards, left_out))

    def ending(self, board: str, told: _Told) -> str:
        """Lay out what follows the output of a board alone."""
        block = _Block([board], [told])
        head = [self._head(block)] if self._headed(block, alone=True) else []
        return "\n".join([*head, *self._outcome(block, alone=True)])

    def _lines(self, boards: dict[str, _Told], left_out: Sequence[str]) -> Iterator[str]:
        blocks = self._blocks(boards)
        if self._silent(blocks):
            blocks = []
        rows = [(block, line) for block in blocks if (line := self._row(block)) is not None]
        if len(rows) >= _ROWS:
            yield from self._table(rows)
            taken = {id(block.boards) for block, _ in rows}
            blocks = [block for block in blocks if id(block.boards) not in taken]
        shown, rest = blocks[: _BLOCKS[self.final]], blocks[_BLOCKS[self.final] :]
        most = max(_FEWEST[self.final], _LINES[self.final] // max(1, len(shown)))
        for block in shown:
            yield from self._block(block, most, alone=len(boards) == 1)
        if rest:
            names = [board for block in rest for board in block.boards]
            yield f"… and {len(names):,} boards more: {self._names(names)}"
        if left_out:
            few = len(left_out) <= 4
            yield f"not there: {', '.join(left_out) if few else self._names(left_out)}"

    def _blocks(self, boards: dict[str, _Told]) -> list[_Block]:
        """Gather boards that told the same: well first, the many first."""
        alike: dict[tuple[object, ...], _Block] = {}
        for board, told in boards.items():
            if told.well or self.failures != "ignore":
                block = alike.setdefault(told.key, _Block([], []))
                block.boards.append(board)
                block.told.append(told)
        return sorted(alike.values(), key=lambda block: (not block.one.well, -len(block.boards)))

    def _silent(self, blocks: list[_Block]) -> bool:
        """Whether all ended well and said nothing, as a cell without output does."""
        return all(
            block.one.state == "ok" and not block.one.tail and not self._outcome(block, alone=False)
            for block in blocks
        )

    def _row(self, block: _Block) -> str | None:
        """Return the one line that says all, if one does."""
        lines, _ = block.one.lines(2)
        lines += self._outcome(block, alone=False)
        short = len(lines) == 1 and len(lines[0]) <= self.width // 2 and "\n" not in lines[0]
        return lines[0] if short and block.one.state == "ok" else None

    def _table(self, rows: list[tuple[_Block, str]]) -> Iterator[str]:
        shown, rest = rows[: _LINES[self.final]], rows[_LINES[self.final] :]
        names = [self._names(block.boards) for block, _ in shown]
        wide = max(map(len, names))
        yield from (f"{n:<{wide}}  {line}" for n, (_, line) in zip(names, shown, strict=True))
        if rest:
            yield f"… and {sum(len(block.boards) for block, _ in rest):,} boards more"

    def _block(self, block: _Block, most: int, *, alone: bool) -> Iterator[str]:
        if self._headed(block, alone=alone):
            yield self._head(block)
        lines, before = block.one.lines(most)
        if before > 0:
            where = ", " + self.kept.replace("{board}", block.boards[0]) if self.final else ""
            yield f"… {before:,} lines more{where}"
        if block.one.truncated:
            yield "… some output was left out: it came faster than it could be read"
        yield from lines
        yield from self._outcome(block, alone=alone)

    def _headed(self, block: _Block, *, alone: bool) -> bool:
        """Whether a block needs its board's name: not one board's that goes well."""
        told = block.one
        return not alone or (
            self.failures != "raise" if told.result and not told.well else "queued" in told.state
        )

    def _head(self, block: _Block) -> str:
        names = self._names(block.boards)
        state = self._state(block)
        words = f"── {names} · {state} " if state else f"── {names} "
        return words + "─" * max(2, min(_RULE, self.width) - len(words))

    def _state(self, block: _Block) -> str:
        """Return what a head says besides the names; "" for what ended well."""
        told = block.one
        if told.state == "ok":
            return "" if told.tail or self._outcome(block, alone=False) else "ok"
        if told.state == "running":
            seconds = int(self.now - max(each.since for each in block.told))
            return f"running {seconds} s" if seconds > 0 else "running"
        why = self._why(block)
        return f"{told.state}: {why}" if why and self._short(why) else told.state

    def _why(self, block: _Block) -> str:
        """Return the server's words, if they are the same for all."""
        whys = {told.result.why for told in block.told if told.result is not None}
        return printable(whys.pop()) if len(whys) == 1 else ""

    def _short(self, why: str) -> bool:
        return len(why) <= self.width - 30

    def _outcome(self, block: _Block, *, alone: bool) -> list[str]:
        """Return what comes after the output."""
        result = block.one.result
        if result is None or (alone and self.failures == "raise" and not result.ok):
            return []
        if result.ok:
            prefix = "Out: " if block.one.tail else ""
            return [prefix + self._cut(result.text)] if result.text else []
        why = self._why(block)
        told = result.traceback.rstrip() or ("" if self._short(why) else why)
        return [self._cut(told, end=True)] if told else []

    def _cut(self, text: str, *, end: bool = False) -> str:
        more = len(text) - _VALUE
        if more <= 0:
            return printable(text)
        note = f"… {more:,} characters more"
        return f"{note}\n{printable(text[more:])}" if end else f"{printable(text[:_VALUE])}\n{note}"

    def _names(self, names: Sequence[str]) -> str:
        """Fold names; of a fold that is too long, its beginning."""
        folded, room = fold(names), max(24, self.width - 24)
        if len(folded) <= room:
            return folded
        return f"{folded[:room]}… ({len(names):,} boards)"
