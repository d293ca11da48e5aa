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
from .cache import Cache
from .compiler import Bytecode, Compiler, NotCompiled
from .direct_sources import Addresses, Sent
from .forge import Forges
from .http_fetcher import Web, shown
from .index import Index
from .install_paths import TARGET_DIR, check_dir, twin
from .package_files import Contents, side_by_side
from .plan import File, Plan, check_clash, check_sizes, placed
from .pypi import Pip, PyPI, configured
from .release import Release
from .requirement import FORGES, parse
from .resolve import Known, Unknown, frontier, resolve
from .source_settings import Settings


@dataclass(frozen=True)
class Wishes:
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


class Packages:
    """Makes plans.

    Args:
        folder: where the cache is.
        settings: where packages come from.

    Call from the server's loop: what takes time is done in threads and processes.
    """

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.cache = Cache(folder)
        self.compiler = Compiler(self.cache)
        self.web = Web()
        self._pip: asyncio.Task[Pip] | None = None

    async def plan(self, wanted: Sequence[str], **how: Any) -> Plan:
        """Return what an install does; all contents that it names are in the cache then.

        Args:
            wanted: requirements, as people type them.
            how: the other attributes of `Wishes`.

        Raises:
            PackageError: it cannot be: one sentence says why.
        """
        try:
            return await asyncio.wait_for(
                _Planning(self, Wishes(wanted, **how)).plan(), limits.PLAN_SECONDS
            )
        except TimeoutError:
            raise PackageError(
                f"making the plan took longer than {limits.PLAN_SECONDS:g} s"
            ) from None

    async def content(self, name: str) -> bytes:
        """Return a file's content by its SHA-256.

        Raises:
            PackageError: it is not here any more.
        """
        content = await asyncio.to_thread(self.cache.get, name)
        if content is None:
            raise PackageError(f"the content {name[:12]} is not in the cache any more; plan anew")
        return content

    async def pip(self) -> Pip:
        """Return pip's index and certificates; pip is asked once."""
        if self.settings.pypi is not None:
            return Pip(self.settings.pypi, "")
        if self._pip is None or self._pip.cancelled():
            self._pip = asyncio.ensure_future(configured())
        return await asyncio.shield(self._pip)


