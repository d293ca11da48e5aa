"""Installs, uninstalls, and what boards have: each one job of steps on a board; no sockets, no SQL.

The server has the plan and the contents, and asks a board for no more than they need: its record,
and what is at the paths that the plan names. What differs is staged, verified there and switched.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.file_ops import room
from cm_server.packages.plan import File, Plan

from . import install_manifest
from .content_store import Content
from .install_manifest import JOURNAL, RECORD, STAGED, Change, Record
from .job_steps import Act, Doing, Work
from .transfers import step_for

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.jobs.registry import Board

_SPARE_BYTES: Final = 16 * 1024  # that littlefs wants for folders, the record and the journal
_BLOCK_BYTES: Final = 4096
_ANY: Final = -1  # a file's size, for `hash`
#: Who finds what he has under such a name tells no case, and is FAT. Bridged boards have no
#: cm.json, and the folder only from the first install on.
_UPPER: Final = ("/CM.JSON", "/.CM")
_FAT: Final = "its file system is FAT: a power cut in the middle of it may leave a mixture"
_LOOK: Final[tuple[Act, ...]] = (
    ["statvfs", "/"],
    *(["hash", path, _ANY] for path in _UPPER),
    ["hash", STAGED, _ANY],
    ["hash", RECORD, _ANY],
)
_CLEAN: Final[Act] = ["rm", STAGED, True]
_FINISH: Final[Act] = ["finish", JOURNAL]

#: Takes the record that a board confirmed to have now.
Confirm = Callable[[Record], object]
#: Keeps bytes for a board.
Keep = Callable[[bytes], Content]


class Planned(NamedTuple):
    """A plan that is to be made good.

    Attributes:
        plan: for all boards.
        contents: those that it names, by their SHA-256.
        how: the options that an upgrade is to have, too.
    """

    plan: Plan
    contents: Mapping[str, Content]
    how: Mapping[str, Any]


class Side(NamedTuple):
    """The server's side of one board's job.

    Attributes:
        known: what the store says that it has, for a board that lost its record.
        confirm: is told what it has, once the board confirms it.
        keep: keeps the record and the journal for it.
    """

    known: Record
    confirm: Confirm
    keep: Keep


class Found(NamedTuple):
    """What a board tells first.

    Attributes:
        free: bytes.
        fat: whether its file system is known to be.
        staged: whether what an earlier try staged is still there, and takes room.
        record: None where it has none.
    """

    free: int
    fat: bool
    staged: bool
    record: Record | None


def work_of(server: Server, owner: object, asked: Any, boards: int) -> Work:
    """Return the job that a caller's ``packages`` asks for.

    Raises:
        ServerError: it is malformed, or its plan is not known any more.
    """
    if not isinstance(asked, dict):
        raise ServerError("a job about packages says what in an object")
    force, dry_run = asked.get("force") is True, asked.get("dry_run") is True
    installed, keep = server.store.installed, server.contents.keep
    if "plan" in asked:
        planned = server.plans.get(owner, asked["plan"])

        def do(board: Board) -> Doing:
            side = Side(installed.of(board.id), installed.confirm(board.id), keep)
            return install(planned, kind_of(board), side, force=force, dry_run=dry_run)

    elif "remove" in asked:
        names = _names(asked["remove"])

        def do(board: Board) -> Doing:
            side = Side(installed.of(board.id), installed.confirm(board.id), keep)
            return uninstall(names, side, force=force, dry_run=dry_run)

    else:
        dry_run = True

        def do(board: Board) -> Doing:
            return look(installed.of(board.id))

    first = _LOOK if dry_run else (_FINISH, *_LOOK)
    return Work(first, do, step_for(boards))


def describe(asked: Mapping[str, Any], planned: Planned | None) -> tuple[str, str]:
    """Return the verb and the detail that stand in the audit log."""
    how = " (dry run)" if asked.get("dry_run") is True else ""
    if planned is not None:
        return "install", " ".join(planned.plan.wanted) + how
    if "remove" in asked:
        return "uninstall", " ".join(_names(asked["remove"])) + how
    return "packages", ""


def _names(told: Any) -> list[str]:
    if not isinstance(told, list) or not told or not all(isinstance(each, str) for each in told):
        raise ServerError("packages are named in a list")
    return told


def kind_of(board: Board) -> int:
    """Return a board's kind of bytecode; 0 where it tells none."""
    number = board.told.get("mpy")
    return number if isinstance(number, int) else 0


# What is done on one board


def install(planned: Planned, mpy: int, side: Side, *, force: bool, dry_run: bool) -> Doing:
    """Make a board as a plan says.

    Args:
        planned: the plan.
        mpy: the board's kind of bytecode.
        side: the server's.
        force: whether files of others may be overwritten.
        dry_run: only find out.
    """
    plan = planned.plan
    found = yield from _begin(dry_run)
    if mpy not in plan.files:
        raise PackageError("it has another MicroPython than when the plan was made; install again")
    there = yield from _look(plan.files[mpy], plan.removed(mpy))
    before = side.known if found.record is None else found.record
    change = install_manifest.change(plan, mpy, planned.how, there, before, force=force)
    fat = found.fat
    if not found.staged:
        _check_space(change, found.free)
    if not dry_run:
        if change.put or change.removed or change.record != found.record:
            fat = yield from _apply(change, planned.contents, side.keep)
        side.confirm(change.record)
    return {
        "packages": {each.key: each.version for each in plan.packages},
        "origins": dict(plan.origins),
        **_done(change, found, dry_run=dry_run),
        "notes": [*plan.notes, *[_FAT] * fat],
    }


