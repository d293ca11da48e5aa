"""Bring one board to a generation, as a job of several steps; no sockets, no SQL.

All files, the packages and the settings change in one switch: they are staged on the board and
verified, and a journal moves them into place when the board restarts. What they replace is kept on
the board, with a second journal for the way back, until the generation has proven itself there
(mpy_client/cm/trial.py).

A board whose flash cannot hold both may be permitted to remove files of the earlier generation
first. Its state is "cleared" then, the way back only removes the new files, and the server sends
the earlier generation again (``send_again``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.file_ops import disk_space
from cm_server.installs import board_install, board_settings, install_manifest
from cm_server.installs.board_install import ANY_SIZE, AddBytes, OpResults
from cm_server.installs.board_settings import StoredSecrets
from cm_server.installs.content_store import Content
from cm_server.installs.install_manifest import (
    JOURNAL_PATH,
    MANIFEST_PATH,
    STAGING_PATH,
    Manifest,
    staging_name,
)
from cm_server.installs.job_steps import FileOp, OpGenerator
from cm_server.limits import KIB
from cm_server.packages.install_paths import check_installed_path, is_reserved, other_form

from . import desired, firmware_ops
from .firmware_ops import MARK_PATH, Slots

_PROGRAM_PATH: Final = "/app.py"
NO_ROOM: Final = "its flash has no room for the new generation beside what is there"
_NO_ROOM_ALONE: Final = "its flash has no room for the new generation, not even without the earlier"
STATE_PATH: Final = "/.cm/state"
RECORD_PATH: Final = "/.cm/generation"  # what the generation has put on the board
BACK_PATH: Final = "/.cm/back"
KEPT_PATH: Final = "/.cm/old"
_READ_PATHS: Final = (STATE_PATH, MANIFEST_PATH, RECORD_PATH, board_settings.SETTINGS_PATH)
FIRST_OPS: Final[tuple[FileOp, ...]] = (
    board_install.FINISH_OP,
    ["statvfs", "/"],
    ["hash", STAGING_PATH, ANY_SIZE],
    ["hash", KEPT_PATH, ANY_SIZE],
    ["hash", MARK_PATH, ANY_SIZE],
    *(["hash", path, ANY_SIZE] for path in _READ_PATHS),
)
SETTLE_OPS: Final[tuple[FileOp, ...]] = (["hash", MARK_PATH, ANY_SIZE], ["get", STATE_PATH])


@dataclass(frozen=True)
class EarlierGeneration:
    """A generation that the server can send again.

    Attributes:
        generation: its id.
        manifest: its manifest.
        contents: its files, by SHA-256.
    """

    generation: str
    manifest: Mapping[str, Any]
    contents: Mapping[str, Content]


@dataclass(frozen=True)
class SwitchPlan:
    """What a board switches to.

    Attributes:
        generation: the id of the generation.
        manifest: its manifest.
        contents: its files, by SHA-256.
        good_seconds: after which the board itself takes it as proven; 0: the server decides.
        limit_seconds: after which the board goes back.
        settings_bytes: the greatest size of ``/settings.json``.
        firmware: the image that it brings; None for none.
        clears: what the board may remove first, if it cannot hold both; None: nothing.
    """

    generation: str
    manifest: Mapping[str, Any]
    contents: Mapping[str, Content]
    good_seconds: int
    limit_seconds: int
    settings_bytes: int
    firmware: Content | None = None
    clears: EarlierGeneration | None = None


@dataclass(frozen=True)
class BoardSide:
    """The board that switches, and what the server contributes to its job.

    Attributes:
        name: of the board.
        mpy: its kind of bytecode.
        secrets: what the store knows of its settings' secrets.
        add_bytes: makes a content of bytes that are sent to it.
    """

    name: str
    mpy: int
    secrets: StoredSecrets
    add_bytes: AddBytes


@dataclass(frozen=True)
class Switched:
    """What a switch has planned, for the server.

    Attributes:
        manifest: the packages that the board has then.
        uses: where its settings have secrets then.
    """

    manifest: Manifest
    uses: Mapping[tuple[str, ...], str]


@dataclass(frozen=True)
class Change:
    """The change of one board.

    Attributes:
        staged: path -> what is put there, in the order of the journal.
        removed: paths that are removed.
        existing: the paths of ``staged`` that the board has a file at.
        new_folders: folders that the board does not have yet, the innermost first.
        emptied: folders that may be empty afterwards, the innermost first.
        is_final: whether there is no way back.
    """

    staged: Mapping[str, Content]
    removed: Sequence[str]
    existing: frozenset[str]
    new_folders: Sequence[str]
    emptied: Sequence[str]
    is_final: bool = False

    def journal(self) -> str:
        """Return the journal of the switch."""
        lines = []
        for number, path in enumerate(self.staged):
            lines.append(f"{'*' if path in self.existing else '+'}{staging_name(number)} {path}")
        for number, path in enumerate(self.removed, len(self.staged)):
            lines.append(f"~{staging_name(number)} {path}")
        folders = install_manifest.staging_folders(len(self.staged))
        lines += [f"_{path}" for path in (*self.emptied, *folders[1:])]
        return "".join(line + "\n" for line in lines)

    def way_back(self) -> str:
        """Return the journal that undoes the switch; the state is the last that it restores."""
        lines = []
        for number, path in enumerate(self.removed, len(self.staged)):
            lines.append(f"<{staging_name(number)} {path}")
        for number, path in reversed(list(enumerate(self.staged))):
            is_kept = path in self.existing
            lines.append(f"<{staging_name(number)} {path}" if is_kept else f"-{path}")
        lines += [f"_{path}" for path in self.new_folders]
        return "".join(line + "\n" for line in lines)


def switch(plan: SwitchPlan, board: BoardSide, on_planned: Any) -> OpGenerator:
    """Bring a board to a generation; it has to restart afterwards.

    Args:
        plan: what it switches to.
        board: the board.
        on_planned: called with a ``Switched`` before the board is changed.

    Returns:
        ``state``: "same" (it has that generation already), "switched" (it has to restart), "trying"
        (it is on trial), "busy" (another generation is on trial) or "cleared" (what it had was
        removed in part, and then this failed: ``why``); ``files`` and ``bytes`` sent.

    Raises:
        PackageError: the generation does not suit the board, or its settings cannot be changed.
        OSError: it has too little space, or an operation failed.
    """
    found, space = yield from _look(board)
    current = _current(found)
    if current.state in ("trial", "trying"):
        same = current.generation == desired.short_id(plan.generation)
        state = {"trial": "switched", "trying": "trying"}[current.state] if same else "busy"
        return {"state": state, "files": 0, "bytes": 0}
    slots = yield from _find_slots(plan.firmware)
    change, switched = yield from _plan_change(plan, board, found, slots)
    if change is None:
        return {"state": "same", "files": 0, "bytes": 0}
    on_planned(switched)
    if _fits(change, space):
        return (yield from _carry_out(plan, board, change, slots))
    removable = yield from _find_removable(plan, board, found, change, space)
    found[STATE_PATH] = f"cleared {current.generation}".encode()
    try:
        yield from _clear(removable, found[STATE_PATH], board.add_bytes)
        (space,) = yield [["statvfs", "/"]]
        rest, _ = yield from _plan_change(plan, board, found, slots)
        if rest is None or not _fits(rest, space):
            raise PackageError(_NO_ROOM_ALONE)
        return (yield from _carry_out(plan, board, replace(rest, emptied=change.emptied), slots))
    except (OSError, PackageError) as error:
        why = error.strerror if isinstance(error, OSError) else error.args[0]
        return {"state": "cleared", "why": str(why), "files": 0, "bytes": 0}


def send_again(
    earlier: EarlierGeneration, board: BoardSide, max_settings: int, on_planned: Any
) -> OpGenerator:
    """Give a board back the generation whose files it has removed, without a trial.

    It has to restart afterwards, which applies all of it at once.

    Args:
        earlier: the generation.
        board: the board.
        max_settings: the greatest size of ``/settings.json``, in bytes.
        on_planned: called with a ``Switched`` before the board is changed.

    Returns:
        "switched" (it has to restart), "proven" (it has it, or another one, already) or "trial"
        (another one is on trial there).

    Raises:
        PackageError: the generation does not suit the board.
        OSError: it has too little space, or an operation failed.
    """
    found, space = yield from _look(board)
    current = _current(found)
    if current.state in ("trial", "trying"):
        return "trial"
    short = desired.short_id(earlier.generation)
    if (current.state, current.generation) != ("cleared", short):
        return "proven"
    plan = SwitchPlan(earlier.generation, earlier.manifest, earlier.contents, 0, 0, max_settings)
    change, switched = yield from _plan_change(plan, board, found, None)
    if change is None:
        return "proven"
    on_planned(switched)
    # What is there was kept or restored by the board. The state is the last: see ``Change``.
    staged = {path: each for path, each in change.staged.items() if path not in change.existing}
    staged[STATE_PATH] = board.add_bytes(f"proven {short}".encode())
    change = Change(staged, (), frozenset(), (), (), is_final=True)
    if not _fits(change, space):
        raise PackageError("its flash has no room for the earlier generation")
    yield from stage_change(change, board.add_bytes)
    return "switched"


def _current(found: Mapping[str, bytes]) -> desired.BoardGeneration:
    return desired.read_board_generation(found[STATE_PATH].decode("utf-8", "replace"))


def _look(
    board: BoardSide,
) -> Generator[Sequence[FileOp], OpResults, tuple[dict[str, bytes], Sequence[int]]]:
    """Read what a board says of itself, and remove what earlier switches have left there.

    Returns:
        The files of ``_READ_PATHS``, and its ``statvfs``. On trial, nothing is removed.
    """
    results = yield list(FIRST_OPS)
    _, space, staged, kept, mark, *hashes = results
    found = yield from _read_files(hashes)
    current = _current(found)
    if current.state in ("trial", "trying"):
        return found, space
    leftovers: list[FileOp] = []
    if current.reverted:  # of an earlier attempt; this one says what becomes of it itself
        first = found[STATE_PATH].split(b"\n")[0]
        leftovers.append(["put", STATE_PATH, board.add_bytes(first)])
    leftovers += [
        ["rm", path, True]
        for path, found_hash in ((STAGING_PATH, staged), (KEPT_PATH, kept))
        if found_hash is False
    ]
    if mark is not None:  # of an earlier trial of firmware, which has ended
        leftovers.append(["rm", MARK_PATH, False])
    if leftovers:
        *_, space = yield [*leftovers, ["statvfs", "/"]]
    return found, space


def _fits(change: Change, space: Sequence[int], freed: int = 0) -> bool:
    """Return whether a board has room for what a change stages, after bytes were freed."""
    sizes = [content.size for content in change.staged.values()]
    try:
        board_install.check_space(sizes, disk_space(space)[1] + freed)
    except OSError:
        return False
    return True


def _find_removable(
    plan: SwitchPlan,
    board: BoardSide,
    found: Mapping[str, bytes],
    change: Change,
    space: Sequence[int],
) -> Generator[Sequence[FileOp], OpResults, list[str]]:
    """Return the files that make room for a change, all of which the server can send again.

    With them goes the program, so that none starts that lacks a part of it.

    Raises:
        PackageError: none may be removed, or that does not make enough room.
    """
    current, earlier = _current(found), plan.clears
    if earlier is None:
        raise PackageError(f'{NO_ROOM}; rollback = "network" removes that first')
    is_known = current.generation == desired.short_id(earlier.generation)
    if not is_known or current.state not in ("proven", "cleared"):
        raise PackageError(f"{NO_ROOM}, and the server has no earlier one to send again")
    known = desired.files_for(earlier.manifest, board.mpy)
    paths = sorted({*change.existing, *change.removed, _PROGRAM_PATH} & known.keys())
    # What was changed there since, the server could not send again: it is kept.
    hashes = (yield [["hash", path, known[path][1]] for path in paths]) if paths else []
    removable = [
        path for path, digest in zip(paths, hashes, strict=True) if digest == known[path][0]
    ]
    replaced = {*change.existing, *change.removed}.intersection(removable)
    if not _fits(change, space, board_install.occupied(known[path][1] for path in replaced)):
        raise PackageError(_NO_ROOM_ALONE)
    return removable


def _clear(
    paths: Sequence[str], state: bytes, add_bytes: AddBytes
) -> Generator[Sequence[FileOp], OpResults, None]:
    """Remove files of the present generation: all of them, or none if the board says so."""
    lines = [f"+0 {STATE_PATH}", *(f"-{path}" for path in paths)]
    journal = "".join(line + "\n" for line in lines)
    yield from _activate([add_bytes(state)], add_bytes(journal.encode()))
    yield [board_install.FINISH_OP]


def _carry_out(
    plan: SwitchPlan, board: BoardSide, change: Change, slots: Slots | None
) -> OpGenerator:
    """Send what a change needs, for which there is room; return what ``switch`` does."""
    sizes = [content.size for content in change.staged.values()]
    if slots is not None and plan.firmware is not None:
        yield from firmware_ops.write_image(plan.firmware)
        sizes.append(plan.firmware.size)
    yield from stage_change(change, board.add_bytes)
    if slots is not None:
        yield from firmware_ops.start_on_trial()
    return {"state": "switched", "files": len(sizes), "bytes": sum(sizes)}


def _read_files(
    hashes: Sequence[Any],
) -> Generator[Sequence[FileOp], OpResults, dict[str, bytes]]:
    """Read the files of ``_READ_PATHS`` that the board has; the others are empty."""
    found = dict.fromkeys(_READ_PATHS, b"")
    for path, digest in zip(_READ_PATHS, hashes, strict=True):
        if digest is False:
            raise PackageError(f"{path} is in the way on the board: it is a folder, not a file")
        if digest is not None:
            (found[path],) = yield [["get", path]]
    return found


def _find_slots(
    firmware: Content | None,
) -> Generator[Sequence[FileOp], OpResults, Slots | None]:
    """Return the slots of a board that has to get firmware; None if it runs it, or gets none."""
    if firmware is None:
        return None
    slots, runs = yield from firmware_ops.look(firmware)
    return None if runs else slots


def _plan_change(
    plan: SwitchPlan, board: BoardSide, found: Mapping[str, bytes], slots: Slots | None
) -> Generator[Sequence[FileOp], OpResults, tuple[Change | None, Switched]]:
    """Compare a board with a generation; no change if it has all of it."""
    record = _read_record(found[RECORD_PATH])
    raw_manifest = found[MANIFEST_PATH]
    old_manifest = install_manifest.read_manifest(raw_manifest) if raw_manifest else {}
    files = desired.files_for(plan.manifest, board.mpy)
    manifest, outdated = _new_packages(plan, board.mpy, old_manifest, record)
    outdated |= set(record["app"])
    # A module's other form would be imported in its place.
    shadowing = {path for path in map(other_form, files) if path and not is_reserved(path)}
    gone = sorted((outdated | shadowing) - files.keys())
    hashes = yield from board_install.hash_paths(
        {path: size for path, (_, size) in files.items()}, gone
    )
    staged: dict[str, Content] = {}
    for path, (digest, _) in files.items():
        if hashes.get(path) != digest:
            staged[path] = plan.contents[digest]
    settings, uses = _new_settings(plan, board, found[board_settings.SETTINGS_PATH], record)
    if settings != found[board_settings.SETTINGS_PATH]:
        staged[board_settings.SETTINGS_PATH] = board.add_bytes(settings)
    if manifest != old_manifest:
        text = install_manifest.dump_manifest(manifest)
        staged[MANIFEST_PATH] = board.add_bytes(text.encode())
    new_record = _dump_record(plan, board)
    removed = [path for path in gone if path in hashes]
    switched = Switched(manifest, uses)
    short = desired.short_id(plan.generation)
    current = desired.read_board_generation(found[STATE_PATH].decode("utf-8", "replace"))
    is_same = not (staged or removed or slots) and new_record == found[RECORD_PATH]
    if is_same and (current.state, current.generation) == ("proven", short):
        return None, switched
    state = f"trial {short} {plan.good_seconds} {plan.limit_seconds}"
    # First the state: if the journal cannot be completed, the board knows that it is on trial.
    staged = {
        STATE_PATH: board.add_bytes(state.encode()),
        **({} if slots is None else {MARK_PATH: board.add_bytes(slots.mark)}),
        **staged,
        RECORD_PATH: board.add_bytes(new_record),
    }
    existing = {path for path in staged if path in hashes or found.get(path)}
    kept = {*files, *install_manifest.all_paths(manifest)}
    emptied = install_manifest.emptied_folders(removed, kept)
    new_folders = yield from _missing_folders(staged)
    return Change(staged, removed, frozenset(existing), new_folders, emptied), switched


def _new_packages(
    plan: SwitchPlan, mpy: int, old: Manifest, record: Mapping[str, Any]
) -> tuple[Manifest, set[str]]:
    """Return a board's packages afterwards, and the paths of packages that go or are replaced."""
    entries: Manifest = plan.manifest["packages"].get("entries", {}).get(str(mpy), {})
    gone = {key for key in record["packages"] if key in old and key not in entries}
    manifest = {key: entry for key, entry in old.items() if key not in gone} | entries
    replaced = gone | (entries.keys() & old.keys())
    outdated = {path for key in replaced for path in old[key]["files"]}
    return manifest, outdated - install_manifest.all_paths(manifest)


