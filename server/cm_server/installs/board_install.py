"""Install, uninstall and list packages on one board, as a job of several steps; no sockets, no SQL.

The server holds the plan and the contents. It asks a board only for its manifest and for the hashes
of the files at the plan's paths. Files that differ are sent to a staging folder, verified there,
and moved into place by a journal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.file_ops import disk_space

from . import install_manifest
from .content_store import Content
from .install_manifest import JOURNAL_PATH, MANIFEST_PATH, STAGING_PATH, BoardChange, Manifest
from .job_steps import FileOp, OpGenerator, SteppedJobSpec
from .plan_cache import PreparedPlan
from .services import InstallServices
from .transfers import ack_bytes_for

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.store_queue import Operation

_SPARE_BYTES: Final = 16 * 1024  # what littlefs needs for folders, the manifest and the journal
_BLOCK_BYTES: Final = 4096  # a block of littlefs on the common ports
_INLINE_BYTES: Final = 1022  # the longest file that littlefs keeps in its folder
SOURCES: Final = 0  # in place of a kind of bytecode: files for boards that report none
ANY_SIZE: Final = -1  # as the size of the operation `hash`: hash the file whatever its size is
#: If one of these upper-cased names exists too, the file system ignores case: it is FAT. There are
#: two, since a bridged board has no /cm.json, and /.cm only after its first install.
_UPPER_CASE_PATHS: Final = ("/CM.JSON", "/.CM")
_FAT_NOTE: Final = (
    "the board's file system is FAT: a power cut during an install may leave a mixture of old "
    "and new files"
)
_PROBE_OPS: Final[tuple[FileOp, ...]] = (
    ["statvfs", "/"],
    *(["hash", path, ANY_SIZE] for path in _UPPER_CASE_PATHS),
    ["hash", STAGING_PATH, ANY_SIZE],
    ["hash", MANIFEST_PATH, ANY_SIZE],
)
CLEAN_OP: Final[FileOp] = ["rm", STAGING_PATH, True]
FINISH_OP: Final[FileOp] = ["finish", JOURNAL_PATH]
#: Remove a manifest without packages, and its folder.
_REMOVE_MANIFEST_OPS: Final[tuple[FileOp, ...]] = (
    ["rm", MANIFEST_PATH, False],
    ["rmdir", posixpath.dirname(MANIFEST_PATH)],
)

#: Called with the manifest that a board has now, once the board has confirmed it.
OnConfirmed = Callable[[Manifest], object]
#: Adds bytes to the content store, from where they can be sent to a board.
AddBytes = Callable[[bytes], Content]


class ServerSide(NamedTuple):
    """What the server contributes to one board's job.

    Attributes:
        known_manifest: the board's manifest according to the store, used if the board lost its own.
        on_confirmed: called with the new manifest once the board has confirmed it.
        add_bytes: stores the new manifest and the journal, which are sent to the board.
    """

    known_manifest: Manifest
    on_confirmed: OnConfirmed
    add_bytes: AddBytes


class BoardProbe(NamedTuple):
    """The state of a board at the start of a job.

    Attributes:
        free_bytes: free space of its file system.
        is_fat: whether its file system is known to be FAT.
        has_staged: whether files that an interrupted install staged still occupy space.
        manifest: the board's manifest; None if it has none.
    """

    free_bytes: int
    is_fat: bool
    has_staged: bool
    manifest: Manifest | None


def read_package_job(
    services: InstallServices,
    find_plan: Callable[[object], PreparedPlan],
    request: Any,
    boards: int,
) -> SteppedJobSpec:
    """Return the job that a caller's ``packages`` request describes.

    Args:
        services: provide the store and the contents.
        find_plan: returns the plan that a request names.
        request: the JSON of the request: docs/protocol.md.
        boards: the number of boards that get the job.

    Raises:
        ServerError: the request is malformed, or its plan has been discarded.
    """
    if not isinstance(request, dict):
        raise ServerError("a request about packages must be a JSON object")
    force = request.get("force") is True
    dry_run = request.get("dry_run") is True
    queue = services.store_queue

    def read_store(board: Board) -> Operation[Manifest]:
        board_id = board.id
        return queue.run(lambda store: store.installed_packages.packages_of(board_id))

    def server_side(board: Board, known_manifest: Manifest) -> ServerSide:
        board_id = board.id

        def store_confirmed(manifest: Manifest) -> None:
            # The board's own record has precedence, so its job does not wait for the store.
            queue.run(lambda store: store.installed_packages.store_manifest(board_id, manifest))

        return ServerSide(known_manifest, store_confirmed, services.content_store.add_bytes)

    if "plan" in request:
        planned = find_plan(request["plan"])

        def make_generator(board: Board, known_manifest: Manifest) -> OpGenerator:
            mpy, side = mpy_number(board), server_side(board, known_manifest)
            return install(planned, mpy, side, force=force, dry_run=dry_run)

    elif "remove" in request:
        names = _read_package_names(request["remove"])

        def make_generator(board: Board, known_manifest: Manifest) -> OpGenerator:
            side = server_side(board, known_manifest)
            return uninstall(names, side, force=force, dry_run=dry_run)

    else:
        dry_run = True

        def make_generator(board: Board, known_manifest: Manifest) -> OpGenerator:
            return report_installed(known_manifest)

    return SteppedJobSpec(
        _first_ops(dry_run),
        make_generator,
        read_store,
        ack_bytes_for(boards, services.limits),
        services.limits.manifest_bytes,
    )


def describe_for_audit(request: Mapping[str, Any], planned: PreparedPlan | None) -> tuple[str, str]:
    """Return the verb and the detail for the audit log."""
    suffix = " (dry run)" if request.get("dry_run") is True else ""
    if planned is not None:
        return "install", " ".join(planned.plan.wanted) + suffix
    if "remove" in request:
        return "uninstall", " ".join(_read_package_names(request["remove"])) + suffix
    return "packages", ""


def _read_package_names(names: Any) -> list[str]:
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise ServerError("`remove` must be a list of package names")
    return names


def mpy_number(board: Board) -> int:
    """Return a board's ``sys.implementation._mpy``, its kind of bytecode; 0 if it reports none."""
    number = board.reported_facts.get("mpy")
    return number if isinstance(number, int) else 0


