"""Read and change ``/settings.json`` of a board, as a job of several steps; no sockets, no SQL.

A setting may refer to a secret: ``{"secret": "mqtt"}``. The server writes its value to the board;
what a caller reads has the reference in its place. The caller never has the value: it is in the
store, on the boards that need it, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import parse_target

from .job_steps import FileOp, OpGenerator, SteppedJobSpec
from .services import InstallServices
from .transfers import ack_bytes_for

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.secret_rows import SecretRow
    from cm_server.store.store import Store
    from cm_server.store.store_queue import Operation

SETTINGS_PATH: Final = "/settings.json"
_READ_OPS: Final[tuple[FileOp, ...]] = (["get", SETTINGS_PATH],)
_REFERENCE_KEY: Final = "secret"  # the only key of an object that refers to a secret
_REMOVED_TEXT: Final = "…"  # in place of a secret in a file that is not JSON
_MAX_DEPTH: Final = 24  # levels of lists and objects; a chip's stack ends at about 50
_NO_OBJECT: Final = f"{SETTINGS_PATH} is not a JSON object; remove the file or correct it"

#: Keys on the way to a value, from the outside in.
Path = tuple[str, ...]


class StoredSecrets(NamedTuple):
    """What the store knows when a job about settings starts.

    Attributes:
        secrets: those that the board may get, by name. Others do not exist for its callers, who
            could otherwise guess them: a guess that is right would be masked.
        uses: where the board's settings have the value of a secret, and of which one.
    """

    secrets: Mapping[str, SecretRow]
    uses: Mapping[Path, str]


def read_settings_job(
    services: InstallServices, request: Any, boards: int
) -> tuple[SteppedJobSpec, str]:
    """Return the job of a caller's ``settings`` request, and its text for the audit log.

    Args:
        services: provide the store and the contents.
        request: the JSON of the request: docs/protocol.md.
        boards: the number of boards that get the job.

    Raises:
        ServerError: the request is malformed.
    """
    change = _read_change(request)
    queue = services.store_queue

    def read_store(board: Board) -> Operation[StoredSecrets]:
        return queue.run(lambda store: read_secrets(store, board))

    def make_generator(board: Board, stored: StoredSecrets) -> OpGenerator:
        if change is None:
            return read_settings(stored)
        return _change_and_record(services, board, stored, change)

    spec = SteppedJobSpec(
        _READ_OPS,
        make_generator,
        read_store,
        ack_bytes_for(boards, services.limits),
        services.limits.settings_bytes,
    )
    return spec, "" if change is None else _describe(change)


def _read_change(request: Any) -> dict[str, Any] | None:
    """Return the settings that a request changes; None if it only reads."""
    if not isinstance(request, dict):
        raise ServerError("a request about settings must be a JSON object")
    text = request.get("change")
    return None if text is None else read_change(text)


def read_change(text: object) -> dict[str, Any]:
    """Return the settings in the text of a JSON object, checked.

    Raises:
        ServerError: it is no JSON object that boards can read.
    """
    try:
        change = json.loads(text) if isinstance(text, str) else None
        settings_bytes(change)
        depth = _depth(change)
    except (ValueError, RecursionError) as error:
        raise ServerError("`change` is no JSON that boards can read") from error
    if not isinstance(change, dict) or depth > _MAX_DEPTH:
        raise ServerError("`change` must be the text of a JSON object")
    if any(_has_reference(leaf) for _, leaf in _leaves(change) if isinstance(leaf, list)):
        raise ServerError("a list cannot contain a secret; give the secret a key of its own")
    return change


def _has_reference(value: Any) -> bool:
    """Return whether a value is a reference, or contains one anywhere."""
    if isinstance(value, dict):
        return _reference(value) is not None or any(map(_has_reference, value.values()))
    return isinstance(value, list) and any(map(_has_reference, value))


def _depth(value: Any) -> int:
    """Return how many lists and objects there are in each other."""
    if not isinstance(value, (dict, list)):
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, items), default=0)


def settings_bytes(settings: Any) -> bytes:
    """Return settings as a board reads them.

    Raises:
        ValueError: it has a number that is not finite, or a text without UTF-8.
    """
    # Not escaped: MicroPython's json does not read surrogate pairs.
    return json.dumps(settings, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _describe(change: Mapping[str, Any]) -> str:
    """Return the keys that change, and the secrets, for the audit log; no values."""
    names = sorted({name for _, name in _references(change)})
    secrets = f" (secrets: {', '.join(names)})" if names else ""
    return f"{', '.join(change)}{secrets}"


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each value that is no object, and each reference, with its path.

    The settings themselves are no reference, even if their only key is ``secret``.
    """
    if isinstance(value, dict) and value and (not path or _reference(value) is None):
        for key, each in value.items():
            yield from _leaves(each, (*path, key))
    else:
        yield path, value


def _references(value: Any) -> Iterator[tuple[Path, str]]:
    for path, leaf in _leaves(value):
        if (name := _reference(leaf)) is not None:
            yield path, name


