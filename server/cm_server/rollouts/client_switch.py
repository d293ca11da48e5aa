"""Bring the client of one board to another version, as a job of several steps; no sockets, no SQL.

The new client is written beside the old one, and the board starts it once (mpy_client/cm_start.py).
The job that follows keeps it; without that, the next start, or the end of five minutes, restores
the old one. So the client has a trial of its own, before that of the generation: the old client may
not know generations yet.

All steps look at the board first, and may be done twice.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Final

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.file_ops import disk_space
from cm_server.installs.board_install import ANY_SIZE, AddBytes, OpResults
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import FileOp, OpGenerator
from cm_server.jobs.model import Board

from . import desired
from .board_switch import STATE_PATH

_CM: Final = "/lib/cm"
_NEW: Final = "/lib/cm.new"
_OLD: Final = "/lib/cm.old"
_BAD: Final = "/lib/cm.bad"  # a client that was tried, and did not start
_TRIAL: Final = f"{_CM}/trial"  # the client that runs was not kept yet
_OK: Final = f"{_NEW}/ok"  # the next start tries the new client
#: Files that start the client: they are moved to their places once the client is kept.
_START_PATHS: Final[Mapping[str, str]] = {
    "cm_start.mpy": "/lib/cm_start.mpy",
    "main.py": "/main.py",
}
SPARE_BYTES: Final = 8192  # of flash that stay free beside two clients
_BLOCK_BYTES: Final = 4096
FIRST_OPS: Final[tuple[FileOp, ...]] = (
    *(["hash", path, ANY_SIZE] for path in (_CM, _TRIAL, _NEW, _OK, _BAD, _OLD, STATE_PATH)),
    ["statvfs", "/"],
)
#: What ``bring_client`` returns.
SAME: Final = "same"  # it runs, and is kept
WRITTEN: Final = "written"  # it is complete beside the old one, which runs
READY: Final = "ready"  # the next start tries it
RETURNED: Final = "returned"  # it was tried, and the old one runs again
BUSY: Final = "busy"  # something else is on trial
FIXED: Final = "fixed"  # it is part of the firmware


def is_replaceable(board: Board) -> bool:
    """Return whether a board has a client that can be replaced, or that is not known."""
    parts = board.client_parts
    return not parts or ("link" in parts and "unix" not in parts)


def flash_bytes(files: Mapping[str, tuple[str, int]]) -> int:
    """Return how many bytes of flash have to be free for a client beside the old one.

    Args:
        files: name -> SHA-256 and size of each of its files.
    """
    blocks = sum(-(-size // _BLOCK_BYTES) for _, size in files.values())
    return blocks * _BLOCK_BYTES + SPARE_BYTES


def bring_client(
    files: Mapping[str, Content], add_bytes: AddBytes, *, may_start: bool
) -> OpGenerator:
    """Do what is due next to bring a board to a client.

    Args:
        files: name -> content of each file of the client.
        add_bytes: makes a content of bytes that are sent to the board.
        may_start: whether the client was written before, so that it may be started.

    Returns:
        SAME, WRITTEN, READY, RETURNED, BUSY or FIXED.

    Raises:
        PackageError: the board has no room for it.
        OSError: an operation failed; the old client runs.
    """
    folder, trial, new, ready, bad, old, state_hash, space = yield list(FIRST_OPS)
    if folder is not False:
        return FIXED
    if state_hash:
        (raw,) = yield [["get", STATE_PATH]]
        current = desired.read_board_generation(raw.decode("utf-8", "replace"))
        if current.state in ("trial", "trying"):
            return BUSY
    runs = yield from _runs(files)
    if runs:
        if trial is not None:
            yield from _keep(files)
        if old is not None:
            yield [["rm", _OLD, True]]
        return SAME
    if trial is not None:
        return BUSY
    if may_start:
        if new is False and (yield from _is_complete(_NEW, files)):
            if ready is None:
                yield [["put", _OK, add_bytes(b"")]]
            return READY
        if bad is False and (yield from _is_complete(_BAD, files)):
            return RETURNED
    yield from _write(files, space, has_folder=new is False, has_bad=bad is not None)
    return WRITTEN


def _runs(files: Mapping[str, Content]) -> Generator[Sequence[FileOp], OpResults, bool]:
    """Return whether a board runs these files."""
    names = sorted(files)
    found = yield [["hash", f"{_CM}/{name}", files[name].size] for name in names]
    kept = [name for name, digest in zip(names, found, strict=True) if digest is None]
    right = all(
        digest == files[name].digest
        for name, digest in zip(names, found, strict=True)
        if digest is not None
    )
    if not right or not all(name in _START_PATHS for name in kept):
        return False
    if not kept:
        return True
    moved = yield [["hash", _START_PATHS[name], files[name].size] for name in kept]
    return all(digest == files[name].digest for name, digest in zip(kept, moved, strict=True))


def _is_complete(
    folder: str, files: Mapping[str, Content]
) -> Generator[Sequence[FileOp], OpResults, bool]:
    names = sorted(files)
    found = yield [["hash", f"{folder}/{name}", files[name].size] for name in names]
    return all(digest == files[name].digest for name, digest in zip(names, found, strict=True))


def _keep(files: Mapping[str, Content]) -> Generator[Sequence[FileOp], OpResults, None]:
    """Keep the client that is on trial; the mark of its trial is the last that is removed."""
    names = [name for name in _START_PATHS if name in files]
    there = yield [["hash", f"{_CM}/{name}", ANY_SIZE] for name in names]
    ops: list[FileOp] = [
        ["rename", f"{_CM}/{name}", _START_PATHS[name]]
        for name, digest in zip(names, there, strict=True)
        if digest is not None
    ]
    yield [*ops, ["rm", _TRIAL, False]]


def _write(
    files: Mapping[str, Content], space: Sequence[int], *, has_folder: bool, has_bad: bool
) -> Generator[Sequence[FileOp], OpResults, None]:
    """Write a client beside the one that runs; each file is verified by the board."""
    removed: list[FileOp] = [["rm", _BAD, True]] if has_bad else []
    if has_folder:
        (listed,) = yield [["ls", _NEW, False]]
        paths = [entry[0] for entry in listed]
        wanted = {f"{_NEW}/{name}" for name in files}
        removed += [["rm", path, True] for path in paths if path not in wanted]
    if removed:
        *_, space = yield [*removed, ["statvfs", "/"]]
    names = sorted(files)
    found: OpResults = [None] * len(names)
    if has_folder:
        found = yield [["hash", f"{_NEW}/{name}", files[name].size] for name in names]
    missing = [
        name for name, digest in zip(names, found, strict=True) if digest != files[name].digest
    ]
    sizes = {name: (files[name].digest, files[name].size) for name in missing}
    if missing and flash_bytes(sizes) > disk_space(space)[1]:
        raise PackageError("its flash has no room for a second client")
    yield [
        ["makedirs", _NEW],
        *(["put", f"{_NEW}/{name}", files[name], 1] for name in missing),
    ]
