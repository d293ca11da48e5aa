"""Packages of mip indexes, version 2: documents by name and version, files by hash."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import join_url

from .dependencies import read_dependencies
from .documents import PackageDocument, load_json, read_document
from .http_fetcher import (
    HttpFetcher,
    OriginAccess,
    SourceNotFound,
    SourceUnreachable,
    without_credentials,
)
from .release import Release, ReleaseFile
from .requirement import Requirement


class IndexSource:
    """The source of packages in mip indexes.

    Args:
        fetcher: makes the HTTP requests.
        indexes: alias -> access to the index; "" is the default one.
        majors: bytecode versions of the boards, used if an index has no source of a package.
    """

    def __init__(
        self,
        fetcher: HttpFetcher,
        indexes: Mapping[str, OriginAccess],
        majors: Collection[int],
    ) -> None:
        self._fetcher = fetcher
        self._indexes = indexes
        self._majors = sorted(majors, reverse=True)

    def has_index(self, requirement: Requirement) -> bool:
        """Return whether the index of a requirement is known."""
        return requirement.alias in self._indexes

    def access(self, requirement: Requirement) -> OriginAccess:
        """Return the access to the index of a requirement.

        Raises:
            PackageError: the index is not known.
        """
        if requirement.alias not in self._indexes:
            raise PackageError(
                f"{requirement}: the server has no index with the alias {requirement.alias!r}"
            )
        return self._indexes[requirement.alias]

    def url(self, requirement: Requirement) -> str:
        """Return the URL of the index of a requirement, without credentials.

        Raises:
            PackageError: the index is not known.
        """
        return self.access(requirement).url.rstrip("/")

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return one version: the requested one, or the newest."""
        if requirement.version:
            return [requirement.version]
        document, _ = await self._fetch_document(requirement, "latest")
        if not document.version or document.version == "latest":
            raise PackageError(f"{requirement}: its index does not specify the latest version")
        return [document.version]

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return a version of the package, as the index describes it."""
        document, url = await self._fetch_document(requirement, version)
        if document.version not in ("", version):
            raise PackageError(
                f"{requirement}: its index returns version {document.version} for {version}"
            )
        base = self.url(requirement)
        parts = []
        for path, prefix in document.hashes:
            parts.append(ReleaseFile(path, f"{base}/file/{prefix[:2]}/{prefix}", prefix))
        for path, reference in document.urls:
            file_url = without_credentials(join_url(url, reference, requirement))
            parts.append(ReleaseFile(path, file_url))
        return Release(requirement, version, tuple(parts), read_dependencies(document, requirement))

    async def _fetch_document(
        self, requirement: Requirement, version: str
    ) -> tuple[PackageDocument, str]:
        """Return the document of a package and its URL; that of the source form is preferred."""
        base = self.url(requirement)
        for form in ("py", *map(str, self._majors)):
            url = f"{base}/package/{form}/{requirement.name}/{version}.json"
            try:
                reply = await self._fetcher.fetch(
                    url,
                    limit=self._fetcher.limits.package_document_bytes,
                    access=self.access(requirement),
                    accept="application/json",
                )
            except SourceNotFound:
                continue
            return read_document(reply.body, url, self._fetcher.limits.package_files), reply.url
        at = f" at version {version}" if version != "latest" else ""
        raise SourceNotFound(
            f"{requirement} is not in {base}{at}{await self._suggestion(requirement, version)}"
        )

    async def _suggestion(self, requirement: Requirement, version: str) -> str:
        """Return the end of an error message: the versions that exist, or a similar name."""
        base = self.url(requirement)
        try:
            reply = await self._fetcher.fetch(
                f"{base}/index.json",
                limit=self._fetcher.limits.package_document_bytes,
                access=self.access(requirement),
            )
            entries = load_json(reply.body, base)["packages"]
            versions_by_name = {entry["name"]: entry["versions"] for entry in entries}
            if requirement.name in versions_by_name:
                by_form = versions_by_name[requirement.name]  # "py" or a bytecode version -> list
                versions = sorted({version for form in by_form.values() for version in form})
                return f"; it has {', '.join(versions)[:200]}"
            similar = difflib.get_close_matches(requirement.name, versions_by_name, n=1)
        except (
            SourceNotFound,
            SourceUnreachable,
            PackageError,
            KeyError,
            TypeError,
            AttributeError,
        ):
            return ""
        return f"; did you mean {similar[0]}?" if similar else ""
