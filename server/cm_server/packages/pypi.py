"""Distributions of the old ``micropython-*`` kind: sdists and wheels, read as archives.

Nothing of them runs: no setup.py, no build backend, no entry point, no .pth; nor are those
installed. The index is the one that pip is configured with (its first: pip's extra indexes are
left out, for a name that is in two of them would be a guess).
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .archives import unpack
from .cache import PackageCache, sha256
from .documents import is_dummy, read_metadata, read_requires
from .http_fetcher import HttpFetcher, SourceNotFound
from .install_paths import BUILTIN_MODULES
from .release import Release, ReleaseFile
from .requirement import Requirement, parse_requirement

if TYPE_CHECKING:
    from pypi_simple import ProjectPage

_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"  # PEP 691
_ARCHIVE_SUFFIXES: Final = (".tar.gz", ".whl", ".zip")
#: What belongs to the way a distribution is made, not to what it is (a sdist's root; a wheel's).
_NOT_INSTALLED = re.compile(
    r"(__init__\.py|setup\.(py|cfg)|sdist_upip\.py|optimize_upip\.py|pyproject\.toml|MANIFEST\.in|metadata\.txt"
    r"|PKG-INFO|(README|LICEN[CS]E|COPYING|CHANGE|AUTHORS|HISTORY|INSTALL|Makefile|tox\.ini"
    r"|requirements)[^/]*|(tests?|docs?|examples?|scripts?|\.[^/]*|[^/]*\.(egg-info|dist-info|data"
    r"))/.*|\.[^/]*|.*\.(pth|pyc|so|pyd|dll|exe))",
    re.IGNORECASE,
)
_PREFIX: Final = "micropython-"


class PipSettings(NamedTuple):
    """What pip is configured with: the index's URL, and certificates ("" for the system's)."""

    url: str
    cert: str


async def read_pip_settings() -> PipSettings:
    """Ask pip how it is configured; nothing is downloaded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    told, _ = await process.communicate()
    found: dict[str, str] = {}
    for line in told.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        try:
            found[key.strip()] = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            continue

    def setting(name: str) -> str:
        """Return a setting as `pip install` sees it: environment, then its own, then all's."""
        keys = (f":env:.{name}", f"install.{name}", f"global.{name}")
        return next((found[key] for key in keys if key in found), "")

    index = setting("index-url") or os.environ.get("PIP_INDEX_URL", "")  # where there is no pip
    if not index:
        from pypi_simple import PYPI_SIMPLE_ENDPOINT  # pip's default is this one, too

        index = PYPI_SIMPLE_ENDPOINT
    return PipSettings(index, setting("cert"))


class PyPISource:
    """The one index of ``pypi:``.

    Args:
        fetcher: fetches.
        cache: keeps archives.
        index: its URL.
    """

    def __init__(self, fetcher: HttpFetcher, cache: PackageCache, index: str) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self.index = index.rstrip("/") + "/"
        self._pages: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the versions that a wish allows, the best first."""
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        files = await self._archives(requirement)
        try:
            allowed = SpecifierSet(requirement.version)
        except InvalidSpecifier:
            raise PackageError(f"{requirement}: {requirement.version!r} is no version") from None
        found = list(allowed.filter(files)) or list(allowed.filter(files, prereleases=True))
        if not found:
            raise SourceNotFound(
                f"{requirement}: of {requirement.name} there is {', '.join(list(files)[:10])}"
            )
        return found

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return a version as its archive describes it."""
        file = (await self._archives(requirement))[version]
        raw = await self.fetch_archive(requirement, version)
        digest = sha256(raw)
        members = await asyncio.to_thread(unpack, raw, file.filename)
        files = installable_files(members, file.filename)
        requires, dummy = read_archive_metadata(members)
        parts = [
            ReleaseFile(
                path, sha256=await asyncio.to_thread(self._cache.put, content), size=len(content)
            )
            for path, content in sorted(files.items())
        ]
        needs, notes = _read_dependencies(requires, requirement)
        if dummy or not any(part.size for part in parts):
            notes += (
                f"{requirement.key} {version} is a dummy: it keeps the name, and has no code",
            )
        return Release(requirement, version, tuple(parts), needs, "", file.filename, digest, notes)

    async def fetch_archive(self, requirement: Requirement, version: str) -> bytes:
        """Return a version's archive, as its index promises it.

        Raises:
            PackageError: there is none, or another one than was promised.
        """
        file = (await self._archives(requirement)).get(version)
        if file is None:
            raise SourceNotFound(
                f"{requirement}: there is no {requirement.name} {version} in its index any more"
            )
        promised = (file.digests or {}).get("sha256", "")
        raw = await asyncio.to_thread(self._cache.get, promised)
        if raw is not None:
            return raw
        # An index that is itself inside may keep its archives at another place inside; one
        # that is public never leads there.
        inside = await self._fetcher.is_private_host(self.index)
        own = file.url if inside else self.index
        reply = await self._fetcher.fetch(
            file.url, limit=limits.PACKAGE_ARCHIVE_BYTES, trusted_url=own
        )
        if promised and sha256(reply.body) != promised:
            raise PackageError(
                f"{requirement}: {file.filename} is not what its index promised (SHA-256)"
            )
        await asyncio.to_thread(self._cache.put, reply.body)
        return reply.body

    async def _archives(self, requirement: Requirement) -> dict[str, Any]:
        """Return the archive of each version, the newest first; asked once for a plan."""
        if requirement.name not in self._pages:
            self._pages[requirement.name] = asyncio.ensure_future(self._fetch_archives(requirement))
        return await self._pages[requirement.name]

    async def _fetch_archives(self, requirement: Requirement) -> dict[str, Any]:
        url = f"{self.index}{requirement.name}/"
        try:
            reply = await self._fetcher.fetch(
                url, limit=limits.PACKAGE_DOCUMENT_BYTES, trusted_url=self.index, accept=_ACCEPT
            )
        except SourceNotFound as error:
            raise SourceNotFound(
                f"{requirement} is not in the index that pip is configured with"
            ) from error
        try:
            page = await asyncio.to_thread(_parse_page, requirement.name, reply)
            return await asyncio.to_thread(_choose_archives, page)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PackageError(
                f"{requirement}: its index says what cannot be read: {error}"[:300]
            ) from error


