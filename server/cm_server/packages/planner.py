"""Make install plans: the interface of this package to the rest of the server.

planner = PackagePlanner(home / "packages", Limits())
plan = await planner.make_plan(["logging@0.6.1"], mpys=[0x2806])
for file in plan.files[0x2806]:
    content = await planner.read_content(file.sha256)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloudmanager import config
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import FORGE_NAMES
from cloudmanager.protocol.text_encodings import decode_text, has_mark
from cm_server.limits import Limits

from . import lock as locks
from .cache import PackageCache, TokenCache, sha256
from .compiler import Bytecode, CompileFailed, Compiler
from .direct_sources import SentFilesSource, UrlSource
from .forge import ForgeSource
from .http_fetcher import NO_ACCESS, HttpFetcher, OriginAccess
from .index import IndexSource
from .install_paths import TARGET_DIR, check_folder, other_form
from .package_files import PackageFiles, gather_or_cancel
from .plan import InstallPlan, PlannedFile, check_clash, check_sizes, place_files
from .pypi import PipSettings, PyPISource, read_pip_settings
from .release import Release
from .requirement import parse_requirement
from .resolve import KnownReleases, NotKnownYet, find_missing, resolve
from .source_settings import SourceSettings


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
        wanted: the requirements, as the user gave them.
        target_dir: the folder on the boards.
        mpys: the kinds of bytecode of the boards, as in their fact `mpy`.
        source_only: whether to install sources instead of bytecode.
        indexes: further indexes by alias, chosen by the caller; "" replaces the default one.
        sent: files that the caller sent: requirement -> path -> content.
        lock: the text of a lock file, to compare with or, if `locked`, to install.
        locked: whether to install exactly what is in the lock file.
        trusted: whether `indexes` may be private, since the caller is an administrator.
        owner: identifies the caller's token, which may use cached contents that it had before.
    """

    wanted: Sequence[str]
    target_dir: str = TARGET_DIR
    mpys: Iterable[int] = ()
    source_only: bool = False
    indexes: Mapping[str, str] = field(default_factory=dict)
    sent: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    lock: str | None = None
    locked: bool = False
    trusted: bool = False
    owner: str = ""


class PackagePlanner:
    """Makes install plans.

    Call it from the server's event loop; blocking work is done in threads and processes.

    Args:
        folder: the folder of the cache.
        limits: of packages, and of fetching and compiling them.
        settings: where packages come from.
        fetcher: requests documents; others may use it too.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        settings: SourceSettings | None = None,
        fetcher: HttpFetcher | None = None,
    ) -> None:
        self.limits = limits
        self.settings = settings or SourceSettings()
        self.cache = PackageCache(folder, limits.package_cache_bytes)
        self.compiler = Compiler(self.cache, limits)
        self.fetcher = fetcher or HttpFetcher(limits)
        self._pip_task: asyncio.Task[PipSettings] | None = None

    async def make_plan(self, wanted: Sequence[str], **options: Any) -> InstallPlan:
        """Resolve requirements, fetch and compile their files; the contents are in the cache then.

        Args:
            wanted: the requirements, as the user gave them.
            options: the other attributes of `PlanRequest`.

        Raises:
            PackageError: the requirements cannot be fulfilled.
        """
        try:
            return await asyncio.wait_for(
                _PlanBuilder(self, PlanRequest(wanted, **options)).build(),
                self.limits.plan_seconds,
            )
        except TimeoutError:
            raise PackageError(
                f"planning the install took longer than {self.limits.plan_seconds:g} s"
            ) from None

    async def read_content(self, digest: str) -> bytes:
        """Return the content of a planned file by its SHA-256.

        Raises:
            PackageError: it was removed from the cache.
        """
        content = await asyncio.to_thread(self.cache.get, digest)
        if content is None:
            raise PackageError(
                f"the content {digest[:12]} is no longer in the server's cache; install again"
            )
        return content

    async def pip_settings(self) -> PipSettings:
        """Return the index and the certificates of pip's configuration, which is read once."""
        if self.settings.pypi is not None:
            return PipSettings(self.settings.pypi, "")
        if self._pip_task is None or self._pip_task.cancelled():
            self._pip_task = asyncio.ensure_future(read_pip_settings())
        return await asyncio.shield(self._pip_task)


