"""Plans of installs, and the contents they name: what the rest of the server calls.

packages = Packages(home / "packages")
plan = await packages.plan(["logging@0.6.1"], mpys=[0x2806])
for file in plan.files[0x2806]:
content = await packages.content(file.sha256)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from . import lock as locks
from .cache import PackageCache
from .compiler import Bytecode, CompileFailed, Compiler
from .direct_sources import SentFilesSource, UrlSource
from .forge import ForgeSource
from .http_fetcher import HttpFetcher, without_credentials
from .index import IndexSource
from .install_paths import TARGET_DIR, check_folder, other_form
from .package_files import PackageFiles, gather_or_cancel
from .plan import InstallPlan, PlannedFile, check_clash, check_sizes, place_files
from .pypi import PipSettings, PyPISource, read_pip_settings
from .release import Release
from .requirement import FORGE_NAMES, parse_requirement
from .resolve import KnownReleases, NotKnownYet, find_missing, resolve
from .source_settings import SourceSettings


@dataclass(frozen=True)
class PlanRequest:
    """What is wanted, and how.

    Attributes:
        wanted: requirements, as people type them.
        target_dir: the folder on the boards.
        mpys: what the boards tell as their `mpy`.
        source_only: compile nothing.
        indexes: more indexes, or another default one (""): whoever asks chose them.
        sent: his own files, by the requirement that means them and their paths.
        lock: a lock file's text: what was installed before.
        locked: install that, and nothing else.
        force: let files hide MicroPython's own modules.
        trusted: whether `indexes` may be private, since an administrator named them.
    """

    wanted: Sequence[str]
    target_dir: str = TARGET_DIR
    mpys: Iterable[int] = ()
    source_only: bool = False
    indexes: Mapping[str, str] = field(default_factory=dict)
    sent: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    lock: str | None = None
    locked: bool = False
    force: bool = False
    trusted: bool = False


class PackagePlanner:
    """Makes plans.

    Args:
        folder: where the cache is.
        settings: where packages come from.

    Call from the server's loop: what takes time is done in threads and processes.
    """

    def __init__(self, folder: Path, settings: SourceSettings | None = None) -> None:
        self.settings = settings or SourceSettings()
        self.cache = PackageCache(folder)
        self.compiler = Compiler(self.cache)
        self.fetcher = HttpFetcher()
        self._pip_task: asyncio.Task[PipSettings] | None = None

    async def make_plan(self, wanted: Sequence[str], **options: Any) -> InstallPlan:
        """Return what an install does; all contents that it names are in the cache then.

        Args:
            wanted: requirements, as people type them.
            options: the other attributes of `Wishes`.

        Raises:
            PackageError: it cannot be: one sentence says why.
        """
        try:
            return await asyncio.wait_for(
                _PlanBuilder(self, PlanRequest(wanted, **options)).build(), limits.PLAN_SECONDS
            )
        except TimeoutError:
            raise PackageError(
                f"making the plan took longer than {limits.PLAN_SECONDS:g} s"
            ) from None

    async def read_content(self, name: str) -> bytes:
        """Return a file's content by its SHA-256.

        Raises:
            PackageError: it is not here any more.
        """
        content = await asyncio.to_thread(self.cache.get, name)
        if content is None:
            raise PackageError(f"the content {name[:12]} is not in the cache any more; plan anew")
        return content

    async def pip_settings(self) -> PipSettings:
        """Return pip's index and certificates; pip is asked once."""
        if self.settings.pypi is not None:
            return PipSettings(self.settings.pypi, "")
        if self._pip_task is None or self._pip_task.cancelled():
            self._pip_task = asyncio.ensure_future(read_pip_settings())
        return await asyncio.shield(self._pip_task)


