"""Read and check what a caller wants boards to be; the manifest of a generation; pure.

A generation is immutable: its manifest names all files by their SHA-256, and has the packages and
the settings. Its id is the SHA-256 of the manifest; boards know it by the first 16 digits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError, TargetError
from cloudmanager.protocol.facts import FACT_NAMES
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.waves import DEFAULT_WAVES, Wave, check_waves
from cm_server.installs import board_settings
from cm_server.limits import KIB, MIB, Limits
from cm_server.packages.firmware_source import VERSION
from cm_server.packages.install_paths import check_relative_path, find_clash, is_reserved

from . import network_change
from .steps import RolloutOptions
from .windows import Window, read_window

BOARD_ID_CHARS: Final = 16  # of a generation's id that boards know
_DIGEST_CHARS: Final = 64
ANY_MACHINE: Final = ""  # in place of what a board calls itself: the image of a file
_MAX_NAME: Final = 64
_CLIENT_FILE: Final = re.compile(r"[a-z][a-z0-9_]*\.m?py", re.ASCII)
_MAX_CLIENT_FILES: Final = 200
_MAX_CLIENT_BYTES: Final = 1 * MIB
_MAX_HEALTH: Final = 4096  # characters of a health cell
_MAX_SECONDS: Final = 366 * 86400.0
_MAX_DRIFT_PARTS: Final = 200  # files and settings that differ on a board, which a plan lists
#: Number of an option in seconds, or of boards: name -> (least, greatest).
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "pause": (0, _MAX_SECONDS),
    "parallel": (0, 100_000),
    "deadline": (1, _MAX_SECONDS),
    "max_failures": (0, 100_000),
    "health_timeout": (1, 86400),
}


class DesiredFirmware(NamedTuple):
    """The firmware that the boards of a group have.

    Attributes:
        name: the version, or the name of a file.
        digest: the SHA-256 of the file; "": a version, which the server downloads.
        size: of the file.
    """

    name: str
    digest: str = ""
    size: int = 0


class DesiredClient(NamedTuple):
    """The client that the boards of a group have.

    Attributes:
        version: as boards report it.
        files: name -> SHA-256 and size of each of its files.
    """

    version: str
    files: Mapping[str, tuple[str, int]]

    def describe(self) -> dict[str, Any]:
        """Return it for a generation's manifest."""
        files = {name: list(file) for name, file in sorted(self.files.items())}
        return {"version": self.version, "files": files}


@dataclass(frozen=True)
class DesiredGroup:
    """A group of boards, and what they should be.

    Attributes:
        name: of the group.
        target: which boards it has.
        pin: names of boards of it that are held back.
        app: path on the board -> SHA-256 and size of each file of the program.
        wanted: requirements of packages.
        settings: keys of ``/settings.json``.
        board_settings: name of a board -> its own settings.
        rollback: "local": boards keep what they need to go back; "network": the server sends it
            again to boards that cannot hold both generations.
        waves: of a rollout.
        options: of a rollout.
        window: when boards may begin; None: at any time.
        firmware: what firmware they have; None: any.
        client: the client that they have; None: any.
    """

    name: str
    target: str
    pin: tuple[str, ...] = ()
    app: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    board_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rollback: str = "local"
    waves: tuple[Wave, ...] = DEFAULT_WAVES
    options: RolloutOptions = RolloutOptions()
    window: Window | None = None
    firmware: DesiredFirmware | None = None
    client: DesiredClient | None = None

    @property
    def stored_window(self) -> dict[str, Any] | None:
        """The window as it is stored with a rollout."""
        return None if self.window is None else self.window.to_json()


def read_groups(groups: object, limits: Limits) -> list[DesiredGroup]:
    """Check the groups of a request.

    Args:
        groups: the JSON, of any type; docs/protocol.md describes it.
        limits: how much there may be.

    Raises:
        ServerError: a group is malformed.
    """
    if not isinstance(groups, list) or not 0 < len(groups) <= limits.rollout_groups:
        raise ServerError(f"1 to {limits.rollout_groups} groups can be planned at a time")
    read = [_read_group(group, limits) for group in groups]
    if len({group.name for group in read}) < len(read):
        raise ServerError("two groups have the same name")
    return read


