"""Packages in repositories on GitHub, GitLab and Codeberg.

The ref is resolved to a commit first, and all files are read at that commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import is_address, join_path

from .dependencies import read_dependencies
from .documents import read_document, read_refs
from .http_fetcher import NO_ACCESS, HttpFetcher, OriginAccess, SourceNotFound
from .release import Release, ReleaseFile
from .requirement import COMMIT_PATTERN, Requirement, parse_requirement
from .source_settings import ForgeUrls

_REF_PREFIXES = ("refs/tags/", "refs/heads/")  # in order of preference, as in git


class ForgeSource:
    """The source of packages in repositories.

    Args:
        fetcher: makes the HTTP requests.
        forges: the addresses of each forge.
    """

    def __init__(self, fetcher: HttpFetcher, forges: Mapping[str, ForgeUrls]) -> None:
        self._fetcher = fetcher
        self._forges = forges
        self._refs: dict[tuple[str, str], asyncio.Task[dict[str, str]]] = {}

    def access(self, requirement: Requirement, url: str) -> OriginAccess:
        """Return the access to a URL: that to the forge's files if it is one of them."""
        base = self._forges[requirement.source].raw_url.partition("{")[0]
        return OriginAccess(base, True) if url.startswith(base) else NO_ACCESS

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return one version: the commit that the requirement's ref refers to now."""
        return [(await self.resolve_ref(requirement))[0]]

    async def resolve_ref(self, requirement: Requirement) -> tuple[str, str]:
        """Return the commit of a requirement, and the full name of its ref ("" for a commit).

        Raises:
            SourceNotFound: the repository has no such ref.
        """
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
            f"{requirement.version or 'HEAD'!r}; a commit needs all of its 40 digits"
        )

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return the package at a commit, as described by its package.json."""
        _, ref = await self.resolve_ref(requirement)
        path = requirement.path
        if path.endswith((".py", ".mpy")):
            part = ReleaseFile(path.rpartition("/")[2], self._raw_url(requirement, version, path))
            return Release(requirement, version, (part,), ref=ref)
        document_path = path
        if not path.endswith(".json"):
            document_path = "/".join(filter(None, (path, "package.json")))
        url = self._raw_url(requirement, version, document_path)
        try:
            reply = await self._fetcher.fetch(
                url,
                limit=self._fetcher.limits.package_document_bytes,
                access=self.access(requirement, url),
            )
        except SourceNotFound as error:
            raise SourceNotFound(
                f"{requirement} has no {document_path} at commit {version[:12]}"
            ) from error
        document = read_document(
            reply.body,
            f"{requirement}'s {document_path}",
            self._fetcher.limits.package_files,
        )
        if document.hashes:
            raise PackageError(
                f"{requirement} has hashes in its {document_path}: "
                "only an index serves files by hash"
            )
        folder = document_path.rpartition("/")[0]
        parts = [
            ReleaseFile(target, await self.locate(reference, requirement, version, folder))
            for target, reference in document.urls
        ]
        return Release(
            requirement,
            version,
            tuple(parts),
            read_dependencies(document, requirement, version, folder),
            ref,
        )

    async def locate(self, reference: str, package: Requirement, commit: str, folder: str) -> str:
        """Return the URL of a file that a package.json names.

        Args:
            reference: the file: a URL, a file of a repository such as ``github:…``, or a path
                relative to the package.json.
            package: the package.
            commit: the package's commit. It applies to files of the package's own repository only.
            folder: the folder of the package.json in its repository.

        Raises:
            PackageError: the reference is malformed or leaves the repository.
        """
        if not is_address(reference):
            return self._raw_url(package, commit, join_path(folder, reference, package))
        if reference.startswith(("http://", "https://")):
            return parse_requirement(reference).name
        file = parse_requirement(reference)
        if not file.path:
            raise PackageError(f"{package} names a file without its path: {reference[:100]!r}")
        if not _has_same_commit(file, package):
            commit, _ = await self.resolve_ref(file)
        return self._raw_url(file, commit, file.path)

    def _raw_url(self, requirement: Requirement, commit: str, path: str) -> str:
        template = self._forges[requirement.source].raw_url
        return template.format(repo=requirement.repository, commit=commit, path=quote(path))

    async def _repository_refs(self, requirement: Requirement) -> dict[str, str]:
        """Return the refs of a repository; they are fetched once for a plan."""
        repository = (requirement.source, requirement.repository)
        if repository not in self._refs:
            self._refs[repository] = asyncio.ensure_future(self._fetch_refs(requirement))
        return await self._refs[repository]

    async def _fetch_refs(self, requirement: Requirement) -> dict[str, str]:
        url = self._forges[requirement.source].refs_url.format(repo=requirement.repository)
        name = f"{requirement.source}:{requirement.repository}"
        try:
            reply = await self._fetcher.fetch(
                url,
                limit=self._fetcher.limits.package_document_bytes,
                access=OriginAccess(url, may_be_private=True),
            )
        except SourceNotFound as error:
            raise SourceNotFound(f"there is no repository {name}, or it is not public") from error
        return read_refs(reply.body, name)


def _has_same_commit(file: Requirement, package: Requirement) -> bool:
    """Return whether a file is read at its package's commit: same repository, no ref of its own."""
    same = (file.source, file.repository) == (package.source, package.repository)
    return same and not file.version
