"""Find names, imports and definitions in the text of cells; the code is never executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from cloudmanager.client.cell_syntax import parse_python

from .stubs import NameInfo, describe_nodes

_TOKEN_PATTERN: Final = re.compile(r"(?:[^\W\d]\w*\s*\.\s*)*(?:[^\W\d]\w*)?\Z")
_FROM_IMPORT: Final = re.compile(r"\s*from\s+([\w.]+)\s+import\s+(?:[\w\s,()]*[,(\s])?(\w*)\Z")
_IMPORT: Final = re.compile(r"\s*(?:import|from)\s+(?:[\w.\s]+,\s*)*([\w.]*)\Z")
_IMPORT_STATEMENT: Final = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+)?import\s+([^#\n]+)", re.MULTILINE
)
#: ``name = Class(``; a class is recognized by a capital letter.
_INSTANCE_ASSIGNMENT: Final = re.compile(r"^([^\W\d]\w*)\s*=\s*([\w.]*[A-Z]\w*)\(", re.MULTILINE)
_DEFINITION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Token(NamedTuple):
    """A dotted name before the cursor; for ``a.b.na`` the path is ``a.b`` and the prefix ``na``.

    Attributes:
        path: all parts but the last.
        prefix: the last part, which may be incomplete.
        importing: whether it is in an import statement; then boards may not have the module yet.
    """

    path: str
    prefix: str
    importing: bool


def token_before(code: str, cursor: int) -> Token:
    """Return the dotted name before the cursor; its parts are empty if there is none."""
    line = code[:cursor].rpartition("\n")[2]
    if found := _FROM_IMPORT.match(line):
        return Token(found[1], found[2], importing=True)
    if found := _IMPORT.match(line):
        path, _, prefix = found[1].rpartition(".")
        return Token(path, prefix, importing=True)
    found = _TOKEN_PATTERN.search(line)
    path, _, prefix = re.sub(r"\s", "", found[0] if found else "").rpartition(".")
    return Token(path, prefix, importing=False)


def imported_names(texts: Iterable[str]) -> dict[str, str]:
    """Return the names that imports in cells bind, each with the path of what it refers to."""
    bound: dict[str, str] = {}
    for text in texts:
        for module, listed in _IMPORT_STATEMENT.findall(text):
            for each in listed.strip("() \t").split(","):
                path, _, alias = (part.strip() for part in each.partition(" as "))
                if module:
                    bound[alias or path] = f"{module}.{path}"
                elif path:
                    bound[alias or path.split(".")[0]] = path if alias else path.split(".")[0]
    return bound


def resolve_path(path: str, texts: Iterable[str]) -> str:
    """Replace an instance by its class, and an imported name by its full path.

    After ``from machine import Pin`` and ``led = Pin(2)``, ``led.value`` is ``machine.Pin.value``.
    """
    texts = list(texts)
    variable, dot, rest = path.partition(".")
    owner = variable
    for text in texts:
        for name, class_name in _INSTANCE_ASSIGNMENT.findall(text):
            if name == variable:
                owner = class_name  # the last assignment counts
    first, dot, rest = f"{owner}{dot}{rest}".partition(".")
    return f"{imported_names(texts).get(first, first)}{dot}{rest}"


def find_definition(path: str, texts: Iterable[str]) -> NameInfo | None:
    """Return signature and docstring of a function or class, from the last cell that defines it."""
    for text in reversed(list(texts)):
        nodes: list[ast.AST] = [_parse_cell(text)]
        for name in path.split("."):
            statements = [each for node in nodes for each in getattr(node, "body", ())]
            nodes = [
                each
                for each in statements
                if isinstance(each, _DEFINITION_NODES) and each.name == name
            ]
        if nodes:
            return describe_nodes(path.rpartition(".")[2], nodes)
    return None


def names_in(text: str) -> set[str]:
    """Return all identifiers of two or more characters in a cell, also those in strings."""
    return set(re.findall(r"[^\W\d]\w+", text))


@lru_cache(maxsize=256)
def _parse_cell(text: str) -> ast.AST:
    try:
        return parse_python(text)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])
