"""Fold equal outputs and outcomes of boards into blocks of text under heads. No I/O.

A line consists of pieces of text with a role each (``ROLES``), so that a terminal can colour it.
Boards are not trusted: all text from them passes ``printable_output``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from cloudmanager.protocol.spans import format_milliseconds
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.results import Result

#: Roles of the pieces of a line; "" is output of boards.
ROLES: Final = ("", "name", "rule", "note", "bad", "bad name", "warn", "warn name", "done")
StyledText = tuple[str, str]  # text and role
StyledLine = list[StyledText]  # its text may contain newlines, but does not end with one

#: State of a board that resets before it runs a cell. The server reports the start of a reset, not
#: its end, so the state stays until the cell starts or prints something.
RESETTING: Final = "resetting, then running"
WAITING_FOR_BOARD: Final = "waiting for it to connect"

_HEAD_CHARS: Final = 48  # least width of a head
_BAR_CHARS: Final = 24  # width of the progress bar
_TAIL_CHARS: Final = 16 * 1024  # output that is kept while a board runs: a few screens
_FINAL_CHARS: Final = 64 * 1024  # output that the final text shows
_VALUE_CHARS: Final = 8 * 1024  # of a value or a traceback that are shown
# Limits of the text, by whether it is final. All blocks together share the total, but each block
# may have the minimum, however many blocks there are.
_TOTAL_CHARS: Final = {False: _TAIL_CHARS, True: _FINAL_CHARS}
_MIN_BLOCK_CHARS: Final = {False: 512, True: 4 * 1024}
_TOTAL_LINES: Final = {False: 100, True: 1000}
_MIN_BLOCK_LINES: Final = {False: 4, True: 20}
_MAX_BLOCKS: Final = {False: 20, True: 100}  # of the other blocks only the boards' names are shown
#: Shown in place of output that was dropped.
OUTPUT_OMITTED: Final = "… some output was left out: it came faster than it could be read"
_MIN_TABLE_ROWS: Final = 3  # this many one-line outcomes or more are shown as a table


def printable_output(text: str) -> str:
    """Make output safe to show; a carriage return starts a new line and overwrites nothing."""
    return sanitize_text(text.replace("\r", "\n"))


def plain_text(lines: Iterable[StyledLine]) -> str:
    """Return the text of styled lines, without a newline at its end."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def head_text(title: str) -> str:
    """Return the head of a block as plain text: the title in a horizontal rule."""
    return f"── {title} ".ljust(_HEAD_CHARS, "─")


def more_text(count: int, noun: str) -> str:
    """Return a number of things that are not shown: "1 more line", "2,000 more lines"."""
    return f"{count:,} more {noun}" if count == 1 else f"{count:,} more {noun}s"


class BoardOutput:
    """The output of one board so far, and its result once it has ended.

    Attributes:
        state: shown in the head: "running", "queued behind 1 job of anna", or the result's status.
        since: time at which the state began, by the clock of the view.
        result: None while the job runs.
        truncated: whether some output was dropped.
        tail: the end of the output.
    """

    def __init__(self, since: float) -> None:
        self.state = "running"
        self.since = since
        self.result: Result | None = None
        self.truncated = False
        self.tail = ""
        self._newline_count = 0
        self._char_count = 0  # of the whole output
        self._hash = blake2b(digest_size=16)  # of the whole output

    @classmethod
    def from_result(cls, result: Result) -> BoardOutput:
        """Return the output of a board that has ended."""
        output = cls(0.0)
        output.add_output(result.stdout, tail_chars=_FINAL_CHARS)
        output.state = result.status
        output.result = result
        output.truncated = result.truncated
        return output

    def add_output(self, text: str, *, tail_chars: int = _TAIL_CHARS) -> None:
        """Add output; only the last ``tail_chars`` characters are certain to be kept."""
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        self._newline_count += text.count("\n") + text.count("\r")
        self._char_count += len(text)
        if len(self.tail) + len(text) > 2 * tail_chars:
            self.tail = self.tail[-tail_chars:] + text[-tail_chars:]
        else:
            self.tail += text

    @property
    def grouping_key(self) -> tuple[object, ...]:
        """Equal for boards whose state, output and result are equal: they share a block."""
        key: tuple[object, ...] = (self.state, self._hash.digest(), self.truncated)
        if self.result is not None:
            # Of offline boards, `why` says when each was last seen: not a reason to separate them.
            why = "" if self.state == "offline" else self.result.why
            key += (self.result.text, self.result.traceback, self.result.value_truncated, why)
        return key

    @property
    def active(self) -> bool:
        """Whether the job has not ended."""
        return self.result is None

    @property
    def ok_so_far(self) -> bool:
        """Whether the job has not failed: it runs, or it succeeded."""
        return self.result is None or self.result.ok

    def last_lines(self, max_lines: int, max_chars: int) -> tuple[list[str], int]:
        """Return the last lines of the output, and the number of lines before them.

        Args:
            max_lines: number of lines.
            max_chars: number of characters; a line that this limit cuts begins with "…".
        """
        if not self.tail:
            return [], 0
        ends_with_newline = self.tail[-1] in "\r\n"  # it is not shown as an empty line
        text = self.tail[:-1] if ends_with_newline else self.tail
        lines = printable_output(text[-max_chars:]).split("\n")
        if self._char_count - ends_with_newline > max_chars:
            lines[0] = f"…{lines[0]}"
        lines = lines[-max_lines:]
        line_count = self._newline_count + (not ends_with_newline)
        return lines, line_count - len(lines)


