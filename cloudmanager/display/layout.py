"""Blocks of text: what boards told so far, laid out under heads; pure, no I/O, no events.

A line is some pieces of text, each with the part that it plays (``ROLES``), so that a terminal
can colour it. Boards are untrusted: whatever they said passes ``printable`` on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from cloudmanager.protocol.text import clean, fold
from cloudmanager.results.results import Result

#: What a piece of a line is; "" is what boards said.
ROLES: Final = ("", "name", "rule", "note", "bad", "bad name", "warn", "warn name", "done")
Piece = tuple[str, str]  # text and role
Line = list[Piece]  # its text may have newlines in it, but for the one at its end

RESETTING: Final = "resetting, then running"  # the server tells when that begins, not its end
WAITING: Final = "waiting for it to dial in"

_RULE: Final = 48  # characters of a head, if its words fit
_BAR: Final = 24  # characters of a bar
_TAIL: Final = 16 * 1024  # characters of output that are kept while a board runs: a screen or five
_BODY: Final = 64 * 1024  # characters of output that a block shows in the end
_VALUE: Final = 8 * 1024  # characters of a value or of a traceback that are shown
_SIZE: Final = {False: _TAIL, True: _BODY}  # characters of output, all blocks together
_LEAST: Final = {False: 512, True: 4 * 1024}  # characters of output that each block may show
_LINES: Final = {False: 100, True: 1000}  # that all blocks show together; live, final
_FEWEST: Final = {False: 4, True: 20}  # lines that each block may show, however many there are
_BLOCKS: Final = {False: 20, True: 100}  # that are shown; the boards of the others are named
#: Said where the server left some out.
LEFT_OUT: Final = "… some output was left out: it came faster than it could be read"
_ROWS: Final = 3  # answers of one line each, from here on, are shown as a table


def printable(text: str) -> str:
    """Make output safe to show: what a CR would overwrite stays, on a line of its own."""
    return clean(text.replace("\r", "\n"))


def plain(lines: Iterable[Line]) -> str:
    """Return lines as one text, without a newline at its end."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def head_text(words: str) -> str:
    """Return a head that stands alone."""
    return f"── {words} ".ljust(_RULE, "─")


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
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.result is None

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
    grouped: str = "same"  # or "board": a block for each, in the target's order

    def text(self, boards: dict[str, Told], left_out: Sequence[str]) -> str:
        """Lay everything out, as plain text."""
        return plain(self.lines(boards, left_out))

    def lines(self, boards: dict[str, Told], left_out: Sequence[str]) -> Iterator[Line]:
        """Lay everything out."""
        blocks = self._blocks(boards)
        if self._silent(blocks):
            blocks = []
        rows = [(block, line) for block in blocks if (line := self._row(block)) is not None]
        table = len(rows) >= _ROWS and self.grouped == "same"
        if table:
            yield from self._table(rows)
            taken = {id(block.boards) for block, _ in rows}
            blocks = [block for block in blocks if id(block.boards) not in taken]
        shown, rest = blocks[: _BLOCKS[self.final]], blocks[_BLOCKS[self.final] :]
        yield from self._spaced(shown, alone=len(boards) == 1, after=table)
        if rest:
            names = [board for block in rest for board in block.boards]
            yield [(f"… and {len(names):,} boards more: {self._names(names)}", "note")]
        yield from self.missing(left_out)

    def ending(self, board: str, told: Told) -> list[Line]:
        """Lay out what follows the output of a board alone."""
        block = Block([board], [told])
        headed = self._headed(block, alone=True)
        return [*self._heads([block] if headed else []), *self._outcome(block, alone=True)]

    def outcome(self, board: str, told: Told, *, alone: bool) -> list[Line]:
        """Lay out how a board ended, for a log that names it on every line."""
        block = Block([board], [told])
        state = self._state(block)
        plainly_bad = told.state == "error" and not self._why(block)
        first: list[Line] = []
        if not told.well and state and not plainly_bad and not self._unsaid(alone=alone):
            first = [[(state, _tone(told))]]
        return [*first, *self._outcome(block, alone=alone)]

    def missing(self, left_out: Sequence[str]) -> Iterator[Line]:
        """Name the boards that the target matched but that are not there."""
        if left_out:
            few = len(left_out) <= 4
            names = ", ".join(left_out) if few else self._names(left_out)
            yield [(f"not there: {names}", "note")]

    def progress(self, boards: dict[str, Told], seconds: float) -> Line:
        """Say how many boards are done, and whom everybody waits for."""
        ended = [told for told in boards.values() if not told.active]
        spent = f" · {int(seconds)} s"
        if len(boards) == 1:
            ((name, told),) = boards.items()
            return [(f"{name} · {told.state}{spent}", "note")]
        filled = _BAR * len(ended) // len(boards)
        failed = sum(not told.well for told in ended)
        words = f" {len(ended):,} of {len(boards):,} boards are done"
        words += f", {failed:,} failed" if failed and self.failures != "ignore" else ""
        for state, verb in ((WAITING, "waiting for"), (RESETTING, "resetting")):
            names = [name for name, told in boards.items() if told.state == state]
            words += f", {verb} {self._names(names)}" if names else ""
        return [("━" * filled, "done"), ("─" * (_BAR - filled), "rule"), (words + spent, "note")]

    def _blocks(self, boards: dict[str, Told]) -> list[Block]:
        """Gather boards that told the same: well first, the many first."""
        alike: dict[tuple[object, ...], Block] = {}
        for board, told in boards.items():
            if told.well or told.tail or self.failures != "ignore":
                key = told.key if self.grouped == "same" else (board,)
                block = alike.setdefault(key, Block([], []))
                block.boards.append(board)
                block.told.append(told)
        if self.grouped != "same":
            return list(alike.values())
        return sorted(alike.values(), key=lambda block: (not block.one.well, -len(block.boards)))

    def _silent(self, blocks: list[Block]) -> bool:
        """Whether all ended well and said nothing, as a cell without output does."""
        return all(
            block.one.state == "ok" and not block.one.tail and not self._outcome(block, alone=False)
            for block in blocks
        )

    def _row(self, block: Block) -> Line | None:
        """Return the one line that says all, if one does."""
        told = block.one
        if told.state != "ok" or told.truncated or len(told.tail) > self.width:
            return None
        lines: list[Line] = [[(line, "")] for line in told.lines(2, self.width)[0]]
        lines += self._outcome(block, alone=False)
        text = plain(lines)
        short = len(lines) == 1 and len(text) <= self.width // 2 and "\n" not in text
        return lines[0] if short else None

    def _table(self, rows: list[tuple[Block, Line]]) -> Iterator[Line]:
        shown, rest = rows[: _LINES[self.final]], rows[_LINES[self.final] :]
        names = [self._names(block.boards) for block, _ in shown]
        wide = max(map(len, names))
        for name, (_, line) in zip(names, shown, strict=True):
            yield [(f"{name:<{wide}}", "name"), ("  ", ""), *line]
        if rest:
            more = sum(len(block.boards) for block, _ in rest)
            yield [(f"… and {more:,} boards more", "note")]

    def _spaced(self, blocks: list[Block], *, alone: bool, after: bool) -> Iterator[Line]:
        """Lay blocks out, with an empty line between two that are more than a head."""
        headed = [block for block in blocks if self._headed(block, alone=alone)]
        heads = dict(zip((id(block.boards) for block in headed), self._heads(headed), strict=True))
        long = after
        for number, block in enumerate(blocks):
            head = heads.get(id(block.boards))
            body = list(self._body(block, len(blocks), alone=alone))
            if (number or after) and (long or body):
                yield []
            yield from [head] if head else []
            yield from body
            long = bool(body)

    def _body(self, block: Block, blocks: int, *, alone: bool) -> Iterator[Line]:
        """Lay out one of so many blocks, which share what room there is."""
        most = max(_FEWEST[self.final], _LINES[self.final] // blocks)
        size = max(_LEAST[self.final], _SIZE[self.final] // blocks)
        lines, before = block.one.lines(most, size)
        if before > 0:
            where = ", " + self.kept.replace("{board}", block.boards[0]) if self.final else ""
            yield [(f"… {before:,} lines more{where}", "note")]
        if block.one.truncated:
            yield [(LEFT_OUT, "note")]
        yield from ([(line, "")] for line in lines)
        yield from self._outcome(block, alone=alone)

    def _headed(self, block: Block, *, alone: bool) -> bool:
        """Whether a block needs its board's name: not one board's that goes well."""
        told = block.one
        if told.well:
            return not alone or (told.active and told.state != "running")
        return not (alone and self._unsaid(alone=True))

    def _heads(self, blocks: Sequence[Block]) -> list[Line]:
        """Make the heads of some blocks, all of them equally wide."""
        said = [(self._names(block.boards), self._state(block)) for block in blocks]
        words = [f"── {names} · {state} " if state else f"── {names} " for names, state in said]
        wide = max([min(_RULE, self.width), *(min(len(each) + 2, self.width) for each in words)])
        heads: list[Line] = []
        for block, (names, state), each in zip(blocks, said, words, strict=True):
            tone = _tone(block.one) if state and not block.one.well else ""
            heads.append(
                [
                    ("── ", tone or "rule"),
                    (names, f"{tone} name".strip()),
                    (f" · {state} " if state else " ", tone or "rule"),
                    ("─" * max(2, wide - len(each)), tone or "rule"),
                ]
            )
        return heads

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
        after = _spent(block) if told.state == "timeout" else ""
        why = self._why(block)
        return f"{told.state}{after}" + (f": {why}" if why and self._short(why) else "")

    def _why(self, block: Block) -> str:
        """Return the server's words, if they are the same for all."""
        whys = {told.result.why for told in block.told if told.result is not None}
        return printable(whys.pop()) if len(whys) == 1 else ""

    def _short(self, why: str) -> bool:
        return len(why) <= self.width - 30 and "\n" not in why

    def _outcome(self, block: Block, *, alone: bool) -> list[Line]:
        """Return what comes after the output."""
        result = block.one.result
        if result is None or (not result.ok and self._unsaid(alone=alone)):
            return []
        if result.ok:
            prefix: Line = [("Out: ", "note")] if block.one.tail else []
            return [[*prefix, (self._cut(result.text), "")]] if result.text else []
        why = self._why(block)
        told = result.traceback.rstrip() or ("" if self._short(why) else why)
        return [[(self._cut(told, end=True), "")]] if told else []

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


def _tone(told: Told) -> str:
    """Return the role of a failure: red for what the cell did, yellow for what befell it."""
    return "bad" if told.state == "error" else "warn"


def _spent(block: Block) -> str:
    """Say after how long boards were stopped."""
    seconds = max(told.result.elapsed for told in block.told if told.result is not None)
    digits = 0 if seconds >= 1 else 1
    return f" after {seconds:.{digits}f} s" if seconds else ""
