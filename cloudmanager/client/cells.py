"""Converts a cell to the code that is sent, and a board's traceback to the cell's lines.

The last expression is wrapped in place, so that its value is returned and no line number changes;
`print(1)` + newline + `x + 1` is sent as:

    print(1)
    __cm__((x + 1))

A cell that awaits is sent as a coroutine function whose names are global. The board runs it in its
event loop:

    async def __cm_cell__():
    <tab>global x
    <tab>x = await read()

The caller's inputs are assigned before the first statement, on the same line, so that the line
numbers of functions stay right for later cells. Where that would not be valid Python, they are on
a line of their own, which `line_offset` counts.

`__cm__` and `__cm_cell__` are implemented on the board (mpy_client/cm/run.py).

A syntax error is raised here, and nothing is sent. But MicroPython decides what is an error: code
that Python here refuses is sent if mpy-cross accepts it, or if mpy-cross is not installed.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import NoReturn

from cloudmanager.protocol.errors import CellSyntaxError, notebook_hint

from .cell_scanner import Position, ScannedSyntax
from .cell_syntax import Syntax, parse_syntax
from .mpy_check import may_be_micropython

FILE_NAME = "<cell>"  # the cell's file name in a board's traceback
VALUE_HOOK = "__cm__"  # called with the value of the trailing expression
CELL_HOOK = "__cm_cell__"  # the coroutine function of a cell that awaits
_OPENING = VALUE_HOOK.encode() + b"(("
_CLOSING = b"))"

# A tab indents each line by the same width, eight columns, whatever mixture of tabs and spaces
# follows it (MicroPython's py/lexer.c, TAB_SIZE).
_INDENT = b"\t"
MAX_TITLE_CHARS = 120  # of what lists of jobs call a cell; a line of a wide terminal
_CODE_LINE = re.compile(r"^[\ufeff \t\f]*([^\s#\ufeff][^\r\n]*)", re.MULTILINE)
_MAX_SOURCE_CHARS = 200  # of a source line in a traceback; a traceback may have very many lines
# Lone surrogates have no UTF-8, and a NUL ends the text for the parser.
_UNSENDABLE_CHARS = re.compile("[\x00\ud800-\udfff]")
_FORM_FEED = re.compile(rb"\A[ \t\f]*\f")


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be sent.

    Attributes:
        source: the cell as it was typed.
        code: what is sent to the board, in UTF-8.
        line_offset: how many lines of `code` are before the first line of `source`.
        has_value: whether it ends in an expression, whose value is passed to `__cm__`.
        awaits: whether `code` only defines `__cm_cell__`, which the board runs in its event loop.
        name: what lists of jobs call it, such as a file; "" for its first line of code.
        own: where the text of the cell is in `code`, without what was added to it, such as inputs:
            begin and end of each piece, in bytes, one after the other.
        inputs: the names of its inputs.
        restarts: whether it restarts the board, so that the restart is no fault.
    """

    source: str
    code: bytes
    line_offset: int
    has_value: bool
    awaits: bool
    name: str = ""
    own: tuple[int, ...] = field(default=(), compare=False)  # follows from the others
    inputs: tuple[str, ...] = ()
    restarts: bool = False

    @property
    def title(self) -> str:
        """What lists of jobs call the cell, at most ``MAX_TITLE_CHARS``; "" if it has no code.

        It never contains inputs: those are in `code` only.
        """
        return (self.name or _first_line(self.source))[:MAX_TITLE_CHARS]


def _first_line(source: str) -> str:
    """Return the first line that is neither empty nor a comment, without its indentation."""
    for found in _CODE_LINE.finditer(source):
        return found[1]
    return ""


def prepare_cell(text: str, prelude: str = "") -> Cell:
    """Prepare a cell for sending.

    A semicolon after the trailing expression suppresses its value, as in Jupyter.

    Args:
        text: the cell, with any kind of line ends; a byte order mark is left out.
        prelude: assignments to run before it, one per line (see ``input_values``).

    Raises:
        CellSyntaxError: it is not valid Python; or it awaits and imports `*`.
    """
    source = _normalize_newlines(text)
    _check_characters(source)
    try:
        return _assemble(text, source, parse_syntax(source), prelude)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, SyntaxError) and notebook_hint(error.text or ""):
            _raise_python_error(source, error)
        syntax = ScannedSyntax(source)
        cell = _assemble(text, source, syntax, prelude)
        # In the coroutine function of an awaiting cell, boards would accept a stray return.
        if (syntax.awaits and syntax.leaves) or not may_be_micropython(cell.code):
            _raise_python_error(source, error)
        return cell


