"""Read ``fleet.toml``, which says what groups of boards should be; no I/O.

Syntax errors name their line, all others the key. What a key means is in docs/desired_state.md.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloudmanager.protocol.errors import CellSyntaxError, TargetError
from cloudmanager.protocol.facts import FACT_NAMES
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.waves import DEFAULT_WAVES, Wave, check_waves

from .cells import prepare_cell

_MAX_COUNT: Final = 100_000


class FleetFileError(ValueError):
    """``fleet.toml`` is wrong; the text names the line or the key."""


@dataclass(frozen=True)
class RolloutSettings:
    """How a group gets to what it should be.

    Attributes:
        waves: cumulative numbers or percentages of boards.
        parallel: how many boards switch at the same time; 0: all of a wave.
        pause: seconds between two waves.
        health: a cell that has to succeed on each board; "": the program has to run for a while.
        health_timeout: seconds for that cell, or that the program has to run.
        deadline: seconds from the start of its wave in which a board has to be proven.
        max_failures: with more failed boards, no further one begins.
        on_failure: "failed": the failed boards go back; "all": all boards of the rollout do.
    """

    waves: tuple[Wave, ...] = DEFAULT_WAVES
    parallel: int = 0
    pause: int = 600
    health: str = ""
    health_timeout: int = 60
    deadline: int = 86400
    max_failures: int = 0
    on_failure: str = "failed"

    def options(self) -> dict[str, Any]:
        """Return the options of a rollout as the server takes them."""
        options = {name: value for name, value in vars(self).items() if name != "waves"}
        cell = prepare_cell(self.health)
        # A cell that awaits is sent as a coroutine function; others as they are.
        return {**options, "health_code": cell.code.decode() if cell.awaits else ""}


@dataclass(frozen=True)
class Group:
    """A group of boards, and what they should be.

    Attributes:
        name: its name in the file.
        target: which boards it has.
        app: a folder with the program, relative to the file; "" for none.
        packages: requirements.
        settings: keys of ``/settings.json``.
        pin: names of boards that are held back.
        rollback: "local": boards keep what they need to go back; "network": the server sends it
            again to boards that cannot hold both.
        firmware: a version of MicroPython, or the path of an image; "" for any.
        client: "current": that of this version; "" for any.
        window: when boards may begin: "start", "for" in seconds and "tz"; None: at any time.
        board_settings: name of a board -> its own settings.
        rollout: how it gets there.
    """

    name: str
    target: str
    app: str = ""
    packages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    rollback: str = "local"
    firmware: str = ""
    client: str = ""
    window: Mapping[str, Any] | None = None
    board_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rollout: RolloutSettings = RolloutSettings()


def parse_fleet_file(text: str) -> list[Group]:
    """Return the groups of a file, in its order.

    Raises:
        FleetFileError: it is not valid TOML, has an unknown key, or a value that is wrong.
    """
    try:
        body = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FleetFileError(f"this is not valid TOML: {error}") from error
    for name, group in body.items():
        if not isinstance(group, dict):
            raise FleetFileError(
                f"{name}: is in no group: write it below the name of one, such as [greenhouse]"
            )
    if not body:
        raise FleetFileError("there is no group: a group is a table, such as [greenhouse]")
    return [_read_group(name, group) for name, group in body.items()]


def _key(name: str) -> str:
    """Return a key as TOML has it in a path."""
    is_bare = name and all(char.isascii() and (char.isalnum() or char in "-_") for char in name)
    return name if is_bare else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read_group(name: str, body: Mapping[str, Any]) -> Group:
    path = _key(name)
    _check_keys(path, body, (*_GROUP_READERS, "target", "board", "rollout", "window"))
    if "target" not in body:
        raise FleetFileError(
            f'{path}.target: is missing: which boards the group has, such as "lab-*"'
        )
    values = _read_values(path, body, _GROUP_READERS)
    target = _read_target(f"{path}.target", body["target"])
    boards = _read_boards(f"{path}.board", body.get("board", {}))
    window = _read_window(f"{path}.window", body["window"]) if "window" in body else None
    rollout = body.get("rollout", {})
    if not isinstance(rollout, dict):
        raise FleetFileError(f"{path}.rollout: must be a table, [{path}.rollout]")
    _check_keys(f"{path}.rollout", rollout, _ROLLOUT_READERS)
    settings = RolloutSettings(**_read_values(f"{path}.rollout", rollout, _ROLLOUT_READERS))
    group = Group(name, target, window=window, board_settings=boards, rollout=settings, **values)
    said = (group.app, group.packages, group.settings, group.board_settings)
    if not any((*said, group.firmware, group.client)):
        raise FleetFileError(
            f"{path}: says nothing about its boards: give it app, packages, settings, client or "
            "firmware"
        )
    return group


def _check_keys(path: str, body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that do not exist.

    Raises:
        FleetFileError: there is one; the text has a similar one, or all.
    """
    names = sorted(known)
    for key in body:
        if key in names:
            continue
        similar = difflib.get_close_matches(key, names, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"the keys are {', '.join(names)}"
        raise FleetFileError(f"{path}.{_key(key)}: this key does not exist; {hint}")


def _read_values(
    path: str, body: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    values = {}
    for key, read in readers.items():
        if key in body:
            try:
                values[key] = read(body[key])
            except ValueError as error:
                raise FleetFileError(f"{path}.{key}: {error}") from error
    return values


def _read_target(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FleetFileError(f'{path}: must be a string, such as "greenhouse-*"')
    try:
        target = parse_target(value)
    except TargetError as error:
        raise FleetFileError(f"{path}: {' '.join(str(error).split())}") from error
    for key in sorted(target.condition_keys):
        if key in FACT_NAMES:
            raise FleetFileError(
                f"{path}: {key}= is a fact, which boards choose themselves; select boards by "
                "name or label"
            )
    return value


def _read_boards(path: str, body: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(body, dict):
        raise FleetFileError(f'{path}: must be tables, such as [{path}."greenhouse-3"]')
    boards = {}
    for name, own in body.items():
        own_path = f"{path}.{_key(name)}"
        if not isinstance(own, dict):
            raise FleetFileError(f"{own_path}: must be a table")
        _check_keys(own_path, own, ("settings",))
        boards[name] = _read_values(own_path, own, {"settings": _settings}).get("settings", {})
    return boards


def _read_window(path: str, body: Any) -> dict[str, Any]:
    """Return a window; the server, which has a clock and time zones, checks what it means."""
    if not isinstance(body, dict):
        raise FleetFileError(
            f'{path}: must be a table, such as {{ start = "0 3 * * *", for = "2h" }}'
        )
    _check_keys(path, body, _WINDOW_READERS)
    for key in ("start", "for"):
        if key not in body:
            raise FleetFileError(f"{path}.{key}: is missing")
    return {"tz": "UTC", **_read_values(path, body, _WINDOW_READERS)}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a string")
    return value


def _cell(value: Any) -> str:
    text = _text(value)
    try:
        prepare_cell(text)
    except CellSyntaxError as error:
        raise ValueError(f"is not Python: {error.msg} (line {error.lineno})") from error
    return text


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError('must be a list of strings, such as ["logging"]')
    if len(set(value)) < len(value):
        raise ValueError("has an entry twice")
    return tuple(value)


def _settings(value: Any) -> dict[str, Any]:
    """Return settings; a reference to a secret is ``{ secret = "NAME" }``."""
    if not isinstance(value, dict):
        raise ValueError("must be a table, such as { interval = 30 }")
    _check_json(value)
    return value


def _check_json(value: Any) -> None:
    if isinstance(value, dict):
        for each in value.values():
            _check_json(each)
    elif isinstance(value, list):
        for each in value:
            _check_json(each)
    elif not isinstance(value, (str, int, float)):  # of TOML: dates and times
        raise ValueError(f"boards cannot have the value {value}: write it as a string or a number")
    elif isinstance(value, float) and value - value != 0:
        raise ValueError("boards cannot have nan or inf")


def _span(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError('must be a span such as "90s", "10m" or "1d"')
    if value in ("0", "0s"):
        return 0
    return parse_span(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise ValueError("must be a whole number, 0 or more")
    return value


def _positive_span(value: Any) -> int:
    seconds = _span(value)
    if not seconds:
        raise ValueError("must be longer than 0")
    return seconds


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(map(repr, choices))}")
        return str(value)

    return read


_GROUP_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "app": _text,
    "packages": _texts,
    "settings": _settings,
    "pin": _texts,
    "rollback": _choice("local", "network"),
    "firmware": _text,
    "client": _choice("current"),
}
_WINDOW_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "start": _text,
    "for": _positive_span,
    "tz": _text,
}
_ROLLOUT_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "waves": check_waves,
    "parallel": _count,
    "pause": _span,
    "health": _cell,
    "health_timeout": _positive_span,
    "deadline": _positive_span,
    "max_failures": _count,
    "on_failure": _choice("failed", "all"),
}
