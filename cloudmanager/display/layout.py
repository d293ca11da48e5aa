"""Blocks of text: what boards told so far, laid out under heads; pure, no I/O, no events.

A line is some pieces of text, each with the part that it plays (``ROLES``), so that a terminal
can colour it. Boards are untrusted: whatever they said passes ``printable`` on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.results import Result

#: What a piece of a line is; "" is what boards said.
ROLES: Final = ("", "name", "rule", "note", "bad", "bad name", "warn", "warn name", "done")
StyledText = tuple[str, str]  # text and role
StyledLine = list[StyledText]  # its text may have newlines in it, but for the one at its end

RESETTING: Final = "resetting, then running"  # the server tells when that begins, not its end
WAITING_FOR_BOARD: Final = "waiting for it to dial in"

_HEAD_CHARS: Final = 48  # characters of a head, if its words fit
_BAR_CHARS: Final = 24  # characters of a bar
_TAIL_CHARS: Final = (
    16 * 1024
)  # characters of output that are kept while a board runs: a screen or five
_FINAL_CHARS: Final = 64 * 1024  # characters of output that a block shows in the end
_VALUE_CHARS: Final = 8 * 1024  # characters of a value or of a traceback that are shown
_TOTAL_CHARS: Final = {
    False: _TAIL_CHARS,
    True: _FINAL_CHARS,
}  # characters of output, all blocks together
_MIN_BLOCK_CHARS: Final = {
    False: 512,
    True: 4 * 1024,
}  # characters of output that each block may show
_TOTAL_LINES: Final = {False: 100, True: 1000}  # that all blocks show together; live, final
_MIN_BLOCK_LINES: Final = {
    False: 4,
    True: 20,
}  # lines that each block may show, however many there are
_MAX_BLOCKS: Final = {False: 20, True: 100}  # that are shown; the boards of the others are named
#: Said where the server left some out.
OUTPUT_OMITTED: Final = "… some output was left out: it came faster than it could be read"
_MIN_TABLE_ROWS: Final = 3  # answers of one line each, from here on, are shown as a table


def printable_output(text: str) -> str:
    """Make output safe to show: what a CR would overwrite stays, on a line of its own."""
    return sanitize_text(text.replace("\r", "\n"))


def plain_text(lines: Iterable[StyledLine]) -> str:
    """Return lines as one text, without a newline at its end."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def head_text(title: str) -> str:
    """Return a head that stands alone."""
    return f"── {title} ".ljust(_HEAD_CHARS, "─")


class BoardOutput:
    """What one board has told so far."""

    def __init__(self, since: float) -> None:
        self.state = "running"
        self.since = since
        self.result: Result | None = None
        self.truncated = False
        self.tail = ""
        self._newline_count = 0
        self._char_count = 0  # characters printed
        self._hash = blake2b(digest_size=16)

    @classmethod
    def from_result(cls, result: Result) -> BoardOutput:
        """Return what a board has told that ended."""
        told = cls(0.0)
        told.add_output(result.stdout, tail_chars=_FINAL_CHARS)
        told.state, told.result, told.truncated = result.status, result, result.truncated
        return told

    def add_output(self, text: str, *, tail_chars: int = _TAIL_CHARS) -> None:
        """Take output; its end is kept."""
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        self._newline_count += text.count("\n") + text.count("\r")
        self._char_count += len(text)
        if len(self.tail) + len(text) > 2 * tail_chars:
            self.tail = self.tail[-tail_chars:] + text[-tail_chars:]
        else:
            self.tail += text

    @property
    def grouping_key(self) -> tuple[object, ...]:
        """Return what is equal for boards whose outcome so far is equal."""
        told: tuple[object, ...] = (self.state, self._hash.digest(), self.truncated)
        if self.result is not None:
            why = "" if self.state == "offline" else self.result.why
            told += (self.result.text, self.result.traceback, self.result.value_truncated, why)
        return told

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.result is None

    @property
    def ok_so_far(self) -> bool:
        """Whether it has not failed."""
        return self.result is None or self.result.ok

    def last_lines(self, max_lines: int, max_chars: int) -> tuple[list[str], int]:
        """Return the last lines of the output, and how many come before them.

        Args:
            max_lines: lines.
            max_chars: characters; a line that is cut by it begins with "…".
        """
        if not self.tail:
            return [], 0
        ended = self.tail[-1] in "\r\n"  # a newline at the end is not worth an empty line
        text = self.tail[:-1] if ended else self.tail
        shown = printable_output(text[-max_chars:]).split("\n")
        if self._char_count - ended > max_chars:
            shown[0] = f"…{shown[0]}"
        return shown[-max_lines:], self._newline_count + (not ended) - len(shown[-max_lines:])


