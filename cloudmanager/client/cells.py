"""A cell's text -> what travels to the board; and the board's traceback -> the cell's lines. Pure.

`print(1)` + newline + `x + 1` travels with its last expression wrapped in place, so that the value
comes back and no line moves:

    print(1)
    __cm__((x + 1))

A cell that awaits travels as a coroutine whose names are global. The board runs it on its loop:

    async def __cm_cell__():
    <tab>global x
    <tab>x = await read()

What the caller assigns first stands before the first statement on its line, so that functions
that later cells call know their lines; where that is no Python, on a line that `offset` counts.

`__cm__` and `__cm_cell__` are the board's part (mpy_client/cm/run.py). Nothing is run here: a cell
is only parsed, and compiled to find what parsing alone lets through, such as a stray `return`.
"""

import ast
import inspect
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from cloudmanager.protocol.errors import CellSyntaxError

FILE_NAME = "<cell>"  # what a board's traceback calls the cell
VALUE_HOOK = "__cm__"  # takes the value of the trailing expression
CELL_HOOK = "__cm_cell__"  # the coroutine function of a cell that awaits

#: One at a time: warnings.catch_warnings is the whole process's, and CPython before 3.11.9 counts
#: the depth of what all threads compile together, and raises SystemError (its issue 106905).
_compile_lock = threading.Lock()
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
# A tab, since it moves each line to the right by one and the same width, eight columns, whatever
# mixture of tabs and spaces follows it (MicroPython's py/lexer.c, TAB_SIZE).
_INDENT = b"\t"
_MAX_SOURCE_CHARS = (
    200  # characters of a source line in a traceback, which may hold very many lines
)
# Halves of surrogate pairs have no UTF-8, and a NUL ends the text for the parser.
_UNSENDABLE_CHARS = re.compile("[\x00\ud800-\udfff]")
_FORM_FEED = re.compile(rb"\A[ \t\f]*\f")
_BLANK = b" \t\f\\\n"  # what may stand between an expression and its semicolon
_FSTRING_NODES = (
    ast.JoinedStr,
    getattr(ast, "TemplateStr", ast.JoinedStr),
)  # the latter since 3.14
_FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Cell:
    """A cell, ready to travel.

    Attributes:
        source: as it was typed.
        code: what the board gets, in UTF-8.
        line_offset: how many lines of `code` stand before the first line of `source`.
        has_value: it ends in an expression, whose value the board hands to `__cm__`.
        awaits: `code` only defines `__cm_cell__`, which the board then runs on its loop.
    """

    source: str
    code: bytes
    line_offset: int
    has_value: bool
    awaits: bool


def prepare_cell(text: str, prelude: str = "") -> Cell:
    """Make of a cell's text what travels.

    A semicolon after the trailing expression silences its value, as in Jupyter.

    Args:
        text: the cell, with any kind of line ends.
        prelude: assignments that come before it, one a line (see inputs.py).

    Raises:
        CellSyntaxError: it is not Python; or it awaits and imports `*`.
    """
    source = _normalize_newlines(text)
    tree, awaits = _parse_cell(source)
    lines = source.encode().split(b"\n")
    has_value = _wrap_value(lines, tree)
    inside = set(_lines_inside_strings(tree))
    assigned = prelude.split("\n") if prelude else []
    head = _coroutine_head(source, tree, assigned) if awaits else []
    indent = _INDENT if awaits else b""
    # MicroPython counts a form feed as a column of indentation; Python starts counting anew there.
    body = [
        line if number in inside else indent + _FORM_FEED.sub(b"", line)
        for number, line in enumerate(lines)
    ]
    if assigned and not awaits:
        first = ";".join(assigned).encode()
        if _can_prepend(tree, lines[0]):
            body[0] = first + b";" + body[0]
        else:
            head = [first]
    return Cell(text, b"\n".join(head + body), len(head), has_value, awaits)


def map_traceback(traceback: str, cell: Cell, name: str = FILE_NAME) -> str:
    """Map a board's traceback to the lines of the cell, and show these.

    A function that the cell does not define is of an earlier one, whose lines are not known here.

    Args:
        traceback: as the board printed it; whatever it is, this raises nothing.
        cell: the cell that ran.
        name: what the traceback calls this cell; frames of other files stay as they are, and so
            do frames with a line that the cell does not have.

    Returns:
        The same text, with what the board was told to call the cell's coroutine as `<module>`,
        and under each frame of the cell its source line. It is not yet safe to show.
    """
    source = _normalize_newlines(cell.source).split("\n")
    frame = re.compile(rf'(  File "{re.escape(name)}", line )([0-9]{{1,9}})((?:, in [^\r]*)?)\r?')
    places = _definition_lines(cell)
    shown: list[str] = []
    for line in traceback.split("\n"):
        found = frame.fullmatch(line)
        shown += _map_frame(found, source, cell.line_offset, places) if found else [line]
    return "\n".join(shown)


def _map_frame(
    found: re.Match[str], source: list[str], offset: int, definition_lines: set[tuple[str, int]]
) -> list[str]:
    number = int(found[2]) - offset
    where = ", in <module>" if found[3] == f", in {CELL_HOOK}" else found[3]
    name = where[len(", in ") :]
    here = name[:1] in ("", "<") or (name, number) in definition_lines
    if not (here and 1 <= number <= len(source)):
        return [found[1] + found[2] + where]
    line = source[number - 1].strip()[:_MAX_SOURCE_CHARS]
    return [f"{found[1]}{number}{where}", *([f"    {line}"] if line else [])]


