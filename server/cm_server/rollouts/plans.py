"""Compute what a rollout would change, without asking any board; pure.

A board's present generation is what it reported last. What it has besides that, or what was changed
on it since, a plan does not know: the switch compares all files again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from cloudmanager.protocol.errors import NoSuchBoard, PackageError, ServerError
from cloudmanager.protocol.targets import Target, fold_names, natural_key, parse_target
from cloudmanager.protocol.waves import wave_sizes
from cm_server.installs import board_install, board_settings
from cm_server.installs.content_store import Content
from cm_server.jobs.model import Board

from . import board_switch, client_switch, desired
from .desired import DesiredClient, DesiredGroup, DriftedParts
from .generation_firmware import GenerationFirmware

_T = TypeVar("_T")
TRIAL_PART: Final = "trial"  # of the client, which goes back by itself
_STARTER: Final = "cm_start"  # the file of a client that starts it is no part of it
_IF_DIFFERENT: Final = ", if its files differ"
_LIST_PATHS: Final = 50  # paths that a plan lists of a kind of change


class BoardChange(NamedTuple):
    """What changes on boards that have and get the same.

    Attributes:
        names: of the boards.
        put: path -> size of the files that are written.
        removed: paths of the files that are removed.
        settings: keys that are set.
        settings_gone: keys that are removed.
        packages: names and versions of packages that are installed.
        gone: names of packages that are removed.
        firmware: what is written; "" if they have its version already.
        client: which client they get; "" if they have it already, or keep what they have.
        client_bytes: of its files.
        error: why they cannot get it; "" if they can.
    """

    names: tuple[str, ...]
    put: Mapping[str, int]
    removed: tuple[str, ...]
    settings: tuple[str, ...]
    settings_gone: tuple[str, ...]
    packages: tuple[str, ...]
    gone: tuple[str, ...]
    firmware: str = ""
    client: str = ""
    client_bytes: int = 0
    error: str = ""

    @property
    def bytes_at_most(self) -> int:
        """How many bytes of files are sent to each board, if it has none of them yet."""
        return sum(self.put.values()) + self.client_bytes

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "boards": list(self.names),
            "put": [[path, size] for path, size in list(self.put.items())[:_LIST_PATHS]],
            "files": len(self.put),
            "bytes": sum(self.put.values()),
            "removed": list(self.removed[:_LIST_PATHS]),
            "settings": list(self.settings),
            "settings_removed": list(self.settings_gone),
            "packages": list(self.packages),
            "packages_removed": list(self.gone),
            "firmware": self.firmware,
            "client": self.client,
            "client_bytes": self.client_bytes,
            "error": self.error,
        }


@dataclass(frozen=True)
class GroupPlan:
    """What a rollout of one group would do.

    Attributes:
        group: what its boards should be.
        manifest: of the generation.
        generation: its id.
        boards: all boards of the group but those that are held back, by natural order.
        changed: those of them that do not have the generation.
        pinned: names of boards that are held back.
        changes: what changes, for boards that have the same.
        lock: the text of the packages' lock file; "" without packages.
        notes: remarks, one sentence each.
        contents: the files of its packages, by SHA-256.
    """

    group: DesiredGroup
    manifest: Mapping[str, Any]
    generation: str
    boards: tuple[Board, ...]
    changed: tuple[Board, ...]
    pinned: tuple[str, ...]
    changes: tuple[BoardChange, ...]
    lock: str = ""
    notes: tuple[str, ...] = ()
    contents: Mapping[str, Content] = field(default_factory=dict)

    def waves(self) -> dict[str, int]:
        """Return the wave of each board that changes, by its id."""
        return waves_of(self.changed, wave_sizes(self.group.waves, len(self.changed)))

    def describe(self, now: float) -> dict[str, Any]:
        """Return it as JSON.

        Args:
            now: the time, in seconds since 1970.
        """
        window = self.group.window
        sizes = wave_sizes(self.group.waves, len(self.changed))
        options = self.group.options
        pauses = max(len(sizes) - 1, 0) * options.pause
        health = len(sizes) * (0 if options.health else options.health_timeout)
        return {
            "group": self.group.name,
            "generation": self.generation,
            "boards": [board.name for board in self.boards],
            "changed": [board.name for board in self.changed],
            "away": [board.name for board in self.changed if not board.online],
            "pinned": list(self.pinned),
            "waves": list(sizes),
            "changes": [change.describe() for change in self.changes],
            "bytes": sum(len(change.names) * change.bytes_at_most for change in self.changes),
            "seconds_at_least": pauses + health,
            "window": None if window is None else window.describe(now),
            "lock": self.lock,
            "notes": list(self.notes),
        }


class Known(NamedTuple):
    """What the store knows, for plans.

    Attributes:
        manifests: of generations that boards have, by the first digits of their ids.
        secrets: name of a secret -> the boards that may get it.
    """

    manifests: Mapping[str, Mapping[str, Any]]
    secrets: Mapping[str, Target]


def waves_of(boards: Sequence[Board], sizes: Sequence[int]) -> dict[str, int]:
    """Return the wave of each board, by its id.

    Args:
        boards: in the order in which they begin.
        sizes: how many boards have been reached at the end of each wave.
    """
    waves = {}
    wave = 0
    for number, board in enumerate(boards):
        while number >= sizes[wave]:
            wave += 1
        waves[board.id] = wave
    return waves


class GroupBoards(NamedTuple):
    """The boards of a group: those that it brings to its generation, and those held back."""

    boards: tuple[Board, ...]
    pinned: tuple[str, ...]


def find_boards(
    groups: Sequence[DesiredGroup], reachable: Mapping[str, Board]
) -> dict[str, GroupBoards]:
    """Return the boards of each group, by its name, connected or not.

    Raises:
        ServerError: two groups have the same board, or a name in ``pin`` or with its own settings
            is not one of the group's, or a target names a board that is not enrolled.
        TargetError: a target is wrong.
    """
    owners: dict[str, str] = {}
    found = {}
    for group in groups:
        try:
            names = parse_target(group.target).matching_names(reachable)
        except NoSuchBoard as error:
            missing = fold_names([error.board, *error.others])
            raise ServerError(f"{group.name}.target: no board is called {missing}") from error
        both: dict[str, list[str]] = {}
        for name in names:
            if name in owners:
                both.setdefault(owners[name], []).append(name)
            owners[name] = group.name
        for other, shared in both.items():
            raise ServerError(
                f"{fold_names(sorted(shared, key=natural_key))}: both {other} and {group.name} "
                "have them; a board is in one group"
            )
        for name in (*group.pin, *group.board_settings):
            if name not in names:
                key = "pin" if name in group.pin else "board"
                raise ServerError(f"{group.name}.{key}: the group has no board {name!r}")
        ordered = sorted(names, key=natural_key)
        boards = tuple(reachable[name] for name in ordered if name not in group.pin)
        found[group.name] = GroupBoards(boards, tuple(n for n in ordered if n in group.pin))
    return found


def present_generation(board: Board) -> str:
    """Return the first digits of the id of the generation that a board has; "" for none."""
    current = desired.read_board_generation(board.reported_facts.get("generation"))
    return current.generation if current.has(current.generation) else ""


def known_generation(board: Board) -> str:
    """Return the same, also of a board on which something of its generation was changed."""
    drift = desired.read_drifted_fact(board.reported_facts.get("generation"))
    return drift.generation or present_generation(board)


def plan_group(
    group: DesiredGroup,
    boards: GroupBoards,
    packages: Mapping[str, Any] | None,
    known: Known,
    firmware: GenerationFirmware | None = None,
) -> GroupPlan:
    """Return what a rollout of a group would do.

    Args:
        group: what its boards should be.
        boards: its boards.
        packages: its packages, resolved; None without any.
        known: what the store knows of generations and secrets.
        firmware: its firmware; None without any.
    """
    manifest = desired.make_manifest(group, packages, firmware and firmware.describe())
    generation = desired.manifest_hash(manifest)
    short = desired.short_id(generation)
    changed = tuple(board for board in boards.boards if present_generation(board) != short)
    kinds: dict[_Kind, list[Board]] = {}
    for board in changed:
        error = _missing_secret(manifest, board, known.secrets)
        if firmware is not None:
            error = firmware.refusal_reason(board) or error
        before = known.manifests.get(known_generation(board))
        kind = _kind_of(group, board, before, error)
        if firmware is not None and not kind.error:
            kind = kind._replace(firmware=_new_firmware(board, firmware))
        if group.client is not None and not kind.error:
            kind = kind._replace(client=_new_client(board, group.client, before))
        kinds.setdefault(kind, []).append(board)
    changes = _fold(
        change
        for kind, kind_boards in kinds.items()
        for change in _split_by_room(
            _compare(manifest, known.manifests.get(kind.before), kind_boards, kind),
            kind_boards,
            group,
            is_known=kind.before in known.manifests,
        )
    )
    return GroupPlan(
        group,
        manifest,
        generation,
        boards.boards,
        changed,
        boards.pinned,
        changes,
        lock=str((packages or {}).get("lock", "")),
        notes=_client_notes(changed) if group.client is not None else (),
    )


class _Kind(NamedTuple):
    """What boards have in common on which the same changes.

    Attributes:
        before: the first digits of the id of the generation that they have; "" for none.
        mpy: their kind of bytecode.
        own: the name of a board that has, or gets, settings of its own; else "".
        drift: what they have no longer of their generation.
        error: why they cannot get another one; "" if they can, or that is not known.
        firmware: what firmware they get; "" if they have its version already.
        client: which client they get; "" if they have it already, or keep what they have.
    """

    before: str
    mpy: int
    own: str
    drift: DriftedParts
    error: str
    firmware: str = ""
    client: str = ""


def _missing_secret(
    manifest: Mapping[str, Any], board: Board, secrets: Mapping[str, Target]
) -> str:
    """Return why a board cannot get its settings; "" if there are all secrets that they need."""
    for name in sorted(board_settings.secret_names(desired.settings_for(manifest, board.name))):
        target = secrets.get(name)
        # What secrets other boards have is not for all callers.
        if target is None or not target.covers(board.name, board):
            return f"there is no secret {name!r} for it: run `mbm secret-set {name}`"
    return ""


def _kind_of(
    group: DesiredGroup, board: Board, before: Mapping[str, Any] | None, missing: str
) -> _Kind:
    drift = desired.read_drifted_fact(board.reported_facts.get("generation"))
    has_own = board.name in group.board_settings
    had_own = before is not None and board.name in before["boards"]
    return _Kind(
        before=known_generation(board),
        mpy=_mpy(board),
        own=board.name if has_own or had_own else "",
        drift=drift,
        error=refusal_reason(board, brings_client=group.client is not None) or missing,
    )


def _fold(changes: Iterable[BoardChange]) -> tuple[BoardChange, ...]:
    """Join the boards on which the same changes, such as those with own settings that stay."""
    folded: dict[str, BoardChange] = {}
    for change in changes:
        key = repr(change._replace(names=()))
        names = (*folded[key].names, *change.names) if key in folded else change.names
        folded[key] = change._replace(names=tuple(sorted(names, key=natural_key)))
    return tuple(folded.values())


def _mpy(board: Board) -> int:
    number = board.reported_facts.get("mpy")
    return number if isinstance(number, int) else 0


def refusal_reason(board: Board, *, brings_client: bool = False) -> str:
    """Return why a board cannot get a generation; "" if it can, or that is not known.

    Args:
        board: the board.
        brings_client: whether it gets the client of this version first.
    """
    if not board.client_parts or TRIAL_PART in board.client_parts:
        return ""
    if not client_switch.is_replaceable(board):
        return "its client cannot go back by itself, and cannot be replaced over the network"
    if brings_client:
        return ""
    return (
        "its client cannot go back by itself: run mbm board-upgrade-client, or write client = "
        '"current" into the file'
    )


def _new_client(board: Board, client: DesiredClient, before: Mapping[str, Any] | None) -> str:
    """Return which client a board gets; "" if it has it, or keeps what it has."""
    has_it = before is not None and before.get("client") == client.describe()
    if has_it or not client_switch.is_replaceable(board):
        return ""
    version = board.reported_facts.get("client") or "unknown"
    if version != client.version:
        return f"{version} -> {client.version}"
    names = {name.partition(".")[0] for name in client.files if name.endswith(".mpy")}
    is_known = bool(board.client_parts)
    if is_known and not names - {_STARTER} <= board.client_parts:
        return f"{version}, with other files"
    return version + _IF_DIFFERENT


def _client_notes(boards: Sequence[Board]) -> tuple[str, ...]:
    """Return remarks about the boards that keep the client that they have."""
    virtual = [board.name for board in boards if "unix" in board.client_parts]
    kept = [board for board in boards if not client_switch.is_replaceable(board)]
    frozen = [board.name for board in kept if board.name not in virtual]
    notes = []
    if frozen:
        notes.append(
            f"{fold_names(frozen)}: the client is part of the firmware, and stays as it is"
        )
    if virtual:
        notes.append(
            f"{fold_names(virtual)}: virtual boards get a client when `mbm simulate` starts them"
        )
    return tuple(notes)


def _split_by_room(
    change: BoardChange, boards: Sequence[Board], group: DesiredGroup, *, is_known: bool
) -> list[BoardChange]:
    """Tell the boards apart whose flash has no room for what they get beside what they have.

    What is not known for certain is not refused: the board itself looks again before it changes.

    Args:
        change: what changes on them.
        boards: the boards.
        group: what they should be.
        is_known: whether their present generation is, so that the files differ for certain.
    """
    if change.error:
        return [change]
    sizes = [size for size in change.put.values() if size]
    is_beside = is_known and sizes and group.rollback == "local"
    needed = board_install.staged_bytes(sizes) if is_beside else 0
    error = f'{board_switch.NO_ROOM} (it needs {_kib(needed)}); rollback = "network" removes that'
    if change.client and group.client is not None:
        client_bytes = client_switch.flash_bytes(group.client.files)
        if client_bytes > needed and not change.client.endswith(_IF_DIFFERENT):
            needed = client_bytes
            error = f"its flash has no room for a second client (it needs {_kib(needed)})"
    small = {board.name for board in boards if _free_flash(board) < needed}
    if not small:
        return [change]
    fitting = tuple(name for name in change.names if name not in small)
    without_room = tuple(name for name in change.names if name in small)
    refused = BoardChange(without_room, {}, (), (), (), (), (), error=error)
    return [refused, *([change._replace(names=fitting)] if fitting else [])]


def _free_flash(board: Board) -> float:
    """Return how many bytes of flash a board has free, by what it reported; inf if not known.

    It is not known any more once something has run there since the board has reported that.
    """
    free = board.reported_facts.get("flash")
    if not isinstance(free, int) or board.has_worked or (board.link is None and board.online):
        return math.inf
    return free


def _kib(size: int) -> str:
    return f"{size / 1024:.0f} KB"


def _new_firmware(board: Board, firmware: GenerationFirmware) -> str:
    """Return the firmware that a board gets; "" if it has reported that version."""
    image = firmware.image_for(board)
    version = board.reported_facts.get("version") or "unknown"
    if image is None or image.version == version:
        return ""
    return f"MicroPython {version} -> {image.version}, {len(image.data)} bytes"


def _compare(
    manifest: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    boards: Sequence[Board],
    kind: _Kind,
) -> BoardChange:
    """Return what changes on boards of one kind."""
    name, mpy, error = boards[0].name, kind.mpy, kind.error
    files: Mapping[str, tuple[str, int]] = {}
    old_files: Mapping[str, tuple[str, int]] = {}
    try:
        files = desired.files_for(manifest, mpy)
    except PackageError as wrong:
        error = error or str(wrong.args[0])
    if before is not None:
        try:
            old_files = _without(desired.files_for(before, mpy), kind.drift.paths)
        except PackageError:
            old_files = {}
    names = tuple(board.name for board in boards)
    if error:
        return BoardChange(names, {}, (), (), (), (), (), error=error)
    settings = desired.settings_for(manifest, name)
    old_settings = {} if before is None else desired.settings_for(before, name)
    old_settings = _without(old_settings, kind.drift.settings)
    keys = [
        key
        for key in sorted(settings)
        if key not in old_settings or settings[key] != old_settings[key]
    ]
    packages, old_packages = _versions(manifest, mpy), _versions(before or {"packages": {}}, mpy)
    return BoardChange(
        names,
        {
            path: size
            for path, (digest, size) in files.items()
            if path not in old_files or old_files[path][0] != digest
        },
        tuple(sorted(old_files.keys() - files.keys())),
        tuple(keys),
        tuple(sorted(old_settings.keys() - settings.keys())),
        tuple(
            f"{key} {version}"
            for key, version in sorted(packages.items())
            if old_packages.get(key) != version
        ),
        tuple(sorted(old_packages.keys() - packages.keys())),
        firmware=kind.firmware,
        client=kind.client,
        client_bytes=_client_bytes(manifest) if kind.client else 0,
    )


def _client_bytes(manifest: Mapping[str, Any]) -> int:
    return sum(size for _, size in desired.client_files(manifest).values())


def _without(mapping: Mapping[str, _T], keys: frozenset[str]) -> dict[str, _T]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _versions(manifest: Mapping[str, Any], mpy: int) -> dict[str, str]:
    entries = manifest["packages"].get("entries", {}).get(str(mpy), {})
    return {key: str(entry["version"]) for key, entry in entries.items()}


def fingerprint(plans: Sequence[GroupPlan]) -> str:
    """Return a hash of all that plans would do: it differs if boards or wishes have changed."""
    described = [
        {
            "group": plan.group.name,
            "generation": plan.generation,
            "boards": [[board.id, board.name, present_generation(board)] for board in plan.boards],
            "pinned": list(plan.pinned),
            "waves": list(plan.group.waves),
            "options": vars(plan.group.options),
            "window": plan.group.stored_window,
            "rollback": plan.group.rollback,
        }
        for plan in plans
    ]
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