# Jobs on one board


def install(
    planned: PreparedPlan, mpy: int, side: ServerSide, *, force: bool, dry_run: bool
) -> OpGenerator:
    """Install a plan on a board.

    Args:
        planned: the plan and its contents.
        mpy: the board's kind of bytecode.
        side: what the server contributes.
        force: whether files of other packages and of the user may be overwritten.
        dry_run: whether to report the changes without making them.

    Returns:
        The report for the caller; docs/protocol.md describes it.

    Raises:
        PackageError: the plan has no files for this kind of board, or the board has files that
            would be overwritten.
        OSError: the board has too little space, or an operation failed on it.
    """
    plan = planned.plan
    probe = yield from _probe_board(dry_run)
    if mpy not in plan.files:
        mpy = SOURCES  # what waits for boards has files for those that it did not know, too
    if mpy not in plan.files:
        raise PackageError(
            "the board has another MicroPython than when the plan was made; install again"
        )
    file_hashes = yield from hash_paths(
        {file.path: file.size for file in plan.files[mpy]}, plan.shadowing_paths(mpy)
    )
    manifest = side.known_manifest if probe.manifest is None else probe.manifest
    board = install_manifest.BoardFiles(mpy, file_hashes, manifest)
    change = install_manifest.plan_change(plan, planned.options, board, force=force)
    is_fat = probe.is_fat
    if not probe.has_staged:  # a dry run leaves staged files, so the free space is not known
        check_space([file.size for file in change.put_files], probe.free_bytes)
    if not dry_run:
        if change.put_files or change.removed_paths or change.manifest != probe.manifest:
            is_fat = yield from _apply_change(change, planned.contents, side.add_bytes)
        side.on_confirmed(change.manifest)
    return {
        "packages": {release.key: release.version for release in plan.packages},
        "origins": dict(plan.origins),
        **_summarize(change, probe, dry_run=dry_run),
        "notes": [*plan.notes, *_fat_notes(is_fat)],
    }


