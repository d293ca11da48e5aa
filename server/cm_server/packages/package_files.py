"""The content of packages: from the cache, else fetched, and in any case what was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .archives import unpack
from .cache import PackageCache, sha256
from .http_fetcher import HttpFetcher
from .pypi import installable_files
from .release import Release, ReleaseFile
from .requirement import FORGE_NAMES

T = TypeVar("T")
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of them at once; when one fails, end the others."""
    tasks = [asyncio.ensure_future(work) for work in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PackageFiles:
    """Brings what releases consist of.

    Args:
        fetcher: fetches.
        cache: keeps.
        trusted_url_of: says which configured source, if any, a release's URL belongs to.
        fetch_archive: brings a release's archive from its index.
        sent: what the caller sent along.
    """

    def __init__(
        self,
        fetcher: HttpFetcher,
        cache: PackageCache,
        trusted_url_of: Callable[[Release, str], str],
        fetch_archive: Callable[[Release], Awaitable[bytes]],
        sent: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._trusted_url_of = trusted_url_of
        self._fetch_archive = fetch_archive
        self._sent = sent

    async def fetch_release(self, release: Release) -> Release:
        """Fetch what is not here; return the release with each part's hash and size."""
        works = [self._fetch_part(release, part) for part in release.parts]
        return replace(release, parts=tuple(await gather_or_cancel(works)))

    async def _fetch_part(self, release: Release, part: ReleaseFile) -> ReleaseFile:
        if part.sha256 and await asyncio.to_thread(self._cache.get, part.sha256) is not None:
            return part
        fixed = (
            bool(part.hash_prefix)
            or release.requirement.source in FORGE_NAMES
            and release.version in part.url
        )
        content = await asyncio.to_thread(self._cache.get_by_address, part.url) if fixed else None
        known = content is not None and sha256(content).startswith(part.sha256 or part.hash_prefix)
        if content is None or not known:
            content = await self._fetch_content(release, part)
        name = await asyncio.to_thread(self._cache.put, content)
        if fixed and not known:
            await asyncio.to_thread(self._cache.put_address, part.url, name)
        return replace(part, hash_prefix="", sha256=name, size=len(content))

    async def _fetch_content(self, release: Release, part: ReleaseFile) -> bytes:
        if part.url:
            own = self._trusted_url_of(release, part.url)
            reply = await self._fetcher.fetch(
                part.url, limit=limits.PACKAGE_FILE_BYTES, trusted_url=own
            )
            content = _check_content(reply.body, reply.content_type, f"{release}: {part.path}")
        elif release.archive:
            content = (await self._unpack_archive(release)).get(part.path, b"")
        else:
            content = self._from_caller(release, part)
        if not _is_as_promised(content, part):
            promised = part.sha256 or part.hash_prefix
            raise PackageError(
                f"{release}: {part.path} is not what was promised: its SHA-256 begins with "
                f"{sha256(content)[:8]}, not with {promised[:8]}"
            )
        return content

    async def _unpack_archive(self, release: Release) -> dict[str, bytes]:
        """Return what is in a locked release's archive."""
        raw = await asyncio.to_thread(self._cache.get, release.archive_sha256)
        if raw is None:
            raw = await self._fetch_archive(release)
            if sha256(raw) != release.archive_sha256:
                raise PackageError(f"{release}: its archive is not the one that was locked")
        members = await asyncio.to_thread(unpack, raw, release.archive)
        return installable_files(members, release.archive)

    def _from_caller(self, release: Release, part: ReleaseFile) -> bytes:
        for content in self._sent.get(release.requirement.name, {}).values():
            if sha256(content) == part.sha256:
                return content
        raise PackageError(f"{release}: {part.path} is neither here nor sent along")


def _is_as_promised(content: bytes, part: ReleaseFile) -> bool:
    """Return whether content has the hash, and if it is known the size, that a part names."""
    if part.sha256 and len(content) != part.size:
        return False
    return sha256(content).startswith(part.sha256 or part.hash_prefix)


def _is_web_page(content_type: str, name: str) -> bool:
    """Return whether an HTML page was sent in place of a file: a login form, an error page."""
    return content_type == "text/html" and not name.endswith((".html", ".htm"))


def _check_content(content: bytes, content_type: str, what: str) -> bytes:
    """Return a file's content, unless it plainly is something else in its place."""
    if _is_web_page(content_type, what):
        raise PackageError(f"{what} is a web page where a file should be")
    if content.startswith(_LFS_POINTER):
        raise PackageError(f"{what} is kept in Git LFS, which is not supported")
    return content