def indent_cell(text: str, tabs: int) -> str:
    """Return a cell's lines indented by tabs, for a block in other code; strings stay as they are.

    Raises:
        CellSyntaxError: it is not valid Python.
    """
    cell = prepare_cell(text)
    lines_in_strings = _make_syntax(_normalize_newlines(text)).lines_inside_strings()
    lines = _normalize_newlines(cell.source).split("\n")
    return "\n".join(
        line if number in lines_in_strings else "\t" * tabs + line
        for number, line in enumerate(lines)
    )


def _assemble(text: str, source: str, syntax: Syntax, prelude: str) -> Cell:
    """Put together what is sent."""
    lines = source.encode().split(b"\n")
    span = syntax.value_span()
    added: list[tuple[int, int, int]] = []  # line, column and length of what is not the cell's own
    if span is not None:
        added = _wrap_value(lines, *span)
    lines_in_strings = syntax.lines_inside_strings()
    assigned = prelude.split("\n") if prelude else []
    head = _coroutine_head(source, syntax, assigned) if syntax.awaits else []
    indent = _INDENT if syntax.awaits else b""
    # MicroPython counts a form feed as a column of indentation; Python resets the count there.
    body = [
        line if number in lines_in_strings else indent + _FORM_FEED.sub(b"", line)
        for number, line in enumerate(lines)
    ]
    # How many bytes longer each line is at its beginning; fewer where a form feed was left out.
    moved = [len(new) - len(line) for new, line in zip(body, lines, strict=True)]
    skipped = [0 if number in lines_in_strings else len(indent) for number in range(len(lines))]
    if assigned and not syntax.awaits:
        first = ";".join(assigned).encode()
        # A statement can be put before a simple one, or in an empty line.
        if not syntax.begins_with_block() or lines[0].strip()[:1] in (b"", b"#"):
            body[0] = first + b";" + body[0]
            moved[0] += len(first) + 1
            skipped[0] = len(first) + 1
        else:
            head = [first]
    code = b"\n".join(head + body)
    pieces = [(number, 0, size) for number, size in enumerate(skipped) if size]
    pieces += [(number, column + moved[number], size) for number, column, size in added]
    own = _own_spans(code, body, pieces)
    return Cell(text, code, len(head), span is not None, syntax.awaits, own=own)


def _own_spans(
    code: bytes, body: list[bytes], added: list[tuple[int, int, int]]
) -> tuple[int, ...]:
    """Return where the text of a cell is in what is sent: see ``Cell.own``.

    Args:
        code: what is sent.
        body: its lines that are the cell's, which are the last ones.
        added: line, column and length of each piece of them that is not the cell's own.
    """
    starts = list(itertools.accumulate((len(line) + 1 for line in body), initial=0))
    first = len(code) - (starts[-1] - 1)  # where the lines of the cell begin
    spans: list[int] = []
    position = first
    for number, column, size in sorted(added):
        start = first + starts[number] + column
        if start > position:
            spans += (position, start)
        position = start + size
    return (*spans, position, len(code)) if position < len(code) else tuple(spans)


def map_traceback(traceback: str, cell: Cell, name: str = FILE_NAME) -> str:
    """Map the line numbers of a board's traceback to those of the cell, and add source lines.

    A function that the cell does not define is from an earlier cell, whose lines are not known.

    Args:
        traceback: as the board printed it; no text makes this function raise.
        cell: the cell that ran.
        name: the file name of this cell in the traceback. Frames of other files, and frames with a
            line that the cell does not have, stay unchanged.

    Returns:
        The same text, in which the cell's coroutine is called `<module>`, and each frame of the
        cell is followed by its source line. It is not yet safe to show.
    """
    source = _normalize_newlines(cell.source).split("\n")
    frame = re.compile(rf'(  File "{re.escape(name)}", line )([0-9]{{1,9}})((?:, in [^\r]*)?)\r?')
    definition_lines = _definition_lines(cell)
    shown: list[str] = []
    for line in traceback.split("\n"):
        found = frame.fullmatch(line)
        if found:
            shown += _map_frame(found, source, cell.line_offset, definition_lines)
        else:
            shown.append(line)
    return "\n".join(shown)