def uninstall(names: Sequence[str], side: ServerSide, *, force: bool, dry_run: bool) -> OpGenerator:
    """Uninstall packages from a board; arguments, result and errors are those of ``install``.

    With the last package, the board's manifest and its folder are removed, too.
    """
    probe = yield from _probe_board(dry_run)
    change = install_manifest.plan_removal(names, probe.manifest or {}, force=force)
    if not dry_run:
        yield from _apply_change(change, {}, side.add_bytes)
        # First the store: a board without a manifest has the packages that the store knows of.
        side.on_confirmed(change.manifest)
        if not change.manifest:
            with contextlib.suppress(OSError):  # the packages are gone; an empty list does no harm
                yield _REMOVE_MANIFEST_OPS
    return {**_summarize(change, probe, dry_run=dry_run), "notes": _fat_notes(probe.is_fat)}


def report_installed(known_manifest: Manifest) -> OpGenerator:
    """Report a board's packages, and where the board differs from what was installed.

    Args:
        known_manifest: the board's manifest according to the store.
    """
    probe = yield from _probe_board(dry_run=True)
    manifest = probe.manifest or {}
    paths = [path for entry in manifest.values() for path in entry["files"]]
    ops = [["hash", path, ANY_SIZE] for path in paths]
    hashes = yield ops or [_PROBE_OPS[0]]  # an empty list would mean that no operations follow
    file_hashes: dict[str, str | None] = {}
    for path, digest in zip(paths, hashes, strict=False):
        file_hashes[path] = digest or None  # False, a folder, is no file either
    drift = [
        f"{key}: was installed, but the board's list of packages lacks it"
        for key in sorted(known_manifest.keys() - manifest.keys())
    ]
    drift += install_manifest.describe_drift(manifest, file_hashes)
    return {
        "packages": {key: entry["version"] for key, entry in manifest.items()},
        "drift": drift,
        "record": {key: _upgrade_info(entry) for key, entry in manifest.items()},
    }


