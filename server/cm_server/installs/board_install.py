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
from cloudmanager.protocol.file_ops import disk_space
from cm_server.packages.plan import InstallPlan, PlannedFile

from . import install_manifest
from .content_store import Content
from .install_manifest import JOURNAL_PATH, MANIFEST_PATH, STAGING_PATH, BoardChange, Manifest
from .job_steps import FileOp, OpGenerator, SteppedJobSpec
from .transfers import ack_bytes_for

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.jobs.registry import Board

_SPARE_BYTES: Final = 16 * 1024  # that littlefs wants for folders, the record and the journal
_BLOCK_BYTES: Final = 4096
_ANY_SIZE: Final = -1  # a file's size, for `hash`
#: Who finds what he has under such a name tells no case, and is FAT. Bridged boards have no
#: cm.json, and the folder only from the first install on.
_UPPER_CASE_PATHS: Final = ("/CM.JSON", "/.CM")
_FAT_NOTE: Final = "its file system is FAT: a power cut in the middle of it may leave a mixture"
_PROBE_OPS: Final[tuple[FileOp, ...]] = (
    ["statvfs", "/"],
    *(["hash", path, _ANY_SIZE] for path in _UPPER_CASE_PATHS),
    ["hash", STAGING_PATH, _ANY_SIZE],
    ["hash", MANIFEST_PATH, _ANY_SIZE],
)
_CLEAN_OP: Final[FileOp] = ["rm", STAGING_PATH, True]
_FINISH_OP: Final[FileOp] = ["finish", JOURNAL_PATH]

#: Takes the record that a board confirmed to have now.
OnConfirmed = Callable[[Manifest], object]
#: Keeps bytes for a board.
AddBytes = Callable[[bytes], Content]


class PreparedPlan(NamedTuple):
    """A plan that is to be made good.

    Attributes:
        plan: for all boards.
        contents: those that it names, by their SHA-256.
        options: the options that an upgrade is to have, too.
    """

    plan: InstallPlan
    contents: Mapping[str, Content]
    options: Mapping[str, Any]


class ServerSide(NamedTuple):
    """The server's side of one board's job.

    Attributes:
        known_manifest: what the store says that it has, for a board that lost its record.
        on_confirmed: is told what it has, once the board confirms it.
        add_bytes: keeps the record and the journal for it.
    """

    known_manifest: Manifest
    on_confirmed: OnConfirmed
    add_bytes: AddBytes


class BoardProbe(NamedTuple):
    """What a board tells first.

    Attributes:
        free_bytes: bytes.
        is_fat: whether its file system is known to be.
        has_staged: whether what an earlier try staged is still there, and takes room.
        manifest: None where it has none.
    """

    free_bytes: int
    is_fat: bool
    has_staged: bool
    manifest: Manifest | None


def read_package_job(
    server: Server, connection: object, request: Any, boards: int
) -> SteppedJobSpec:
    """Return the job that a caller's ``packages`` asks for.

    Raises:
        ServerError: it is malformed, or its plan is not known any more.
    """
    if not isinstance(request, dict):
        raise ServerError("a job about packages says what in an object")
    force, dry_run = request.get("force") is True, request.get("dry_run") is True
    installed, keep = server.store.installed_packages, server.content_store.add_bytes
    if "plan" in request:
        planned = server.plan_cache.get(connection, request["plan"])

        def do(board: Board) -> OpGenerator:
            side = ServerSide(
                installed.packages_of(board.id), installed.confirmer_for(board.id), keep
            )
            return install(planned, mpy_number(board), side, force=force, dry_run=dry_run)

    elif "remove" in request:
        names = _read_package_names(request["remove"])

        def do(board: Board) -> OpGenerator:
            side = ServerSide(
                installed.packages_of(board.id), installed.confirmer_for(board.id), keep
            )
            return uninstall(names, side, force=force, dry_run=dry_run)

    else:
        dry_run = True

        def do(board: Board) -> OpGenerator:
            return report_installed(installed.packages_of(board.id))

    first = _PROBE_OPS if dry_run else (_FINISH_OP, *_PROBE_OPS)
    return SteppedJobSpec(first, do, ack_bytes_for(boards))


