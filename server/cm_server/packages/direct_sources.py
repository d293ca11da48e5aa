"""Packages at a URL, and packages that the caller sent along: his own files and folders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .cache import Cache, sha256
from .dependencies import needs_of
from .documents import Document, read_document
from .forge import Forges
from .http_fetcher import NotFound, Web
from .install_paths import check_plain
from .release import Part, Release
from .requirement import FORGES, Requirement

_DOCUMENT = "package.json"


class Addresses:
    """URLs: of one file, of a package.json, or of the folder that one is in."""

    def __init__(self, web: Web, forges: Forges) -> None:
        self._web = web
        self._forges = forges

    async def versions(self, wish: Requirement) -> list[str]:
        """Return the one version that a URL has: none."""
        return [""]

    async def load(self, wish: Requirement, version: str) -> Release:
        """Return what is at the URL."""
        path = urlsplit(wish.name).path
        if path.endswith((".py", ".mpy")):
            return Release(wish, "", (Part(path.rpartition("/")[2], wish.name),))
        url = wish.name if path.endswith(".json") else f"{wish.name.rstrip('/')}/{_DOCUMENT}"
        reply = await self._web.get(url, limit=limits.PACKAGE_DOCUMENT_BYTES)
        document = read_document(reply.body, url)
        _no_hashes(document, wish)
        parts = [Part(path, await self._where(where, wish, url)) for path, where in document.urls]
        return Release(wish, document.version, tuple(parts), needs_of(document, wish))

    async def _where(self, where: str, wish: Requirement, base: str) -> str:
        if where.startswith(("http://", "https://")) or where.partition(":")[0] in FORGES:
            return await self._forges.locate(where, wish, "", "")
        check_plain(where)
        return urljoin(base, where)


class Sent:
    """What the caller sent along: by its name, files by their paths in it.

    With a package.json at its root it is the package that this describes, else all of its
    files are, as they lie there.
    """

    def __init__(
        self, sent: Mapping[str, Mapping[str, bytes]], cache: Cache, forges: Forges
    ) -> None:
        self._sent = sent
        self._cache = cache
        self._forges = forges

    async def versions(self, wish: Requirement) -> list[str]:
        """Return the one version that they have: their content's hash, shortened."""
        files = self._sent[wish.name]
        told = "".join(f"{path}\0{sha256(files[path])}\n" for path in sorted(files))
        return [sha256(told.encode())[:12]]

    async def load(self, wish: Requirement, version: str) -> Release:
        """Return them as a package."""
        files = self._sent[wish.name]
        if len(files) > limits.PACKAGE_FILES:
            raise PackageError(f"{wish} has too many files")
        if _DOCUMENT not in files:
            parts = [await self._part(path, path, files, wish) for path in sorted(files)]
            return Release(wish, version, tuple(parts))
        document = read_document(files[_DOCUMENT], f"{wish}'s {_DOCUMENT}")
        _no_hashes(document, wish)
        parts = [await self._part(path, where, files, wish) for path, where in document.urls]
        return Release(wish, version, tuple(parts), needs_of(document, wish))

    async def _part(
        self, path: str, where: str, files: Mapping[str, bytes], wish: Requirement
    ) -> Part:
        if where not in files:
            if not where.startswith(("http://", "https://", *(f"{name}:" for name in FORGES))):
                raise NotFound(f"{wish} has no file {where[:100]!r}")
            return Part(path, await self._forges.locate(where, wish, "", ""))
        content = files[where]
        name = await asyncio.to_thread(self._cache.put, content)
        return Part(path, sha256=name, size=len(content))


def _no_hashes(document: Document, wish: Requirement) -> None:
    if document.hashes:
        raise PackageError(
            f"{wish} has hashes in its {_DOCUMENT}: only an index keeps files by them"
        )