def _upgrade_info(package: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a package's manifest entry that an upgrade needs."""
    return {name: package[name] for name in ("wanted", "how", "local") if name in package}


def _fat_notes(is_fat: bool) -> list[str]:
    return [_FAT_NOTE] if is_fat else []


def _summarize(change: BoardChange, probe: BoardProbe, *, dry_run: bool) -> dict[str, Any]:
    """Return the part of a report that installs and uninstalls have in common."""
    return {
        "put": [file.path for file in change.put_files],
        "removed": list(change.removed_paths),
        "size_bytes": sum(file.size for file in change.put_files),
        "free_bytes": probe.free_bytes,
        "dry_run": dry_run,
    }


# Steps that the jobs share

OpResults = list[Any]


def _probe_board(dry_run: bool) -> Generator[Sequence[FileOp], OpResults, BoardProbe]:
    """Do the first operations, remove leftovers in the staging folder, and read the manifest.

    A dry run changes nothing: it neither executes a journal nor removes leftovers.
    """
    results = yield _first_ops(dry_run)
    space, *upper_case, staged, digest = results[-len(_PROBE_OPS) :]
    if _is_leftover(staged) and not dry_run:
        _, space = yield [CLEAN_OP, _PROBE_OPS[0]]
        staged = None
    manifest = None
    if digest is not None:
        (raw,) = yield [["get", MANIFEST_PATH]]
        manifest = install_manifest.read_manifest(raw)
    _, free_bytes = disk_space(space)
    return BoardProbe(free_bytes, any_exists(upper_case), staged is False, manifest)


def _first_ops(dry_run: bool) -> Sequence[FileOp]:
    """Return the operations that a job begins with: finish a journal, then probe the board."""
    return _PROBE_OPS if dry_run else (FINISH_OP, *_PROBE_OPS)


def _is_leftover(staged: Any) -> bool:
    """Return whether an interrupted install left its staging folder.

    Args:
        staged: the result of `hash` for that folder; False means that a folder is there.
    """
    return staged is False


def any_exists(hashes: Iterable[Any]) -> bool:
    """Return whether one of several results of `hash` is of something that exists."""
    return any(each is not None for each in hashes)


def hash_paths(
    file_sizes: Mapping[str, int], removed: Iterable[str]
) -> Generator[Sequence[FileOp], OpResults, dict[str, str]]:
    """Return the hashes of the files that the board has at some paths.

    Args:
        file_sizes: path -> size of the files that are put there; a file of another size has the
            hash "".
        removed: paths that are removed.

    Raises:
        PackageError: the board has a folder at the path of a file, or a file at that of a folder.
    """
    sizes = {**dict.fromkeys(removed, ANY_SIZE), **file_sizes}
    folders = sorted(
        {folder for path in file_sizes for folder in install_manifest.parent_folders(path)}
    )
    paths = [*sizes, *folders]
    if not paths:
        return {}  # a package that consists of dependencies only has no files
    results = yield [["hash", path, sizes.get(path, ANY_SIZE)] for path in paths]
    found = dict(zip(paths, results, strict=True))  # None: nothing there, False: a folder
    for path in sorted(sizes):
        if found[path] is False:
            raise PackageError(f"{path} is in the way on the board: it is a folder, not a file")
    for folder in folders:
        if found[folder] not in (None, False):
            raise PackageError(f"{folder} is in the way on the board: it is a file, not a folder")
    return {path: str(found[path]) for path in sizes if found[path] is not None}


def check_space(sizes: Sequence[int], free_bytes: int) -> None:
    """Raise OSError (ENOSPC) if staged files of these sizes do not fit on the board."""
    if sizes and staged_bytes(sizes) > free_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/")


def staged_bytes(sizes: Sequence[int]) -> int:
    """Return how many bytes have to be free for staging files of these sizes."""
    blocks = sum(-(-size // _BLOCK_BYTES) for size in sizes)
    blocks += 2 * len(install_manifest.staging_folders(len(sizes) + 1))
    return blocks * _BLOCK_BYTES + _SPARE_BYTES


def occupied(sizes: Iterable[int]) -> int:
    """Return how many bytes become free at least if files of these sizes are removed.

    Small files are part of their folder on littlefs, and occupy no block.
    """
    return sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes if size > _INLINE_BYTES)


def _apply_change(
    change: BoardChange, contents: Mapping[str, Content], add_bytes: AddBytes
) -> Generator[Sequence[FileOp], OpResults, bool]:
    """Stage and verify the files, then execute the journal.

    The rename that activates the journal is the point of no return: before it nothing has changed,
    after it the board completes the change, after a restart if necessary.

    Returns:
        Whether the board's file system is FAT. This is known for certain only now, since the
        folder of the manifest exists.

    Raises:
        OSError: staging failed; the board is unchanged.
        PackageError: the journal is active, but the board could not execute it completely.
    """
    files = [contents[file.sha256] for file in change.put_files]
    files.append(add_bytes(install_manifest.dump_manifest(change.manifest).encode()))
    journal = add_bytes(change.journal_text().encode())
    ops: list[FileOp] = []
    for folder in install_manifest.staging_folders(len(files)):
        ops.append(["makedirs", folder])
    for number, content in enumerate(files):
        staged = f"{STAGING_PATH}/{install_manifest.staging_name(number)}"
        ops.append(["put", staged, content, 1])  # 1: write in place, it is not in use yet
    ops.append(["put", JOURNAL_PATH + ".new", journal])
    ops.append(["rename", JOURNAL_PATH + ".new", JOURNAL_PATH])
    try:
        yield ops
    except OSError:
        with contextlib.suppress(OSError):  # staged files would only occupy space
            yield [CLEAN_OP]
        raise
    try:
        _, *upper_case = yield [FINISH_OP, *_PROBE_OPS[1:3]]
    except OSError as error:
        raise PackageError(
            f"{error.strerror}: not all files are in place yet; "
            "the board completes the change when it restarts"
        ) from error
    return any_exists(upper_case)
