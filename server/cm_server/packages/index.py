"""mip indexes, version 2: a package's document, and its files under their hashes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from urllib.parse import urljoin

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .dependencies import needs_of
from .documents import Document, load_json, read_document
from .http_fetcher import NotFound, Unreachable, Web
from .release import Part, Release
from .requirement import Requirement


class Index:
    """The indexes that the server knows.

    Args:
        web: fetches.
        urls: each index's URL by its alias.
        trusted: those of them that an administrator configured.
        majors: versions of bytecode that the boards run; wanted where an index has no source.
    """

    def __init__(
        self,
        web: Web,
        urls: Mapping[str, str],
        trusted: Collection[str],
        majors: Collection[int],
    ) -> None:
        self._web = web
        self._urls = urls
        self._trusted = trusted
        self._majors = sorted(majors, reverse=True)

    def knows(self, wish: Requirement) -> bool:
        """Say whether a wish's index is one of these."""
        return wish.alias in self._urls

    def url(self, wish: Requirement) -> str:
        """Return the URL of a wish's index.

        Raises:
            PackageError: the server knows no such index.
        """
        if wish.alias not in self._urls:
            raise PackageError(f"{wish}: the server knows no index called {wish.alias!r}")
        return self._urls[wish.alias].rstrip("/")

    def own(self, wish: Requirement) -> str:
        """Return a wish's index where that may be private, else ""."""
        return self.url(wish) if self._urls[wish.alias] in self._trusted else ""

    async def versions(self, wish: Requirement) -> list[str]:
        """Return the version that is wanted; the newest where none is named."""
        if wish.version:
            return [wish.version]
        document, _ = await self._document(wish, "latest")
        if not document.version or document.version == "latest":
            raise PackageError(f"{wish}: its index does not say which version is the latest")
        return [document.version]

    async def load(self, wish: Requirement, version: str) -> Release:
        """Return a version as the index describes it."""
        document, url = await self._document(wish, version)
        if document.version not in ("", version):
            raise PackageError(f"{wish}: its index gives version {document.version} for {version}")
        base = self.url(wish)
        parts = [Part(path, f"{base}/file/{h[:2]}/{h}", h) for path, h in document.hashes]
        parts += [Part(path, _joined(url, where, wish)) for path, where in document.urls]
        return Release(wish, version, tuple(parts), needs_of(document, wish))

    async def _document(self, wish: Requirement, version: str) -> tuple[Document, str]:
        """Return a package's document, of source if there is one, and its URL."""
        base = self.url(wish)
        for form in ("py", *map(str, self._majors)):
            url = f"{base}/package/{form}/{wish.name}/{version}.json"
            try:
                reply = await self._web.get(
                    url,
                    limit=limits.PACKAGE_DOCUMENT_BYTES,
                    own=self.own(wish),
                    accept="application/json",
                )
            except NotFound:
                continue
            return read_document(reply.body, url), reply.url
        at = f" at version {version}" if version != "latest" else ""
        raise NotFound(f"{wish} is not in {base}{at}{await self._instead(wish, version)}")

    async def _instead(self, wish: Requirement, version: str) -> str:
        """Say what there is instead: other versions, or a name that is near."""
        base = self.url(wish)
        try:
            reply = await self._web.get(
                f"{base}/index.json", limit=limits.PACKAGE_DOCUMENT_BYTES, own=self.own(wish)
            )
            rows = load_json(reply.body, base)["packages"]
            known = {row["name"]: row["versions"] for row in rows}
            if wish.name in known:
                found = sorted({v for versions in known[wish.name].values() for v in versions})
                return f"; it has {', '.join(found)[:200]}"
            near = difflib.get_close_matches(wish.name, known, n=1)
        except (NotFound, Unreachable, PackageError, KeyError, TypeError, AttributeError):
            return ""
        return f"; did you mean {near[0]}?" if near else ""


def _joined(base: str, where: str, wish: Requirement) -> str:
    if ".." in where.split("/"):
        raise PackageError(f"{wish} names a file outside of its folder: {where[:100]!r}")
    url = urljoin(base, where)
    if not url.startswith(("http://", "https://")):
        raise PackageError(f"{wish} names a file that is at no http address: {where[:100]!r}")
    return url
