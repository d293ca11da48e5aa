"""Finds out what a cell contains: its last expression, its names, whether it awaits. No I/O.

Python's own parser tells, or ``cell_scanner`` for a cell that only boards can parse. No cell is
executed here: it is parsed, and compiled to find errors that parsing does not, such as a stray
`return`.
"""

from __future__ import annotations

import ast
import inspect
import re
import symtable
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from .cell_scanner import Position

#: One thread compiles at a time: warnings.catch_warnings changes the whole process, and CPython
#: before 3.11.9 counts the recursion depth of all compiling threads together, and raises
#: SystemError (CPython issue 106905).
_compile_lock = threading.Lock()
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_BLANK = b" \t\f\\\n"  # characters that can be between an expression and its semicolon
#: TemplateStr exists since Python 3.14.
_FSTRING_NODES = (ast.JoinedStr, getattr(ast, "TemplateStr", ast.JoinedStr))
_FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Syntax(Protocol):
    """What a cell contains."""

    @property
    def awaits(self) -> bool:
        """Whether the cell awaits outside of its functions."""

    def value_span(self) -> tuple[Position, Position] | None:
        """Return start and end of the trailing expression; None if a semicolon follows it."""

    def lines_inside_strings(self) -> set[int]:
        """Return the lines, from 0, that begin inside a string: they must not be indented."""

    def bound_names(self) -> set[str]:
        """Return the names, as typed, that are bound outside of functions and classes."""

    def star_import(self) -> Position | None:
        """Return the position of ``from … import *``; None if there is none."""

    def begins_with_block(self) -> bool:
        """Return whether the first statement has a block."""

    def definition_lines(self) -> set[tuple[str, int]]:
        """Return (name, line) for each line, from 1, of the functions and classes."""


def parse_python(text: str, mode: str = "exec") -> ast.AST:
    """Parse Python like ``ast.parse``, while no other thread compiles in this module."""
    with _compile_lock:
        return ast.parse(text, mode=mode)


def parse_syntax(source: str) -> ParsedSyntax:
    """Parse a cell and compile it.

    Raises:
        SyntaxError, ValueError, OverflowError, RecursionError, MemoryError: Python here refuses it.
    """
    with _compile_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as about "\d": the board compiles the cell
        tree = compile(source, "<cell>", "exec", _TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST, True)
        # No file name: the compiler would read that file to quote from it in an error.
        code = compile(tree, "", "exec", _TOP_LEVEL_AWAIT, True)
    return ParsedSyntax(source, tree, bool(code.co_flags & inspect.CO_COROUTINE))


class NameUse(NamedTuple):
    """How a cell uses names.

    Attributes:
        free: those that it reads and does not bind, also in its functions.
        bound: those that it binds outside of its functions, but for those that it deletes.
        deleted: those that it deletes.
    """

    free: set[str] = set()
    bound: set[str] = set()
    deleted: set[str] = set()


def name_use(source: str) -> NameUse:
    """Return how a cell uses names; nothing for a cell that Python here cannot parse."""
    try:
        with _compile_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(source, "<cell>", "exec")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return NameUse()
    symbols = table.get_symbols()
    bound = {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
    targets = [
        each for node in ast.walk(tree) if isinstance(node, ast.Delete) for each in node.targets
    ]
    deleted = {each.id for each in targets if isinstance(each, ast.Name)}
    return NameUse(_global_names(table) - bound, bound - deleted, deleted)


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Return the names that are read here or below, and are not local there."""
    is_module = table.get_type() == "module"
    names = {
        each.get_name()
        for each in table.get_symbols()
        if each.is_referenced() and (is_module or each.is_global())
    }
    return names.union(*map(_global_names, table.get_children()))


class ParsedSyntax:
    """What a cell contains, from the tree of Python's parser; see ``Syntax``."""

    def __init__(self, source: str, tree: ast.Module, awaits: bool) -> None:
        self._source = source
        self._tree = tree
        self.awaits = awaits

    def value_span(self) -> tuple[Position, Position] | None:
        """Return start and end of the trailing expression; None if a semicolon follows it."""
        last = self._tree.body[-1] if self._tree.body else None
        if not isinstance(last, ast.Expr):
            return None
        # ast positions: lines from 1, columns from 0 in bytes of UTF-8.
        end, column = (last.end_lineno or 0) - 1, last.end_col_offset or 0
        lines = self._source.encode().split(b"\n")
        rest = b"\n".join([lines[end][column:], *lines[end + 1 :]])
        if rest.lstrip(_BLANK).startswith(b";"):
            return None
        return (last.lineno - 1, last.col_offset), (end, column)

    def lines_inside_strings(self) -> set[int]:
        """Return the lines, from 0, that begin inside a string: they must not be indented."""
        return set(_lines_inside_strings(self._tree))

    def bound_names(self) -> set[str]:
        """Return the names, as typed, that are bound outside of functions and classes."""
        bound = set(_bound_names(self._tree))
        # Python normalizes identifiers (the micro sign becomes a mu), MicroPython does not.
        words = re.findall(r"\w+", self._source)
        return {word for word in words if unicodedata.normalize("NFKC", word) in bound}

    def star_import(self) -> Position | None:
        """Return the position of ``from … import *``; None if there is none."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                return node.lineno - 1, node.col_offset
        return None

    def begins_with_block(self) -> bool:
        """Return whether the first statement has a block."""
        return bool(self._tree.body and set(self._tree.body[0]._fields) & {"body", "cases"})

    def definition_lines(self) -> set[tuple[str, int]]:
        """Return (name, line) for each line, from 1, of the functions and classes."""
        return {
            (node.name, line)
            for node in ast.walk(self._tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }


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
