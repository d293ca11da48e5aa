"""Plan and apply ``fleet.toml``: read what it names, and let the server compare and carry out."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cloudmanager.board_client import client_paths, client_version
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.text import os_error_text
from cloudmanager.results.fleet_plan import FleetPlan, StartedRollouts

from .exchange import Exchange
from .file_jobs import upload_content
from .firmware_upgrade import read_firmware
from .fleet_file import FleetFileError, Group, parse_fleet_file
from .local_packages import is_local_source, local_package_name, read_local_package
from .mpy_check import may_be_micropython
from .sources import ContentSource, LocalEntry, PathLike, source_from_file, walk
from .syncing import read_ignore_file
from .text_files import read_text

_LOCK_FORMAT: Final = 1
_SETTINGS_PATH: Final = "/settings.json"


class _Desired:
    """What a file says, as the server takes it, and the local files that it names.

    Args:
        text: the path of the file.
    """

    def __init__(self, text: PathLike) -> None:
        path = Path(text).absolute()
        self._folder = path.parent
        self.lock_path = path.with_suffix(".lock")
        self.sources: dict[str, ContentSource] = {}
        self.uploads: list[ContentSource] = []  # that the server needs for the plan
        self._sent: dict[str, dict[str, str]] = {}
        try:
            groups = parse_fleet_file(read_text(path))
        except FleetFileError as error:
            raise FleetFileError(f"{path.name}: {error}") from error
        described = [self._describe(group) for group in groups]
        locks = _read_locks(self.lock_path, described)
        self.request: dict[str, Any] = {"groups": described, "sent": self._sent, "locks": locks}

    def _describe(self, group: Group) -> dict[str, Any]:
        return {
            "name": group.name,
            "target": group.target,
            "pin": list(group.pin),
            "app": self._read_app(group),
            "packages": [self._add_package(group, text) for text in group.packages],
            "settings": json.dumps(group.settings, allow_nan=False),
            "boards": {
                name: json.dumps(own, allow_nan=False) for name, own in group.board_settings.items()
            },
            "rollback": group.rollback,
            "window": group.window,
            "firmware": self._read_firmware(group),
            "client": self._read_client(group),
            "waves": list(group.rollout.waves),
            "options": group.rollout.options(),
        }

    def _read_app(self, group: Group) -> dict[str, list[Any]]:
        """Return path on the board -> SHA-256 and size of the files of a group's program."""
        if not group.app:
            return {}
        folder = self._folder / group.app
        if not folder.is_dir():
            raise FleetFileError(f"{group.name}.app: there is no folder {folder}")
        ignored = read_ignore_file(folder)

        def is_left_out(entry: LocalEntry) -> bool:
            return ignored.match_file(str(entry.inner) + "/" * entry.is_dir)

        files = {}
        for entry in walk(folder, is_left_out=is_left_out):
            if not entry.is_dir:
                path = f"/{entry.inner.as_posix()}"
                if path.lower() == _SETTINGS_PATH:
                    raise FleetFileError(
                        f"{group.name}.app: {entry.path} cannot be one of its files: its keys "
                        "belong into `settings`"
                    )
                if path.endswith(".py"):
                    _check_syntax(f"{group.name}.app", entry.path)
                source = source_from_file(entry.path)
                self.sources[source.digest] = source
                files[path] = [source.digest, source.size]
        if not files:
            raise FleetFileError(f"{group.name}.app: the folder {folder} has no files")
        return files

    def _read_firmware(self, group: Group) -> dict[str, Any] | None:
        """Return the firmware of a group as the server takes it; note its file."""
        if not group.firmware:
            return None
        try:
            firmware, source = read_firmware(group.firmware, self._folder)
        except OSError as error:
            raise FleetFileError(f"{group.name}.firmware: {os_error_text(error)}") from error
        if source is not None:
            self.sources[source.digest] = source
            self.uploads.append(source)
        return firmware

    def _read_client(self, group: Group) -> dict[str, Any] | None:
        """Return the client of a group as the server takes it; note its files."""
        if not group.client:
            return None
        try:
            paths = client_paths()
        except ImportError as error:
            raise FleetFileError(
                f"{group.name}.client: the client has to be compiled: "
                "pip install 'cloudmanager[virtual]'"
            ) from error
        files = {}
        for path, local in paths.items():
            source = source_from_file(local)
            self.sources[source.digest] = source
            # On a board, a new client has all its files in one folder until it is kept.
            files[path.rpartition("/")[2]] = [source.digest, source.size]
        return {"version": client_version(), "files": files}

    def _add_package(self, group: Group, text: str) -> str:
        """Return a requirement as the server knows it; note the files of a local package."""
        if not is_local_source(text):
            return text
        path = str(self._folder / Path(text).expanduser())
        try:
            name, files = local_package_name(path), read_local_package(path)
        except FileNotFoundError as error:
            raise FleetFileError(f"{group.name}.packages: there is no file {path}") from error
        self.uploads += files.values()
        self._sent[name] = {inner: source.digest for inner, source in files.items()}
        return name