def describe_for_audit(request: Mapping[str, Any], planned: PreparedPlan | None) -> tuple[str, str]:
    """Return the verb and the detail that stand in the audit log."""
    how = " (dry run)" if request.get("dry_run") is True else ""
    if planned is not None:
        return "install", " ".join(planned.plan.wanted) + how
    if "remove" in request:
        return "uninstall", " ".join(_read_package_names(request["remove"])) + how
    return "packages", ""


def _read_package_names(names: Any) -> list[str]:
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise ServerError("packages are named in a list")
    return names


def mpy_number(board: Board) -> int:
    """Return a board's kind of bytecode; 0 where it tells none."""
    number = board.reported_facts.get("mpy")
    return number if isinstance(number, int) else 0


# What is done on one board


def install(
    planned: PreparedPlan, mpy: int, side: ServerSide, *, force: bool, dry_run: bool
) -> OpGenerator:
    """Make a board as a plan says.

    Args:
        planned: the plan.
        mpy: the board's kind of bytecode.
        side: the server's.
        force: whether files of others may be overwritten.
        dry_run: only find out.
    """
    plan = planned.plan
    found = yield from _probe_board(dry_run)
    if mpy not in plan.files:
        raise PackageError("it has another MicroPython than when the plan was made; install again")
    there = yield from _hash_paths(plan.files[mpy], plan.shadowing_paths(mpy))
    before = side.known_manifest if found.manifest is None else found.manifest
    change = install_manifest.plan_change(plan, mpy, planned.options, there, before, force=force)
    fat = found.is_fat
    if not found.has_staged:
        _check_space(change, found.free_bytes)
    if not dry_run:
        if change.put_files or change.removed_paths or change.manifest != found.manifest:
            fat = yield from _apply_change(change, planned.contents, side.add_bytes)
        side.on_confirmed(change.manifest)
    return {
        "packages": {each.key: each.version for each in plan.packages},
        "origins": dict(plan.origins),
        **_summarize(change, found, dry_run=dry_run),
        "notes": [*plan.notes, *[_FAT_NOTE] * fat],
    }


def uninstall(names: Sequence[str], side: ServerSide, *, force: bool, dry_run: bool) -> OpGenerator:
    """Take packages off a board; as ``install``."""
    found = yield from _probe_board(dry_run)
    change = install_manifest.plan_removal(names, found.manifest or {}, force=force)
    if not dry_run:
        yield from _apply_change(change, {}, side.add_bytes)
        side.on_confirmed(change.manifest)
    return {**_summarize(change, found, dry_run=dry_run), "notes": [_FAT_NOTE] * found.is_fat}


def report_installed(known_manifest: Manifest) -> OpGenerator:
    """Tell what a board has, and where that is not what was installed."""
    found = yield from _probe_board(dry_run=True)
    record = found.manifest or {}
    paths = [path for told in record.values() for path in told["files"]]
    hashes = yield [["hash", path, _ANY_SIZE] for path in paths] if paths else [_PROBE_OPS[0]]
    there = {path: digest or None for path, digest in zip(paths, hashes, strict=False)}
    missing = sorted(known_manifest.keys() - record.keys())
    return {
        "packages": {key: told["version"] for key, told in record.items()},
        "drift": [*(f"{key}: it was installed, and its record is gone" for key in missing)]
        + list(install_manifest.describe_drift(record, there)),
        "record": {key: _upgrade_info(told) for key, told in record.items()},
    }