def _new_settings(
    plan: SwitchPlan, board: BoardSide, raw: bytes, record: Mapping[str, Any]
) -> tuple[bytes, Mapping[tuple[str, ...], str]]:
    """Return a board's settings afterwards, and where they have secrets."""
    wanted = desired.settings_for(plan.manifest, board.name)
    gone = set(record["settings"]) - wanted.keys()
    if not wanted and not gone:
        return raw, board.secrets.uses
    try:
        old = board_settings.parse_settings(raw) if raw else {}
        kept = {key: value for key, value in old.items() if key not in gone}
        settings, uses = board_settings.change_settings(kept, board.secrets, wanted)
    except ServerError as error:  # that is the name of errors which say nothing of the generation
        raise PackageError(error.args[0]) from error
    if settings == old:
        return raw, uses
    data = board_settings.settings_bytes(settings)
    if len(data) > plan.settings_bytes:
        raise PackageError(f"/settings.json would be longer than {plan.settings_bytes // KIB} KiB")
    return data, uses


def _read_record(raw: bytes) -> dict[str, list[str]]:
    """Return what earlier generations have put on a board; nothing if that is not known."""
    record: dict[str, list[str]] = {"app": [], "packages": [], "settings": []}
    try:
        read = json.loads(raw)
    except (ValueError, RecursionError):
        return record
    if isinstance(read, dict):
        for name in record:
            texts = read.get(name)
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                record[name] = texts
    # A board is not trusted: the files of its client stay.
    record["app"] = [path for path in record["app"] if _may_remove(path)]
    return record