def secret_names(settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the secrets that settings refer to."""
    return {name for _, name in _references(settings)}


def _reference(value: Any) -> str | None:
    """Return the name of the secret that a value refers to; None if it is no reference."""
    is_reference = isinstance(value, dict) and value.keys() == {_REFERENCE_KEY}
    name = value[_REFERENCE_KEY] if is_reference else None
    return name if isinstance(name, str) else None


def read_secrets(store: Store, board: Board) -> StoredSecrets:
    """Return what the store knows about secrets in a board's settings."""
    secrets = {row.name: row for row in store.secret_rows.read() if _is_for(row, board)}
    return StoredSecrets(secrets, store.secret_rows.uses_of(board.id))


def _is_for(row: SecretRow, board: Board) -> bool:
    """Return whether a board may get a secret."""
    return parse_target(row.target).covers(board.name, board)


# Jobs on one board


def read_settings(stored: StoredSecrets) -> OpGenerator:
    """Read a board's settings; return their text, with references for secrets.

    Raises:
        OSError: the board has none.
    """
    (raw,) = yield list(_READ_OPS)
    return _masked_text(raw, stored)


def _masked_text(raw: bytes, stored: StoredSecrets) -> str:
    """Return the text of a file with references for secrets; as it is if it has none."""
    text = raw.decode("utf-8", "replace")
    try:
        settings = parse_settings(raw)
    except ServerError:
        for row in stored.secrets.values():
            text = text.replace(row.value, _REMOVED_TEXT)
        return text
    masked = _mask(settings, stored)
    return text if masked == settings else settings_bytes(masked).decode()


def parse_settings(raw: bytes) -> dict[str, Any]:
    """Return a board's settings.

    Raises:
        ServerError: the file is no JSON object.
    """
    try:
        # Boards cannot read Infinity or NaN; an earlier version wrote them.
        settings = json.loads(raw, parse_constant=str)
        settings_bytes(settings)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ServerError(_NO_OBJECT)
    return settings


def _mask(value: Any, stored: StoredSecrets, path: Path = ()) -> Any:
    """Return a value with a reference for each secret.

    A value where one was written is a reference, too, if the secret was changed meanwhile.
    """
    if path in stored.uses:
        return {_REFERENCE_KEY: stored.uses[path]}
    if isinstance(value, dict):
        return {key: _mask(each, stored, (*path, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_mask(each, stored, (*path, "")) for each in value]
    if isinstance(value, str):
        names = [row.name for row in stored.secrets.values() if row.value == value]
        return {_REFERENCE_KEY: min(names)} if names else value
    return value


def _change_and_record(
    services: InstallServices, board: Board, stored: StoredSecrets, change: Mapping[str, Any]
) -> OpGenerator:
    """Change a board's settings, and record where they have secrets; return their text."""
    try:
        (raw,) = yield list(_READ_OPS)
    except FileNotFoundError:
        raw = b""
    settings, uses = change_settings(parse_settings(raw) if raw else {}, stored, change)
    data = settings_bytes(settings)
    if len(data) > services.limits.settings_bytes:
        kib = services.limits.settings_bytes // 1024
        raise ServerError(f"{SETTINGS_PATH} would be longer than {kib} KiB")
    if data != raw:
        yield [["put", SETTINGS_PATH, services.content_store.make_unshared(data)]]
    if uses != stored.uses:
        board_id = board.id
        services.store_queue.run(lambda store: store.secret_rows.set_uses(board_id, uses))
    return settings_bytes(_mask(settings, stored._replace(uses=uses))).decode()


def change_settings(
    settings: Mapping[str, Any], stored: StoredSecrets, change: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Path, str]]:
    """Return changed settings with the values of secrets, and where these are.

    Secrets that the settings had before get their present values.

    Args:
        settings: as the board has them.
        stored: what the store knows.
        change: new values of keys; objects in them are replaced as a whole.

    Raises:
        ServerError: a secret does not exist for this board.
    """
    uses = {path: name for path, name in stored.uses.items() if path[0] not in change}
    changed = {**settings, **change}
    for path, name in dict(uses).items():
        if not isinstance(_value_at(changed, path), str):
            del uses[path]  # somebody has removed it
        elif name in stored.secrets:
            changed = _replaced(changed, path, stored.secrets[name].value)
    for path, name in _references(change):
        changed = _replaced(changed, path, _value_for(name, stored))
        uses[path] = name
    return changed, uses


def _value_for(name: str, stored: StoredSecrets) -> str:
    row = stored.secrets.get(name)
    if row is None:
        known = f"; there are {', '.join(stored.secrets)}" if stored.secrets else ""
        raise ServerError(f"there is no secret called {name[:64]!r} for this board{known}")
    return row.value


def _value_at(settings: Any, path: Path) -> Any:
    """Return the value at a path; None if there is none."""
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _replaced(settings: Mapping[str, Any], path: Path, value: str) -> dict[str, Any]:
    """Return a copy of settings with another value at a path, which exists."""
    key, *rest = path
    new = _replaced(settings[key], tuple(rest), value) if rest else value
    return {**settings, key: new}
