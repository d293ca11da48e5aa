"""Compute what a rollout would change, without asking any board; pure.

A board's present generation is what it reported last. What it has besides that, or what was changed
on it since, a plan does not know: the switch compares all files again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.targets import Target, fold_names, natural_key, parse_target
from cloudmanager.protocol.waves import wave_sizes
from cm_server.installs import board_settings
from cm_server.installs.content_store import Content
from cm_server.jobs.model import Board

from . import desired
from .desired import DesiredGroup, DriftedParts
from .generation_firmware import GenerationFirmware

_T = TypeVar("_T")
TRIAL_PART: Final = "trial"  # of the client, which goes back by itself
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
    error: str = ""

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
            "bytes": sum(len(change.names) * sum(change.put.values()) for change in self.changes),
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
            is not one of the group's.
        TargetError, NoSuchBoard: a target is wrong.
    """
    owners: dict[str, str] = {}
    found = {}
    for group in groups:
        names = parse_target(group.target).matching_names(reachable)
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
        kinds.setdefault(kind, []).append(board)
    changes = _fold(
        _compare(manifest, known.manifests.get(kind.before), kind_boards, kind)
        for kind, kind_boards in kinds.items()
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
    """

    before: str
    mpy: int
    own: str
    drift: DriftedParts
    error: str
    firmware: str = ""


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
        error=refusal_reason(board) or missing,
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


def refusal_reason(board: Board) -> str:
    """Return why a board cannot get a generation; "" if it can, or that is not known."""
    if board.client_parts and TRIAL_PART not in board.client_parts:
        return "its client cannot go back by itself: run mbm board-upgrade-client"
    return ""


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
    )


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