def _read_group(body: Any, limits: Limits) -> DesiredGroup:
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        raise ServerError("a group must be a JSON object with a name")
    name = body["name"]
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise ServerError("a group needs a name of up to 64 printable characters")
    if name.startswith(network_change.GROUP_PREFIX):
        raise ServerError(f"{name}: a group cannot begin with {network_change.GROUP_PREFIX}")
    try:
        return DesiredGroup(
            name=name,
            target=_read_target(body.get("target")),
            pin=_read_texts(body.get("pin"), "pin", limits.rollout_pins),
            app=_read_app(body.get("app"), limits),
            wanted=_read_texts(body.get("packages"), "packages", limits.packages),
            settings=_read_settings(body.get("settings")),
            board_settings=_read_board_settings(body.get("boards"), limits),
            rollback=_read_choice(body.get("rollback"), "rollback", ("local", "network")),
            waves=check_waves(body.get("waves", list(DEFAULT_WAVES))),
            options=read_options(body.get("options") or {}),
            window=read_window(body.get("window")),
            firmware=read_firmware(body.get("firmware")),
            client=_read_client(body.get("client")),
        )
    except (ServerError, PackageError, TargetError) as error:
        raise ServerError(f"{name}: {error.args[0]}") from error
    except ValueError as error:
        raise ServerError(f"{name}: waves {error}") from error


def _read_target(target: object) -> str:
    if not isinstance(target, str):
        raise ServerError("the target is missing")
    if facts := parse_target(target).condition_keys.intersection(FACT_NAMES):
        raise ServerError(f"{min(facts)}= is a fact, which boards choose themselves")
    return target


def _read_texts(texts: object, name: str, max_count: int) -> tuple[str, ...]:
    texts = [] if texts is None else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ServerError(f"{name} must be a list of strings")
    if len(texts) > max_count:
        raise ServerError(f"{name} may have at most {max_count} entries")
    return tuple(texts)


def _read_choice(value: object, name: str, choices: Sequence[str]) -> str:
    value = choices[0] if value is None else value
    if not isinstance(value, str) or value not in choices:
        raise ServerError(f"{name} must be one of {', '.join(choices)}")
    return value


def _read_app(app: object, limits: Limits) -> dict[str, tuple[str, int]]:
    """Return path -> (SHA-256, size) of the files of a program."""
    app = {} if app is None else app
    if not isinstance(app, dict) or len(app) > limits.generation_files:
        raise ServerError(f"an app may have at most {limits.generation_files} files")
    for path, file in app.items():
        if not path.startswith("/") or path.lower() == board_settings.SETTINGS_PATH:
            raise ServerError(f"{path[:100]!r} is no path of an app")
        check_relative_path(path[1:])
        if is_reserved(path):
            raise ServerError(f"{path} belongs to the board's client: an app cannot have it")
        _check_file(path, file)
    if clash := find_clash(app):
        raise ServerError(f"{clash[0]} and {clash[1]} cannot exist together")
    total = sum(size for _, size in app.values())
    if total > limits.generation_bytes:
        raise ServerError(f"an app may have at most {limits.generation_bytes // MIB} MiB")
    return {path: (digest, size) for path, (digest, size) in sorted(app.items())}


def _check_file(path: str, file: object) -> None:
    digest, size = file if isinstance(file, list) and len(file) == 2 else ("", -1)
    is_digest = isinstance(digest, str) and len(digest) == _DIGEST_CHARS
    if not is_digest or set(digest) - set("0123456789abcdef") or type(size) is not int or size < 0:
        raise ServerError(f"{path} needs its SHA-256 in lower-case hexadecimal, and its size")


def read_firmware(body: object) -> DesiredFirmware | None:
    """Return the firmware of a request: a version, or a file that was uploaded; None for none.

    Raises:
        ServerError: it is malformed.
    """
    if body is None:
        return None
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        raise ServerError("firmware must be a JSON object with a name")
    name = body["name"]
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise ServerError("firmware needs a name of up to 64 printable characters")
    if "sha256" not in body:
        if not VERSION.fullmatch(name):
            raise ServerError(f"firmware: {name!r} is no version such as 1.29.0")
        return DesiredFirmware(name)
    _check_file("firmware", [body["sha256"], body.get("size")])
    return DesiredFirmware(name, body["sha256"], body["size"])