def _definition_lines(cell: Cell) -> set[tuple[str, int]]:
    """Return the lines of each function and class that the cell defines: (name, line)."""
    try:
        tree, _ = _parse_cell(_normalize_newlines(cell.source))
    except SystemError:  # somebody else's thread compiled: see _compiling
        return set()
    return {
        (node.name, line)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }


def _can_prepend(tree: ast.Module, line: bytes) -> bool:
    """Whether a statement and a semicolon may be put before a cell's first line."""
    simple = not tree.body or not (set(tree.body[0]._fields) & {"body", "cases"})
    return simple or line.strip()[:1] in (b"", b"#")


def parse_python(text: str, mode: str = "exec") -> ast.AST:
    """Parse Python, as ``ast.parse`` does, while no other thread does so here."""
    with _compile_lock:
        return ast.parse(text, mode=mode)


def _normalize_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse_cell(source: str) -> tuple[ast.Module, bool]:
    """Parse a cell, and say whether it awaits outside of every function."""
    if found := _UNSENDABLE_CHARS.search(source):
        _raise_syntax_error(
            source, f"{found[0]!r} cannot be in a cell", *_line_and_column(source, found.start())
        )
    try:
        with _compile_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what to think of "\d" is for the board to say
            tree = compile(source, FILE_NAME, "exec", _TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST, True)
            # Without a name, since the compiler reads the file of that name to quote from it.
            code = compile(tree, "", "exec", _TOP_LEVEL_AWAIT, True)
    except SyntaxError as error:
        _raise_syntax_error(
            source, error.msg, error.lineno or 1, error.offset or 1, in_bytes=not error.text
        )
    except (RecursionError, MemoryError):
        _raise_syntax_error(source, "the cell is nested too deeply", 1, 1)
    except (ValueError, OverflowError) as error:
        _raise_syntax_error(source, str(error), 1, 1)
    return tree, bool(code.co_flags & inspect.CO_COROUTINE)


def _line_and_column(source: str, position: int) -> tuple[int, int]:
    before = source[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


def _raise_syntax_error(
    source: str, why: str, number: int, offset: int, *, in_bytes: bool = False
) -> NoReturn:
    """Raise a CellSyntaxError; the compiler, unlike the parser, counts the offset in bytes."""
    line = "".join(source.split("\n")[number - 1 : number])
    if in_bytes:
        offset = len(line.encode()[: offset - 1].decode(errors="ignore")) + 1
    raise CellSyntaxError(why, number, offset, line) from None


def _wrap_value(lines: list[bytes], tree: ast.Module) -> bool:
    """Wrap the trailing expression in place, if there is one and no semicolon follows."""
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return False
    # Positions count lines from 1 and columns in bytes of UTF-8 from 0.
    end, column = (last.end_lineno or 0) - 1, last.end_col_offset or 0
    rest = b"\n".join([lines[end][column:], *lines[end + 1 :]])
    if rest.lstrip(_BLANK).startswith(b";"):
        return False
    # The end first: it may be in the line of the start. Two brackets, since 1, 2 is one value.
    lines[end] = lines[end][:column] + b"))" + lines[end][column:]
    start, column = last.lineno - 1, last.col_offset
    lines[start] = lines[start][:column] + VALUE_HOOK.encode() + b"((" + lines[start][column:]
    return True


def _lines_inside_strings(tree: ast.Module) -> Iterator[int]:
    """Find the lines, counted from 0, that begin within a string: these must not be touched."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.expr) and _is_string(node):
            # Not what is in an f-string: before Python 3.12 its positions cannot be trusted.
            yield from range(node.lineno, node.end_lineno or 0)
        else:
            queue.extend(ast.iter_child_nodes(node))


def _is_string(node: ast.expr) -> bool:
    plain = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    return plain or isinstance(node, _FSTRING_NODES)


def _coroutine_head(source: str, tree: ast.Module, assignments: list[str]) -> list[bytes]:
    """Make the two lines before the body of a cell that awaits; the second assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            why = "a cell that awaits cannot import *: put this in a cell of its own"
            _raise_syntax_error(source, why, node.lineno, node.col_offset + 1, in_bytes=True)
    bound = set(_bound_names(tree))
    # Python takes compatible letters for the same (the micro sign is a mu), MicroPython does not.
    typed = {w for w in re.findall(r"\w+", source) if unicodedata.normalize("NFKC", w) in bound}
    typed |= {each.partition(" = ")[0] for each in assignments}
    names = f"global {', '.join(sorted(typed))}" if typed else "pass"
    second = ";".join([names, *assignments])
    return [f"async def {CELL_HOOK}():".encode(), _INDENT + second.encode()]


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Find the names that the cell binds outside of its functions and classes."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        else:
            # def, class, except … as, and what `match` captures
            named = (getattr(node, "name", None), getattr(node, "rest", None))
            yield from (name for name in named if isinstance(name, str))
        queue.extend(_same_scope_nodes(node))


def _same_scope_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Find the parts of a node that run where the node stands."""
    if isinstance(node, _FUNCTION_NODES):
        yield from getattr(node, "decorator_list", ())
        yield from node.args.defaults
        yield from filter(None, node.args.kw_defaults)
    elif isinstance(node, ast.ClassDef):
        yield from (*node.decorator_list, *node.bases, *node.keywords)
    elif isinstance(node, ast.comprehension):
        yield from (node.iter, *node.ifs)  # its target is its own; a walrus in it is not
    else:
        yield from ast.iter_child_nodes(node)