def _may_remove(path: str) -> bool:
    """Return whether a generation may have put a file there."""
    try:
        check_installed_path(path)
    except PackageError:
        return False
    return True


def _dump_record(plan: SwitchPlan, board: BoardSide) -> bytes:
    record = {
        "app": sorted(plan.manifest["app"]),
        "packages": sorted(plan.manifest["packages"].get("entries", {}).get(str(board.mpy), {})),
        "settings": sorted(desired.settings_for(plan.manifest, board.name)),
    }
    return json.dumps(record, separators=(",", ":")).encode()


def _missing_folders(
    staged: Mapping[str, Content],
) -> Generator[Sequence[FileOp], OpResults, list[str]]:
    """Return the folders of new files that the board does not have, the innermost first."""
    folders = sorted(
        {folder for path in staged for folder in install_manifest.parent_folders(path)} - {"/.cm"},
        reverse=True,
    )
    if not folders:
        return []
    results = yield [["hash", folder, ANY_SIZE] for folder in folders]
    return [folder for folder, found in zip(folders, results, strict=True) if found is None]


def stage_change(
    change: Change, add_bytes: AddBytes
) -> Generator[Sequence[FileOp], OpResults, None]:
    """Stage and verify the files, then activate the journal; the next start executes it.

    The rename of the journal is the point of no return: before it nothing has changed.

    Raises:
        OSError: staging failed; the board is unchanged.
    """
    back = None if change.is_final else add_bytes(change.way_back().encode())
    journal = add_bytes(change.journal().encode())
    yield from _activate(list(change.staged.values()), journal, back)


