"""Packages at a URL, and packages that the caller sent along: his own files and folders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .cache import PackageCache, sha256
from .dependencies import read_dependencies
from .documents import PackageDocument, read_document
from .forge import ForgeSource
from .http_fetcher import HttpFetcher, SourceNotFound
from .install_paths import check_relative_path
from .release import Release, ReleaseFile
from .requirement import FORGE_NAMES, Requirement

_DOCUMENT_NAME = "package.json"


class UrlSource:
    """URLs: of one file, of a package.json, or of the folder that one is in."""

    def __init__(self, fetcher: HttpFetcher, forges: ForgeSource) -> None:
        self._fetcher = fetcher
        self._forges = forges

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the one version that a URL has: none."""
        return [""]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return what is at the URL."""
        path = urlsplit(requirement.name).path
        if path.endswith((".py", ".mpy")):
            return Release(
                requirement, "", (ReleaseFile(path.rpartition("/")[2], requirement.name),)
            )
        url = (
            requirement.name
            if path.endswith(".json")
            else f"{requirement.name.rstrip('/')}/{_DOCUMENT_NAME}"
        )
        reply = await self._fetcher.fetch(url, limit=limits.PACKAGE_DOCUMENT_BYTES)
        document = read_document(reply.body, url)
        _refuse_hashes(document, requirement)
        parts = [
            ReleaseFile(path, await self._file_url(where, requirement, url))
            for path, where in document.urls
        ]
        return Release(
            requirement, document.version, tuple(parts), read_dependencies(document, requirement)
        )

    async def _file_url(self, reference: str, requirement: Requirement, base: str) -> str:
        if (
            reference.startswith(("http://", "https://"))
            or reference.partition(":")[0] in FORGE_NAMES
        ):
            return await self._forges.locate(reference, requirement, "", "")
        check_relative_path(reference)
        return urljoin(base, reference)


class SentFilesSource:
    """What the caller sent along: by its name, files by their paths in it.

    With a package.json at its root it is the package that this describes, else all of its
    files are, as they lie there.
    """

    def __init__(
        self, sent: Mapping[str, Mapping[str, bytes]], cache: PackageCache, forges: ForgeSource
    ) -> None:
        self._sent = sent
        self._cache = cache
        self._forges = forges

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the one version that they have: their content's hash, shortened."""
        files = self._sent[requirement.name]
        told = "".join(f"{path}\0{sha256(files[path])}\n" for path in sorted(files))
        return [sha256(told.encode())[:12]]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return them as a package."""
        files = self._sent[requirement.name]
        if len(files) > limits.PACKAGE_FILES:
            raise PackageError(f"{requirement} has too many files")
        if _DOCUMENT_NAME not in files:
            parts = [
                await self._load_part(path, path, files, requirement) for path in sorted(files)
            ]
            return Release(requirement, version, tuple(parts))
        document = read_document(files[_DOCUMENT_NAME], f"{requirement}'s {_DOCUMENT_NAME}")
        _refuse_hashes(document, requirement)
        parts = [
            await self._load_part(path, where, files, requirement) for path, where in document.urls
        ]
        return Release(requirement, version, tuple(parts), read_dependencies(document, requirement))

    async def _load_part(
        self, path: str, reference: str, files: Mapping[str, bytes], requirement: Requirement
    ) -> ReleaseFile:
        if reference not in files:
            if not reference.startswith(
                ("http://", "https://", *(f"{name}:" for name in FORGE_NAMES))
            ):
                raise SourceNotFound(f"{requirement} has no file {reference[:100]!r}")
            return ReleaseFile(path, await self._forges.locate(reference, requirement, "", ""))
        content = files[reference]
        name = await asyncio.to_thread(self._cache.put, content)
        return ReleaseFile(path, sha256=name, size=len(content))


def _refuse_hashes(document: PackageDocument, requirement: Requirement) -> None:
    if document.hashes:
        raise PackageError(
            f"{requirement} has hashes in its {_DOCUMENT_NAME}: only an index keeps files by them"
        )
