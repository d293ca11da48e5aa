"""Acts on a board's files, as they travel in a job (docs/protocol.md); pure.

An act is a list: its name, the path that it is about, and what else it takes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any, Final

from .errors import ServerError

#: What each act takes behind its path; ``sha256`` names the content to be put there.
OP_ARGUMENTS: Final[dict[str, tuple[type, ...]]] = {
    "get": (),
    "hash": (int,),  # size: of a file of another size it is not worth looking at
    "ls": (bool,),  # whether the folders below, too
    "makedirs": (),
    "mkdir": (),
    "put": (str,),  # sha256
    "rename": (str,),  # the new path
    "rm": (bool,),  # whether a folder and all that is in it, too
    "rmdir": (),
    "stat": (),
    "statvfs": (),
}
MUTATING_OPS: Final = frozenset(("put", "rename", "rm", "rmdir"))
#: Without these a board is gone from the fleet; its client is replaced by flashing.
CLIENT_PATHS: Final = ("/cm.json", "/lib/cm", "/lib/cm_start.mpy")
#: What a board boots by that `mbm flash` made: without these lines it is gone at its next start.
STARTER_PATH: Final = "/main.py"
STARTER_MARK: Final = b"cm_start"
STARTER_BYTES: Final = 34

FileOp = Sequence[Any]


def check_file_ops(ops: object, *, max_ops: int, path_bytes: int) -> list[list[Any]]:
    """Return acts that a caller sent, all of them sound.

    Raises:
        ServerError: one is none, or would cut the board off.
    """
    if not isinstance(ops, list) or not 0 < len(ops) <= max_ops:
        raise ServerError(f"a job with files has 1 to {max_ops} acts")
    for act in ops:
        name = act[0] if isinstance(act, list) and act else None
        takes = OP_ARGUMENTS.get(name) if isinstance(name, str) else None
        if takes is None or [type(each) for each in act[1:]] != [str, *takes]:
            raise ServerError(f"it knows no such act on files: {str(name)[:64]!r}")
        paths = [act[1], act[2]] if name == "rename" else [act[1]]
        for path in paths:
            _check_path(path, path_bytes)
            if name in MUTATING_OPS:
                _check_client_paths(path, include_parents=name in ("rename", "rm"))
    return ops


def disk_space(statvfs: Sequence[int]) -> tuple[int, int]:
    """Return how many bytes there are and how many are free, by what a ``statvfs`` gave.

    A littlefs that is full counts blocks twice: fewer than none are free, or, unsigned, very many.
    """
    block, fragment, blocks, free = statvfs[:4]
    unit = fragment or block
    return unit * blocks, unit * free if 0 <= free <= blocks else 0


def touches_starter(op: FileOp) -> bool:
    """Whether an act puts something in the starter's place, or takes it away."""
    return op[0] in MUTATING_OPS and STARTER_PATH in [str(path).lower() for path in op[1:3]]


def _check_path(path: str, max_bytes: int) -> None:
    whole = path.startswith("/") and path == posixpath.normpath(path) and path[:2] != "//"
    told = path.encode("utf-8", "ignore")
    if not whole or "\0" in path or len(told) > max_bytes or told.decode() != path:
        raise ServerError(f"{path[:64]!r} is no path on a board")


def _check_client_paths(path: str, *, include_parents: bool) -> None:
    """Refuse the files of Cloudmanager's client; with ``include_parents`` also their folders."""
    name = path.lower().removesuffix(".part").rstrip("/")  # FAT tells no case
    for own in CLIENT_PATHS:
        within = name == own or name.startswith(own + "/")
        if within or (include_parents and own.startswith(name + "/")):
            raise ServerError(f"{path} is what the board's client lives on: it would be gone")
