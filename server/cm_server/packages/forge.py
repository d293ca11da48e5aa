"""Repositories on forges: a ref becomes a commit first, and all else is read at that commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .dependencies import read_dependencies
from .documents import read_document, read_refs
from .http_fetcher import HttpFetcher, SourceNotFound
from .release import Release, ReleaseFile
from .requirement import COMMIT_PATTERN, FORGE_NAMES, Requirement, parse_requirement
from .source_settings import ForgeUrls

_REF_PREFIXES = ("refs/tags/", "refs/heads/")  # a name that is both is the tag's, as with git


class ForgeSource:
    """The forges.

    Args:
        fetcher: fetches.
        forges: their addresses.
    """

    def __init__(self, fetcher: HttpFetcher, forges: Mapping[str, ForgeUrls]) -> None:
        self._fetcher = fetcher
        self._forges = forges
        self._refs: dict[tuple[str, str], asyncio.Task[dict[str, str]]] = {}

    def trusted_url(self, requirement: Requirement, url: str) -> str:
        """Return where a wish's forge keeps its files, if the URL is there, else ""."""
        raw = self._forges[requirement.source].raw_url.partition("{")[0]
        return raw if url.startswith(raw) else ""

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the commit that a wish's ref means now."""
        return [(await self.resolve_ref(requirement))[0]]

    async def resolve_ref(self, requirement: Requirement) -> tuple[str, str]:
        """Return the commit, and the full name of the ref that led to it ("" for a commit)."""
        if COMMIT_PATTERN.fullmatch(requirement.version):
            return requirement.version, ""
        refs = await self._repository_refs(requirement)
        names = (
            [prefix + requirement.version for prefix in _REF_PREFIXES]
            if requirement.version
            else ["HEAD"]
        )
        for name in names:
            if name in refs:
                return refs[name], name
        raise SourceNotFound(
            f"{requirement}: {requirement.source}:{requirement.repository} "
            f"has no branch and no tag "
            f"{requirement.version or 'HEAD'!r}; a commit is named by all of its 40 digits"
        )

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return a package as its repository describes it at a commit."""
        _, ref = await self.resolve_ref(requirement)
        path = requirement.path
        if path.endswith((".py", ".mpy")):
            part = ReleaseFile(path.rpartition("/")[2], self._raw_url(requirement, version, path))
            return Release(requirement, version, (part,), ref=ref)
        at = path if path.endswith(".json") else "/".join(filter(None, (path, "package.json")))
        url = self._raw_url(requirement, version, at)
        try:
            reply = await self._fetcher.fetch(
                url,
                limit=limits.PACKAGE_DOCUMENT_BYTES,
                trusted_url=self.trusted_url(requirement, url),
            )
        except SourceNotFound as error:
            raise SourceNotFound(f"{requirement} has no {at} at commit {version[:12]}") from error
        document = read_document(reply.body, f"{requirement}'s {at}")
        if document.hashes:
            raise PackageError(
                f"{requirement} has hashes in its {at}: only an index keeps files by them"
            )
        folder = at.rpartition("/")[0]
        parts = [
            ReleaseFile(target, await self.locate(where, requirement, version, folder))
            for target, where in document.urls
        ]
        return Release(
            requirement,
            version,
            tuple(parts),
            read_dependencies(document, requirement, version),
            ref,
        )

    async def locate(self, reference: str, package: Requirement, commit: str, folder: str) -> str:
        """Return the address of a file that a package names.

        Args:
            reference: as the package says it: a URL, a forge's file, or a path beside the document.
            package: the package.
            commit: its own: it holds for files of its own repository, and for no other's.
            folder: of its document.
        """
        if reference.startswith(("http://", "https://")):
            return parse_requirement(reference).name
        if reference.partition(":")[0] in FORGE_NAMES:
            wish = parse_requirement(reference)
            if not wish.path:
                raise PackageError(f"{package} names a file without its path: {reference[:100]!r}")
            if not _has_same_commit(wish, package):
                commit, _ = await self.resolve_ref(wish)
            return self._raw_url(wish, commit, wish.path)
        path = "/".join(filter(None, (folder, reference)))
        if ":" in reference or any(not part.strip(".") for part in path.split("/")):
            raise PackageError(
                f"{package} names a file outside of its repository: {reference[:100]!r}"
            )
        return self._raw_url(package, commit, path)

    def _raw_url(self, requirement: Requirement, commit: str, path: str) -> str:
        raw = self._forges[requirement.source].raw_url
        return raw.format(repo=requirement.repository, commit=commit, path=quote(path))

    async def _repository_refs(self, requirement: Requirement) -> dict[str, str]:
        """Return a repository's refs; asked once for a plan, however many want them."""
        at = (requirement.source, requirement.repository)
        if at not in self._refs:
            self._refs[at] = asyncio.ensure_future(self._fetch_refs(requirement))
        return await self._refs[at]

    async def _fetch_refs(self, requirement: Requirement) -> dict[str, str]:
        url = self._forges[requirement.source].refs_url.format(repo=requirement.repository)
        whose = f"{requirement.source}:{requirement.repository}"
        try:
            reply = await self._fetcher.fetch(
                url, limit=limits.PACKAGE_DOCUMENT_BYTES, trusted_url=url
            )
        except SourceNotFound as error:
            raise SourceNotFound(f"there is no repository {whose}, or it is not public") from error
        return read_refs(reply.body, whose)


def _has_same_commit(file: Requirement, package: Requirement) -> bool:
    """Return whether a file is read at its package's commit: same repository, no ref of its own."""
    same = (file.source, file.repository) == (package.source, package.repository)
    return same and not file.version
