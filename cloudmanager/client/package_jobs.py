"""Jobs about packages: what a caller sends to the server, and what comes of it.

The server makes one plan for all boards; making it good is one job on each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.names import find_installed
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import sources
from .file_jobs import ProgressCallback, upload_content
from .files import FileJobGroup, FileResult
from .jobs import Job
from .packages import BoardPackages, InstallResult
from .syncing import read_ignore_file
from .verbs import HasTarget, wait_results

_DOCUMENT_NAME: Final = "package.json"


class PackageJobGroup(FileJobGroup):
    """The same job about packages on several boards.

    Args:
        make_value: what the server tells of a board -> what the verb returns.
        progress: is told a board, its bytes so far, and how many there are.
    """

    def __init__(
        self, make_value: Callable[[list[Any]], Any], progress: ProgressCallback | None = None
    ) -> None:
        super().__init__((), make_value=make_value)
        self._progress = progress
        self._totals: dict[str, int] = {}

    def on_chunk(self, job: Job, message: wire.Message) -> None:
        """Take a board's word on how far it is, or the server's on how far it is to go."""
        if message.flags & wire.TOTAL_BYTES:
            self._totals[job.board] = wire.read_byte_count(message)
        elif not message.flags and self._progress is not None:
            count = wire.read_byte_count(message)
            self._progress(job.board, count, self._totals.get(job.board, count))


async def run_package_job(
    boards: HasTarget,
    request: Mapping[str, Any],
    make_value: Callable[[list[Any]], Any],
    *,
    target: str = "",
    progress: ProgressCallback | None = None,
) -> Results:
    """Have a job about packages done on all boards of a target."""
    group = PackageJobGroup(make_value, progress)
    boards.exchange().submit(group, target or boards.target, {"packages": request})
    return await wait_results(group)


async def install_packages(
    boards: HasTarget,
    requirements: Sequence[str],
    plan_options: Mapping[str, Any],
    change_options: Mapping[str, Any],
    *,
    target: str = "",
    progress: ProgressCallback | None = None,
) -> tuple[Results, str]:
    """Install on all boards; return the results and a lock file's text.

    Args:
        boards: the target's.
        requirements: requirements, as people type them.
        plan_options: of the plan.
        change_options: `force`, `dry_run`.
        target: other boards than the target's.
        progress: as of ``put``.
    """
    names = {
        text: local_package_name(text) if is_local_source(text) else text for text in requirements
    }
    if len(set(names.values())) < len(names):
        raise PackageError("two packages of the same name were named")
    sent = {
        names[text]: await _upload_local_source(boards, text)
        for text in requirements
        if is_local_source(text)
    }
    body = {
        "wanted": list(names.values()),
        "sent": sent,
        "force": change_options["force"],
        **plan_options,
    }
    body["target"] = target or boards.target
    told = await boards.exchange().request("plan", body)
    asked = {"plan": told["number"], **change_options}
    results = await run_package_job(
        boards, asked, InstallResult.from_op_results, target=target, progress=progress
    )
    return results, told["lock"]


def is_local_source(text: str) -> bool:
    """Whether a requirement means a file or folder of this machine."""
    path = text.startswith((".", "/", "~")) or text.endswith((".py", ".mpy", ".json"))
    return path and "://" not in text and ":" not in text.partition("/")[0]


def local_package_name(text: str) -> str:
    """Return the name of a package that is a file or folder of this machine: the module's."""
    path = _local_path(text)
    return path.name if path.is_dir() else path.stem


def _local_path(text: str) -> Path:
    """Return where it is; a package.json stands for its folder."""
    path = Path(text).expanduser().resolve()
    return path.parent if path.name == _DOCUMENT_NAME else path


async def _upload_local_source(boards: HasTarget, text: str) -> dict[str, str]:
    """Send files of this machine to the server; return their SHA-256 by their paths."""
    found = _local_files(_local_path(text))
    if not found:
        raise PackageError(f"{text} has no file that could be installed")
    for source in found.values():
        await upload_content(boards.exchange(), source)
    return {name: source.digest for name, source in found.items()}


def _local_files(path: Path) -> dict[str, sources.ContentSource]:
    """Return a file, or the files of a folder, by their paths; a module's folder keeps its name."""
    if not path.is_dir():
        return {path.name: sources.source_from_file(path)}
    ignored = read_ignore_file(path)
    module = (path / "__init__.py").exists() and not (path / _DOCUMENT_NAME).exists()
    before = f"{path.name}/" if module else ""
    return {
        before + str(inner): sources.source_from_file(file)
        for inner, file in sources.walk_files(path)
        if not ignored.match_file(str(inner))
    }


async def list_packages(boards: HasTarget) -> Results:
    """Return what each board has; of those that are not there, what the server recorded."""
    rows = dict(await boards.exchange().request("installed", {"target": boards.target}))
    here = [name for name, row in rows.items() if row["online"]]
    told = (
        await run_package_job(boards, {}, BoardPackages.from_op_results, target=fold_names(here))
        if here
        else Results({})
    )
    return Results(
        {name: told.get(name) or _recorded_result(name, row) for name, row in rows.items()}
    )


def _recorded_result(name: str, row: Mapping[str, Any]) -> Result:
    if row["confirmed"] is None:
        return FileResult(name, 0, "offline", why=row["absence"])
    return FileResult(name, 0, "ok", text="[]").with_value(BoardPackages.from_record(row))


#: What an upgrade wants: requirements, and the options that they were asked for with, as JSON.
UpgradeRequest = tuple[tuple[str, ...], str]


def upgrade_requests(packages: BoardPackages, names: Sequence[str]) -> list[UpgradeRequest]:
    """Return what a board was asked to have, or the named ones of it, by their options.

    What came from this machine's files is not among it.

    Raises:
        PackageError: it has no such package.
    """
    names = [find_installed(name, packages) for name in names]
    groups: dict[str, list[str]] = {}
    for name in sorted(names or packages):
        told = packages.upgrade_info.get(name, {})
        if told.get("local") or not (names or "wanted" in told):
            continue
        how = json.dumps(told.get("how", {}), sort_keys=True)
        groups.setdefault(how, []).append(told.get("wanted", name))
    return [(tuple(wanted), how) for how, wanted in groups.items()]


def local_package_notes(packages: BoardPackages, names: Sequence[str]) -> tuple[str, ...]:
    """Say what an upgrade leaves as it is: what came from this machine's files."""
    wanted = [find_installed(name, packages) for name in names] or sorted(packages)
    local = [name for name in wanted if packages.upgrade_info.get(name, {}).get("local")]
    if not local:
        return ()
    return (f"files of somebody's own machine stay as they are: {', '.join(local)}",)


def merge_results(before: Result, after: Result) -> Result:
    """Return what came of two installs on one board; a failure counts."""
    if not before.ok or not after.ok:
        return before if not before.ok else after
    return FileResult(before.board, after.job, "ok", text="[]").with_value(
        before.value.merged_with(after.value), before.elapsed + after.elapsed
    )
