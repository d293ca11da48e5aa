"""Compare a board with its generation, as a job of several steps; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cm_server.installs import board_install, board_settings
from cm_server.installs.board_install import ANY_SIZE, mpy_number
from cm_server.installs.board_settings import SETTINGS_PATH, StoredSecrets
from cm_server.installs.job_steps import FileOp, OpGenerator, SteppedJobSpec
from cm_server.installs.services import InstallServices
from cm_server.installs.transfers import ack_bytes_for

from . import desired
from .board_switch import STATE_PATH

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.store import Store
    from cm_server.store.store_queue import Operation

_FIRST_OPS: Final[tuple[FileOp, ...]] = (
    ["hash", STATE_PATH, ANY_SIZE],
    ["hash", SETTINGS_PATH, ANY_SIZE],
)


class _Known(NamedTuple):
    """What the store knows of a board: its secrets, and manifests by short ids."""

    secrets: StoredSecrets
    manifests: Mapping[str, Mapping[str, Any]]


def read_drift_job(services: InstallServices, boards: int) -> SteppedJobSpec:
    """Return the job of a caller's ``drift`` request.

    Args:
        services: provide the store.
        boards: the number of boards that get the job.
    """

    def read_store(board: Board) -> Operation[_Known]:
        return services.store_queue.run(lambda store: _read_known(store, board))

    def make_generator(board: Board, known: _Known) -> OpGenerator:
        comparison = find_drift(board.name, mpy_number(board), known.secrets, known.manifests)
        report = yield from comparison
        if report["generation"] and report["differences"]:
            # Until it connects again: so the next plan changes it.
            parts = report["paths"], report["settings"]
            state = desired.drifted_fact(report["generation"], *parts)
            board.reported_facts = {**board.reported_facts, "generation": state}
            board.notify_changed()
        return {key: report[key] for key in ("generation", "differences")}

    return SteppedJobSpec(
        _FIRST_OPS,
        make_generator,
        read_store,
        ack_bytes_for(boards, services.limits),
        services.limits.settings_bytes,
    )


def _read_known(store: Store, board: Board) -> _Known:
    short = desired.read_board_generation(board.reported_facts.get("generation")).generation
    ids = store.rollout_rows.find_generation(short) if short else []
    rows = store.rollout_rows.generations_of(ids)
    manifests = {desired.short_id(row.sha256): row.manifest for row in rows.values()}
    return _Known(board_settings.read_secrets(store, board), manifests)


def find_drift(
    name: str, mpy: int, secrets: StoredSecrets, manifests: Mapping[str, Mapping[str, Any]]
) -> OpGenerator:
    """Compare a board with its generation.

    Args:
        name: of the board.
        mpy: its kind of bytecode.
        secrets: what the store knows of its settings' secrets.
        manifests: manifests of generations, by the first digits of their ids.

    Returns:
        ``generation``: the first digits of its id, "" for none; ``differences``: a list of phrases;
        ``paths`` and ``settings``: the files, and the keys of settings, that differ.
    """
    state_hash, settings_hash = yield list(_FIRST_OPS)
    report: dict[str, Any] = {"generation": "", "differences": [], "paths": [], "settings": []}
    if not state_hash:
        return {**report, "differences": ["it has no generation"]}
    (state,) = yield [["get", STATE_PATH]]
    current = desired.read_board_generation(state.decode("utf-8", "replace"))
    report["generation"] = current.generation
    manifest = manifests.get(current.generation)
    if manifest is None:
        unknown = "its generation is not known here" if current.generation else "it has none"
        return {**report, "differences": [unknown]}
    differences = [] if current.state == "proven" else ["its generation is on trial"]
    try:
        files = desired.files_for(manifest, mpy)
        found = yield from board_install.hash_paths(
            {path: size for path, (_, size) in files.items()}, ()
        )
    except PackageError as error:
        return {**report, "differences": [str(error.args[0])]}
    for path, (digest, _) in sorted(files.items()):
        if found.get(path) != digest:
            report["paths"].append(path)
            differences.append(f"{path} was changed" if path in found else f"{path} is missing")
    wanted = desired.settings_for(manifest, name)
    if wanted:
        raw = b""
        if settings_hash:
            (raw,) = yield [["get", SETTINGS_PATH]]
        found_settings = _settings_drift(raw, secrets, wanted)
        report["settings"] = list(found_settings)
        differences += found_settings.values()
    return {**report, "differences": differences}


def _settings_drift(
    raw: bytes, secrets: StoredSecrets, wanted: Mapping[str, Any]
) -> dict[str, str]:
    """Return which keys of a board's settings differ, each with a phrase; no values."""
    try:
        settings = board_settings.parse_settings(raw) if raw else {}
        changed, _ = board_settings.change_settings(settings, secrets, wanted)
    except ServerError as error:
        return dict.fromkeys(sorted(wanted), error.reason)
    return {
        key: f"{SETTINGS_PATH}: {key} {'was changed' if key in settings else 'is missing'}"
        for key in sorted(wanted)
        if key not in settings or settings[key] != changed[key]
    }
