"""Packages of the caller's own: a file, a folder, a package.json or a manifest.py.

The files are read, and described to the server in one package.json, whose paths are those of the
files that are sent. Nothing is executed.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import (
    DOCUMENT_NAME,
    is_address,
    is_relative_document,
)

from .package_manifests import MANIFEST_NAME, is_manifest, read_manifest
from .sources import (
    ContentSource,
    local_source,
    resolve_links,
    source_from_bytes,
    source_from_file,
    walk_files,
)
from .syncing import read_ignore_file
from .text_files import read_text

#: An absolute path of Windows, with the letter of a drive (an alias of an index is followed by a
#: name), or with the name of a server.
_WINDOWS_PATH: Final = re.compile(r"[A-Za-z]:(?:\\|/(?!/))|\\\\")
_MAX_DOCUMENTS: Final = 200  # documents and manifests that refer to each other

#: Path in the package -> content.
PackageFiles = dict[str, ContentSource]


def is_local_source(text: str) -> bool:
    """Whether a requirement is the path of a local file or folder."""
    if _WINDOWS_PATH.match(text):
        return True
    is_path = text.startswith((".", "/", "~")) or text.endswith((".py", ".mpy", ".json"))
    return is_path and "://" not in text and ":" not in text.partition("/")[0]


def local_package_name(text: str) -> str:
    """Return the name of a package that is a local file or folder: that of its module."""
    path = resolve_links(local_source(text))
    if path.name == DOCUMENT_NAME or (path.name == MANIFEST_NAME and _find_manifest(path.parent)):
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def read_local_package(text: str) -> PackageFiles:
    """Return the files of a local package.

    Args:
        text: the path of a file; of a folder; of a package.json, which may have another name; or of
            a manifest.py.

    Raises:
        PackageError: a document is malformed, or a file is missing or may not be read.
        OSError: a file cannot be read.
    """
    if not local_source(text).exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    path = resolve_links(local_source(text))
    if path.is_dir():
        document = path / DOCUMENT_NAME
        path = document if document.is_file() else _find_manifest(path) or path
    if path.suffix == ".json":
        return _LocalPackage(path.parent).from_document(path.name)
    if path.name == MANIFEST_NAME and _find_manifest(path.parent):
        return _LocalPackage(path.parent).from_manifest(path.name)
    files = _folder_files(path) if path.is_dir() else {path.name: source_from_file(path)}
    if not files:
        raise PackageError(f"{text} has no file that could be installed")
    return files


def _find_manifest(folder: Path) -> Path | None:
    """Return the manifest.py of a folder, unless it is a module that is no manifest."""
    path = folder / MANIFEST_NAME
    return path if path.is_file() and is_manifest(_read_text(path)) else None


def _folder_files(folder: Path) -> PackageFiles:
    """Return all files of a folder.

    The paths begin with the name of the folder if it is a Python package.
    """
    ignored = read_ignore_file(folder)
    prefix = f"{folder.name}/" if (folder / "__init__.py").exists() else ""
    return {
        prefix + str(inner): source_from_file(file)
        for inner, file in walk_files(folder)
        if not ignored.match_file(str(inner))
    }


class _LocalPackage:
    """Collects the files that the documents of a package name.

    Args:
        folder: the folder of the package's document.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: PackageFiles = {}
        self._read_paths: set[str] = set()
        self._urls: list[Any] = []
        self._dependencies: list[Any] = []

    def from_document(self, path: str) -> PackageFiles:
        """Return the files of a package.json, and of those in the folder that it depends on."""
        document = self._load_json(path)
        todo = [(path, document)]
        while todo:
            path, fields = todo.pop()
            for row in _rows(fields, "urls"):
                self._urls.append(self._with_sent_file(row, posixpath.dirname(path)))
            for row in _rows(fields, "deps"):
                name = row[0] if isinstance(row, list) and row else row
                if isinstance(name, str) and is_relative_document(name):
                    other = self._join(posixpath.dirname(path), name)
                    if self._is_new(other):
                        todo.append((other, self._load_json(other)))
                else:
                    self._dependencies.append(row)
        return self._finish({**document, "urls": self._urls, "deps": self._dependencies})

    def from_manifest(self, path: str) -> PackageFiles:
        """Return the files of a manifest.py, and of those that it includes."""
        version = ""
        todo = [path]
        while todo:
            path = todo.pop(0)
            if not self._is_new(path):
                continue
            manifest = read_manifest(_read_text(self._existing_file(path)), path)
            version = version or manifest.version
            self._dependencies += [list(pair) for pair in manifest.requires]
            folder = posixpath.dirname(path)
            for group in manifest.files:
                base = self._join(folder, group.base or ".")
                for target in self._module_paths(base, group.path, group.names, group.is_package):
                    key = self._add_file(self._join(base, target))
                    self._urls.append([target, key])
            for other in manifest.includes:
                joined = self._join(folder, other or ".")
                is_folder = (self._folder / joined).is_dir()
                todo.append(self._join(joined, MANIFEST_NAME) if is_folder else joined)
        return self._finish({"version": version, "urls": self._urls, "deps": self._dependencies})

    def _module_paths(
        self, base: str, path: str, names: tuple[str, ...] | None, is_package: bool
    ) -> Iterator[str]:
        """Yield the paths of a module's or a package's files, relative to ``base``."""
        if not is_package:
            yield path
        elif names is not None:
            yield from (posixpath.join(path, name) for name in names)
        else:
            folder = self._folder / self._join(base, path or ".")
            if not folder.is_dir():
                raise PackageError(f"{self._folder} has no folder {path[:100]!r}")
            for inner, _ in walk_files(folder):
                if inner.suffix == ".py":
                    yield posixpath.join(path, str(inner))

    def _with_sent_file(self, row: Any, folder: str) -> Any:
        """Return an entry of `urls` with the path of the file that is sent for it.

        What the server refuses or fetches itself is returned unchanged.
        """
        if not isinstance(row, list) or len(row) < 2 or not isinstance(row[1], str):
            return row
        if is_address(row[1]):
            return row
        return [row[0], self._add_file(self._join(folder, row[1]))]

    def _join(self, folder: str, reference: str) -> str:
        """Return the path of a reference, relative to the package's folder.

        It may be outside of it, but neither hidden there nor outside of the project: a package from
        elsewhere must not send ``../../.ssh/id_rsa`` or ``/etc/passwd`` to boards.

        Raises:
            PackageError: the reference is refused.
        """
        root = self._folder.as_posix()
        path = posixpath.relpath(posixpath.join(root, folder, reference), root)
        if (
            _is_hidden_outside(path)
            or reference.startswith("/")
            or "\\" in reference
            or ":" in reference
        ):
            raise PackageError(
                f"{self._folder.name} names a file that is absolute or hidden: {reference[:100]!r}"
            )
        if not _is_in_project(self._folder, path):
            raise PackageError(
                f"{self._folder.name} names a file outside of its project, which is the git "
                f"repository, or else the folder that {self._folder.name} is in: "
                f"{reference[:100]!r}"
            )
        return path

    def _add_file(self, path: str) -> str:
        """Add a file; return its path in the package."""
        key = f"./{path}" if path == DOCUMENT_NAME else path  # package.json is the description
        if key not in self._files:
            self._files[key] = source_from_file(self._existing_file(path))
        return key

    def _existing_file(self, path: str) -> Path:
        file = self._folder / path
        if not file.is_file():
            raise PackageError(f"{self._folder.name} has no file {path[:100]!r}")
        return file

    def _is_new(self, path: str) -> bool:
        """Return whether a document was not read yet, and count it.

        Raises:
            PackageError: there are too many.
        """
        if path in self._read_paths:
            return False
        self._read_paths.add(path)
        if len(self._read_paths) > _MAX_DOCUMENTS:
            raise PackageError(
                f"{self._folder.name} refers to more than {_MAX_DOCUMENTS} documents"
            )
        return True

    def _load_json(self, path: str) -> dict[str, Any]:
        self._is_new(path)
        try:
            text = _read_text(self._existing_file(path))
            fields = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise PackageError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise PackageError(f"{path} does not contain a JSON object")
        return fields

    def _finish(self, document: dict[str, Any]) -> PackageFiles:
        return {DOCUMENT_NAME: source_from_bytes(json.dumps(document).encode()), **self._files}


def _is_in_project(folder: Path, path: str) -> bool:
    """Whether a path, relative to a package's folder, is in the project that the package is of."""
    project = next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)
    return (folder / path).resolve().is_relative_to(project or folder.parent)


def _is_hidden_outside(path: str) -> bool:
    """Whether a path, relative to a folder, leaves the folder and has a hidden part there."""
    return path.startswith("..") and any(
        part.startswith(".") and part != ".." for part in path.split("/")
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return dict(pairs)


def _rows(fields: dict[str, Any], name: str) -> list[Any]:
    """Return the entries of a field; the server refuses those that are malformed."""
    rows = fields.get(name) or []
    if isinstance(rows, dict):
        return [list(pair) for pair in rows.items()]
    return rows if isinstance(rows, list) else [rows]


def _read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        PackageError: it is not UTF-8.
    """
    try:
        return read_text(path)
    except ValueError as error:
        raise PackageError(f"{path.name} is not UTF-8 text") from error