def _parse_page(name: str, reply: Any) -> ProjectPage:
    from pypi_simple import ProjectPage

    if reply.content_type.endswith("json"):
        return ProjectPage.from_json_data(json.loads(reply.body), base_url=reply.url)
    return ProjectPage.from_html(name, reply.body, base_url=reply.url)


def _choose_archives(page: ProjectPage) -> dict[str, Any]:
    """Return the one archive of each version that is for us; the newest version first."""
    from packaging.version import InvalidVersion, Version

    found: dict[Version, tuple[int, str, Any]] = {}
    for file in page.packages:
        name = file.filename
        kind = next((n for n, end in enumerate(_ARCHIVE_SUFFIXES) if name.endswith(end)), None)
        if kind is None or file.is_yanked or not _is_pure_python(name):
            continue
        try:
            version = Version(file.version or "")
        except InvalidVersion:
            continue
        if version not in found or (kind, name) < found[version][:2]:
            found[version] = (kind, name, file)
    return {str(found[v][2].version): found[v][2] for v in sorted(found, reverse=True)}


def _is_pure_python(name: str) -> bool:
    """Whether an archive is of Python alone: a wheel says so by its tags."""
    return not name.endswith(".whl") or name.endswith("-none-any.whl")


def installable_files(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    """Return the files that belong on a board, below an install's folder."""
    roots = {path.partition("/")[0] for path in members}
    wheel = name.endswith(".whl")
    if not wheel and len(roots) != 1:
        raise PackageError(f"{name} is no sdist: it has no one folder that holds all")
    found = {}
    for path, content in members.items():
        inside = path if wheel else path.partition("/")[2]
        inside = re.sub(r"^src/", "", inside) if not wheel else inside
        if inside and not _NOT_INSTALLED.fullmatch(inside):
            found[inside] = content
    return found


def read_archive_metadata(members: dict[str, bytes]) -> tuple[list[str], bool]:
    """Return what an archive needs, and whether it says that it is a dummy."""
    requires: list[str] = []
    dummy = False
    for path, content in sorted(members.items()):
        end = path.rpartition("/")[2]
        if end == "requires.txt" and ".egg-info/" in path:
            requires += read_requires(content)
        elif end == "METADATA" and ".dist-info/" in path:
            requires += read_metadata(content)
        dummy = dummy or (end in ("PKG-INFO", "METADATA") and is_dummy(content))
    return list(dict.fromkeys(requires)), dummy


def _read_dependencies(
    requires: list[str], requirement: Requirement
) -> tuple[tuple[Requirement, ...], tuple[str, ...]]:
    """Return what is needed, less what MicroPython brings by itself, and a note for that."""
    needs, notes = [], []
    for text in requires:
        try:
            need = parse_requirement(f"pypi:{text}")
        except PackageError as error:
            raise PackageError(f"{requirement} needs something odd: {error.args[0]}") from error
        module = re.split("[-.]", need.name.removeprefix(_PREFIX))[0]
        if BUILTIN_MODULES.fullmatch(module):
            notes.append(
                f"{requirement.key} needs {need.name}: MicroPython brings its own {module}"
            )
        else:
            needs.append(need)
    return tuple(needs), tuple(notes)