class Block(NamedTuple):
    """Boards that told the same, and what."""

    boards: list[str]
    outputs: list[BoardOutput]

    @property
    def first_output(self) -> BoardOutput:
        """What each of them told."""
        return self.outputs[0]


class Report(NamedTuple):
    """One text: how it is to be made."""

    width: int
    final: bool
    failures: str
    full_output_hint: str
    now: float
    grouping: str = "same"  # or "board": a block for each, in the target's order

    def text(self, boards: dict[str, BoardOutput], left_out: Sequence[str]) -> str:
        """Lay everything out, as plain text."""
        return plain_text(self.lines(boards, left_out))

    def lines(
        self, boards: dict[str, BoardOutput], left_out: Sequence[str]
    ) -> Iterator[StyledLine]:
        """Lay everything out."""
        blocks = self._group_blocks(boards)
        if self._has_no_output(blocks):
            blocks = []
        rows = [(block, line) for block in blocks if (line := self._single_line(block)) is not None]
        table = len(rows) >= _MIN_TABLE_ROWS and self.grouping == "same"
        if table:
            yield from self._table_lines(rows)
            taken = {id(block.boards) for block, _ in rows}
            blocks = [block for block in blocks if id(block.boards) not in taken]
        shown, rest = blocks[: _MAX_BLOCKS[self.final]], blocks[_MAX_BLOCKS[self.final] :]
        yield from self._block_lines(shown, single_board=len(boards) == 1, after_table=table)
        if rest:
            names = [board for block in rest for board in block.boards]
            yield [(f"… and {len(names):,} boards more: {self._short_names(names)}", "note")]
        yield from self.missing_lines(left_out)

    def end_lines(self, board: str, output: BoardOutput) -> list[StyledLine]:
        """Lay out what follows the output of a board alone."""
        block = Block([board], [output])
        headed = self._needs_head(block, single_board=True)
        return [
            *self._head_lines([block] if headed else []),
            *self._value_or_traceback(block, single_board=True),
        ]

    def outcome_lines(
        self, board: str, output: BoardOutput, *, single_board: bool
    ) -> list[StyledLine]:
        """Lay out how a board ended, for a log that names it on every line."""
        block = Block([board], [output])
        state = self._state_text(block)
        plainly_bad = output.state == "error" and not self._shared_reason(block)
        first: list[StyledLine] = []
        if (
            not output.ok_so_far
            and state
            and not plainly_bad
            and not self._hides_failures(single_board=single_board)
        ):
            first = [[(state, _failure_role(output))]]
        return [*first, *self._value_or_traceback(block, single_board=single_board)]

    def missing_lines(self, left_out: Sequence[str]) -> Iterator[StyledLine]:
        """Name the boards that the target matched but that are not there."""
        if left_out:
            few = len(left_out) <= 4
            names = ", ".join(left_out) if few else self._short_names(left_out)
            yield [(f"not there: {names}", "note")]

    def progress_line(self, boards: dict[str, BoardOutput], seconds: float) -> StyledLine:
        """Say how many boards are done, and whom everybody waits for."""
        ended = [told for told in boards.values() if not told.active]
        spent = f" · {int(seconds)} s"
        if len(boards) == 1:
            ((name, told),) = boards.items()
            return [(f"{name} · {told.state}{spent}", "note")]
        filled = _BAR_CHARS * len(ended) // len(boards)
        failed = sum(not told.ok_so_far for told in ended)
        words = f" {len(ended):,} of {len(boards):,} boards are done"
        words += f", {failed:,} failed" if failed and self.failures != "ignore" else ""
        for state, verb in ((WAITING_FOR_BOARD, "waiting for"), (RESETTING, "resetting")):
            names = [name for name, told in boards.items() if told.state == state]
            words += f", {verb} {self._short_names(names)}" if names else ""
        return [
            ("━" * filled, "done"),
            ("─" * (_BAR_CHARS - filled), "rule"),
            (words + spent, "note"),
        ]

    def _group_blocks(self, boards: dict[str, BoardOutput]) -> list[Block]:
        """Gather boards that told the same: well first, the many first."""
        alike: dict[tuple[object, ...], Block] = {}
        for board, told in boards.items():
            if told.ok_so_far or told.tail or self.failures != "ignore":
                key = told.grouping_key if self.grouping == "same" else (board,)
                block = alike.setdefault(key, Block([], []))
                block.boards.append(board)
                block.outputs.append(told)
        if self.grouping != "same":
            return list(alike.values())
        return sorted(
            alike.values(), key=lambda block: (not block.first_output.ok_so_far, -len(block.boards))
        )

    def _has_no_output(self, blocks: list[Block]) -> bool:
        """Whether all ended well and said nothing, as a cell without output does."""
        return all(
            block.first_output.state == "ok"
            and not block.first_output.tail
            and not self._value_or_traceback(block, single_board=False)
            for block in blocks
        )

    def _single_line(self, block: Block) -> StyledLine | None:
        """Return the one line that says all, if one does."""
        told = block.first_output
        if told.state != "ok" or told.truncated or len(told.tail) > self.width:
            return None
        lines: list[StyledLine] = [[(line, "")] for line in told.last_lines(2, self.width)[0]]
        lines += self._value_or_traceback(block, single_board=False)
        text = plain_text(lines)
        short = len(lines) == 1 and len(text) <= self.width // 2 and "\n" not in text
        return lines[0] if short else None

    def _table_lines(self, rows: list[tuple[Block, StyledLine]]) -> Iterator[StyledLine]:
        shown, rest = rows[: _TOTAL_LINES[self.final]], rows[_TOTAL_LINES[self.final] :]
        names = [self._short_names(block.boards) for block, _ in shown]
        wide = max(map(len, names))
        for name, (_, line) in zip(names, shown, strict=True):
            yield [(f"{name:<{wide}}", "name"), ("  ", ""), *line]
        if rest:
            more = sum(len(block.boards) for block, _ in rest)
            yield [(f"… and {more:,} boards more", "note")]

    def _block_lines(
        self, blocks: list[Block], *, single_board: bool, after_table: bool
    ) -> Iterator[StyledLine]:
        """Lay blocks out, with an empty line between two that are more than a head."""
        headed = [block for block in blocks if self._needs_head(block, single_board=single_board)]
        heads = dict(
            zip((id(block.boards) for block in headed), self._head_lines(headed), strict=True)
        )
        long = after_table
        for number, block in enumerate(blocks):
            head = heads.get(id(block.boards))
            body = list(self._body_lines(block, len(blocks), single_board=single_board))
            if (number or after_table) and (long or body):
                yield []
            yield from [head] if head else []
            yield from body
            long = bool(body)

    def _body_lines(
        self, block: Block, block_count: int, *, single_board: bool
    ) -> Iterator[StyledLine]:
        """Lay out one of so many blocks, which share what room there is."""
        most = max(_MIN_BLOCK_LINES[self.final], _TOTAL_LINES[self.final] // block_count)
        size = max(_MIN_BLOCK_CHARS[self.final], _TOTAL_CHARS[self.final] // block_count)
        lines, before = block.first_output.last_lines(most, size)
        if before > 0:
            where = (
                ", " + self.full_output_hint.replace("{board}", block.boards[0])
                if self.final
                else ""
            )
            yield [(f"… {before:,} lines more{where}", "note")]
        if block.first_output.truncated:
            yield [(OUTPUT_OMITTED, "note")]
        yield from ([(line, "")] for line in lines)
        yield from self._value_or_traceback(block, single_board=single_board)

    def _needs_head(self, block: Block, *, single_board: bool) -> bool:
        """Whether a block needs its board's name: not one board's that goes well."""
        told = block.first_output
        if told.ok_so_far:
            return not single_board or (told.active and told.state != "running")
        return not (single_board and self._hides_failures(single_board=True))

    def _head_lines(self, blocks: Sequence[Block]) -> list[StyledLine]:
        """Make the heads of some blocks, all of them equally wide."""
        said = [(self._short_names(block.boards), self._state_text(block)) for block in blocks]
        words = [f"── {names} · {state} " if state else f"── {names} " for names, state in said]
        wide = max(
            [min(_HEAD_CHARS, self.width), *(min(len(each) + 2, self.width) for each in words)]
        )
        heads: list[StyledLine] = []
        for block, (names, state), each in zip(blocks, said, words, strict=True):
            tone = (
                _failure_role(block.first_output)
                if state and not block.first_output.ok_so_far
                else ""
            )
            heads.append(
                [
                    ("── ", tone or "rule"),
                    (names, f"{tone} name".strip()),
                    (f" · {state} " if state else " ", tone or "rule"),
                    ("─" * max(2, wide - len(each)), tone or "rule"),
                ]
            )
        return heads

    def _state_text(self, block: Block) -> str:
        """Return what a head says besides the names; "" for what ended well."""
        told = block.first_output
        if not told.ok_so_far and self.failures == "ignore":
            return ""
        if told.state == "ok":
            return "" if told.tail or self._value_or_traceback(block, single_board=False) else "ok"
        if told.state == "running":
            seconds = int(self.now - max(each.since for each in block.outputs))
            return f"running {seconds} s" if seconds > 0 else "running"
        after = _elapsed_text(block) if told.state == "timeout" else ""
        why = self._shared_reason(block)
        return f"{told.state}{after}" + (f": {why}" if why and self._fits_in_head(why) else "")

    def _shared_reason(self, block: Block) -> str:
        """Return the server's words, if they are the same for all."""
        whys = {told.result.why for told in block.outputs if told.result is not None}
        return printable_output(whys.pop()) if len(whys) == 1 else ""

    def _fits_in_head(self, reason: str) -> bool:
        return len(reason) <= self.width - 30 and "\n" not in reason

    def _value_or_traceback(self, block: Block, *, single_board: bool) -> list[StyledLine]:
        """Return what comes after the output."""
        result = block.first_output.result
        if result is None or (not result.ok and self._hides_failures(single_board=single_board)):
            return []
        if result.ok:
            prefix: StyledLine = [("Out: ", "note")] if block.first_output.tail else []
            return [[*prefix, (self._truncate(result.text), "")]] if result.text else []
        why = self._shared_reason(block)
        told = result.traceback.rstrip() or ("" if self._fits_in_head(why) else why)
        return [[(self._truncate(told, keep_end=True), "")]] if told else []

    def _hides_failures(self, *, single_board: bool) -> bool:
        """Whether failures are not shown here."""
        return self.failures == "ignore" or (single_board and self.failures == "raise")

    def _truncate(self, text: str, *, keep_end: bool = False) -> str:
        more = len(text) - _VALUE_CHARS
        if more <= 0:
            return printable_output(text)
        note = f"… {more:,} characters more"
        return (
            f"{note}\n{printable_output(text[more:])}"
            if keep_end
            else f"{printable_output(text[:_VALUE_CHARS])}\n{note}"
        )

    def _short_names(self, names: Sequence[str]) -> str:
        """Fold names; of a fold that is too long, its beginning."""
        folded, room = fold_names(names), max(24, self.width - 24)
        if len(folded) <= room:
            return folded
        return f"{folded[:room]}… ({len(names):,} boards)"


def _failure_role(output: BoardOutput) -> str:
    """Return the role of a failure: red for what the cell did, yellow for what befell it."""
    return "bad" if output.state == "error" else "warn"


def _elapsed_text(block: Block) -> str:
    """Say after how long boards were stopped."""
    seconds = max(told.result.elapsed for told in block.outputs if told.result is not None)
    digits = 0 if seconds >= 1 else 1
    return f" after {seconds:.{digits}f} s" if seconds else ""
