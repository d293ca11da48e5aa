"""What a cell's text says about names, while it is being typed; pure, and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from cloudmanager.client.cells import parse_python

from .stubs import NameInfo, describe_nodes

_TOKEN_PATTERN: Final = re.compile(r"(?:[^\W\d]\w*\s*\.\s*)*(?:[^\W\d]\w*)?\Z")
_FROM_IMPORT: Final = re.compile(r"\s*from\s+([\w.]+)\s+import\s+(?:[\w\s,()]*[,(\s])?(\w*)\Z")
_IMPORT: Final = re.compile(r"\s*(?:import|from)\s+(?:[\w.\s]+,\s*)*([\w.]*)\Z")
_IMPORT_STATEMENT: Final = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+)?import\s+([^#\n]+)", re.MULTILINE
)
_INSTANCE_ASSIGNMENT: Final = re.compile(
    r"^([^\W\d]\w*)\s*=\s*([\w.]*[A-Z]\w*)\(", re.MULTILINE
)  # a class's call
_DEFINITION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def token_before(code: str, cursor: int) -> tuple[str, str, bool]:
    """Return what stands before the cursor: ``a.b.`` and ``na`` of ``a.b.na``.

    The third says whether a module is being imported, whose names no board may have yet.
    """
    line = code[:cursor].rpartition("\n")[2]
    if found := _FROM_IMPORT.match(line):
        return found[1], found[2], True
    if found := _IMPORT.match(line):
        path, _, start = found[1].rpartition(".")
        return path, start, True
    found = _TOKEN_PATTERN.search(line)
    path, _, start = re.sub(r"\s", "", found[0] if found else "").rpartition(".")
    return path, start, False


def imported_names(texts: Iterable[str]) -> dict[str, str]:
    """Return what imports in cells bind: name -> the path of a module, or of what is in it."""
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
    """Return where a path leads, by what some cells import and by which class they call."""
    texts = list(texts)
    first, dot, rest = path.partition(".")
    made = [
        found for text in texts for found in _INSTANCE_ASSIGNMENT.findall(text) if found[0] == first
    ]
    first, dot, rest = f"{made[-1][1]}{dot}{rest}".partition(".") if made else (first, dot, rest)
    return f"{imported_names(texts).get(first, first)}{dot}{rest}"


def find_definition(path: str, texts: Iterable[str]) -> NameInfo | None:
    """Return what the newest of some cells tells of a function or class that it defines."""
    for text in reversed(list(texts)):
        nodes: list[ast.AST] = [_parse_cell(text)]
        for name in path.split("."):
            bodies = [each for node in nodes for each in getattr(node, "body", ())]
            nodes = [
                each for each in bodies if isinstance(each, _DEFINITION_NODES) and each.name == name
            ]
        if nodes:
            return describe_nodes(path.rpartition(".")[2], nodes)
    return None


def names_in(text: str) -> set[str]:
    """Return the names in a cell, whatever they stand for."""
    return set(re.findall(r"[^\W\d]\w+", text))


@lru_cache(maxsize=256)
def _parse_cell(text: str) -> ast.AST:
    try:
        return parse_python(text)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])