def uninstall(names: Sequence[str], side: Side, *, force: bool, dry_run: bool) -> Doing:
    """Take packages off a board; as ``install``."""
    found = yield from _begin(dry_run)
    change = install_manifest.removal(names, found.record or {}, force=force)
    if not dry_run:
        yield from _apply(change, {}, side.keep)
        side.confirm(change.record)
    return {**_done(change, found, dry_run=dry_run), "notes": [_FAT] * found.fat}


def look(known: Record) -> Doing:
    """Tell what a board has, and where that is not what was installed."""
    found = yield from _begin(dry_run=True)
    record = found.record or {}
    paths = [path for told in record.values() for path in told["files"]]
    hashes = yield [["hash", path, _ANY] for path in paths] if paths else [_LOOK[0]]
    there = {path: digest or None for path, digest in zip(paths, hashes, strict=False)}
    missing = sorted(known.keys() - record.keys())
    return {
        "packages": {key: told["version"] for key, told in record.items()},
        "drift": [*(f"{key}: it was installed, and its record is gone" for key in missing)]
        + list(install_manifest.drift(record, there)),
        "record": {key: _asked(told) for key, told in record.items()},
    }


def _asked(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an upgrade wants to know of a package."""
    return {name: told[name] for name in ("wanted", "how", "local") if name in told}


def _done(change: Change, found: Found, *, dry_run: bool) -> dict[str, Any]:
    return {
        "put": [file.path for file in change.put],
        "removed": list(change.removed),
        "size_bytes": sum(file.size for file in change.put),
        "free_bytes": found.free,
        "dry_run": dry_run,
    }


# Steps that they share

_Answers = list[Any]


def _begin(dry_run: bool) -> Generator[Sequence[Act], _Answers, Found]:
    """Do the first acts; make room of what an earlier try staged; read the record, if any."""
    answers = yield _LOOK if dry_run else (_FINISH, *_LOOK)
    space, *upper, staged, digest = answers[-len(_LOOK) :]
    if staged is False and not dry_run:
        _, space = yield [_CLEAN, _LOOK[0]]
        staged = None
    record = None
    if digest is not None:
        (raw,) = yield [["get", RECORD]]
        record = install_manifest.read_record(raw)
    return Found(room(space)[1], _any_there(upper), staged is False, record)


def _any_there(told: Iterable[Any]) -> bool:
    return any(each is not None for each in told)


def _look(
    files: Sequence[File], removed: Iterable[str]
) -> Generator[Sequence[Act], _Answers, dict[str, str]]:
    """Return what there is at a plan's paths.

    Raises:
        PackageError: a folder is where a file is to be, or a file where a folder is.
    """
    sizes = {**dict.fromkeys(removed, _ANY), **{file.path: file.size for file in files}}
    folders = sorted(
        {folder for file in files for folder in install_manifest.folders_of(file.path)}
    )
    if not (asked := [*sizes, *folders]):
        return {}  # a package that only needs others has no files
    answers = yield [["hash", path, sizes.get(path, _ANY)] for path in asked]
    told = dict(zip(asked, answers, strict=True))
    in_way = {path for path in sizes if told[path] is False}
    in_way |= {folder for folder in folders if told[folder] not in (None, False)}
    if in_way:
        raise PackageError(f"{min(in_way)} is in the way on it")
    return {path: str(told[path]) for path in sizes if told[path] is not None}


def _check_space(change: Change, free: int) -> None:
    blocks = sum(-(-file.size // _BLOCK_BYTES) for file in change.put)
    blocks += 2 * len(install_manifest.staging_folders(len(change.put) + 1))
    if change.put and blocks * _BLOCK_BYTES + _SPARE_BYTES > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/")


def _apply(
    change: Change, contents: Mapping[str, Content], keep: Keep
) -> Generator[Sequence[Act], _Answers, bool]:
    """Stage, verify, and switch: from the journal's rename on the change has happened.

    Returns:
        Whether its file system is FAT: the folder of the record is there now, whatever was.
    """
    files = [contents[file.sha256] for file in change.put]
    files.append(keep(install_manifest.write_record(change.record).encode()))
    journal = keep(change.journal().encode())
    acts: list[Act] = [
        ["makedirs", folder] for folder in install_manifest.staging_folders(len(files))
    ]
    acts += [
        ["put", f"{STAGED}/{install_manifest.staged_as(n)}", each, 1]
        for n, each in enumerate(files)
    ]
    acts += [["put", JOURNAL + ".new", journal], ["rename", JOURNAL + ".new", JOURNAL]]
    try:
        yield acts
    except OSError:
        with contextlib.suppress(OSError):  # what is staged would only take room, if any is
            yield [_CLEAN]
        raise
    try:
        _, *upper = yield [_FINISH, *_LOOK[1:3]]
    except OSError as error:
        why = f"{error.strerror}: its files are not all in their places; they are once it restarts"
        raise PackageError(why) from error
    return _any_there(upper)
