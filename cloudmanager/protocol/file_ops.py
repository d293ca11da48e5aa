"""File operations on boards, as they are sent in a job (docs/protocol.md); no I/O here.

An operation is a list: its name, the path that it concerns, and further arguments.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any, Final

from .errors import ServerError
from .text import one_line

#: Operation -> the types of its arguments after the path.
OP_ARGUMENTS: Final[dict[str, tuple[type, ...]]] = {
    "get": (),
    "hash": (int,),  # the expected size: a file of another size is not hashed
    "ls": (bool,),  # whether to list subfolders, too
    "makedirs": (),
    "mkdir": (),
    "put": (str,),  # the SHA-256 of the content, in hex
    "rename": (str,),  # the new path
    "rm": (bool,),  # whether to remove a folder with its contents
    "rmdir": (),
    "stat": (),
    "statvfs": (),
}
#: Operations that write a path, which has to be UTF-8.
_TEXT_PATH_OPS: Final = frozenset(("makedirs", "mkdir", "put"))
_UNDECODABLE: Final = re.compile("[\udc80-\udcff]")
MUTATING_OPS: Final = frozenset(("makedirs", "mkdir", "put", "rename", "rm", "rmdir"))
#: Paths of the board's client, its settings, its journal and its marks, wherever boards look for
#: modules: without them, or with a file that is imported in their place, a board could not connect
#: any more. Flashing replaces them. In lower case: FAT ignores case.
CLIENT_PATHS: Final = re.compile(r"(/lib)?/(cm(\.[^/]*)?|cm_start(\.[^/]*)?|\.cm[^/]*)(/.*)?")
#: Those of them that are refused before a job is sent: they are the client's on every board.
_ESSENTIAL_PATHS: Final = re.compile(r"/cm\.json|/lib/cm(/.*)?|/lib/cm_start\.mpy")
#: What runs before the client on boards made with `mbm flash`.
STARTER_PATHS: Final = ("/main.py", "/boot.py", "/main.mpy", "/boot.mpy")

FileOp = Sequence[Any]


def check_file_ops(ops: object, *, max_ops: int, path_bytes: int) -> list[list[Any]]:
    """Return the operations that a caller sent, after checking each.

    Args:
        ops: what the caller sent, of any type.
        max_ops: how many are allowed.
        path_bytes: the greatest length of a path, in bytes of UTF-8.

    Raises:
        ServerError: one is malformed, or would remove the board's client.
    """
    if not isinstance(ops, list) or not 0 < len(ops) <= max_ops:
        raise ServerError(f"a job with files must have 1 to {max_ops} operations")
    for op in ops:
        name = op[0] if isinstance(op, list) and op else None
        argument_types = OP_ARGUMENTS.get(name) if isinstance(name, str) else None
        if argument_types is None or [type(each) for each in op[1:]] != [str, *argument_types]:
            raise ServerError(f"unknown or malformed file operation {str(name)[:64]!r}")
        paths = [op[1], op[2]] if name == "rename" else [op[1]]
        for path in paths:
            _check_path(path, path_bytes)
            is_written = name in _TEXT_PATH_OPS or path is not op[1]
            if is_written and is_undecodable(path):
                raise ServerError(
                    f"{one_line(path)} is not UTF-8 text: a board's file of such a name can be "
                    "downloaded, renamed and removed, but not written"
                )
            if name in MUTATING_OPS:
                _check_client_paths(path, include_parents=name in ("rename", "rm"))
        if name == "rename" and is_inside(op[2], op[1]):
            raise ServerError(f"{op[1]} cannot be moved to {op[2]}: it would be moved into itself")
    return ops


def decode_path(raw: bytes) -> str:
    """Return a path of a board as text: a byte that is not UTF-8 as U+DC80 to U+DCFF (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")


def encode_path(path: str) -> bytes:
    """Return the bytes of a path on a board; the inverse of ``decode_path``.

    Raises:
        UnicodeEncodeError: it has other lone surrogates.
    """
    return path.encode("utf-8", "surrogateescape")


def is_undecodable(path: str) -> bool:
    """Whether a path is not UTF-8 on the board."""
    return not path.isascii() and _UNDECODABLE.search(path) is not None


def disk_space(statvfs: Sequence[int]) -> tuple[int, int]:
    """Return the total and the free bytes of a file system, from a ``statvfs`` tuple.

    A littlefs that is full may count a block twice: the number of free blocks is then negative,
    or, where it is unsigned, very large. Such a number counts as 0.
    """
    block, fragment, blocks, free = statvfs[:4]
    unit = fragment or block
    return unit * blocks, unit * free if 0 <= free <= blocks else 0


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is that of a folder, or below it; FAT ignores case.

    Another case of the folder's own name does not count: a rename may change it.
    """
    return path == folder or path.lower().startswith(folder.lower().rstrip("/") + "/")


def touches_starter(op: FileOp) -> bool:
    """Whether an operation writes or removes a path of the client, or what runs before it.

    Such an operation is refused by boards that have a client, not by those on a bridge.
    """
    paths = [str(path).lower() for path in op[1:3]]
    return op[0] in MUTATING_OPS and any(
        path in STARTER_PATHS or belongs_to_client(path) for path in paths
    )


def belongs_to_client(path: str) -> bool:
    """Whether a path is one of the client's, which no verb may change."""
    return CLIENT_PATHS.fullmatch(path.lower().rstrip("/")) is not None


def is_essential(path: str) -> bool:
    """Whether a path is the client's on every board: servers refuse to write it."""
    return _ESSENTIAL_PATHS.fullmatch(path.lower().rstrip("/")) is not None


def _check_path(path: str, max_bytes: int) -> None:
    absolute = path.startswith("/") and path == posixpath.normpath(path) and path[:2] != "//"
    try:
        raw = encode_path(path)
    except UnicodeEncodeError:
        raw = b""
    if not absolute or "\0" in path or len(raw) > max_bytes or decode_path(raw) != path:
        raise ServerError(f"{one_line(path[:64])!r} is not a path on a board")


def _check_client_paths(path: str, *, include_parents: bool) -> None:
    """Refuse the files of the board's client; with ``include_parents`` also their folders."""
    is_parent = include_parents and path.lower().rstrip("/") in ("", "/lib")
    if is_parent or is_essential(path):
        raise ServerError(
            f"{path} belongs to the board's client: without it the board could not connect"
        )
