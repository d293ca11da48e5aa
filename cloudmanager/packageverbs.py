"""The verbs for boards' packages, written once, as those in verbs.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files, installs
from .errors import PackageError
from .filejobs import Progress, alike, together
from .results import Result, Results
from .sources import PathLike
from .text import fold
from .verbs import Targeted


class PackageVerbs:
    """What can be done with the packages of a target's boards.

    A board's failure is in its Result; what concerns all of them is raised.
    """

    async def install(
        self: Targeted,
        *requirements: str,
        file: PathLike | None = None,
        lock: PathLike | None = None,
        locked: bool = False,
        no_mpy: bool = False,
        target_dir: str = "",
        indexes: Mapping[str, str] | None = None,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Results:
        """Install packages and what they need; boards that have them get nothing.

        The server resolves, fetches and compiles once for all boards. A power cut leaves each
        package wholly old or wholly new, on littlefs.

        Args:
            requirements: such as ``logging@0.6.1``, ``github:OWNER/REPO``, ``pypi:NAME``, a URL,
                ``./FOLDER`` or ``./FILE.py``.
            file: more of them, one to a line, ``#`` begins a comment.
            lock: a file that gets what was installed, to the last byte.
            locked: install what ``lock`` says, nothing else.
            no_mpy: install sources, compile nothing.
            target_dir: the folder on the boards; else ``/lib``.
            indexes: alias -> URL of more mip indexes; ``""`` takes the default one's place.
            force: overwrite files of other packages and the user's own.
            dry_run: only tell what would be done.
            progress: as of ``put``.

        Returns:
            For each board an ``Installed`` (packages, put, removed, size_bytes).

        Raises:
            PackageError: there is no such plan; nothing was sent.
            OSError: a file of this machine cannot be read.
        """
        wanted = [*requirements, *(_requirements(Path(file)) if file is not None else ())]
        path = Path(lock) if lock is not None else None
        before = path.read_text(encoding="utf-8") if path and (locked or path.exists()) else None
        if not wanted and not locked:
            raise PackageError("nothing to install was named")
        options: dict[str, Any] = {
            "source_only": no_mpy,
            "indexes": dict(indexes or {}),
            "lock": before,
            "locked": locked,
            "force": force,
        }
        if target_dir:
            options["target_dir"] = target_dir
        results, told = await installs.install(
            self, wanted, options, dry_run=dry_run, progress=progress
        )
        if path and not locked and not dry_run:
            path.write_text(told["lock"], encoding="utf-8")
        return results

    async def uninstall(
        self: Targeted, *packages: str, force: bool = False, dry_run: bool = False
    ) -> Results:
        """Take packages off; ``force``: even where others need them.

        Returns:
            For each board an ``Installed``, whose ``removed`` are the files that went.
        """
        return await installs.uninstall(self, packages, force=force, dry_run=dry_run)

    async def packages(self: Targeted) -> Results:
        """Return what each board has: package -> version."""
        state = await installs.finish(self, self.target)
        well = [name for name, result in state.items() if result.ok]
        results: dict[str, Result] = dict(state)
        for name, record in (await installs.records(self, fold(well)) if well else {}).items():
            if isinstance(record, Exception):
                results[name] = files.failed(name, record)
            else:
                versions = {key: told["version"] for key, told in record.items()}
                results[name] = files.nothing(name).with_value(versions)
        return Results(results, state.left_out)

    async def upgrade(
        self: Targeted,
        *packages: str,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Results:
        """Install the newest of what each board was asked to have; all of it, unless named.

        What came from a file or folder of this machine stays as it is.
        """
        state = await installs.finish(self, self.target)
        well = [name for name, result in state.items() if result.ok]
        have = await installs.records(self, fold(well)) if well else {}
        results: dict[str, Result] = dict(state)
        wishes: dict[str, tuple[str, ...]] = {}
        for name, record in have.items():
            try:
                wishes[name] = installs.wishes_of(record, packages)
            except (PackageError, OSError) as error:
                results[name] = files.failed(name, error)
        works = {wanted: names for names, wanted in alike(wishes) if wanted}
        results.update({n: files.nothing(n) for n, wanted in wishes.items() if not wanted})
        done = await together(
            *(
                installs.install(
                    installs.Some(self.exchange, fold(names)),
                    wanted,
                    {"force": force},
                    dry_run=dry_run,
                    progress=progress,
                )
                for wanted, names in works.items()
            )
        )
        for part, _ in done:
            results.update(part)
        return Results(results, state.left_out)


def _requirements(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for text in lines if (line := text.partition(" #")[0].strip()) and line[0] != "#"]