def _read_client(body: object) -> DesiredClient | None:
    """Return the client of a request; None for none."""
    if body is None:
        return None
    version, files = (body.get("version"), body.get("files")) if isinstance(body, dict) else (0, 0)
    if not isinstance(version, str) or not 0 < len(version) <= _MAX_NAME:
        raise ServerError("client must be a JSON object with a version")
    if not version.isprintable() or not isinstance(files, dict):
        raise ServerError("client must be a JSON object with a version and files")
    if not 0 < len(files) <= _MAX_CLIENT_FILES:
        raise ServerError(f"a client has 1 to {_MAX_CLIENT_FILES} files")
    for name, file in files.items():
        if not _CLIENT_FILE.fullmatch(name):
            raise ServerError(f"{name[:100]!r} is no file of a client")
        _check_file(name, file)
    if sum(size for _, size in files.values()) > _MAX_CLIENT_BYTES:
        raise ServerError(f"a client may have at most {_MAX_CLIENT_BYTES // MIB} MiB")
    return DesiredClient(version, {name: (digest, size) for name, (digest, size) in files.items()})


def _read_settings(text: object) -> dict[str, Any]:
    return {} if text is None else board_settings.read_change(text)


def _read_board_settings(boards: object, limits: Limits) -> dict[str, dict[str, Any]]:
    boards = {} if boards is None else boards
    if not isinstance(boards, dict) or len(boards) > limits.rollout_pins:
        raise ServerError(f"at most {limits.rollout_pins} boards may have settings of their own")
    return {name: board_settings.read_change(text) for name, text in sorted(boards.items())}


def read_options(body: object) -> RolloutOptions:
    """Check how a rollout is to proceed.

    Args:
        body: the JSON, of any type.

    Raises:
        ServerError: an option is wrong.
    """
    if not isinstance(body, dict):
        raise ServerError("the options of a rollout must be a JSON object")
    values: dict[str, Any] = {}
    for name, (least, greatest) in _NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= greatest:
            raise ServerError(f"{name} must be a number from {least:g} to {greatest:g}")
        values[name] = value
    for name, greatest in (("health", _MAX_HEALTH), ("health_code", 2 * _MAX_HEALTH)):
        text = body.get(name) or ""
        if not isinstance(text, str) or len(text) > greatest:
            raise ServerError(f"{name} must be a cell of at most {greatest // KIB} KiB")
        values[name] = text
    on_failure = _read_choice(body.get("on_failure"), "on_failure", ("failed", "all"))
    return RolloutOptions(**values, on_failure=on_failure)