def _configured_source(url: str) -> OriginAccess:
    """Return the access to a source that an administrator configured.

    If its URL has no user name, that of the server's own ``.netrc`` is used, as pip does.
    """
    return OriginAccess.to_source(config.with_netrc(url), may_be_private=True)


class _PlanBuilder:
    """Makes one plan; documents that several packages need are fetched once."""

    def __init__(self, planner: PackagePlanner, request: PlanRequest) -> None:
        self._planner = planner
        self._limits = planner.limits
        self._request = request
        self._boards = {mpy: Bytecode.from_mpy(mpy) for mpy in sorted(set(request.mpys))}
        self._folder = check_folder(request.target_dir)
        self._wanted = [parse_requirement(text, frozenset(request.sent)) for text in request.wanted]
        fetcher = planner.fetcher
        settings = planner.settings
        configured = {alias: _configured_source(url) for alias, url in settings.indexes.items()}
        by_url = {access.url: access for access in configured.values()}
        chosen = {
            alias: by_url.get(url) or OriginAccess.to_source(url, may_be_private=request.trusted)
            for alias, url in request.indexes.items()
        }
        self._index = IndexSource(
            fetcher,
            {**configured, **chosen},
            {board.major for board in self._boards.values() if board.major},
        )
        self._forges = ForgeSource(fetcher, settings.forges)
        self._urls = UrlSource(fetcher, self._forges)
        self._cache = TokenCache(planner.cache, request.owner)
        self._sent_files = SentFilesSource(
            request.sent, self._cache, self._forges, planner.limits.package_files
        )
        self._pypi: PyPISource | None = None
        self._package_files = PackageFiles(
            fetcher, self._cache, self._access, self._fetch_archive, request.sent
        )
        self._notes: list[str] = []

    async def build(self) -> InstallPlan:
        """Resolve, fetch, compare with the lock file, check the paths, and compile."""
        lock = locks.load(self._request.lock, self._limits) if self._request.lock else None
        if self._request.locked:
            releases = self._locked_releases(lock)
        else:
            releases = await self._resolve_releases()
        releases = await gather_or_cancel(
            [self._package_files.fetch_release(release) for release in releases]
        )
        check_sizes(releases, self._limits)
        if lock and not self._request.locked:
            pinned_keys = locks.find_pinned_keys(self._wanted, releases)
            self._notes += locks.compare_releases(lock.releases, releases, pinned_keys)
        for release in releases:
            self._notes += release.notes
        placed = place_files(releases, self._folder)
        self._notes += placed.notes
        files = {
            mpy: await self._board_files(placed.files, board) for mpy, board in self._boards.items()
        }
        notes = tuple(dict.fromkeys(self._notes))
        wanted = lock.wanted if lock and self._request.locked else tuple(self._request.wanted)
        origins = {release.key: self._describe_origin(release) for release in releases}
        return InstallPlan(wanted, self._folder, tuple(releases), files, notes, origins)

    def _describe_origin(self, release: Release) -> str:
        """Return where a release comes from, for the user."""
        requirement = release.requirement
        if requirement.source == "index":
            if not self._index.has_index(requirement):
                return "the lock"
            return self._index.url(requirement)
        names = {"local": "the caller's own files", "pypi": "the index that pip is set to"}
        return names.get(requirement.source, str(release))

    def _locked_releases(self, lock: locks.LockFile | None) -> list[Release]:
        """Return the releases of the lock file.

        Raises:
            PackageError: there is no lock file, or it was made for other requirements.
        """
        if lock is None:
            raise PackageError("an install from a lock file needs the lock file")
        if self._request.wanted and sorted(self._request.wanted) != sorted(lock.wanted):
            raise PackageError(
                f"the lock file is for {', '.join(lock.wanted)}; "
                "install without it to write a new one"
            )
        return list(lock.releases)

    async def _resolve_releases(self) -> list[Release]:
        """Return the releases to install; load those that the resolver needs, concurrently."""
        known = KnownReleases()
        while True:
            while missing := find_missing(self._wanted, known, self._limits.packages):
                await gather_or_cancel([self._load_missing(each, known) for each in missing])
            try:
                return await asyncio.to_thread(resolve, self._wanted, known, self._limits)
            except NotKnownYet as missing_one:  # after a conflict: an older version
                await self._load_missing(missing_one, known)

    async def _load_missing(self, missing: NotKnownYet, known: KnownReleases) -> None:
        """Load the versions of a requirement, or one release, and add them to ``known``."""
        requirement = missing.requirement
        version = missing.version
        source = await self._get_source(requirement.source)
        if version is None:
            known.versions[requirement] = await source.versions(requirement)
            return
        release: Release = await source.load(requirement, version)
        if len(known.releases) >= self._limits.packages * 4:
            raise PackageError(f"the install needs more than {self._limits.packages} packages")
        known.releases[requirement.key, version] = replace(
            release,
            requirement=replace(requirement, version=""),
            version=version or release.version,
        )

    async def _get_source(self, name: str) -> Any:
        """Return the source of a requirement, which has the methods `versions` and `load`."""
        if name == "pypi":
            if self._pypi is None:
                pip = await self._planner.pip_settings()
                fetcher = HttpFetcher(self._limits, pip.cert) if pip.cert else self._planner.fetcher
                self._pypi = PyPISource(fetcher, self._cache, _configured_source(pip.url))
            return self._pypi
        sources = {"index": self._index, "url": self._urls, "local": self._sent_files}
        return sources.get(name, self._forges)

    def _access(self, release: Release, url: str) -> OriginAccess:
        """Return the access to the source that a URL of a release belongs to."""
        if release.requirement.source == "index":
            return self._index.access(release.requirement)
        if release.requirement.source in FORGE_NAMES:
            return self._forges.access(release.requirement, url)
        return NO_ACCESS

    async def _fetch_archive(self, release: Release) -> bytes:
        pypi: PyPISource = await self._get_source("pypi")
        return await pypi.fetch_archive(release.requirement, release.version)

    async def _board_files(
        self, sources: list[PlannedFile], board: Bytecode
    ) -> tuple[PlannedFile, ...]:
        """Return the files for one kind of board: bytecode if there is any, else sources."""
        compiles = board.major and not self._request.source_only
        files = await gather_or_cancel(
            [self._compile_file(file, board if compiles else None) for file in sources]
        )
        by_path = {file.path: file for file in files}
        if len(by_path) < len(files):  # a package has a module as source and as bytecode
            check_clash({file.path: file for file in sources})
        check_clash(by_path)
        return tuple(sorted(by_path.values()))

    async def _compile_file(self, file: PlannedFile, board: Bytecode | None) -> PlannedFile:
        """Return the bytecode of a file, or the file itself if it has none.

        Args:
            file: a source, bytecode or data.
            board: the board's kind of bytecode; None to compile nothing.

        Raises:
            PackageError: the file is bytecode that the board cannot run.
        """
        if file.path.endswith(".mpy"):
            content = await self._planner.read_content(file.sha256)
            if board and not board.can_run(content):
                raise PackageError(
                    f"{file.package}: {file.path} is bytecode that a board with {board} cannot run"
                )
            return file
        compiled_path = other_form(file.path)
        if compiled_path is None or not file.size:
            return file
        content = await self._planner.read_content(file.sha256)
        if has_mark(content):  # MicroPython takes it for a part of the first name
            try:
                content = decode_text(content).encode()
            except UnicodeDecodeError:
                raise PackageError(f"{file.package}: {file.path} is not UTF-8 text") from None
            await asyncio.to_thread(self._planner.cache.put, content)
            file = replace(file, sha256=sha256(content), size=len(content))
        if board is None:
            return file
        try:
            digest = await self._planner.compiler.compile(content, file.path, board)
        except CompileFailed as error:
            self._notes.append(f"{file.path} {error}; its source is installed")
            return file
        size = len(await self._planner.read_content(digest))
        return replace(file, path=compiled_path, sha256=digest, size=size)