class _Planning:
    """One plan in the making: what was fetched for it is the same for all of it."""

    def __init__(self, packages: Packages, wishes: Wishes) -> None:
        self._packages = packages
        self._wishes = wishes
        self._boards = {mpy: Bytecode.of(mpy) for mpy in sorted(set(wishes.mpys))}
        self._folder = check_dir(wishes.target_dir)
        self._wanted = [parse(text, frozenset(wishes.sent)) for text in wishes.wanted]
        web, settings = packages.web, packages.settings
        self._index = Index(
            web,
            {**settings.indexes, **wishes.indexes},
            frozenset(settings.indexes.values())
            | frozenset(wishes.indexes.values() if wishes.trusted else ()),
            {board.major for board in self._boards.values() if board.major},
        )
        self._forges = Forges(web, settings.forges)
        self._addresses = Addresses(web, self._forges)
        self._given = Sent(wishes.sent, packages.cache, self._forges)
        self._pypi: PyPI | None = None
        self._contents = Contents(web, packages.cache, self._own, self._archive, wishes.sent)
        self._notes: list[str] = []

    async def plan(self) -> Plan:
        lock = locks.load(self._wishes.lock) if self._wishes.lock else None
        if self._wishes.locked:
            releases = self._locked(lock)
        else:
            releases = await self._resolved()
        releases = await side_by_side([self._contents.bring(release) for release in releases])
        check_sizes(releases)
        if lock and not self._wishes.locked:
            named = locks.named(self._wanted, releases)
            self._notes += locks.compare(lock.releases, releases, named)
        for release in releases:
            self._notes += release.notes
        sources = placed(releases, self._folder, force=self._wishes.force)
        files = {mpy: await self._built(sources, board) for mpy, board in self._boards.items()}
        notes = tuple(dict.fromkeys(self._notes))
        wanted = lock.wanted if lock and self._wishes.locked else tuple(self._wishes.wanted)
        origins = {release.key: self._origin(release) for release in releases}
        return Plan(wanted, self._folder, tuple(releases), files, notes, origins)

    def _origin(self, release: Release) -> str:
        """Say where a release comes from, for a person; without what opens it."""
        wish = release.wish
        if wish.source == "index":
            return shown(self._index.url(wish)) if self._index.knows(wish) else "the lock"
        named = {"local": "the caller's own files", "pypi": "the index that pip is set to"}
        return named.get(wish.source, str(release))

    def _locked(self, lock: locks.Lock | None) -> list[Release]:
        if lock is None:
            raise PackageError("there is no lock to keep to")
        if self._wishes.wanted and sorted(self._wishes.wanted) != sorted(lock.wanted):
            raise PackageError(
                f"the lock is for {', '.join(lock.wanted)}; install without it to make it anew"
            )
        return list(lock.releases)

    async def _resolved(self) -> list[Release]:
        """Find out, side by side, until the resolver has all that it needs."""
        known = Known()
        while True:
            while missing := frontier(self._wanted, known):
                await side_by_side([self._find(one, known) for one in missing])
            try:
                return await asyncio.to_thread(resolve, self._wanted, known)
            except Unknown as one:
                await self._find(one, known)

    async def _find(self, one: Unknown, known: Known) -> None:
        wish, version = one.wish, one.version
        source = await self._source(wish.source)
        if version is None:
            known.versions[wish] = await source.versions(wish)
            return
        release: Release = await source.load(wish, version)
        if len(known.releases) >= limits.PACKAGES * 4:
            raise PackageError(f"this needs more than {limits.PACKAGES} packages")
        known.releases[wish.key, version] = replace(
            release, wish=replace(wish, version=""), version=version or release.version
        )

    async def _source(self, name: str) -> Any:
        if name == "pypi":
            if self._pypi is None:
                pip = await self._packages.pip()
                web = Web(pip.cert) if pip.cert else self._packages.web
                self._pypi = PyPI(web, self._packages.cache, pip.url)
            return self._pypi
        known = {"index": self._index, "url": self._addresses, "local": self._given}
        return known.get(name, self._forges)

    def _own(self, release: Release, url: str) -> str:
        """Return the configured source that a release's URL belongs to, "" for none."""
        if release.wish.source == "index":
            return self._index.own(release.wish)
        if release.wish.source in FORGES:
            return self._forges.own(release.wish, url)
        return ""

    async def _archive(self, release: Release) -> bytes:
        pypi: PyPI = await self._source("pypi")
        return await pypi.archive(release.wish, release.version)

    async def _built(self, sources: list[File], board: Bytecode) -> tuple[File, ...]:
        """Return the files for one kind of board: bytecode where it can be had."""
        wanted = board.major and not self._wishes.source_only
        works = [self._file(file, board if wanted else None) for file in sources]
        files = await side_by_side(works)
        found = {file.path: file for file in files}
        if len(found) < len(files):
            check_clash({file.path: file for file in sources})
        check_clash(found)
        return tuple(sorted(found.values()))

    async def _file(self, file: File, board: Bytecode | None) -> File:
        if file.path.endswith(".mpy"):
            content = await self._packages.content(file.sha256)
            if board and not board.runs(content):
                raise PackageError(
                    f"{file.package}: {file.path} is bytecode that a board with {board} cannot run"
                )
            return file
        compiled = twin(file.path)
        if board is None or compiled is None or not file.size:
            return file
        content = await self._packages.content(file.sha256)
        try:
            name = await self._packages.compiler.compile(content, file.path, board)
        except NotCompiled as error:
            self._notes.append(f"{file.path} {error}; its source is installed")
            return file
        size = len(await self._packages.content(name))
        return replace(file, path=compiled, sha256=name, size=size)