class Block(NamedTuple):
    """Boards with equal output and outcome."""

    boards: list[str]
    outputs: list[BoardOutput]

    @property
    def first_output(self) -> BoardOutput:
        """The output that represents all boards of the block."""
        return self.outputs[0]


class Report(NamedTuple):
    """Lays out the outputs of boards; its fields are the options.

    Attributes:
        width: characters per line, for heads and tables.
        final: whether the jobs have ended; the final text has larger limits.
        failures: see ``DisplayOptions``.
        full_output_hint: see ``DisplayOptions``.
        now: the time, by the clock of the view.
        grouping: "same" or "board", see ``DisplayOptions``.
    """

    width: int
    final: bool
    failures: str
    full_output_hint: str
    now: float
    grouping: str = "same"

    def text(self, boards: dict[str, BoardOutput], left_out: Sequence[str]) -> str:
        """Return the whole text without styles.

        Args:
            boards: name -> output.
            left_out: boards that the target matched but that are not connected.
        """
        return plain_text(self.lines(boards, left_out))

    def lines(
        self, boards: dict[str, BoardOutput], left_out: Sequence[str]
    ) -> Iterator[StyledLine]:
        """Yield the whole text as styled lines; the arguments are those of ``text``."""
        blocks = self._group_blocks(boards)
        if self._has_no_output(blocks):
            blocks = []
        rows = [(block, line) for block in blocks if (line := self._single_line(block)) is not None]
        has_table = len(rows) >= _MIN_TABLE_ROWS and self.grouping == "same"
        if has_table:
            yield from self._table_lines(rows)
            in_table = {id(block.boards) for block, _ in rows}
            blocks = [block for block in blocks if id(block.boards) not in in_table]
        max_blocks = _MAX_BLOCKS[self.final]
        single_board = len(boards) == 1
        yield from self._block_lines(
            blocks[:max_blocks], single_board=single_board, after_table=has_table
        )
        names = [board for block in blocks[max_blocks:] for board in block.boards]
        if names:
            yield [(f"… and {more_text(len(names), 'board')}: {self._short_names(names)}", "note")]
        yield from _lateness_lines(boards.values())
        yield from self.missing_lines(left_out)

    def end_lines(self, board: str, output: BoardOutput) -> list[StyledLine]:
        """Return what follows the output of a single board: value or traceback, with a head."""
        block = Block([board], [output])
        has_head = self._needs_head(block, single_board=True)
        return [
            *self._head_lines([block] if has_head else []),
            *self._value_or_traceback(block, single_board=True),
            *_lateness_lines([output]),
        ]

    def outcome_lines(
        self, board: str, output: BoardOutput, *, single_board: bool
    ) -> list[StyledLine]:
        """Return the outcome of a board for a log in which each line has the board's name."""
        block = Block([board], [output])
        lines = self._value_or_traceback(block, single_board=single_board)
        state = self._state_text(block)
        # A traceback shows by itself that the cell raised an error.
        only_traceback = output.state == "error" and not self._shared_reason(block)
        hidden = output.ok_so_far or self._hides_failures(single_board=single_board)
        if state and not only_traceback and not hidden:
            lines.insert(0, [(state, _failure_style(output))])
        return lines

    def missing_lines(self, left_out: Sequence[str]) -> Iterator[StyledLine]:
        """Yield a line that names the boards that the target matched but are not connected."""
        if left_out:
            few = len(left_out) <= 4
            names = ", ".join(left_out) if few else self._short_names(left_out)
            yield [(f"not connected: {names}", "note")]

    def progress_line(self, boards: dict[str, BoardOutput], seconds: float) -> StyledLine:
        """Return a line that shows how many boards are done, and which ones delay the rest."""
        ended = [output for output in boards.values() if not output.active]
        elapsed = f" · {int(seconds)} s"
        if len(boards) == 1:
            ((name, output),) = boards.items()
            return [(f"{name} · {output.state}{elapsed}", "note")]
        text = f" {len(ended):,} of {len(boards):,} boards are done"
        failed = sum(not output.ok_so_far for output in ended)
        if failed and self.failures != "ignore":
            text += f", {failed:,} failed"
        for verb, states in (
            ("waiting for", (WAITING_FOR_BOARD, "queued")),
            ("resetting", (RESETTING,)),
        ):
            names = [name for name, output in boards.items() if output.state.startswith(states)]
            if names:
                text += f", {verb} {self._short_names(names)}"
        filled = _BAR_CHARS * len(ended) // len(boards)
        return [
            ("━" * filled, "done"),
            ("─" * (_BAR_CHARS - filled), "rule"),
            (text + elapsed, "note"),
        ]

    def _group_blocks(self, boards: dict[str, BoardOutput]) -> list[Block]:
        """Group boards with equal outcomes: failures last, larger groups first."""
        blocks: dict[tuple[object, ...], Block] = {}
        for board, output in boards.items():
            if output.ok_so_far or output.tail or self.failures != "ignore":
                key = output.grouping_key if self.grouping == "same" else (board,)
                block = blocks.setdefault(key, Block([], []))
                block.boards.append(board)
                block.outputs.append(output)
        if self.grouping != "same":
            return list(blocks.values())
        return sorted(
            blocks.values(),
            key=lambda block: (not block.first_output.ok_so_far, -len(block.boards)),
        )

    def _has_no_output(self, blocks: list[Block]) -> bool:
        """Whether all boards succeeded without output or value: then nothing is shown."""
        return all(
            block.first_output.state == "ok"
            and not block.first_output.tail
            and not self._value_or_traceback(block, single_board=False)
            for block in blocks
        )

    def _single_line(self, block: Block) -> StyledLine | None:
        """Return the block's only line if it is short enough for a table, else None."""
        output = block.first_output
        if output.state != "ok" or output.truncated or len(output.tail) > self.width:
            return None
        lines: list[StyledLine] = [[(line, "")] for line in output.last_lines(2, self.width)[0]]
        lines += self._value_or_traceback(block, single_board=False)
        text = plain_text(lines)
        short = len(lines) == 1 and len(text) <= self.width // 2 and "\n" not in text
        return lines[0] if short else None

    def _table_lines(self, rows: list[tuple[Block, StyledLine]]) -> Iterator[StyledLine]:
        """Yield a line for each block: boards and output."""
        max_rows = _TOTAL_LINES[self.final]
        shown, omitted = rows[:max_rows], rows[max_rows:]
        names = [self._short_names(block.boards) for block, _ in shown]
        name_width = max(map(len, names))
        for name, (_, line) in zip(names, shown, strict=True):
            yield [(f"{name:<{name_width}}", "name"), ("  ", ""), *line]
        if omitted:
            count = sum(len(block.boards) for block, _ in omitted)
            yield [(f"… and {more_text(count, 'board')}", "note")]

    def _block_lines(
        self, blocks: list[Block], *, single_board: bool, after_table: bool
    ) -> Iterator[StyledLine]:
        """Yield the lines of blocks; an empty line separates blocks that have a body."""
        with_head = [
            block for block in blocks if self._needs_head(block, single_board=single_board)
        ]
        heads = {
            id(block.boards): head
            for block, head in zip(with_head, self._head_lines(with_head), strict=True)
        }
        previous_has_body = after_table
        for number, block in enumerate(blocks):
            head = heads.get(id(block.boards))
            body = list(self._body_lines(block, len(blocks), single_board=single_board))
            is_first = number == 0 and not after_table
            if not is_first and (previous_has_body or body):
                yield []
            if head:
                yield head
            yield from body
            previous_has_body = bool(body)

    def _body_lines(
        self, block: Block, block_count: int, *, single_board: bool
    ) -> Iterator[StyledLine]:
        """Yield output and outcome of one of ``block_count`` blocks, which share the limits."""
        output = block.first_output
        max_lines = max(_MIN_BLOCK_LINES[self.final], _TOTAL_LINES[self.final] // block_count)
        max_chars = max(_MIN_BLOCK_CHARS[self.final], _TOTAL_CHARS[self.final] // block_count)
        lines, omitted = output.last_lines(max_lines, max_chars)
        if omitted > 0:
            where = ""
            if self.final:
                where = ", " + self.full_output_hint.replace("{board}", block.boards[0])
            yield [(f"… {more_text(omitted, 'line')}{where}", "note")]
        if output.truncated:
            yield [(OUTPUT_OMITTED, "note")]
        for line in lines:
            yield [(line, "")]
        yield from self._value_or_traceback(block, single_board=single_board)

    def _needs_head(self, block: Block, *, single_board: bool) -> bool:
        """Whether a block needs a head; that of a single board that runs or succeeded does not."""
        output = block.first_output
        if output.ok_so_far:
            return not single_board or (output.active and output.state != "running")
        return not (single_board and self._hides_failures(single_board=True))

    def _head_lines(self, blocks: Sequence[Block]) -> list[StyledLine]:
        """Return the heads of blocks, all of the same width."""
        titles = []
        for block in blocks:
            names, state = self._short_names(block.boards), self._state_text(block)
            titles.append((names, f" · {state} " if state else " "))
        least_width = min(_HEAD_CHARS, self.width)
        lengths = [len("── ") + len(names) + len(state) for names, state in titles]
        head_width = max([least_width, *(min(length + 2, self.width) for length in lengths)])
        heads: list[StyledLine] = []
        for block, (names, state), length in zip(blocks, titles, lengths, strict=True):
            failed = bool(state.strip()) and not block.first_output.ok_so_far
            role = _failure_style(block.first_output) if failed else ""
            heads.append(
                [
                    ("── ", role or "rule"),
                    (names, f"{role} name".strip()),
                    (state, role or "rule"),
                    ("─" * max(2, head_width - length), role or "rule"),
                ]
            )
        return heads

    def _state_text(self, block: Block) -> str:
        """Return the state for a head, with its reason if that is short; "" for success."""
        output = block.first_output
        if not output.ok_so_far and self.failures == "ignore":
            return ""
        if output.state == "ok":
            has_body = output.tail or self._value_or_traceback(block, single_board=False)
            return "" if has_body else "ok"
        if output.state == "running":
            seconds = int(self.now - max(each.since for each in block.outputs))
            return f"running {seconds} s" if seconds > 0 else "running"
        elapsed = _elapsed_text(block) if output.state == "timeout" else ""
        reason = self._shared_reason(block)
        suffix = f": {reason}" if reason and self._fits_in_head(reason) else ""
        return f"{output.state}{elapsed}{suffix}"

    def _shared_reason(self, block: Block) -> str:
        """Return the reason of a failure that the server gave, if all boards have the same."""
        reasons = {output.result.why for output in block.outputs if output.result is not None}
        return printable_output(reasons.pop()) if len(reasons) == 1 else ""

    def _fits_in_head(self, reason: str) -> bool:
        return len(reason) <= self.width - 30 and "\n" not in reason

    def _value_or_traceback(self, block: Block, *, single_board: bool) -> list[StyledLine]:
        """Return the value, traceback or long reason that follows the output."""
        output = block.first_output
        result = output.result
        if result is None or (not result.ok and self._hides_failures(single_board=single_board)):
            return []
        if result.ok:
            prefix: StyledLine = [("Out: ", "note")] if output.tail else []
            return [[*prefix, (self._truncate(result.text), "")]] if result.text else []
        reason = self._shared_reason(block)
        text = result.traceback.rstrip() or ("" if self._fits_in_head(reason) else reason)
        return [[(self._truncate(text, keep_end=True), "")]] if text else []

    def _hides_failures(self, *, single_board: bool) -> bool:
        """Whether failures are left out: ignored, or left to an exception."""
        return self.failures == "ignore" or (single_board and self.failures == "raise")

    def _truncate(self, text: str, *, keep_end: bool = False) -> str:
        """Return at most ``_VALUE_CHARS`` characters of a text, with a note if it is longer."""
        excess = len(text) - _VALUE_CHARS
        if excess <= 0:
            return printable_output(text)
        note = f"… {more_text(excess, 'character')}"
        if keep_end:
            return f"{note}\n{printable_output(text[excess:])}"
        return f"{printable_output(text[:_VALUE_CHARS])}\n{note}"

    def _short_names(self, names: Sequence[str]) -> str:
        """Return names folded to ranges; if that is too long, its beginning and the number."""
        folded = fold_names(names)
        max_chars = max(24, self.width - 24)
        if len(folded) <= max_chars:
            return folded
        return f"{folded[:max_chars]}… ({len(names):,} boards)"


def _lateness_lines(outputs: Iterable[BoardOutput]) -> Iterator[StyledLine]:
    """Yield a line that says how exactly a cell started at its time (``at``), if it has one."""
    results = [output.result for output in outputs if output.result is not None]
    started = [result for result in results if result.late is not None]
    if started:
        late = max(abs(result.late or 0.0) for result in started)
        error = max(result.clock_error or 0.0 for result in started)
        text = f"started within {format_milliseconds(late)}, clocks ± {format_milliseconds(error)}"
        yield [(text, "note")]


def _failure_style(output: BoardOutput) -> str:
    """Return the role of a failure: "bad" if the cell raised an error, else "warn"."""
    return "bad" if output.state == "error" else "warn"


def _elapsed_text(block: Block) -> str:
    """Return the time after which the boards of a block were stopped, such as " after 3 s"."""
    results = [output.result for output in block.outputs if output.result is not None]
    seconds = max(result.elapsed for result in results)
    digits = 0 if seconds >= 1 else 1
    return f" after {seconds:.{digits}f} s" if seconds else ""
