"""Jobs that install, remove and list packages: the caller's requests and their results.

The server makes one plan for all boards, and carries it out as one job on each board.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudmanager import config
from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.names import find_installed
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .file_jobs import run_file_jobs, upload_content
from .files import FileJobGroup, FileResult
from .jobs import Job, JobGroup
from .local_packages import is_local_source, local_package_name, read_local_package
from .packages import BoardPackages, InstallResult
from .progress import ProgressCallback
from .verb import HasTarget


class PackageJobGroup(FileJobGroup):
    """The same job about packages on several boards.

    Args:
        request: what the server does.
        make_value: makes a result's value from what the server reports about a board.
        progress: called with a board, the bytes that were transferred for it and the total.
        options: how it is run.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        make_value: Callable[[list[Any]], Any],
        progress: ProgressCallback | None = None,
        options: RunOptions = DEFAULT_OPTIONS,
    ) -> None:
        super().__init__((), make_value=make_value, options=options)
        self._request = request
        self._progress = progress
        self._totals: dict[str, int] = {}

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "packages": self._request}

    def on_chunk(self, job: Job, message: wire.Message) -> None:
        """Handle a report of the bytes transferred so far, or of the total."""
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
    """Run a job about packages on all boards of a target, and wait for the results."""
    return await run_file_jobs(boards, PackageJobGroup(request, make_value, progress), target)


@dataclass(frozen=True)
class InstallRequest:
    """What is installed, and how.

    Attributes:
        requirements: as people write them.
        plan_options: the options that the plan depends on.
        change_options: `force`, `dry_run`.
        run_options: whether it waits for its boards.
    """

    requirements: Sequence[str]
    plan_options: Mapping[str, Any]
    change_options: Mapping[str, Any]
    run_options: RunOptions = DEFAULT_OPTIONS


async def install_packages(
    boards: HasTarget,
    request: InstallRequest,
    *,
    target: str = "",
    progress: ProgressCallback | None = None,
) -> tuple[Results, str]:
    """Install packages on all boards; return the results and the text of a lock file.

    Args:
        boards: the boards.
        request: what is installed.
        target: replaces the target of ``boards``.
        progress: see ``PackageVerbs.install``.
    """
    names = {
        text: local_package_name(text) if is_local_source(text) else text
        for text in request.requirements
    }
    if len(set(names.values())) < len(names):
        raise PackageError("two of the requested packages have the same name; install one of them")
    sent = {
        names[text]: await _upload_local_source(boards, text)
        for text in request.requirements
        if is_local_source(text)
    }
    body = {
        "wanted": list(names.values()),
        "sent": sent,
        **request.plan_options,
    }
    indexes = request.plan_options.get("indexes", {})
    body["indexes"] = {alias: config.with_netrc(url) for alias, url in indexes.items()}
    body["target"] = target or boards.target
    if request.run_options.when_online:
        body["when_online"] = True
    plan = await boards.exchange().request("plan", body)
    group = PackageJobGroup(
        {"plan": plan["number"], **request.change_options},
        InstallResult.from_op_results,
        progress,
        request.run_options,
    )
    results = await run_file_jobs(boards, group, target)
    return results, plan["lock"]


async def _upload_local_source(boards: HasTarget, text: str) -> dict[str, str]:
    """Upload a local package's files to the server; return path in the package -> SHA-256."""
    files = read_local_package(text)
    for source in files.values():
        await upload_content(boards.exchange(), source)
    return {name: source.digest for name, source in files.items()}


async def list_packages(boards: HasTarget) -> Results:
    """Return the packages of each board; of boards that are not connected, the server's record."""
    rows = dict(await boards.exchange().request("installed", {"target": boards.target}))
    online = [name for name, row in rows.items() if row["online"]]
    reported = Results({})
    if online:
        reported = await run_package_job(
            boards, {}, BoardPackages.from_op_results, target=fold_names(online)
        )
    return Results(
        {name: reported.get(name) or _recorded_result(name, row) for name, row in rows.items()}
    )


def _recorded_result(name: str, row: Mapping[str, Any]) -> Result:
    if row["confirmed"] is None:
        return FileResult(name, 0, "offline", why=row["absence"])
    return FileResult(name, 0, "ok", text="[]").with_value(BoardPackages.from_record(row))


#: Requirements to upgrade, and the options of their install as JSON.
UpgradeRequest = tuple[tuple[str, ...], str]


def upgrade_requests(packages: BoardPackages, names: Sequence[str]) -> list[UpgradeRequest]:
    """Return the requirements that a board's packages were installed with, grouped by options.

    Packages that were installed from local files are left out.

    Args:
        packages: the packages of the board.
        names: which of them; empty for all that were requested, without their dependencies.

    Raises:
        PackageError: the board does not have a named package.
    """
    names = [find_installed(name, packages) for name in names]
    groups: dict[str, list[str]] = {}
    for name in sorted(names or packages):
        info = packages.upgrade_info.get(name, {})
        if info.get("local") or not (names or "wanted" in info):
            continue
        options = json.dumps(info.get("how", {}), sort_keys=True)
        groups.setdefault(options, []).append(info.get("wanted", name))
    return [(tuple(requirements), options) for options, requirements in groups.items()]


def upgrade_notes(packages: BoardPackages, names: Sequence[str]) -> tuple[str, ...]:
    """Return why an upgrade changes nothing: no packages are installed, or from local files."""
    if not packages:
        return ("no packages are installed",)
    chosen = [find_installed(name, packages) for name in names] or sorted(packages)
    local = [name for name in chosen if packages.upgrade_info.get(name, {}).get("local")]
    if not local:
        return ()
    return (f"packages from local files are not upgraded: {', '.join(local)}",)


def merge_results(before: Result, after: Result) -> Result:
    """Return the combined result of two installs on one board; the first failure, if any."""
    if not before.ok:
        return before
    if not after.ok:
        return after
    return FileResult(before.board, after.job, "ok", text="[]").with_value(
        before.value.merged_with(after.value), before.elapsed + after.elapsed
    )
