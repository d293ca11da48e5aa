"""Converts a cell to the code that is sent, and a board's traceback to the cell's lines. No I/O.

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

`__cm__` and `__cm_cell__` are implemented on the board (mpy_client/cm/run.py). No cell is executed
here: it is parsed, and compiled to find errors that parsing does not, such as a stray `return`.
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

FILE_NAME = "<cell>"  # the cell's file name in a board's traceback
VALUE_HOOK = "__cm__"  # called with the value of the trailing expression
CELL_HOOK = "__cm_cell__"  # the coroutine function of a cell that awaits

#: One thread compiles at a time: warnings.catch_warnings changes the whole process, and CPython
#: before 3.11.9 counts the recursion depth of all compiling threads together, and raises
#: SystemError (CPython issue 106905).
_compile_lock = threading.Lock()
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
# A tab indents each line by the same width, eight columns, whatever mixture of tabs and spaces
# follows it (MicroPython's py/lexer.c, TAB_SIZE).
_INDENT = b"\t"
_MAX_SOURCE_CHARS = 200  # of a source line in a traceback; a traceback may have very many lines
# Lone surrogates have no UTF-8, and a NUL ends the text for the parser.
_UNSENDABLE_CHARS = re.compile("[\x00\ud800-\udfff]")
_FORM_FEED = re.compile(rb"\A[ \t\f]*\f")
_BLANK = b" \t\f\\\n"  # characters that can be between an expression and its semicolon
#: TemplateStr exists since Python 3.14.
_FSTRING_NODES = (ast.JoinedStr, getattr(ast, "TemplateStr", ast.JoinedStr))
_FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be sent.

    Attributes:
        source: the cell as it was typed.
        code: what is sent to the board, in UTF-8.
        line_offset: how many lines of `code` are before the first line of `source`.
        has_value: whether it ends in an expression, whose value is passed to `__cm__`.
        awaits: whether `code` only defines `__cm_cell__`, which the board runs in its event loop.
    """

    source: str
    code: bytes
    line_offset: int
    has_value: bool
    awaits: bool


def prepare_cell(text: str, prelude: str = "") -> Cell:
    """Prepare a cell for sending.

    A semicolon after the trailing expression suppresses its value, as in Jupyter.

    Args:
        text: the cell, with any kind of line ends.
        prelude: assignments to run before it, one per line (see ``input_values``).

    Raises:
        CellSyntaxError: it is not valid Python; or it awaits and imports `*`.
    """
    source = _normalize_newlines(text)
    tree, awaits = _parse_cell(source)
    lines = source.encode().split(b"\n")
    has_value = _wrap_value(lines, tree)
    lines_in_strings = set(_lines_inside_strings(tree))
    assigned = prelude.split("\n") if prelude else []
    head = _coroutine_head(source, tree, assigned) if awaits else []
    indent = _INDENT if awaits else b""
    # MicroPython counts a form feed as a column of indentation; Python resets the count there.
    body = [
        line if number in lines_in_strings else indent + _FORM_FEED.sub(b"", line)
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
        tree, _ = _parse_cell(_normalize_newlines(cell.source))
    except SystemError:  # another thread compiled without the lock: see _compile_lock
        return set()
    return {
        (node.name, line)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }


def _can_prepend(tree: ast.Module, line: bytes) -> bool:
    """Whether a statement and a semicolon can be put before a cell's first line."""
    simple = not tree.body or not (set(tree.body[0]._fields) & {"body", "cases"})
    return simple or line.strip()[:1] in (b"", b"#")


def parse_python(text: str, mode: str = "exec") -> ast.AST:
    """Parse Python like ``ast.parse``, while no other thread compiles in this module."""
    with _compile_lock:
        return ast.parse(text, mode=mode)


def _normalize_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse_cell(source: str) -> tuple[ast.Module, bool]:
    """Parse a cell; return its tree, and whether it awaits outside of all functions."""
    if found := _UNSENDABLE_CHARS.search(source):
        _raise_syntax_error(
            source,
            f"{found[0]!r} is not allowed in a cell",
            *_line_and_column(source, found.start()),
        )
    try:
        with _compile_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about "\d": the board compiles the cell
            tree = compile(source, FILE_NAME, "exec", _TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST, True)
            # No file name: the compiler would read that file to quote from it in an error.
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


def _wrap_value(lines: list[bytes], tree: ast.Module) -> bool:
    """Wrap the trailing expression in place, unless a semicolon follows; return whether it was."""
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return False
    # ast positions: lines from 1, columns from 0 in bytes of UTF-8.
    end, column = (last.end_lineno or 0) - 1, last.end_col_offset or 0
    rest = b"\n".join([lines[end][column:], *lines[end + 1 :]])
    if rest.lstrip(_BLANK).startswith(b";"):
        return False
    # The end first: it may be in the same line. Two parentheses: the value of `1, 2` is a tuple.
    lines[end] = lines[end][:column] + b"))" + lines[end][column:]
    start, column = last.lineno - 1, last.col_offset
    lines[start] = lines[start][:column] + VALUE_HOOK.encode() + b"((" + lines[start][column:]
    return True


def _lines_inside_strings(tree: ast.Module) -> Iterator[int]:
    """Yield the lines, from 0, that begin inside a string: they must not be indented."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.expr) and _is_string(node):
            # Children of an f-string are skipped: before Python 3.12 their positions are wrong.
            yield from range(node.lineno, node.end_lineno or 0)
        else:
            queue.extend(ast.iter_child_nodes(node))


def _is_string(node: ast.expr) -> bool:
    plain = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    return plain or isinstance(node, _FSTRING_NODES)


def _coroutine_head(source: str, tree: ast.Module, assignments: list[str]) -> list[bytes]:
    """Return the two lines before the body of a cell that awaits; the second has the inputs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            why = "a cell that awaits cannot import *: write this import in a separate cell"
            _raise_syntax_error(source, why, node.lineno, node.col_offset + 1, in_bytes=True)
    bound = set(_bound_names(tree))
    # Python normalizes identifiers (the micro sign becomes a mu), MicroPython does not.
    typed = {w for w in re.findall(r"\w+", source) if unicodedata.normalize("NFKC", w) in bound}
    typed |= {each.partition(" = ")[0] for each in assignments}
    names = f"global {', '.join(sorted(typed))}" if typed else "pass"
    second = ";".join([names, *assignments])
    return [f"async def {CELL_HOOK}():".encode(), _INDENT + second.encode()]


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that the cell binds outside of its functions and classes."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        else:
            # def, class, except … as, and the captures of `match`
            named = (getattr(node, "name", None), getattr(node, "rest", None))
            yield from (name for name in named if isinstance(name, str))
        queue.extend(_same_scope_nodes(node))


def _same_scope_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children of a node that are evaluated in the same scope as the node."""
    if isinstance(node, _FUNCTION_NODES):
        yield from getattr(node, "decorator_list", ())
        yield from node.args.defaults
        yield from filter(None, node.args.kw_defaults)
    elif isinstance(node, ast.ClassDef):
        yield from (*node.decorator_list, *node.bases, *node.keywords)
    elif isinstance(node, ast.comprehension):
        yield from (node.iter, *node.ifs)  # the target is local; a walrus in it is not
    else:
        yield from ast.iter_child_nodes(node)
