"""What is known of MicroPython without a board: the stubs that are installed, read when needed.

``pip install 'cloudmanager[stubs]'`` brings those of an ESP32; any other `micropython-*-stubs`
package will do. They are parsed, never imported. Without them there is nothing to know here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from cloudmanager.client.cells import parse_python

_FUNCTION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_MAX_SIGNATURES: Final = 6  # of one overloaded function
_MAX_DEPTH: Final = 4  # of modules that import all of another


class NameInfo(NamedTuple):
    """What a stub tells of a name: its kind, its signatures, its docstring."""

    kind: str
    signatures: tuple[str, ...] = ()
    doc: str = ""


def public_names(path: str) -> dict[str, str]:
    """Return the public names in a module or a class, each with its kind."""
    nodes, module = _find_nodes(path)
    found = _members(nodes, module)
    return {name: _node_kind(each[0]) for name, each in found.items() if name[:1] != "_"}


def find_info(path: str) -> NameInfo | None:
    """Return what is known of a path such as ``machine.Pin.value``."""
    nodes, _ = _find_nodes(path)
    return describe_nodes(path.rpartition(".")[2], nodes) if nodes else None


def describe_nodes(name: str, nodes: list[ast.AST]) -> NameInfo:
    """Return what definitions of one name tell."""
    signatures = tuple(text for node in nodes for text in _format_signatures(name, node))
    docs = (ast.get_docstring(node) for node in nodes if isinstance(node, _DOCUMENTED_NODES))
    doc = next(filter(None, docs), "")
    return NameInfo(_node_kind(nodes[0]), signatures[:_MAX_SIGNATURES], doc)


_DOCUMENTED_NODES: Final = (ast.Module, ast.ClassDef, *_FUNCTION_NODES)


@lru_cache(maxsize=1)
def module_names() -> frozenset[str]:
    """Return the names of all modules."""
    files = [path for folder in _stub_folders() for path in folder.glob("*.pyi")]
    packages = [path.parent for folder in _stub_folders() for path in folder.glob("*/__init__.pyi")]
    found = {path.stem for path in (*files, *packages)}
    return frozenset(name for name in found if name.isidentifier() and name[0] != "_")


@lru_cache(maxsize=1)
def _stub_folders() -> tuple[Path, ...]:
    """Return where stubs lie: beside a `micropython.pyi`, and its `stdlib`."""
    roots = [Path(entry) for entry in sys.path if entry and Path(entry, "micropython.pyi").exists()]
    return tuple(folder for root in roots for folder in (root, root / "stdlib"))


@lru_cache(maxsize=64)
def _parse_module(name: str) -> ast.AST | None:
    place = Path(*name.split("."))
    for folder in _stub_folders():
        for path in (folder / place.with_suffix(".pyi"), folder / place / "__init__.pyi"):
            if path.is_file():
                return parse_python(path.read_text(encoding="utf-8"))
    return None


def _find_nodes(path: str) -> tuple[list[ast.AST], str]:
    """Return the nodes that define what is at a path, and the module that they are in.

    An overloaded function has several.
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
    """Return what modules and classes define, by name."""
    found: dict[str, list[ast.AST]] = {}
    for node in nodes:
        for statement in _statements(getattr(node, "body", [])):
            for name in _defined_names(statement):
                found.setdefault(name, []).append(statement)
            if (
                depth < _MAX_DEPTH
                and isinstance(statement, ast.ImportFrom)
                and statement.level == 1
            ):
                for name, more in _imported_members(statement, module, depth).items():
                    found.setdefault(name, more)
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those under an ``if`` of a version: a platform is never a board's."""
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
    """Return what a package takes from a module of its own."""
    other = ".".join(filter(None, (module, statement.module)))
    tree = _parse_module(other) if other else None
    if tree is None:
        return {}
    found = _members([tree], module, depth + 1)
    wanted = {each.name for each in statement.names}
    return found if "*" in wanted else {name: found[name] for name in wanted & set(found)}


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
        for made in _members([node]).get("__init__", []):
            if isinstance(made, _FUNCTION_NODES):
                yield f"{name}({_format_arguments(made)})"
    elif isinstance(node, ast.AnnAssign):
        yield f"{name}: {ast.unparse(node.annotation)}"


def _format_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return what a caller gives: not ``self``, nor the sign that all before it have no names."""
    arguments = node.args
    placed = [*arguments.posonlyargs, *arguments.args]
    hidden = placed[0].arg if placed and placed[0].arg in ("self", "cls") else ""
    parts = [part for part in ast.unparse(arguments).split(", ") if part]
    if hidden and parts and parts[0].split(":")[0] == hidden:
        parts = parts[2:] if parts[1:2] == ["/"] else parts[1:]
    return ", ".join(parts)