def _map_frame(
    found: re.Match[str], source: list[str], offset: int, definition_lines: set[tuple[str, int]]
) -> list[str]:
    number = int(found[2]) - offset
    where = ", in <module>" if found[3] == f", in {CELL_HOOK}" else found[3]
    name = where[len(", in ") :]
    is_of_cell = name[:1] in ("", "<") or (name, number) in definition_lines
    if not (is_of_cell and 1 <= number <= len(source)):
        return [found[1] + found[2] + where]
    line = source[number - 1].strip()[:_MAX_SOURCE_CHARS]
    return [f"{found[1]}{number}{where}", *([f"    {line}"] if line else [])]


def _definition_lines(cell: Cell) -> set[tuple[str, int]]:
    """Return (name, line) for each line of the functions and classes that the cell defines."""
    try:
        return _make_syntax(_normalize_newlines(cell.source)).definition_lines()
    except SystemError:  # another thread compiled without the lock: see cell_syntax
        return set()


def _make_syntax(source: str) -> Syntax:
    """Return what a cell contains that was prepared before."""
    try:
        return parse_syntax(source)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return ScannedSyntax(source)


def _normalize_newlines(text: str) -> str:
    """Return a text with newlines as line ends, and without a byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _check_characters(source: str) -> None:
    """Raise an error if the cell has characters that cannot be sent."""
    if found := _UNSENDABLE_CHARS.search(source):
        _raise_syntax_error(
            source,
            f"{found[0]!r} is not allowed in a cell",
            *_line_and_column(source, found.start()),
        )


def _raise_python_error(source: str, error: BaseException) -> NoReturn:
    """Raise the error with which Python refused a cell, as a CellSyntaxError."""
    if isinstance(error, SyntaxError):
        _raise_syntax_error(
            source, error.msg, error.lineno or 1, error.offset or 1, in_bytes=not error.text
        )
    if isinstance(error, (RecursionError, MemoryError)):
        _raise_syntax_error(source, "the cell is nested too deeply", 1, 1)
    _raise_syntax_error(source, str(error), 1, 1)


def _line_and_column(source: str, position: int) -> tuple[int, int]:
    before = source[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


def _raise_syntax_error(
    source: str, why: str, number: int, offset: int, *, in_bytes: bool = False
) -> NoReturn:
    """Raise a CellSyntaxError.

    Args:
        source: the cell.
        why: what is wrong.
        number: the line, from 1.
        offset: the character of the line, from 1.
        in_bytes: whether ``offset`` counts bytes, as the compiler does, unlike the parser.
    """
    line = "".join(source.split("\n")[number - 1 : number])
    if in_bytes:
        offset = len(line.encode()[: offset - 1].decode(errors="ignore")) + 1
    raise CellSyntaxError(why, number, offset, line) from None


def _wrap_value(lines: list[bytes], start: Position, end: Position) -> list[tuple[int, int, int]]:
    """Wrap the trailing expression in place; return line, column and length of what was added."""
    # The end first: it may be in the same line. Two parentheses: the value of `1, 2` is a tuple.
    last, end_column = end
    lines[last] = lines[last][:end_column] + _CLOSING + lines[last][end_column:]
    number, column = start
    lines[number] = lines[number][:column] + _OPENING + lines[number][column:]
    if number == last:
        end_column += len(_OPENING)
    return [(number, column, len(_OPENING)), (last, end_column, len(_CLOSING))]


def _coroutine_head(source: str, syntax: Syntax, assignments: list[str]) -> list[bytes]:
    """Return the two lines before the body of a cell that awaits; the second has the inputs."""
    if position := syntax.star_import():
        why = "a cell that awaits cannot import *: write this import in a separate cell"
        _raise_syntax_error(source, why, position[0] + 1, position[1] + 1, in_bytes=True)
    names = syntax.bound_names() | {each.partition(" = ")[0] for each in assignments}
    declaration = f"global {', '.join(sorted(names))}" if names else "pass"
    second = ";".join([declaration, *assignments])
    return [f"async def {CELL_HOOK}():".encode(), _INDENT + second.encode()]
