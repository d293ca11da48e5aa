"""Acts on a board's files, as they travel in a job (docs/protocol.md); pure.

An act is a list: its name, the path that it is about, and what else it takes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any, Final

from .errors import ServerError

#: What each act takes behind its path; ``sha256`` names the content to be put there.
ACTS: Final[dict[str, tuple[type, ...]]] = {
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
CHANGING: Final = frozenset(("put", "rename", "rm", "rmdir"))
#: Without these a board is gone from the fleet; its client is replaced by flashing.
OWN: Final = ("/cm.json", "/lib/cm", "/lib/cm_start.mpy")
#: What a board boots by that `mbm flash` made: without these lines it is gone at its next start.
STARTER: Final = "/main.py"
STARTER_MARK: Final = b"cm_start"
STARTER_BYTES: Final = 34

Act = Sequence[Any]


def check(acts: object, *, most: int, path_bytes: int) -> list[list[Any]]:
    """Return acts that a caller sent, all of them sound.

    Raises:
        ServerError: one is none, or would cut the board off.
    """
    if not isinstance(acts, list) or not 0 < len(acts) <= most:
        raise ServerError(f"a job with files has 1 to {most} acts")
    for act in acts:
        name = act[0] if isinstance(act, list) and act else None
        takes = ACTS.get(name) if isinstance(name, str) else None
        if takes is None or [type(each) for each in act[1:]] != [str, *takes]:
            raise ServerError(f"it knows no such act on files: {str(name)[:64]!r}")
        paths = [act[1], act[2]] if name == "rename" else [act[1]]
        for path in paths:
            _check_path(path, path_bytes)
            if name in CHANGING:
                _check_own(path, above=name in ("rename", "rm"))
    return acts


def room(told: Sequence[int]) -> tuple[int, int]:
    """Return how many bytes there are and how many are free, by what a ``statvfs`` gave.

    A littlefs that is full counts blocks twice: fewer than none are free, or, unsigned, very many.
    """
    block, fragment, blocks, free = told[:4]
    unit = fragment or block
    return unit * blocks, unit * free if 0 <= free <= blocks else 0


def touches_starter(act: Act) -> bool:
    """Whether an act puts something in the starter's place, or takes it away."""
    return act[0] in CHANGING and STARTER in [str(path).lower() for path in act[1:3]]


def _check_path(path: str, most: int) -> None:
    whole = path.startswith("/") and path == posixpath.normpath(path) and path[:2] != "//"
    told = path.encode("utf-8", "ignore")
    if not whole or "\0" in path or len(told) > most or told.decode() != path:
        raise ServerError(f"{path[:64]!r} is no path on a board")


def _check_own(path: str, *, above: bool) -> None:
    """Refuse what Cloudmanager itself lives on; ``above``: and the folders that it is in."""
    name = path.lower().removesuffix(".part").rstrip("/")  # FAT tells no case
    for own in OWN:
        within = name == own or name.startswith(own + "/")
        if within or (above and own.startswith(name + "/")):
            raise ServerError(f"{path} is what the board's client lives on: it would be gone")
