"""Find names, imports and definitions in the text of cells; the code is never executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from cloudmanager.client.cell_syntax import parse_python

from .stubs import NameInfo, describe_nodes

_IMPORT_STATEMENT: Final = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+)?import\s+([^#\n]+)", re.MULTILINE
)
#: ``name = Class(``; a class is recognized by a capital letter.
_INSTANCE_ASSIGNMENT: Final = re.compile(r"^([^\W\d]\w*)\s*=\s*([\w.]*[A-Z]\w*)\(", re.MULTILINE)
_DEFINITION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


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
