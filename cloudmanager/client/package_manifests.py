"""Read a manifest.py of MicroPython without executing it; no I/O.

It is parsed as Python, and may contain calls with literal arguments only, as the manifests of
micropython-lib do (MicroPython: docs/reference/manifest.rst and tools/manifestfile.py):

    metadata(description="A driver", version="1.2.0")
    require("logging")                            a dependency
    module("helper.py", base_path="src")          a file
    package("driver", files=["a.py"])             a folder; without files, all of its .py files
    include("../common/manifest.py")              another manifest
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError

from .cell_syntax import parse_python

MANIFEST_NAME: Final = "manifest.py"
_MAX_CHARS: Final = 256 * 1024  # of a manifest


class ModuleFiles(NamedTuple):
    """Files that a manifest names.

    Attributes:
        base: the folder that they are in, relative to the manifest; "" for its own.
        path: the path of a module or a package, relative to `base` and to the install's folder.
        names: the files of a package, relative to `path`; None for all of its .py files.
        is_package: whether `path` is a folder.
    """

    base: str
    path: str
    names: tuple[str, ...] | None
    is_package: bool


class Manifest(NamedTuple):
    """The contents of a manifest.

    Attributes:
        version: "" if it has none.
        files: the modules and packages, in the order of the manifest.
        requires: pairs of a package and a version, "" for any.
        includes: paths of other manifests, or of their folders, relative to this one.
    """

    version: str
    files: list[ModuleFiles]
    requires: list[tuple[str, str]]
    includes: list[str]


class _Words:
    """The functions that a manifest may call; what they are called with is collected."""

    def __init__(self) -> None:
        self.manifest = Manifest("", [], [], [])

    def metadata(  # noqa: PLR0913 (as manifests call it)
        self,
        *,
        version: str | None = None,
        description: str = "",
        license: str = "",  # MicroPython's name
        author: str = "",
        stdlib: bool = False,
        pypi: str = "",
        pypi_publish: str = "",
    ) -> None:
        """Describe the package; only the version matters to boards."""
        self.manifest = self.manifest._replace(version=str(version or ""))

    def require(
        self,
        name: str,
        version: str | None = None,
        pypi: str | None = None,
        library: str | None = None,
        **options: Any,
    ) -> None:
        """Name a dependency; ``pypi`` is its name for CPython, ``options`` are the manifest's."""
        if library is not None:
            raise ValueError(f"the library {library!r} is not known; only mip's index is")
        self.manifest.requires.append((_text(name), _text(version or "")))

    def module(self, module_path: str, base_path: str = ".", opt: int | None = None) -> None:
        """Name a module; ``opt`` is for freezing."""
        if not _text(module_path).endswith(".py"):
            raise ValueError("a module must be a .py file")
        self.manifest.files.append(ModuleFiles(_path(base_path), _path(module_path), None, False))

    def package(
        self,
        package_path: str,
        files: Iterable[str] | None = None,
        base_path: str = ".",
        opt: int | None = None,
    ) -> None:
        """Name a package, which is a folder."""
        names = None if files is None else tuple(_path(name) for name in files)
        self.manifest.files.append(ModuleFiles(_path(base_path), _path(package_path), names, True))

    def include(self, manifest_path: str | Iterable[str], **options: Any) -> None:
        """Include other manifests; ``options`` would need their code to be executed."""
        if options:
            raise ValueError("options are not supported")
        paths = [manifest_path] if isinstance(manifest_path, str) else list(manifest_path)
        self.manifest.includes.extend(_path(path) for path in paths)


_WORDS: Final = ("metadata", "require", "module", "package", "include")
#: What manifests of firmware contain, too.
_FIRMWARE_WORDS: Final = (
    "freeze", "freeze_as_str", "freeze_as_mpy", "freeze_mpy", "c_module", "add_library",
)  # fmt: skip
_CALL_AT_LINE_START: Final = re.compile(
    rf"^(?:{'|'.join((*_WORDS, *_FIRMWARE_WORDS))})[ \t]*\(", re.MULTILINE
)


def is_manifest(text: str) -> bool:
    """Return whether a manifest.py is one of MicroPython, and not a module of that name.

    One with a syntax error, or with calls in loops and conditions, is, too: ``read_manifest`` then
    names the error.
    """
    try:
        statements = _parse(text)
    except SyntaxError:
        return _CALL_AT_LINE_START.search(text) is not None
    nodes = [inner for node in statements for inner in ast.walk(node)]
    called = {
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return bool(called.intersection((*_WORDS, *_FIRMWARE_WORDS)) - _bound_names(nodes))


def _bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that a module defines, imports or assigns."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def read_manifest(text: str, name: str) -> Manifest:
    """Return the contents of a manifest.

    Args:
        text: its source.
        name: what error messages call it.

    Raises:
        PackageError: it is not valid Python, or contains anything but the calls above.
    """
    words = _Words()
    try:
        statements = _parse(text)
    except SyntaxError as error:
        raise PackageError(f"{name}, line {error.lineno or 1}: {error.msg}") from error
    for node in statements:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        try:
            _call(words, node)
        except (TypeError, ValueError) as error:
            why = str(error).removeprefix("_Words.")
            raise PackageError(f"{name}, line {node.lineno}: {why}") from error
    return words.manifest


def _parse(text: str) -> list[ast.stmt]:
    """Return the statements of a manifest.

    Raises:
        SyntaxError: it is not valid Python, or too long or too deep to be a manifest.
    """
    if len(text) > _MAX_CHARS:
        raise SyntaxError("it is too long for a manifest", ("", 1, 1, ""))
    try:
        tree = parse_python(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError("it cannot be parsed", ("", 1, 1, "")) from error
    return tree.body if isinstance(tree, ast.Module) else []


def _word(node: ast.stmt) -> str:
    """Return the function that a statement calls, if it is a manifest's, else ""."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return ""
    function = node.value.func
    name = function.id if isinstance(function, ast.Name) else ""
    return name if name in (*_WORDS, *_FIRMWARE_WORDS) else ""


def _call(words: _Words, node: ast.stmt) -> None:
    """Do what a statement of a manifest says.

    Raises:
        TypeError, ValueError: it is not a call of one of its functions with literal arguments.
    """
    word = _word(node)
    if word in _FIRMWARE_WORDS:
        raise ValueError(f"{word}() is for firmware; use module() or package()")
    if not word or not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        raise ValueError(
            f"a manifest is not executed: only calls of {', '.join(_WORDS)} are understood"
        )
    call = node.value
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(
            f"a manifest is not executed: the arguments of {word}() must be literals"
        ) from None
    function: Callable[..., None] = getattr(words, word)
    function(*arguments, **named)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is not a text")
    return value


def _path(value: Any) -> str:
    """Return a relative path without ``.``; it may begin with ``..``.

    Raises:
        ValueError: it is absolute, has a variable such as ``$(MPY_DIR)``, or a backslash.
    """
    text = _text(value)
    if text.startswith("/") or "$(" in text or "\\" in text or ":" in text:
        raise ValueError(f"{text[:100]!r} is not a path relative to the manifest")
    path = posixpath.normpath(text)
    return "" if path == "." else path
