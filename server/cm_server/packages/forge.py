"""Repositories on forges: a ref becomes a commit first, and all else is read at that commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .dependencies import needs_of
from .documents import read_document, read_refs
from .http_fetcher import NotFound, Web
from .release import Part, Release
from .requirement import COMMIT, FORGES, Requirement, parse
from .source_settings import Forge

_NAMES = ("refs/tags/", "refs/heads/")  # a name that is both is the tag's, as with git


class Forges:
    """The forges.

    Args:
        web: fetches.
        forges: their addresses.
    """

    def __init__(self, web: Web, forges: Mapping[str, Forge]) -> None:
        self._web = web
        self._forges = forges
        self._refs: dict[tuple[str, str], asyncio.Task[dict[str, str]]] = {}

    def own(self, wish: Requirement, url: str) -> str:
        """Return where a wish's forge keeps its files, if the URL is there, else ""."""
        raw = self._forges[wish.source].raw.partition("{")[0]
        return raw if url.startswith(raw) else ""

    async def versions(self, wish: Requirement) -> list[str]:
        """Return the commit that a wish's ref means now."""
        return [(await self.pin(wish))[0]]

    async def pin(self, wish: Requirement) -> tuple[str, str]:
        """Return the commit, and the full name of the ref that led to it ("" for a commit)."""
        if COMMIT.fullmatch(wish.version):
            return wish.version, ""
        refs = await self._refs_of(wish)
        names = [prefix + wish.version for prefix in _NAMES] if wish.version else ["HEAD"]
        for name in names:
            if name in refs:
                return refs[name], name
        raise NotFound(
            f"{wish}: {wish.source}:{wish.repository} has no branch and no tag "
            f"{wish.version or 'HEAD'!r}; a commit is named by all of its 40 digits"
        )

    async def load(self, wish: Requirement, version: str) -> Release:
        """Return a package as its repository describes it at a commit."""
        _, ref = await self.pin(wish)
        path = wish.path
        if path.endswith((".py", ".mpy")):
            part = Part(path.rpartition("/")[2], self._raw(wish, version, path))
            return Release(wish, version, (part,), ref=ref)
        at = path if path.endswith(".json") else "/".join(filter(None, (path, "package.json")))
        url = self._raw(wish, version, at)
        try:
            reply = await self._web.get(
                url, limit=limits.PACKAGE_DOCUMENT_BYTES, own=self.own(wish, url)
            )
        except NotFound as error:
            raise NotFound(f"{wish} has no {at} at commit {version[:12]}") from error
        document = read_document(reply.body, f"{wish}'s {at}")
        if document.hashes:
            raise PackageError(f"{wish} has hashes in its {at}: only an index keeps files by them")
        folder = at.rpartition("/")[0]
        parts = [
            Part(target, await self.locate(where, wish, version, folder))
            for target, where in document.urls
        ]
        return Release(wish, version, tuple(parts), needs_of(document, wish, version), ref)

    async def locate(self, where: str, owner: Requirement, commit: str, folder: str) -> str:
        """Return the address of a file that a package names.

        Args:
            where: as the package says it: a URL, a forge's file, or a path beside the document.
            owner: the package.
            commit: its own: it holds for files of its own repository, and for no other's.
            folder: of its document.
        """
        if where.startswith(("http://", "https://")):
            return parse(where).name
        if where.partition(":")[0] in FORGES:
            wish = parse(where)
            same = (wish.source, wish.repository) == (owner.source, owner.repository)
            if not wish.path:
                raise PackageError(f"{owner} names a file without its path: {where[:100]!r}")
            at = commit if same and not wish.version else (await self.pin(wish))[0]
            return self._raw(wish, at, wish.path)
        path = "/".join(filter(None, (folder, where)))
        if ":" in where or any(not part.strip(".") for part in path.split("/")):
            raise PackageError(f"{owner} names a file outside of its repository: {where[:100]!r}")
        return self._raw(owner, commit, path)

    def _raw(self, wish: Requirement, commit: str, path: str) -> str:
        raw = self._forges[wish.source].raw
        return raw.format(repo=wish.repository, commit=commit, path=quote(path))

    async def _refs_of(self, wish: Requirement) -> dict[str, str]:
        """Return a repository's refs; asked once for a plan, however many want them."""
        at = (wish.source, wish.repository)
        if at not in self._refs:
            self._refs[at] = asyncio.ensure_future(self._ask(wish))
        return await self._refs[at]

    async def _ask(self, wish: Requirement) -> dict[str, str]:
        url = self._forges[wish.source].refs.format(repo=wish.repository)
        whose = f"{wish.source}:{wish.repository}"
        try:
            reply = await self._web.get(url, limit=limits.PACKAGE_DOCUMENT_BYTES, own=url)
        except NotFound as error:
            raise NotFound(f"there is no repository {whose}, or it is not public") from error
        return read_refs(reply.body, whose)