def _check_syntax(key: str, path: Path) -> None:
    """Refuse a program that no board can compile.

    Raises:
        FleetFileError: it has a syntax error; the text names the line.
    """
    source = path.read_bytes()
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if may_be_micropython(source):  # what is an error, MicroPython decides
            return
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise FleetFileError(f"{key}: {path}{line}: {reason}") from error


def _read_locks(path: Path, groups: list[dict[str, Any]]) -> dict[str, str]:
    """Return the lock files of groups whose packages are still those that were locked.

    Raises:
        FleetFileError: the file is malformed.
    """
    if not path.exists():
        return {}
    try:
        body = json.loads(read_text(path))
        if body["format"] != _LOCK_FORMAT:
            raise ValueError("it has another format")
        locks = dict(body["groups"])
        return {
            group["name"]: json.dumps(locks[group["name"]])
            for group in groups
            if group["name"] in locks
            and sorted(locks[group["name"]]["wanted"]) == sorted(group["packages"])
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FleetFileError(f"{path.name} is malformed ({error}); remove it") from error


async def make_plan(exchange: Exchange, path: PathLike) -> FleetPlan:
    """Return what applying a file would change: see ``FleetVerbs.plan``."""
    wanted = _Desired(path)
    for source in wanted.uploads:
        await upload_content(exchange, source)
    reply = await exchange.request("fleet-plan", wanted.request)
    sources = {digest: str(source.origin) for digest, source in wanted.sources.items()}
    has_packages = any(group["packages"] for group in wanted.request["groups"])
    plan = FleetPlan(wanted.request, reply, sources, str(wanted.lock_path) if has_packages else "")
    _write_lock(plan)
    return plan


def _write_lock(plan: FleetPlan) -> None:
    """Write which packages were chosen, so that the next plan chooses the same."""
    locks = {
        group["group"]: json.loads(group["lock"]) for group in plan.reply["groups"] if group["lock"]
    }
    if not plan.lock_path or not locks:
        return
    body = {"format": _LOCK_FORMAT, "groups": locks}
    text = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = Path(plan.lock_path)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


async def apply_plan(exchange: Exchange, plan: FleetPlan) -> StartedRollouts:
    """Begin the rollouts of a plan: see ``FleetVerbs.apply``."""
    if plan.changed:
        for digest in _needed(plan.request):
            path = plan.sources.get(digest)
            if path is None:
                raise ServerError("the plan is stale: it lacks a file; plan again")
            source = source_from_file(Path(path))
            if source.digest != digest:
                raise ServerError(f"the plan is stale: {path} has changed; plan again")
            await upload_content(exchange, source)
    body = {**plan.request, "fingerprint": plan.reply["fingerprint"]}
    return StartedRollouts(await exchange.request("fleet-apply", body))


def _needed(request: Mapping[str, Any]) -> list[str]:
    """Return the SHA-256 of all files of the programs and clients, and of the images."""
    groups = request["groups"]
    digests = [digest for group in groups for digest, _ in group["app"].values()]
    clients = [group["client"] for group in groups if group.get("client")]
    digests += [digest for client in clients for digest, _ in client["files"].values()]
    digests += [group["firmware"]["sha256"] for group in groups if _has_image(group)]
    return list(dict.fromkeys(digests))


def _has_image(group: Mapping[str, Any]) -> bool:
    return "sha256" in (group.get("firmware") or {})
