"""mip indexes, version 2: a package's document, and its files under their hashes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from urllib.parse import urljoin

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .dependencies import read_dependencies
from .documents import PackageDocument, load_json, read_document
from .http_fetcher import HttpFetcher, SourceNotFound, SourceUnreachable
from .release import Release, ReleaseFile
from .requirement import Requirement


class IndexSource:
    """The indexes that the server knows.

    Args:
        fetcher: fetches.
        urls: each index's URL by its alias.
        trusted: those of them that an administrator configured.
        majors: versions of bytecode that the boards run; wanted where an index has no source.
    """

    def __init__(
        self,
        fetcher: HttpFetcher,
        urls: Mapping[str, str],
        trusted: Collection[str],
        majors: Collection[int],
    ) -> None:
        self._fetcher = fetcher
        self._urls = urls
        self._trusted = trusted
        self._majors = sorted(majors, reverse=True)

    def has_index(self, requirement: Requirement) -> bool:
        """Say whether a wish's index is one of these."""
        return requirement.alias in self._urls

    def url(self, requirement: Requirement) -> str:
        """Return the URL of a wish's index.

        Raises:
            PackageError: the server knows no such index.
        """
        if requirement.alias not in self._urls:
            raise PackageError(
                f"{requirement}: the server knows no index called {requirement.alias!r}"
            )
        return self._urls[requirement.alias].rstrip("/")

    def trusted_url(self, requirement: Requirement) -> str:
        """Return a wish's index where that may be private, else ""."""
        return self.url(requirement) if self._urls[requirement.alias] in self._trusted else ""

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the version that is wanted; the newest where none is named."""
        if requirement.version:
            return [requirement.version]
        document, _ = await self._fetch_document(requirement, "latest")
        if not document.version or document.version == "latest":
            raise PackageError(f"{requirement}: its index does not say which version is the latest")
        return [document.version]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return a version as the index describes it."""
        document, url = await self._fetch_document(requirement, version)
        if document.version not in ("", version):
            raise PackageError(
                f"{requirement}: its index gives version {document.version} for {version}"
            )
        base = self.url(requirement)
        parts = [ReleaseFile(path, f"{base}/file/{h[:2]}/{h}", h) for path, h in document.hashes]
        parts += [
            ReleaseFile(path, _join_url(url, where, requirement)) for path, where in document.urls
        ]
        return Release(requirement, version, tuple(parts), read_dependencies(document, requirement))

    async def _fetch_document(
        self, requirement: Requirement, version: str
    ) -> tuple[PackageDocument, str]:
        """Return a package's document, of source if there is one, and its URL."""
        base = self.url(requirement)
        for form in ("py", *map(str, self._majors)):
            url = f"{base}/package/{form}/{requirement.name}/{version}.json"
            try:
                reply = await self._fetcher.fetch(
                    url,
                    limit=limits.PACKAGE_DOCUMENT_BYTES,
                    trusted_url=self.trusted_url(requirement),
                    accept="application/json",
                )
            except SourceNotFound:
                continue
            return read_document(reply.body, url), reply.url
        at = f" at version {version}" if version != "latest" else ""
        raise SourceNotFound(
            f"{requirement} is not in {base}{at}{await self._suggestion(requirement, version)}"
        )

    async def _suggestion(self, requirement: Requirement, version: str) -> str:
        """Say what there is instead: other versions, or a name that is near."""
        base = self.url(requirement)
        try:
            reply = await self._fetcher.fetch(
                f"{base}/index.json",
                limit=limits.PACKAGE_DOCUMENT_BYTES,
                trusted_url=self.trusted_url(requirement),
            )
            rows = load_json(reply.body, base)["packages"]
            known = {row["name"]: row["versions"] for row in rows}
            if requirement.name in known:
                found = sorted(
                    {v for versions in known[requirement.name].values() for v in versions}
                )
                return f"; it has {', '.join(found)[:200]}"
            near = difflib.get_close_matches(requirement.name, known, n=1)
        except (
            SourceNotFound,
            SourceUnreachable,
            PackageError,
            KeyError,
            TypeError,
            AttributeError,
        ):
            return ""
        return f"; did you mean {near[0]}?" if near else ""


def _join_url(base: str, reference: str, requirement: Requirement) -> str:
    if ".." in reference.split("/"):
        raise PackageError(f"{requirement} names a file outside of its folder: {reference[:100]!r}")
    url = urljoin(base, reference)
    if not url.startswith(("http://", "https://")):
        raise PackageError(
            f"{requirement} names a file that is at no http address: {reference[:100]!r}"
        )
    return url