def _activate(
    staged: Sequence[Content], journal: Content, back: Content | None = None
) -> Generator[Sequence[FileOp], OpResults, None]:
    """Stage files, write the way back if there is one, and activate the journal."""
    ops: list[FileOp] = []
    for folder in install_manifest.staging_folders(len(staged)):
        ops.append(["makedirs", folder])
    for number, content in enumerate(staged):
        ops.append(["put", f"{STAGING_PATH}/{staging_name(number)}", content, 1])
    if back is not None:
        ops.append(["put", BACK_PATH, back])
    ops.append(["put", JOURNAL_PATH + ".new", journal])
    ops.append(["rename", JOURNAL_PATH + ".new", JOURNAL_PATH])
    try:
        yield ops
    except OSError:
        with contextlib.suppress(OSError):  # staged files would only occupy space
            yield [board_install.CLEAN_OP]
        raise


def settle(generation: str, add_bytes: AddBytes, *, confirm: bool) -> OpGenerator:
    """Look how the trial of a generation has ended, or end it as proven.

    Args:
        generation: its id.
        add_bytes: makes a content of bytes that are sent to the board.
        confirm: whether it has proven itself, so that the board keeps it.

    Returns:
        The board's state, as its fact ``generation`` has it.
    """
    mark, raw = yield list(SETTLE_OPS)
    state = raw.decode("utf-8", "replace")
    current = desired.read_board_generation(state)
    short = desired.short_id(generation)
    if confirm and current.is_trying(short):
        state = f"proven {short}"
        keep: list[FileOp] = [] if mark is None else [firmware_ops.KEEP_OP]
        yield [*keep, ["put", STATE_PATH, add_bytes(state.encode())]]
        current = desired.read_board_generation(state)
    if current.has(short):
        for path in (KEPT_PATH, BACK_PATH, *([] if mark is None else [MARK_PATH])):
            with contextlib.suppress(OSError):  # what is left is removed by the next switch
                yield [["rm", path, True]]
    return state
