"""Paths on boards, which stand behind a ``:``, and names from boards that become files here; pure.

What a board says its files are called never chooses a place on this machine: every part of it must
be a plain name, here and on any other system.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from pathlib import Path
from typing import Final

_WINDOWS_RESERVED: Final = re.compile(
    r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?"
)  # of Windows
_FORBIDDEN_CHARS: Final = frozenset('<>:"/\\|?*')
_MAX_NAME_BYTES: Final = 255  # bytes of a name, on the file systems there are


def parse_board_path(text: str) -> str:
    """Return the path that text such as ``:lib/a.py`` means on a board: ``/lib/a.py``.

    Raises:
        ValueError: it has no ``:``, or leads nowhere.
    """
    if not text.startswith(":"):
        raise ValueError(f"a path on a board begins with a colon, such as :{text}")
    if "\0" in text:
        raise ValueError("a path has no NUL")
    return "/" + posixpath.normpath("/" + text[1:]).lstrip("/")


def join_path(folder: str, name: str) -> str:
    """Return the path of a name in a folder of a board."""
    return posixpath.join(folder, name)


def display_path(path: str) -> str:
    """Return a board's path as people write it."""
    return f":{path}"


def local_path(folder: Path, path: str) -> Path:
    """Return where a board's file goes below a folder of this machine.

    Args:
        folder: where it may go, and nowhere else.
        path: relative, as the board tells it: not to be believed.

    Raises:
        ValueError: a part of it is no plain name.
    """
    parts = path.split("/")
    for part in parts:
        check_local_name(part)
    return folder.joinpath(*parts)


def check_local_name(name: str) -> None:
    """Refuse a name that is more than a name, on this system or on another.

    Raises:
        ValueError: it is.
    """
    plain = (
        name not in ("", ".", "..")
        and not set(name) & _FORBIDDEN_CHARS
        and not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in name)
        and not name.endswith((".", " "))
        and not _WINDOWS_RESERVED.fullmatch(name)
        and len(name.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
    )
    if not plain:
        raise ValueError(f"{name[:64]!r} is no name for a file here; it was left on the board")
