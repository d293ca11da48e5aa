"""The content of packages: from the cache, else fetched, and in any case what was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .archives import unpack
from .cache import Cache, sha256
from .http_fetcher import Web
from .pypi import stripped
from .release import Part, Release
from .requirement import FORGES

T = TypeVar("T")
_LFS: Final = b"version https://git-lfs.github.com/spec/"


async def side_by_side(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of them at once; when one fails, end the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Contents:
    """Brings what releases consist of.

    Args:
        web: fetches.
        cache: keeps.
        own: says which configured source, if any, a release's URL belongs to.
        archive: brings a release's archive from its index.
        sent: what the caller sent along.
    """

    def __init__(
        self,
        web: Web,
        cache: Cache,
        own: Callable[[Release, str], str],
        archive: Callable[[Release], Awaitable[bytes]],
        sent: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        self._web = web
        self._cache = cache
        self._own = own
        self._archive = archive
        self._sent = sent

    async def bring(self, release: Release) -> Release:
        """Fetch what is not here; return the release with each part's hash and size."""
        works = [self._part(release, part) for part in release.parts]
        return replace(release, parts=tuple(await side_by_side(works)))

    async def _part(self, release: Release, part: Part) -> Part:
        if part.sha256 and await asyncio.to_thread(self._cache.get, part.sha256) is not None:
            return part
        fixed = bool(part.short) or release.wish.source in FORGES and release.version in part.url
        content = await asyncio.to_thread(self._cache.recall, part.url) if fixed else None
        known = content is not None and sha256(content).startswith(part.sha256 or part.short)
        if content is None or not known:
            content = await self._fetch(release, part)
        name = await asyncio.to_thread(self._cache.put, content)
        if fixed and not known:
            await asyncio.to_thread(self._cache.remember, part.url, name)
        return replace(part, short="", sha256=name, size=len(content))

    async def _fetch(self, release: Release, part: Part) -> bytes:
        if part.url:
            own = self._own(release, part.url)
            reply = await self._web.get(part.url, limit=limits.PACKAGE_FILE_BYTES, own=own)
            content = _sound(reply.body, reply.content_type, f"{release}: {part.path}")
        elif release.archive:
            content = (await self._unpacked(release)).get(part.path, b"")
        else:
            content = self._from_caller(release, part)
        promised = part.sha256 or part.short
        if not sha256(content).startswith(promised) or (part.sha256 and len(content) != part.size):
            raise PackageError(
                f"{release}: {part.path} is not what was promised: its SHA-256 begins with "
                f"{sha256(content)[:8]}, not with {promised[:8]}"
            )
        return content

    async def _unpacked(self, release: Release) -> dict[str, bytes]:
        """Return what is in a locked release's archive."""
        raw = await asyncio.to_thread(self._cache.get, release.archive_sha256)
        if raw is None:
            raw = await self._archive(release)
            if sha256(raw) != release.archive_sha256:
                raise PackageError(f"{release}: its archive is not the one that was locked")
        members = await asyncio.to_thread(unpack, raw, release.archive)
        return stripped(members, release.archive)

    def _from_caller(self, release: Release, part: Part) -> bytes:
        for content in self._sent.get(release.wish.name, {}).values():
            if sha256(content) == part.sha256:
                return content
        raise PackageError(f"{release}: {part.path} is neither here nor sent along")


def _sound(content: bytes, content_type: str, what: str) -> bytes:
    """Return a file's content, unless it plainly is something else in its place."""
    if content_type == "text/html" and not what.endswith((".html", ".htm")):
        raise PackageError(f"{what} is a web page where a file should be")
    if content.startswith(_LFS):
        raise PackageError(f"{what} is kept in Git LFS, which is not supported")
    return content
