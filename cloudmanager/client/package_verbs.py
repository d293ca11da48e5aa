"""The verbs for boards' packages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from cloudmanager import config
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.run_options import WaitKeywords
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import files, package_jobs
from .file_jobs import run_file_jobs
from .install_options import InstallKeywords, InstallOptions
from .keywords import show_keywords, wait_keywords
from .local_packages import is_local_source, local_package_name
from .packages import BoardPackages, InstallResult
from .progress import ProgressCallback
from .sources import resolve_links
from .text_files import read_text
from .verb import HasTarget, verb
from .waiting import wait_options


class PackageVerbs(HasTarget):
    """Operations on the packages of a target's boards.

    A board's failure is in its Result; an error that concerns all boards is raised.
    """

    @verb
    @show_keywords(InstallKeywords, InstallOptions)
    async def install(
        self,
        *requirements: str,
        progress: ProgressCallback | None = None,
        **options: Unpack[InstallKeywords],
    ) -> Results:
        """Install packages and their dependencies; files that a board has already are not sent.

        The server resolves, fetches and compiles once for all boards; the install is one job on
        each board. On littlefs, a power cut leaves each package completely old or completely new.

        Args:
            requirements: such as ``logging@0.6.1``, ``github:OWNER/REPO``, ``pypi:NAME``, a URL,
                ``./FOLDER``, ``./FILE.py``, ``./package.json`` or ``./manifest.py``.
            progress: called with a board, the bytes transferred for it and the total; see
                ``ProgressCallback``.
            options: see ``InstallOptions``.

        Returns:
            For each board, an ``InstallResult`` (packages, put, removed, size_bytes, notes …). With
            ``when_online``, results with the status ``waiting``.

        Raises:
            PackageError: the packages cannot be resolved or fetched; nothing was sent.
            OSError: a local file cannot be read.
        """
        install = InstallOptions(**options)
        waits = WaitKeywords(when_online=install.when_online, expires=install.expires)
        run_options = wait_options(waits)
        wanted = list(requirements)
        if install.file is not None:
            wanted += _read_requirements(Path(install.file))
        if not wanted and not install.locked:
            raise PackageError("no package to install was named")
        changes = {"force": install.force, "dry_run": install.dry_run}
        request = package_jobs.InstallRequest(wanted, install.plan_options(), changes, run_options)
        results, lock_text = await package_jobs.install_packages(self, request, progress=progress)
        changed = any(result.ok for result in results.values()) and not install.dry_run
        if install.lock is not None and not install.locked and changed:
            _write_lock(Path(install.lock), lock_text)
        return results

    @verb
    @wait_keywords
    async def uninstall(
        self,
        *packages: str,
        force: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
        **options: Unpack[WaitKeywords],
    ) -> Results:
        """Uninstall packages; with ``force``, even if others need them.

        Args:
            packages: their names.
            force: whether to uninstall packages that others need.
            dry_run: only return what would be done.
            progress: see ``install``.
            options: see ``RunOptions``.

        Returns:
            For each board, an ``InstallResult``; ``removed`` are the files that were deleted.
        """
        names = [local_package_name(text) if is_local_source(text) else text for text in packages]
        request = {"remove": names, "force": force, "dry_run": dry_run}
        group = package_jobs.PackageJobGroup(
            request, InstallResult.from_op_results, progress, wait_options(options)
        )
        return await run_file_jobs(self, group)

    @verb
    async def packages(self) -> Results:
        """Return the packages of each board: ``BoardPackages``, name -> version.

        For boards that are not connected, this is the server's record (``as_of``). ``drift`` lists
        files that differ from what was installed.
        """
        return await package_jobs.list_packages(self)

    @verb
    async def upgrade(
        self,
        *packages: str,
        force: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Install the newest versions of the named packages; without names, of all.

        Each is installed with the same options as before. Packages that were installed from a
        local file or folder are not upgraded.
        """
        installed = await package_jobs.run_package_job(self, {}, BoardPackages.from_op_results)
        results: dict[str, Result] = {}
        requests: dict[str, list[package_jobs.UpgradeRequest]] = {}
        for name, result in installed.items():
            results[name] = result
            if result.ok:
                try:
                    requests[name] = package_jobs.upgrade_requests(result.value, packages)
                    notes = package_jobs.upgrade_notes(result.value, packages)
                    value = InstallResult({}, (), (), 0, notes=notes)
                    results[name] = files.empty_result(name).with_value(value)
                except PackageError as error:
                    results[name] = files.failed_result(name, error)
        change_options = {"force": force, "dry_run": dry_run}
        for requirements, options, names in _group_by_request(requests):
            request = package_jobs.InstallRequest(requirements, options, change_options)
            upgraded, _ = await package_jobs.install_packages(
                self, request, target=fold_names(names), progress=progress
            )
            for name, result in upgraded.items():
                results[name] = package_jobs.merge_results(results[name], result)
        return Results(results, installed.left_out)


def _group_by_request(
    requests: Mapping[str, Sequence[package_jobs.UpgradeRequest]],
) -> list[tuple[tuple[str, ...], dict[str, Any], list[str]]]:
    """Return requirements and options of each different request, and the boards that need it."""
    boards_by_request: dict[package_jobs.UpgradeRequest, list[str]] = {}
    for name, board_requests in requests.items():
        for request in board_requests:
            boards_by_request.setdefault(request, []).append(name)
    return [
        (requirements, json.loads(options), names)
        for (requirements, options), names in boards_by_request.items()
    ]


def _read_requirements(path: Path) -> list[str]:
    requirements = []
    for line in read_text(path).splitlines():
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            requirements.append(text)
    return requirements


def _write_lock(path: Path, text: str) -> None:
    """Write a lock file; an existing one is replaced completely or not at all."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # such as a pipe or a terminal
    else:
        config.write_whole(resolve_links(path), text)
