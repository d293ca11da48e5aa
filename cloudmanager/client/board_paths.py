"""Paths on boards, written with a leading ``:``, and local file names from boards; no I/O.

A path that a board sends cannot lead out of the folder on this machine: each part must be a plain
file name. Control characters, and bytes that are not UTF-8, become escapes in it. The rules of
Windows for names hold on Windows only.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final

from cloudmanager.protocol import file_ops
from cloudmanager.protocol.text import UNSAFE_CHARS

MAX_PATH_BYTES: Final = 1024  # of a path on a board; servers refuse a job with a longer one
_WINDOWS_RESERVED: Final = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?")
_ESCAPED_CHARS: Final = re.compile(rf"[\n\t]|{UNSAFE_CHARS.pattern}")
_SEPARATORS: Final = frozenset("/\\")
_WINDOWS_FORBIDDEN: Final = frozenset('<>:"|?*')
_MAX_NAME_BYTES: Final = 255  # on common file systems (ext4, NTFS, APFS)


def parse_board_path(text: str) -> str:
    """Return the absolute path on a board: ``/lib/a.py`` for ``:lib/a.py``.

    Raises:
        ValueError: it does not begin with ``:``, or contains NUL.
    """
    if not text.startswith(":"):
        raise ValueError(f"a path on a board must begin with a colon, such as :{text}")
    if "\0" in text:
        raise ValueError("a path cannot contain NUL")
    return "/" + posixpath.normpath("/" + text[1:]).lstrip("/")


def is_sendable(path: str) -> bool:
    """Whether a path can be sent to boards: a local name that is not UTF-8 cannot."""
    return path.isascii() or not re.search("[\ud800-\udfff]", path)


def join_path(folder: str, name: str) -> str:
    """Return the path of a name in a folder of a board."""
    return posixpath.join(folder, name)


def display_path(path: str) -> str:
    """Return a board's path as people write it, with a colon."""
    return f":{path}"


def local_path(folder: Path, path: str) -> Path:
    """Return the local path of a board's file below a folder.

    What would not be visible in a name is written as in a URL: ``a%0A.txt`` for a newline.

    Args:
        folder: on this machine.
        path: relative, from the board, so it may be hostile.

    Raises:
        ValueError: a part of it is not a plain file name.
    """
    parts = [escape_name(part) for part in path.split("/")]
    for part in parts:
        check_local_name(part)
    return folder.joinpath(*parts)


def escape_name(name: str) -> str:
    """Return a name in which control characters, and bytes that are not UTF-8, are ``%XX``."""
    return _ESCAPED_CHARS.sub(_escape_char, name)


def _escape_char(found: re.Match[str]) -> str:
    raw = found[0].encode("utf-8", "surrogatepass")
    if file_ops.is_undecodable(found[0]):
        raw = file_ops.encode_path(found[0])
    return "".join(f"%{byte:02X}" for byte in raw)


def check_local_name(name: str, *, windows: bool = os.name == "nt") -> None:
    """Refuse a name that is not a plain file name.

    Raises:
        ValueError: it has a separator of any operating system or a control character, or is too
            long; or on Windows, it is reserved there or has a character that is.
    """
    is_plain = (
        name not in ("", ".", "..")
        and not set(name) & _SEPARATORS
        and not _ESCAPED_CHARS.search(name)
        and len(name.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
        and not (windows and _is_illegal_on_windows(name))
    )
    if not is_plain:
        raise ValueError(f"{name[:64]!r} is not a valid local file name; it was left on the board")


def _is_illegal_on_windows(name: str) -> bool:
    has_forbidden = bool(set(name) & _WINDOWS_FORBIDDEN) or name.endswith((".", " "))
    return has_forbidden or _WINDOWS_RESERVED.fullmatch(name) is not None
