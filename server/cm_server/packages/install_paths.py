"""Where a package may write: rules for the paths on a board; pure.

What a package says is a path below the install's own folder, in plain words: nothing is
normalised, what is not plain is refused. Some places are nobody's but the board's owner's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from cloudmanager.protocol.errors import PackageError

TARGET_DIR: Final = "/lib"

_MAX_PATH_BYTES: Final = 120  # bytes of a path: fits into a message, and no board's buffer minds
_MAX_DEPTH: Final = 8  # folders
_DRIVE = re.compile(r"[A-Za-z]:")
#: The board's owner's, the client's and its key, wherever the board looks for modules.
_RESERVED = re.compile(
    r"(/(boot|main)\.(py|mpy)|/cm\.json|/\.cm.*|(/lib)?/cm(\.py|\.mpy|/.*)?|/romfs/.*|/rom/.*)",
    re.IGNORECASE,
)
#: MicroPython's own modules that the client needs: a file of that name in front of one of
#: them, and the board never dials again.
BUILTIN_MODULES: Final = re.compile(
    "array|binascii|builtins|cmath|cryptolib|deflate|framebuf|gc|hashlib|io|json|machine|math|"
    "micropython|network|os|platform|random|re|select|socket|ssl|struct|sys|time|tls|uctypes|"
    "vfs|websocket|_thread"
)


def check_folder(folder: str) -> str:
    """Return an install's folder: absolute, plain, without a slash at its end.

    Raises:
        PackageError: it is not.
    """
    plain = folder.rstrip("/")
    if not folder.startswith("/") or folder.startswith("//"):
        raise PackageError(f"{folder!r} is no folder on a board: it begins with one /")
    if plain:
        check_relative_path(plain[1:])
    if _is_reserved(plain + "/x"):
        raise PackageError(f"{folder!r} is the client's own folder")
    return plain


def check_relative_path(path: str) -> str:
    """Return a relative path if it is plain.

    Raises:
        PackageError: it could leave its folder, or differ from what it looks like.
    """
    parts = path.split("/")
    why = ""
    if len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
        why = "too long"
    elif "\\" in path or _DRIVE.match(path):
        why = "of another system"
    elif not path.isprintable() or unicodedata.normalize("NFC", path) != path:
        why = "not plain text"
    elif _leaves_folder(parts):
        why = "leaving its folder, or not plain"
    if why:
        raise PackageError(f"the path {path[:100]!r} is refused: it is {why}")
    return path


def _leaves_folder(parts: Iterable[str]) -> bool:
    """Return whether a part of a path is empty, ``.`` or ``..``, or FAT would read it as another.

    FAT drops spaces and dots at the end of a name.
    """
    return any(not part.strip(". ") or part[-1] in ". " or part[0] == " " for part in parts)


def _is_reserved(path: str) -> bool:
    """Return whether an absolute path belongs to the board's owner or to the client."""
    return _RESERVED.fullmatch(path) is not None


def board_path(folder: str, path: str, *, force: bool = False) -> str:
    """Return the absolute path on the board of a package's file.

    Args:
        folder: as `check_dir` returns it.
        path: what the package says.
        force: let it stand in front of MicroPython's own modules.

    Raises:
        PackageError: it is not plain, or not the package's to write.
    """
    full = f"{folder}/{check_relative_path(path)}"
    if _is_reserved(full):
        raise PackageError(f"no package may write {full}: it is the board's own")
    if not force and folder in ("", TARGET_DIR) and BUILTIN_MODULES.fullmatch(module_name(path)):
        raise PackageError(
            f"{full} would hide MicroPython's own module {module_name(path)!r}; --force installs it"
        )
    return full


def check_installed_path(path: str) -> str:
    """Return an absolute path if a package could have been put there.

    Raises:
        PackageError: it could not.
    """
    check_folder(path)
    if _is_reserved(path):
        raise PackageError(f"no package may write {path}: it is the board's own")
    return path


def module_name(path: str) -> str:
    """Return the name that is imported to reach a file."""
    return re.sub(r"\.(py|mpy)$", "", path.partition("/")[0])


def other_form(path: str) -> str | None:
    """Return the other form of a module: what would be imported instead, or be left over."""
    stem, dot, form = path.rpartition(".")
    return {"py": f"{stem}.mpy", "mpy": f"{stem}.py"}.get(form) if dot else None


def find_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths that cannot both be: one module twice, or one name in two spellings."""
    seen: dict[str, str] = {}
    for path in sorted(paths):
        name = re.sub(r"\.mpy$", ".py", path.casefold())
        folder = name.removesuffix(".py") + "/" if name.endswith(".py") else ""
        for other in (name, folder):
            if other and other in seen:
                return seen[other], path
        seen[name] = path
        for depth in range(1, name.count("/") + 1):
            above = "/".join(name.split("/")[:depth])
            if above + ".py" in seen or above in seen:
                return seen.get(above + ".py") or seen[above], path
            seen.setdefault(above + "/", path)
    return None
