"""Blocks of text: what boards told so far, laid out under heads; pure, no I/O, no events.

Boards are untrusted: whatever they said passes ``printable`` on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from .jobs import Result
from .text import clean, fold

_RULE: Final = 48  # characters of a head, if its words fit
_TAIL: Final = 16 * 1024  # characters of output that are kept while a board runs: a screen or five
_BODY: Final = 64 * 1024  # characters of output that a block shows in the end
_VALUE: Final = 8 * 1024  # characters of a value or of a traceback that are shown
_SIZE: Final = {False: _TAIL, True: _BODY}  # characters of output, all blocks together
_LEAST: Final = {False: 512, True: 4 * 1024}  # characters of output that each block may show
_LINES: Final = {False: 100, True: 1000}  # that all blocks show together; live, final
_FEWEST: Final = {False: 4, True: 20}  # lines that each block may show, however many there are
_BLOCKS: Final = {False: 20, True: 100}  # that are shown; the boards of the others are named
_ROWS: Final = 3  # answers of one line each, from here on, are shown as a table


def printable(text: str) -> str:
    """Make output safe to show: what a CR would overwrite stays, on a line of its own."""
    return clean(text.replace("\r", "\n"))


class Told:
    """What one board has told so far."""

    def __init__(self, since: float) -> None:
        self.state = "running"
        self.since = since
        self.result: Result | None = None
        self.truncated = False
        self.tail = ""
        self._newlines = 0
        self._size = 0  # characters printed
        self._hash = blake2b(digest_size=16)

    @classmethod
    def of(cls, result: Result) -> Told:
        """Return what a board has told that ended."""
        told = cls(0.0)
        told.print(result.stdout, keep=_BODY)
        told.state, told.result, told.truncated = result.status, result, result.truncated
        return told

    def print(self, text: str, *, keep: int = _TAIL) -> None:
        """Take output; its end is kept."""
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        self._newlines += text.count("\n") + text.count("\r")
        self._size += len(text)
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

    def lines(self, most: int, size: int) -> tuple[list[str], int]:
        """Return the last lines of the output, and how many come before them.

        Args:
            most: lines.
            size: characters; a line that is cut by it begins with "…".
        """
        if not self.tail:
            return [], 0
        ended = self.tail[-1] in "\r\n"  # a newline at the end is not worth an empty line
        text = self.tail[:-1] if ended else self.tail
        shown = printable(text[-size:]).split("\n")
        if self._size - ended > size:
            shown[0] = f"…{shown[0]}"
        return shown[-most:], self._newlines + (not ended) - len(shown[-most:])


class Block(NamedTuple):
    """Boards that told the same, and what."""

    boards: list[str]
    told: list[Told]

    @property
    def one(self) -> Told:
        """What each of them told."""
        return self.told[0]


class Page(NamedTuple):
    """One text: how it is to be made."""

    width: int
    final: bool
    failures: str
    kept: str
    now: float

    def text(self, boards: dict[str, Told], left_out: Sequence[str]) -> str:
        """Lay everything out."""
        return "\n".join(self._lines(boards, left_out))

    def ending(self, board: str, told: Told) -> str:
        """Lay out what follows the output of a board alone."""
        block = Block([board], [told])
        head = [self._head(block)] if self._headed(block, alone=True) else []
        return "\n".join([*head, *self._outcome(block, alone=True)])

    def _lines(self, boards: dict[str, Told], left_out: Sequence[str]) -> Iterator[str]:
        blocks = self._blocks(boards)
        if self._silent(blocks):
            blocks = []
        rows = [(block, line) for block in blocks if (line := self._row(block)) is not None]
        if len(rows) >= _ROWS:
            yield from self._table(rows)
            taken = {id(block.boards) for block, _ in rows}
            blocks = [block for block in blocks if id(block.boards) not in taken]
        shown, rest = blocks[: _BLOCKS[self.final]], blocks[_BLOCKS[self.final] :]
        for block in shown:
            yield from self._block(block, len(shown), alone=len(boards) == 1)
        if rest:
            names = [board for block in rest for board in block.boards]
            yield f"… and {len(names):,} boards more: {self._names(names)}"
        if left_out:
            few = len(left_out) <= 4
            yield f"not there: {', '.join(left_out) if few else self._names(left_out)}"

    def _blocks(self, boards: dict[str, Told]) -> list[Block]:
        """Gather boards that told the same: well first, the many first."""
        alike: dict[tuple[object, ...], Block] = {}
        for board, told in boards.items():
            if told.well or told.tail or self.failures != "ignore":
                block = alike.setdefault(told.key, Block([], []))
                block.boards.append(board)
                block.told.append(told)
        return sorted(alike.values(), key=lambda block: (not block.one.well, -len(block.boards)))

    def _silent(self, blocks: list[Block]) -> bool:
        """Whether all ended well and said nothing, as a cell without output does."""
        return all(
            block.one.state == "ok" and not block.one.tail and not self._outcome(block, alone=False)
            for block in blocks
        )

    def _row(self, block: Block) -> str | None:
        """Return the one line that says all, if one does."""
        told = block.one
        if told.state != "ok" or told.truncated or len(told.tail) > self.width:
            return None
        lines = [*told.lines(2, self.width)[0], *self._outcome(block, alone=False)]
        short = len(lines) == 1 and len(lines[0]) <= self.width // 2 and "\n" not in lines[0]
        return lines[0] if short else None

    def _table(self, rows: list[tuple[Block, str]]) -> Iterator[str]:
        shown, rest = rows[: _LINES[self.final]], rows[_LINES[self.final] :]
        names = [self._names(block.boards) for block, _ in shown]
        wide = max(map(len, names))
        yield from (f"{n:<{wide}}  {line}" for n, (_, line) in zip(names, shown, strict=True))
        if rest:
            yield f"… and {sum(len(block.boards) for block, _ in rest):,} boards more"

    def _block(self, block: Block, blocks: int, *, alone: bool) -> Iterator[str]:
        """Lay out one of so many blocks, which share what room there is."""
        if self._headed(block, alone=alone):
            yield self._head(block)
        most = max(_FEWEST[self.final], _LINES[self.final] // blocks)
        size = max(_LEAST[self.final], _SIZE[self.final] // blocks)
        lines, before = block.one.lines(most, size)
        if before > 0:
            where = ", " + self.kept.replace("{board}", block.boards[0]) if self.final else ""
            yield f"… {before:,} lines more{where}"
        if block.one.truncated:
            yield "… some output was left out: it came faster than it could be read"
        yield from lines
        yield from self._outcome(block, alone=alone)

    def _headed(self, block: Block, *, alone: bool) -> bool:
        """Whether a block needs its board's name: not one board's that goes well."""
        told = block.one
        if told.well:
            return not alone or "queued" in told.state
        return not (alone and self._unsaid(alone=True))

    def _head(self, block: Block) -> str:
        names = self._names(block.boards)
        state = self._state(block)
        words = f"── {names} · {state} " if state else f"── {names} "
        return words + "─" * max(2, min(_RULE, self.width) - len(words))

    def _state(self, block: Block) -> str:
        """Return what a head says besides the names; "" for what ended well."""
        told = block.one
        if not told.well and self.failures == "ignore":
            return ""
        if told.state == "ok":
            return "" if told.tail or self._outcome(block, alone=False) else "ok"
        if told.state == "running":
            seconds = int(self.now - max(each.since for each in block.told))
            return f"running {seconds} s" if seconds > 0 else "running"
        why = self._why(block)
        return f"{told.state}: {why}" if why and self._short(why) else told.state

    def _why(self, block: Block) -> str:
        """Return the server's words, if they are the same for all."""
        whys = {told.result.why for told in block.told if told.result is not None}
        return printable(whys.pop()) if len(whys) == 1 else ""

    def _short(self, why: str) -> bool:
        return len(why) <= self.width - 30 and "\n" not in why

    def _outcome(self, block: Block, *, alone: bool) -> list[str]:
        """Return what comes after the output."""
        result = block.one.result
        if result is None or (not result.ok and self._unsaid(alone=alone)):
            return []
        if result.ok:
            prefix = "Out: " if block.one.tail else ""
            return [prefix + self._cut(result.text)] if result.text else []
        why = self._why(block)
        told = result.traceback.rstrip() or ("" if self._short(why) else why)
        return [self._cut(told, end=True)] if told else []

    def _unsaid(self, *, alone: bool) -> bool:
        """Whether failures are not shown here."""
        return self.failures == "ignore" or (alone and self.failures == "raise")

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