def make_manifest(
    group: DesiredGroup,
    packages: Mapping[str, Any] | None,
    firmware: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the manifest of a group's generation.

    Args:
        group: what its boards should be.
        packages: see ``generation_packages.describe``; None if it has none.
        firmware: see ``GenerationFirmware.describe``; None if it has none.
    """
    manifest: dict[str, Any] = {
        "app": {path: list(file) for path, file in group.app.items()},
        "packages": packages or {},
        "settings": dict(group.settings),
        "boards": {name: dict(own) for name, own in group.board_settings.items()},
    }
    if firmware is not None:
        manifest["firmware"] = dict(firmware)
    if group.client is not None:
        manifest["client"] = group.client.describe()
    return manifest


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Return the id of a generation."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def short_id(generation: str) -> str:
    """Return the part of a generation's id that boards know."""
    return generation[:BOARD_ID_CHARS]


def files_for(manifest: Mapping[str, Any], mpy: int) -> dict[str, tuple[str, int]]:
    """Return path -> (SHA-256, size) of all files that a board of one kind gets.

    Args:
        manifest: of the generation.
        mpy: the board's kind of bytecode.

    Raises:
        PackageError: its packages were not compiled for this kind.
    """
    files = {path: (digest, size) for path, (digest, size) in manifest["app"].items()}
    packages = manifest["packages"]
    if packages:
        if str(mpy) not in packages["kinds"]:
            raise PackageError(
                "its packages are not compiled for this board's MicroPython; apply the file again"
            )
        for path, digest, size, _ in packages["kinds"][str(mpy)]:
            files[path] = (digest, size)
    return files


def settings_for(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings that a board gets: those of the group, and its own."""
    return {**manifest["settings"], **manifest["boards"].get(name, {})}


def content_sizes(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return SHA-256 -> size of all contents of a generation."""
    sizes: dict[str, int] = dict(manifest["app"].values())
    for files in manifest["packages"].get("kinds", {}).values():
        sizes.update((digest, size) for _, digest, size, _ in files)
    images = manifest.get("firmware", {}).get("images", {})
    sizes.update((digest, size) for digest, size in images.values())
    sizes.update((digest, size) for digest, size in client_files(manifest).values())
    return sizes


def client_files(manifest: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return name -> (SHA-256, size) of the files of the client; {} if it brings none."""
    files = manifest.get("client", {}).get("files", {})
    return {name: (digest, size) for name, (digest, size) in files.items()}


def firmware_for(manifest: Mapping[str, Any], machine: str) -> str | None:
    """Return the SHA-256 of the image that a board gets; None if it keeps what it has.

    Args:
        manifest: of the generation.
        machine: what the board calls itself.
    """
    images = manifest.get("firmware", {}).get("images", {})
    found = images.get(machine) or images.get(ANY_MACHINE)
    return None if found is None else str(found[0])


@dataclass(frozen=True)
class BoardGeneration:
    """What a board reports about its generation, in its fact ``generation``.

    Attributes:
        state: proven, trial (switched, not restarted yet), trying, cleared (files of it were
            removed, to make room for another one), or "" for none.
        generation: the first digits of its id; "" for none.
        reverted: the first digits of the id of the one that it came back from; "" for none.
        reason: why it came back.
    """

    state: str = ""
    generation: str = ""
    reverted: str = ""
    reason: str = ""

    def has(self, short: str) -> bool:
        """Return whether the board has proven a generation, given by the first digits of its id.

        It has not if it came back from that one to what it had of it before.
        """
        return (self.state, self.generation) == ("proven", short) and self.reverted != short

    def is_trying(self, short: str) -> bool:
        """Return whether a generation is on trial on the board."""
        return (self.state, self.generation) == ("trying", short)

    @property
    def is_unproven(self) -> bool:
        """Whether it came back for a reason that says nothing against the generation."""
        return self.reason.startswith("?")


class DriftedParts(NamedTuple):
    """What a board has no longer of its generation.

    Attributes:
        generation: the first digits of its id; "" if nothing differs.
        paths: of files that were changed or removed.
        settings: keys of settings that were changed or removed.
    """

    generation: str = ""
    paths: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()


def drifted_fact(generation: str, paths: Sequence[str], settings: Sequence[str]) -> str:
    """Return the fact ``generation`` of a board on which something differs.

    The server sets it until the board connects again.

    Args:
        generation: the first digits of its id.
        paths: of files that differ.
        settings: keys of settings that differ.
    """
    parts = [*paths, *(f":{key}" for key in settings)]
    return "\n".join((f"drifted {generation}", "", *parts[:_MAX_DRIFT_PARTS]))


def read_drifted_fact(fact: object) -> DriftedParts:
    """Return what differs on a board, of the text of ``drifted_fact``."""
    lines = fact.split("\n") if isinstance(fact, str) else []
    words = lines[0].split() if lines else []
    if len(words) < 2 or words[0] != "drifted":
        return DriftedParts()
    parts = lines[2:]
    return DriftedParts(
        words[1],
        frozenset(part for part in parts if part.startswith("/")),
        frozenset(part[1:] for part in parts if part.startswith(":")),
    )


def read_board_generation(fact: object) -> BoardGeneration:
    """Return what a board's fact says; a malformed one says nothing."""
    lines = fact.split("\n") if isinstance(fact, str) else []
    first = lines[0].split() if lines else []
    state, generation = (first[0], first[1]) if len(first) > 1 else ("", "")
    if state not in ("proven", "trial", "trying", "cleared"):
        state = generation = ""
    note = lines[1].split(None, 2) if len(lines) > 1 else []
    if len(note) < 2 or note[0] != "reverted":
        return BoardGeneration(state, generation)
    return BoardGeneration(state, generation, note[1], note[2] if len(note) > 2 else "")


#: Why a board went back that restarted on trial (mpy_client/cm/trial.py): nobody asked for that.
_UNASKED: Final = "it restarted"


def is_switch_restart(before: object, after: object) -> bool:
    """Return whether a board has restarted because it switches to a generation, or goes back.

    Args:
        before: its fact ``generation`` at its last link.
        after: the same at its first link since the restart.
    """
    old, new = read_board_generation(before), read_board_generation(after)
    if new.state == "trying":
        return not old.is_trying(new.generation)
    if old.state == "cleared" and new.state == "proven":
        return True
    if not new.reverted or new.reason == _UNASKED:
        return False
    return (old.reverted, old.reason) != (new.reverted, new.reason)
