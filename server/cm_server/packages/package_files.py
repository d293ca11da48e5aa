"""Provide the contents of packages from the cache or the network, and verify their hashes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import FORGE_NAMES

from .archives import unpack
from .cache import TokenCache, sha256
from .http_fetcher import HttpFetcher, OriginAccess
from .pypi import installable_files
from .release import Release, ReleaseFile

T = TypeVar("T")
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; if one fails, cancel the others and wait for their end."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PackageFiles:
    """Fetches the files of releases into the cache.

    Args:
        fetcher: makes the HTTP requests.
        cache: where the contents are stored.
        access_of: returns the access to the source that a URL of a release belongs to.
        fetch_archive: fetches the archive of a release from its index.
        sent: files that the caller sent: requirement -> path -> content.
    """

    def __init__(
        self,
        fetcher: HttpFetcher,
        cache: TokenCache,
        access_of: Callable[[Release, str], OriginAccess],
        fetch_archive: Callable[[Release], Awaitable[bytes]],
        sent: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._access_of = access_of
        self._fetch_archive = fetch_archive
        self._sent = sent

    async def fetch_release(self, release: Release) -> Release:
        """Fetch the files that are not cached; return the release with their hashes and sizes."""
        parts = [self._fetch_part(release, part) for part in release.parts]
        return replace(release, parts=tuple(await gather_or_cancel(parts)))

    async def _fetch_part(self, release: Release, part: ReleaseFile) -> ReleaseFile:
        """Fetch one file if it is not cached; return it with its hash and size."""
        if part.sha256 and await self._cached_for_token(part.sha256) is not None:
            return part
        is_at_commit = release.requirement.source in FORGE_NAMES and release.version in part.url
        # A lock file is the caller's word: its URLs are fetched with the caller's rights.
        never_changes = not part.sha256 and (bool(part.hash_prefix) or is_at_commit)
        content = None
        if never_changes:
            content = await asyncio.to_thread(self._cache.shared.get_by_address, part.url)
        is_cached = content is not None and sha256(content).startswith(
            part.sha256 or part.hash_prefix
        )
        if content is None or not is_cached:
            content = await self._fetch_content(release, part)
        digest = await asyncio.to_thread(self._cache.put, content)
        if never_changes and not is_cached:
            await asyncio.to_thread(self._cache.shared.put_address, part.url, digest)
        return replace(part, hash_prefix="", sha256=digest, size=len(content))

    async def _cached_for_token(self, digest: str) -> bytes | None:
        """Return a content by its hash if the caller's token had it before.

        Hashes come from lock files, which anybody can write.
        """
        return await asyncio.to_thread(self._cache.get, digest)

    async def _fetch_content(self, release: Release, part: ReleaseFile) -> bytes:
        """Return the content of a file from its URL, its archive or the caller's files.

        Raises:
            PackageError: it cannot be fetched, or differs from the hash or size that is expected.
        """
        if part.url:
            reply = await self._fetcher.fetch(
                part.url,
                limit=self._fetcher.limits.package_file_bytes,
                access=self._access_of(release, part.url),
            )
            content = _check_content(reply.body, reply.content_type, f"{release}: {part.path}")
        elif release.archive:
            content = (await self._unpack_archive(release)).get(part.path, b"")
        else:
            content = self._from_caller(release, part)
        if not _is_as_promised(content, part):
            expected = (part.sha256 or part.hash_prefix)[:8]
            if part.sha256:
                expected += f" and {part.size} bytes"
            raise PackageError(
                f"{release}: {part.path} is not the expected file: it has SHA-256 "
                f"{sha256(content)[:8]} and {len(content)} bytes, expected is {expected}"
            )
        return content

    async def _unpack_archive(self, release: Release) -> dict[str, bytes]:
        """Return the files in the archive of a release from a lock file."""
        raw = await self._cached_for_token(release.archive_sha256)
        if raw is None:
            raw = await self._fetch_archive(release)
            if sha256(raw) != release.archive_sha256:
                raise PackageError(f"{release}: its archive differs from the one in the lock file")
        members = await asyncio.to_thread(unpack, raw, release.archive, self._fetcher.limits)
        return installable_files(members, release.archive)

    def _from_caller(self, release: Release, part: ReleaseFile) -> bytes:
        """Return the content of a file that the caller sent."""
        for content in self._sent.get(release.requirement.name, {}).values():
            if sha256(content) == part.sha256:
                return content
        raise PackageError(
            f"{release}: {part.path} is neither cached on the server nor sent with the request"
        )


def _is_as_promised(content: bytes, part: ReleaseFile) -> bool:
    """Return whether a content has the expected hash and, if it is known, the expected size."""
    if part.sha256 and len(content) != part.size:
        return False
    return sha256(content).startswith(part.sha256 or part.hash_prefix)


def _is_web_page(content_type: str, name: str) -> bool:
    """Return whether a source sent an HTML page, such as a login form, instead of a file."""
    return content_type == "text/html" and not name.endswith((".html", ".htm"))


def _check_content(content: bytes, content_type: str, name: str) -> bytes:
    """Return the content of a file.

    Raises:
        PackageError: it is obviously something else: a web page or a pointer of Git LFS.
    """
    if _is_web_page(content_type, name):
        raise PackageError(f"{name}: its source sent a web page instead of the file")
    if content.startswith(_LFS_POINTER):
        raise PackageError(f"{name} is stored in Git LFS, which is not supported")
    return content
