"""Sources without an index: packages at a URL, and files that the caller sent with its request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import DOCUMENT_NAME, is_address, join_path, join_url

from .cache import TokenCache, sha256
from .dependencies import read_dependencies
from .documents import PackageDocument, read_document
from .forge import ForgeSource
from .http_fetcher import HttpFetcher, SourceNotFound
from .release import Release, ReleaseFile
from .requirement import Requirement


class UrlSource:
    """Packages at URLs: of one file, of a package.json, or of a folder that contains one."""

    def __init__(self, fetcher: HttpFetcher, forges: ForgeSource) -> None:
        self._fetcher = fetcher
        self._forges = forges

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return one empty version, since a URL has no versions."""
        return [""]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return the package at the URL."""
        path = urlsplit(requirement.name).path
        if path.endswith((".py", ".mpy")):
            return Release(
                requirement, "", (ReleaseFile(path.rpartition("/")[2], requirement.name),)
            )
        url = (
            requirement.name
            if path.endswith(".json")
            else f"{requirement.name.rstrip('/')}/{DOCUMENT_NAME}"
        )
        reply = await self._fetcher.fetch(url, limit=self._fetcher.limits.package_document_bytes)
        document = read_document(reply.body, url, self._fetcher.limits.package_files)
        _refuse_hashes(document, requirement)
        parts = [
            ReleaseFile(path, await self._file_url(reference, requirement, url))
            for path, reference in document.urls
        ]
        return Release(
            requirement,
            document.version,
            tuple(parts),
            read_dependencies(document, requirement, base=url),
        )

    async def _file_url(self, reference: str, requirement: Requirement, base: str) -> str:
        """Return the URL of a file that a package.json at the URL ``base`` names."""
        if is_address(reference):
            return await self._forges.locate(reference, requirement, "", "")
        return join_url(base, reference, requirement)


class SentFilesSource:
    """Packages that the caller sent with its request: a file, or the files of a folder.

    If a folder contains a package.json, that describes the package. Otherwise the package consists
    of all files of the folder.

    Args:
        sent: requirement -> path -> content.
        cache: where the contents are stored.
        forges: locates files of repositories that a package.json names.
        max_files: of one package.
    """

    def __init__(
        self,
        sent: Mapping[str, Mapping[str, bytes]],
        cache: TokenCache,
        forges: ForgeSource,
        max_files: int,
    ) -> None:
        self._sent = sent
        self._max_files = max_files
        self._cache = cache
        self._forges = forges

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return one version: a hash of the files, shortened."""
        files = self._sent[requirement.name]
        listing = "".join(f"{path}\0{sha256(files[path])}\n" for path in sorted(files))
        return [sha256(listing.encode())[:12]]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return the files as a package."""
        files = self._sent[requirement.name]
        if len(files) > self._max_files:
            raise PackageError(f"{requirement} has too many files")
        if DOCUMENT_NAME not in files:
            parts = [
                await self._load_part(path, path, files, requirement) for path in sorted(files)
            ]
            return Release(requirement, version, tuple(parts))
        document = read_document(
            files[DOCUMENT_NAME], f"{requirement}'s {DOCUMENT_NAME}", self._max_files
        )
        _refuse_hashes(document, requirement)
        parts = [
            await self._load_part(path, reference, files, requirement)
            for path, reference in document.urls
        ]
        return Release(requirement, version, tuple(parts), read_dependencies(document, requirement))

    async def _load_part(
        self, path: str, reference: str, files: Mapping[str, bytes], requirement: Requirement
    ) -> ReleaseFile:
        """Return a file of the package.

        Args:
            path: its path below the install's folder.
            reference: its path among the sent files, a URL, or a file of a repository.
            files: the sent files.
            requirement: the package.
        """
        if is_address(reference):
            return ReleaseFile(path, await self._forges.locate(reference, requirement, "", ""))
        name = reference if reference in files else join_path("", reference, requirement)
        if name not in files:
            raise SourceNotFound(f"{requirement} has no file {reference[:100]!r}")
        digest = await asyncio.to_thread(self._cache.put, files[name])
        return ReleaseFile(path, sha256=digest, size=len(files[name]))


def _refuse_hashes(document: PackageDocument, requirement: Requirement) -> None:
    """Raise PackageError if a package.json has files by hash, which only an index can serve."""
    if document.hashes:
        raise PackageError(
            f"{requirement} has hashes in its {DOCUMENT_NAME}: only an index serves files by hash"
        )