def _upgrade_info(package: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an upgrade wants to know of a package."""
    return {name: package[name] for name in ("wanted", "how", "local") if name in package}


def _summarize(change: BoardChange, probe: BoardProbe, *, dry_run: bool) -> dict[str, Any]:
    return {
        "put": [file.path for file in change.put_files],
        "removed": list(change.removed_paths),
        "size_bytes": sum(file.size for file in change.put_files),
        "free_bytes": probe.free_bytes,
        "dry_run": dry_run,
    }


# Steps that they share

_OpResults = list[Any]


def _probe_board(dry_run: bool) -> Generator[Sequence[FileOp], _OpResults, BoardProbe]:
    """Do the first acts; make room of what an earlier try staged; read the record, if any."""
    answers = yield _PROBE_OPS if dry_run else (_FINISH_OP, *_PROBE_OPS)
    space, *upper, staged, digest = answers[-len(_PROBE_OPS) :]
    if _is_leftover(staged) and not dry_run:
        _, space = yield [_CLEAN_OP, _PROBE_OPS[0]]
        staged = None
    record = None
    if digest is not None:
        (raw,) = yield [["get", MANIFEST_PATH]]
        record = install_manifest.read_manifest(raw)
    return BoardProbe(disk_space(space)[1], _any_exists(upper), staged is False, record)


def _is_leftover(staged: Any) -> bool:
    """Return whether an interrupted install left its staging folder, by the answer to `hash`."""
    return staged is False  # a folder


def _any_exists(hashes: Iterable[Any]) -> bool:
    return any(each is not None for each in hashes)


def _hash_paths(
    files: Sequence[PlannedFile], removed: Iterable[str]
) -> Generator[Sequence[FileOp], _OpResults, dict[str, str]]:
    """Return what there is at a plan's paths.

    Raises:
        PackageError: a folder is where a file is to be, or a file where a folder is.
    """
    sizes = {**dict.fromkeys(removed, _ANY_SIZE), **{file.path: file.size for file in files}}
    folders = sorted(
        {folder for file in files for folder in install_manifest.parent_folders(file.path)}
    )
    if not (asked := [*sizes, *folders]):
        return {}  # a package that only needs others has no files
    answers = yield [["hash", path, sizes.get(path, _ANY_SIZE)] for path in asked]
    told = dict(zip(asked, answers, strict=True))
    in_way = {path for path in sizes if told[path] is False}
    in_way |= {folder for folder in folders if told[folder] not in (None, False)}
    if in_way:
        raise PackageError(f"{min(in_way)} is in the way on it")
    return {path: str(told[path]) for path in sizes if told[path] is not None}


def _check_space(change: BoardChange, free: int) -> None:
    blocks = sum(-(-file.size // _BLOCK_BYTES) for file in change.put_files)
    blocks += 2 * len(install_manifest.staging_folders(len(change.put_files) + 1))
    if change.put_files and blocks * _BLOCK_BYTES + _SPARE_BYTES > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/")


def _apply_change(
    change: BoardChange, contents: Mapping[str, Content], add_bytes: AddBytes
) -> Generator[Sequence[FileOp], _OpResults, bool]:
    """Stage, verify, and switch: from the journal's rename on the change has happened.

    Returns:
        Whether its file system is FAT: the folder of the record is there now, whatever was.
    """
    files = [contents[file.sha256] for file in change.put_files]
    files.append(add_bytes(install_manifest.dump_manifest(change.manifest).encode()))
    journal = add_bytes(change.journal_text().encode())
    acts: list[FileOp] = [
        ["makedirs", folder] for folder in install_manifest.staging_folders(len(files))
    ]
    acts += [
        ["put", f"{STAGING_PATH}/{install_manifest.staging_name(n)}", each, 1]
        for n, each in enumerate(files)
    ]
    acts += [
        ["put", JOURNAL_PATH + ".new", journal],
        ["rename", JOURNAL_PATH + ".new", JOURNAL_PATH],
    ]
    try:
        yield acts
    except OSError:
        with contextlib.suppress(OSError):  # what is staged would only take room, if any is
            yield [_CLEAN_OP]
        raise
    try:
        _, *upper = yield [_FINISH_OP, *_PROBE_OPS[1:3]]
    except OSError as error:
        why = f"{error.strerror}: its files are not all in their places; they are once it restarts"
        raise PackageError(why) from error
    return _any_exists(upper)
