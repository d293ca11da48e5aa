"""Check the paths that packages write on a board; pure.

A package names paths relative to the folder of the install. Paths are not normalised: one that has
an ambiguous or unusual part is refused. Some paths are reserved for the board's owner and for the
client: a package's file there is left out. Built-in modules' names are allowed: a package may
extend MicroPython's `os` or `ssl`, and the client imports its own before it looks for files.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.file_ops import belongs_to_client

TARGET_DIR: Final = "/lib"

_MAX_PATH_BYTES: Final = 120  # fits into a message of the smallest board buffer
_MAX_DEPTH: Final = 8  # folders
_DRIVE = re.compile(r"[A-Za-z]:")
#: Reserved besides the client's paths: what runs before the client, and read-only file systems.
_RESERVED = re.compile(r"(/(boot|main)\.(py|mpy)|/romfs/.*|/rom/.*)", re.IGNORECASE)


def check_folder(folder: str) -> str:
    """Check the folder of an install; return it without a trailing slash.

    Raises:
        PackageError: it is not absolute, has an unsafe part, or is reserved.
    """
    plain = folder.rstrip("/")
    if not folder.startswith("/") or folder.startswith("//"):
        raise PackageError(f"{folder!r} is not a folder on a board: it must begin with one /")
    if plain:
        check_relative_path(plain[1:])
    if is_reserved(plain + "/x"):
        raise PackageError(f"{folder!r} is reserved for the board client")
    return plain


def check_relative_path(path: str) -> str:
    """Check a relative path and return it.

    Raises:
        PackageError: it could leave its folder, or mean another path than it appears to.
    """
    parts = path.split("/")
    problem = ""
    if len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
        problem = "is too long"
    elif "\\" in path or _DRIVE.match(path):
        problem = "has the form of a Windows path"
    elif not path.isprintable() or unicodedata.normalize("NFC", path) != path:
        problem = "contains characters that are invisible or not in NFC"
    elif _leaves_folder(parts):
        problem = "leaves its folder, or has a part that begins or ends unusually"
    if problem:
        raise PackageError(f"the path {path[:100]!r} is refused: it {problem}")
    return path


def _leaves_folder(parts: Iterable[str]) -> bool:
    """Return whether a part of a path is empty, ``.`` or ``..``, or could become so on FAT.

    FAT removes spaces and dots at the end of a name.
    """
    return any(not part.strip(". ") or part[-1] in ". " or part[0] == " " for part in parts)


def is_reserved(path: str) -> bool:
    """Return whether an absolute path belongs to the board's owner or to the client."""
    return _RESERVED.fullmatch(path) is not None or belongs_to_client(path)


def check_installed_path(path: str) -> str:
    """Check an absolute path in a board's manifest; return it.

    Raises:
        PackageError: no install could have written a file there.
    """
    check_folder(path)
    if is_reserved(path):
        raise PackageError(f"packages may not write {path}: it is reserved")
    return path


def other_form(path: str) -> str | None:
    """Return the path of a module's other form, bytecode or source; None if it is no module."""
    stem, dot, form = path.rpartition(".")
    return {"py": f"{stem}.mpy", "mpy": f"{stem}.py"}.get(form) if dot else None


def find_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths that cannot exist together, or None.

    Those are the source and the bytecode of a module, a module and a package of the same name, a
    file and a folder of the same name, and names that differ in case only.
    """
    seen: dict[str, str] = {}  # a file's name in lower case, or a folder's with a slash -> path
    for path in sorted(paths):
        name = re.sub(r"\.mpy$", ".py", path.casefold())
        package_folder = name.removesuffix(".py") + "/" if name.endswith(".py") else ""
        for other in (name, package_folder):
            if other and other in seen:
                return seen[other], path
        seen[name] = path
        for depth in range(1, name.count("/") + 1):
            folder = "/".join(name.split("/")[:depth])
            if folder + ".py" in seen or folder in seen:
                return seen.get(folder + ".py") or seen[folder], path
            seen.setdefault(folder + "/", path)
    return None