class _PlanBuilder:
    """One plan in the making: what was fetched for it is the same for all of it."""

    def __init__(self, planner: PackagePlanner, request: PlanRequest) -> None:
        self._planner = planner
        self._request = request
        self._boards = {mpy: Bytecode.from_mpy(mpy) for mpy in sorted(set(request.mpys))}
        self._folder = check_folder(request.target_dir)
        self._wanted = [parse_requirement(text, frozenset(request.sent)) for text in request.wanted]
        web, settings = planner.fetcher, planner.settings
        self._index = IndexSource(
            web,
            {**settings.indexes, **request.indexes},
            frozenset(settings.indexes.values())
            | frozenset(request.indexes.values() if request.trusted else ()),
            {board.major for board in self._boards.values() if board.major},
        )
        self._forges = ForgeSource(web, settings.forges)
        self._addresses = UrlSource(web, self._forges)
        self._sent_files = SentFilesSource(request.sent, planner.cache, self._forges)
        self._pypi: PyPISource | None = None
        self._package_files = PackageFiles(
            web, planner.cache, self._trusted_url, self._fetch_archive, request.sent
        )
        self._notes: list[str] = []

    async def build(self) -> InstallPlan:
        lock = locks.load(self._request.lock) if self._request.lock else None
        if self._request.locked:
            releases = self._locked_releases(lock)
        else:
            releases = await self._resolve_releases()
        releases = await gather_or_cancel(
            [self._package_files.fetch_release(release) for release in releases]
        )
        check_sizes(releases)
        if lock and not self._request.locked:
            named = locks.find_pinned_keys(self._wanted, releases)
            self._notes += locks.compare_releases(lock.releases, releases, named)
        for release in releases:
            self._notes += release.notes
        sources = place_files(releases, self._folder, force=self._request.force)
        files = {
            mpy: await self._board_files(sources, board) for mpy, board in self._boards.items()
        }
        notes = tuple(dict.fromkeys(self._notes))
        wanted = lock.wanted if lock and self._request.locked else tuple(self._request.wanted)
        origins = {release.key: self._describe_origin(release) for release in releases}
        return InstallPlan(wanted, self._folder, tuple(releases), files, notes, origins)

    def _describe_origin(self, release: Release) -> str:
        """Say where a release comes from, for a person; without what opens it."""
        wish = release.requirement
        if wish.source == "index":
            return (
                without_credentials(self._index.url(wish))
                if self._index.has_index(wish)
                else "the lock"
            )
        named = {"local": "the caller's own files", "pypi": "the index that pip is set to"}
        return named.get(wish.source, str(release))

    def _locked_releases(self, lock: locks.LockFile | None) -> list[Release]:
        if lock is None:
            raise PackageError("there is no lock to keep to")
        if self._request.wanted and sorted(self._request.wanted) != sorted(lock.wanted):
            raise PackageError(
                f"the lock is for {', '.join(lock.wanted)}; install without it to make it anew"
            )
        return list(lock.releases)

    async def _resolve_releases(self) -> list[Release]:
        """Find out, side by side, until the resolver has all that it needs."""
        known = KnownReleases()
        while True:
            while missing := find_missing(self._wanted, known):
                await gather_or_cancel([self._load_missing(one, known) for one in missing])
            try:
                return await asyncio.to_thread(resolve, self._wanted, known)
            except NotKnownYet as one:
                await self._load_missing(one, known)

    async def _load_missing(self, missing: NotKnownYet, known: KnownReleases) -> None:
        wish, version = missing.requirement, missing.version
        source = await self._get_source(wish.source)
        if version is None:
            known.versions[wish] = await source.versions(wish)
            return
        release: Release = await source.load(wish, version)
        if len(known.releases) >= limits.PACKAGES * 4:
            raise PackageError(f"this needs more than {limits.PACKAGES} packages")
        known.releases[wish.key, version] = replace(
            release, requirement=replace(wish, version=""), version=version or release.version
        )

    async def _get_source(self, name: str) -> Any:
        if name == "pypi":
            if self._pypi is None:
                pip = await self._planner.pip_settings()
                web = HttpFetcher(pip.cert) if pip.cert else self._planner.fetcher
                self._pypi = PyPISource(web, self._planner.cache, pip.url)
            return self._pypi
        known = {"index": self._index, "url": self._addresses, "local": self._sent_files}
        return known.get(name, self._forges)

    def _trusted_url(self, release: Release, url: str) -> str:
        """Return the configured source that a release's URL belongs to, "" for none."""
        if release.requirement.source == "index":
            return self._index.trusted_url(release.requirement)
        if release.requirement.source in FORGE_NAMES:
            return self._forges.trusted_url(release.requirement, url)
        return ""

    async def _fetch_archive(self, release: Release) -> bytes:
        pypi: PyPISource = await self._get_source("pypi")
        return await pypi.fetch_archive(release.requirement, release.version)

    async def _board_files(
        self, sources: list[PlannedFile], board: Bytecode
    ) -> tuple[PlannedFile, ...]:
        """Return the files for one kind of board: bytecode where it can be had."""
        wanted = board.major and not self._request.source_only
        works = [self._compile_file(file, board if wanted else None) for file in sources]
        files = await gather_or_cancel(works)
        found = {file.path: file for file in files}
        if len(found) < len(files):
            check_clash({file.path: file for file in sources})
        check_clash(found)
        return tuple(sorted(found.values()))

    async def _compile_file(self, file: PlannedFile, board: Bytecode | None) -> PlannedFile:
        if file.path.endswith(".mpy"):
            content = await self._planner.read_content(file.sha256)
            if board and not board.can_run(content):
                raise PackageError(
                    f"{file.package}: {file.path} is bytecode that a board with {board} cannot run"
                )
            return file
        compiled = other_form(file.path)
        if board is None or compiled is None or not file.size:
            return file
        content = await self._planner.read_content(file.sha256)
        try:
            name = await self._planner.compiler.compile(content, file.path, board)
        except CompileFailed as error:
            self._notes.append(f"{file.path} {error}; its source is installed")
            return file
        size = len(await self._planner.read_content(name))
        return replace(file, path=compiled, sha256=name, size=size)
