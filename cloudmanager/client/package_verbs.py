"""The verbs for boards' packages, written once, as those in verbs.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudmanager import config
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import files, package_jobs
from .file_jobs import ProgressCallback
from .packages import BoardPackages, InstallResult
from .sources import PathLike
from .verbs import HasTarget


class PackageVerbs:
    """What can be done with the packages of a target's boards.

    A board's failure is in its Result; what concerns all of them is raised.
    """

    async def install(
        self: HasTarget,
        *requirements: str,
        file: PathLike | None = None,
        lock: PathLike | None = None,
        locked: bool = False,
        no_mpy: bool = False,
        target_dir: str = "",
        indexes: Mapping[str, str] | None = None,
        force: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Install packages and what they need; boards that have them get nothing.

        The server resolves, fetches and compiles once for all boards; on each of them it is one
        job. A power cut leaves each package wholly old or wholly new, on littlefs.

        Args:
            requirements: such as ``logging@0.6.1``, ``github:OWNER/REPO``, ``pypi:NAME``, a URL,
                ``./FOLDER`` or ``./FILE.py``.
            file: more of them, one to a line, ``#`` begins a comment.
            lock: a file that gets what was installed, to the last byte, if any board has it now.
            locked: install what ``lock`` says, nothing else.
            no_mpy: install sources, compile nothing.
            target_dir: the folder on the boards; else ``/lib``.
            indexes: alias -> URL of more mip indexes; ``""`` takes the default one's place.
            force: overwrite files of other packages and the user's own.
            dry_run: only tell what would be done.
            progress: as of ``put``.

        Returns:
            For each board an ``Installed`` (packages, put, removed, size_bytes, notes …).

        Raises:
            PackageError: there is no such plan; nothing was sent.
            OSError: a file of this machine cannot be read.
        """
        wanted = [*requirements, *(_read_requirements(Path(file)) if file is not None else ())]
        if not wanted and not locked:
            raise PackageError("nothing to install was named")
        path = Path(lock) if lock is not None else None
        options = _lock_options(path, locked)
        options |= {"source_only": no_mpy, "indexes": dict(indexes or {})}
        options |= {"target_dir": target_dir} if target_dir else {}
        how = {"force": force, "dry_run": dry_run}
        results, text = await package_jobs.install_packages(
            self, wanted, options, how, progress=progress
        )
        if path and not locked and not dry_run and any(result.ok for result in results.values()):
            _write_lock(path, text)
        return results

    async def uninstall(
        self: HasTarget, *packages: str, force: bool = False, dry_run: bool = False
    ) -> Results:
        """Take packages off; ``force``: even where others need them.

        Returns:
            For each board an ``Installed``, whose ``removed`` are the files that went.
        """
        names = [
            package_jobs.local_package_name(n) if package_jobs.is_local_source(n) else n
            for n in packages
        ]
        asked = {"remove": names, "force": force, "dry_run": dry_run}
        return await package_jobs.run_package_job(self, asked, InstallResult.from_op_results)

    async def packages(self: HasTarget) -> Results:
        """Return what each board has: ``Packages``, name -> version.

        Of boards that are not there, what the server recorded of them (``as_of``). ``drift``
        says where a board's files are not what was installed.
        """
        return await package_jobs.list_packages(self)

    async def upgrade(
        self: HasTarget,
        *packages: str,
        force: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Install the newest of what each board was asked to have; all of it, unless named.

        Each with the options that it was installed with. What came from a file or folder of
        this machine stays as it is.
        """
        have = await package_jobs.run_package_job(self, {}, BoardPackages.from_op_results)
        results: dict[str, Result] = {}
        wishes: dict[str, list[package_jobs.UpgradeRequest]] = {}
        for name, result in have.items():
            results[name] = result
            if result.ok:
                try:
                    wishes[name] = package_jobs.upgrade_requests(result.value, packages)
                    notes = package_jobs.local_package_notes(result.value, packages)
                    value = InstallResult({}, (), (), 0, notes=notes)
                    results[name] = files.empty_result(name).with_value(value)
                except PackageError as error:
                    results[name] = files.failed_result(name, error)
        how = {"force": force, "dry_run": dry_run}
        for wanted, options, names in _group_by_request(wishes):
            done, _ = await package_jobs.install_packages(
                self, wanted, options, how, target=fold_names(names), progress=progress
            )
            for name, result in done.items():
                results[name] = package_jobs.merge_results(results[name], result)
        return Results(results, have.left_out)


def _lock_options(lock: Path | None, locked: bool) -> dict[str, Any]:
    """Return what a plan is told of a lock."""
    known = lock is not None and (locked or lock.exists())
    text = lock.read_text(encoding="utf-8") if lock and known else None
    return {"lock": text, "locked": locked}


def _group_by_request(
    requests: Mapping[str, Sequence[package_jobs.UpgradeRequest]],
) -> list[tuple[tuple[str, ...], dict[str, Any], list[str]]]:
    """Return each wish with its options, and the boards that have it."""
    found: dict[package_jobs.UpgradeRequest, list[str]] = {}
    for name, several in requests.items():
        for wish in several:
            found.setdefault(wish, []).append(name)
    return [(wanted, json.loads(options), names) for (wanted, options), names in found.items()]


def _read_requirements(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for text in lines if (line := text.partition(" #")[0].strip()) and line[0] != "#"]


def _write_lock(path: Path, text: str) -> None:
    """Write a lock, so that one that is there is replaced by a whole one or not at all."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe, or a terminal
    else:
        config.write_whole(path.resolve(), text)
