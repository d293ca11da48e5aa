"""Names, signatures and docstrings of MicroPython, from installed stub packages.

``pip install 'cloudmanager[stubs]'`` installs those for the ESP32; any other `micropython-*-stubs`
package works too. They are parsed when needed, and never imported. Without them, all functions
return empty results.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from cloudmanager.client.cell_syntax import parse_python

_FUNCTION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_MAX_SIGNATURES: Final = 6  # signatures that are shown of an overloaded function
_MAX_DEPTH: Final = 4  # levels of modules that import names from each other


class NameInfo(NamedTuple):
    """What a stub, or a cell, defines for a name: its kind, its signatures, its docstring."""

    kind: str
    signatures: tuple[str, ...] = ()
    doc: str = ""


def public_names(path: str) -> dict[str, str]:
    """Return the public names in a module or a class, each with its kind."""
    nodes, module = _find_nodes(path)
    members = _members(nodes, module)
    return {
        name: _node_kind(definitions[0])
        for name, definitions in members.items()
        if not name.startswith("_")
    }


def find_info(path: str) -> NameInfo | None:
    """Return the description of a path such as ``machine.Pin.value``; None if it is unknown."""
    nodes, _ = _find_nodes(path)
    return describe_nodes(path.rpartition(".")[2], nodes) if nodes else None


def describe_nodes(name: str, nodes: list[ast.AST]) -> NameInfo:
    """Return the description of a name from its definitions, of which an overload has several."""
    signatures = tuple(text for node in nodes for text in _format_signatures(name, node))
    docs = (ast.get_docstring(node) for node in nodes if isinstance(node, _DOCUMENTED_NODES))
    doc = next(filter(None, docs), "")
    return NameInfo(_node_kind(nodes[0]), signatures[:_MAX_SIGNATURES], doc)


_DOCUMENTED_NODES: Final = (ast.Module, ast.ClassDef, *_FUNCTION_NODES)


@lru_cache(maxsize=1)
def module_names() -> frozenset[str]:
    """Return the names of all modules that have stubs."""
    names: set[str] = set()
    for folder in _stub_folders():
        names.update(path.stem for path in folder.glob("*.pyi"))
        names.update(path.parent.stem for path in folder.glob("*/__init__.pyi"))
    return frozenset(name for name in names if name.isidentifier() and name[0] != "_")


@lru_cache(maxsize=1)
def _stub_folders() -> tuple[Path, ...]:
    """Return the folders with stubs: those with a `micropython.pyi`, and their `stdlib` folders."""
    roots = [Path(entry) for entry in sys.path if entry and Path(entry, "micropython.pyi").exists()]
    return tuple(folder for root in roots for folder in (root, root / "stdlib"))


@lru_cache(maxsize=64)
def _parse_module(name: str) -> ast.AST | None:
    relative_path = Path(*name.split("."))
    for folder in _stub_folders():
        base = folder / relative_path
        for path in (base.with_suffix(".pyi"), base / "__init__.pyi"):
            if path.is_file():
                return parse_python(path.read_text(encoding="utf-8"))
    return None


def _find_nodes(path: str) -> tuple[list[ast.AST], str]:
    """Return the nodes that define the object at a path, and the name of their module.

    An overloaded function has several nodes; an unknown path has none.
    """
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if all(parts) and (tree := _parse_module(module)) is not None:
            nodes: list[ast.AST] = [tree]
            for name in parts[end:]:
                nodes = _members(nodes, module).get(name, [])
            return nodes, module
    return [], ""


def _members(nodes: list[ast.AST], module: str = "", depth: int = 0) -> dict[str, list[ast.AST]]:
    """Return the definitions in modules and classes, by name."""
    members: dict[str, list[ast.AST]] = {}
    for node in nodes:
        for statement in _statements(getattr(node, "body", [])):
            for name in _defined_names(statement):
                members.setdefault(name, []).append(statement)
            if (
                depth < _MAX_DEPTH
                and isinstance(statement, ast.ImportFrom)
                and statement.level == 1
            ):
                for name, more in _imported_members(statement, module, depth).items():
                    members.setdefault(name, more)
    return members


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, also those below ``if``, except if it tests ``sys.platform``.

    The platforms in those tests are operating systems, which boards do not have.
    """
    for statement in body:
        if isinstance(statement, ast.If) and "platform" in ast.unparse(statement.test):
            continue
        if isinstance(statement, ast.If):
            yield from _statements([*statement.body, *statement.orelse])
        else:
            yield statement


def _defined_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (*_FUNCTION_NODES, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (each.id for each in statement.targets if isinstance(each, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _imported_members(
    statement: ast.ImportFrom, module: str, depth: int
) -> dict[str, list[ast.AST]]:
    """Return the definitions that a relative ``from … import`` adds to a package."""
    other = ".".join(filter(None, (module, statement.module)))
    tree = _parse_module(other) if other else None
    if tree is None:
        return {}
    members = _members([tree], module, depth + 1)
    wanted = {alias.name for alias in statement.names}
    if "*" in wanted:
        return members
    return {name: members[name] for name in wanted & set(members)}


def _node_kind(node: ast.AST) -> str:
    if isinstance(node, _FUNCTION_NODES):
        decorators = {getattr(each, "id", "") for each in node.decorator_list}
        return "instance" if "property" in decorators else "function"
    if isinstance(node, ast.ClassDef):
        return "class"
    return "module" if isinstance(node, ast.Module) else "instance"


def _format_signatures(name: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, _FUNCTION_NODES):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"{name}({_format_arguments(node)}){returns}"
    elif isinstance(node, ast.ClassDef):
        for method in _members([node]).get("__init__", []):
            if isinstance(method, _FUNCTION_NODES):
                yield f"{name}({_format_arguments(method)})"
    elif isinstance(node, ast.AnnAssign):
        yield f"{name}: {ast.unparse(node.annotation)}"


def _format_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the arguments that a caller passes: without ``self``, ``cls`` and a ``/`` after it."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    hidden = positional[0].arg if positional and positional[0].arg in ("self", "cls") else ""
    parts = [part for part in ast.unparse(arguments).split(", ") if part]
    if hidden and parts and parts[0].split(":")[0] == hidden:
        parts = parts[2:] if parts[1:2] == ["/"] else parts[1:]
    return ", ".join(parts)
