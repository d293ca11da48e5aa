"""Distributions on PyPI, such as the old ``micropython-*`` packages: sdists and wheels.

They are read as archives. Nothing of them is executed: no setup.py, build backend, entry point or
.pth file; nor are those installed. The index is the one that pip is configured with. pip's extra
indexes are ignored, since a name could exist in several of them (dependency confusion).
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

from .archives import unpack
from .cache import TokenCache, sha256
from .documents import is_dummy, read_metadata, read_requires
from .http_fetcher import HttpFetcher, OriginAccess, SourceNotFound
from .release import Release, ReleaseFile
from .requirement import Requirement, parse_requirement

if TYPE_CHECKING:
    from pypi_simple import ProjectPage

_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"  # PEP 691
_ARCHIVE_SUFFIXES: Final = (".tar.gz", ".whl", ".zip")
#: Files that serve the building, testing or description of a distribution.
_NOT_INSTALLED = re.compile(
    r"(__init__\.py|(manifest|conftest|noxfile)\.py|setup\.(py|cfg)|sdist_upip\.py|optimize_upip\.py|pyproject\.toml|MANIFEST\.in|metadata\.txt"
    r"|PKG-INFO|(README|LICEN[CS]E|COPYING|CHANGE|AUTHORS|HISTORY|INSTALL|Makefile|tox\.ini"
    r"|requirements)[^/]*|(tests?|docs?|examples?|scripts?|\.[^/]*|[^/]*\.(egg-info|dist-info|data"
    r"))/.*|\.[^/]*|.*\.(pth|pyc|so|pyd|dll|exe))",
    re.IGNORECASE,
)
_PREFIX: Final = "micropython-"
#: Modules that all boards have built in: the old distributions for them are not needed.
_BUILTIN_MODULES = re.compile(
    "array|binascii|builtins|cmath|cryptolib|deflate|framebuf|gc|hashlib|io|json|machine|math|"
    "micropython|network|os|platform|random|re|select|socket|ssl|struct|sys|time|tls|uctypes|"
    "vfs|websocket|_thread"
)


class PipSettings(NamedTuple):
    """The configuration of pip: the URL of its index, and its certificates ("": the system's)."""

    url: str
    cert: str


async def read_pip_settings() -> PipSettings:
    """Return pip's configuration, from ``pip config list``; nothing is downloaded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    settings: dict[str, str] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        try:
            settings[key.strip()] = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            continue

    def setting(name: str) -> str:
        """Return a setting with the precedence of `pip install`: environment, command, global."""
        keys = (f":env:.{name}", f"install.{name}", f"global.{name}")
        return next((settings[key] for key in keys if key in settings), "")

    index = setting("index-url") or os.environ.get("PIP_INDEX_URL", "")  # pip may be missing
    if not index:
        from pypi_simple import PYPI_SIMPLE_ENDPOINT  # pip's default too

        index = PYPI_SIMPLE_ENDPOINT
    return PipSettings(index, setting("cert"))


class PyPISource:
    """The source of packages in the index that pip is configured with.

    Args:
        fetcher: makes the HTTP requests.
        cache: where archives and files are stored.
        index: access to the index.
    """

    def __init__(self, fetcher: HttpFetcher, cache: TokenCache, index: OriginAccess) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._access = index
        self.index = index.url.rstrip("/") + "/"
        self._pages: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def versions(self, requirement: Requirement) -> list[str]:
        """Return the versions that a requirement allows, the newest first.

        Pre-releases are included only if there is nothing else.

        Raises:
            PackageError: the version specifier is malformed.
            SourceNotFound: no version matches.
        """
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        files = await self._archives(requirement)
        try:
            allowed = SpecifierSet(requirement.version)
        except InvalidSpecifier:
            raise PackageError(f"{requirement}: {requirement.version!r} is not a version") from None
        versions = list(allowed.filter(files)) or list(allowed.filter(files, prereleases=True))
        if not versions:
            raise SourceNotFound(
                f"{requirement}: no such version; {requirement.name} has "
                f"{', '.join(list(files)[:10])}"
            )
        return versions

    async def load(self, requirement: Requirement, version: str) -> Release:
        """Return a version of the package, as described by its archive."""
        file = (await self._archives(requirement))[version]
        raw = await self.fetch_archive(requirement, version)
        digest = sha256(raw)
        members = await asyncio.to_thread(unpack, raw, file.filename, self._fetcher.limits)
        files = installable_files(members, file.filename)
        requires, is_dummy_package = read_archive_metadata(members)
        parts = []
        for path, content in sorted(files.items()):
            content_digest = await asyncio.to_thread(self._cache.put, content)
            parts.append(ReleaseFile(path, sha256=content_digest, size=len(content)))
        needs, notes = _read_dependencies(requires, requirement)
        if is_dummy_package or not any(part.size for part in parts):
            notes += (
                f"{requirement.key} {version} is a dummy: it reserves the name and has no code",
            )
        return Release(requirement, version, tuple(parts), needs, "", file.filename, digest, notes)

    async def fetch_archive(self, requirement: Requirement, version: str) -> bytes:
        """Return the archive of a version, from the cache or the index.

        Raises:
            SourceNotFound: the index does not have that version.
            PackageError: the archive does not have the hash that the index lists.
        """
        file = (await self._archives(requirement)).get(version)
        if file is None:
            raise SourceNotFound(
                f"{requirement}: its index no longer has {requirement.name} {version}"
            )
        expected_digest = (file.digests or {}).get("sha256", "")
        # The index names this digest, so its content is for everybody who may use the index.
        raw = await asyncio.to_thread(self._cache.shared.get, expected_digest)
        if raw is not None:
            await asyncio.to_thread(self._cache.put, raw)
            return raw
        # A private index may have its archives on another private host; a public index may not.
        is_private = await self._fetcher.is_private_host(self.index)
        access = self._access
        if is_private and not access.includes(file.url):
            access = OriginAccess.to_source(file.url, may_be_private=True)
        reply = await self._fetcher.fetch(
            file.url, limit=self._fetcher.limits.package_archive_bytes, access=access
        )
        if expected_digest and sha256(reply.body) != expected_digest:
            raise PackageError(
                f"{requirement}: {file.filename} does not have the SHA-256 that its index lists"
            )
        await asyncio.to_thread(self._cache.put, reply.body)
        return reply.body

    async def _archives(self, requirement: Requirement) -> dict[str, Any]:
        """Return version -> archive, the newest first; the page is fetched once for a plan."""
        if requirement.name not in self._pages:
            self._pages[requirement.name] = asyncio.ensure_future(self._fetch_archives(requirement))
        return await self._pages[requirement.name]

    async def _fetch_archives(self, requirement: Requirement) -> dict[str, Any]:
        url = f"{self.index}{requirement.name}/"
        try:
            reply = await self._fetcher.fetch(
                url,
                limit=self._fetcher.limits.package_document_bytes,
                access=self._access,
                accept=_ACCEPT,
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
                f"{requirement}: the page of its index is malformed: {error}"[:300]
            ) from error


def _parse_page(name: str, reply: Any) -> ProjectPage:
    from pypi_simple import ProjectPage

    if reply.content_type.endswith("json"):
        return ProjectPage.from_json_data(json.loads(reply.body), base_url=reply.url)
    return ProjectPage.from_html(name, reply.body, base_url=reply.url)


def _choose_archives(page: ProjectPage) -> dict[str, Any]:
    """Return version -> archive, the newest first.

    Of several archives of a version the sdist is preferred, as ``_ARCHIVE_SUFFIXES`` orders them.
    """
    from packaging.version import InvalidVersion, Version

    found: dict[Version, tuple[int, str, Any]] = {}
    for file in page.packages:
        name = file.filename
        preference = next(
            (n for n, suffix in enumerate(_ARCHIVE_SUFFIXES) if name.endswith(suffix)), None
        )
        if preference is None or file.is_yanked or not _is_pure_python(name):
            continue
        try:
            version = Version(file.version or "")
        except InvalidVersion:
            continue
        if version not in found or (preference, name) < found[version][:2]:
            found[version] = (preference, name, file)
    archives = {}
    for version in sorted(found, reverse=True):
        _, _, file = found[version]
        archives[str(file.version)] = file
    return archives


def _is_pure_python(name: str) -> bool:
    """Return whether an archive contains no binaries: an sdist, or a wheel for any platform."""
    return not name.endswith(".whl") or name.endswith("-none-any.whl")


def installable_files(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    """Return the files of an archive to install on a board, by their paths there.

    Args:
        members: the files of the archive.
        name: the file name of the archive.

    Raises:
        PackageError: an sdist does not have a single top-level folder.
    """
    top_level_names = {path.partition("/")[0] for path in members}
    is_wheel = name.endswith(".whl")
    if not is_wheel and len(top_level_names) != 1:
        raise PackageError(f"{name} is not an sdist: it has no single top-level folder")
    files = {}
    for member_path, content in members.items():
        path = member_path
        if not is_wheel:
            _, _, path = member_path.partition("/")
            path = path.removeprefix("src/")
        if path and not _NOT_INSTALLED.fullmatch(path) and (is_wheel or _is_module_file(path)):
            files[path] = content
    return files


def _is_module_file(path: str) -> bool:
    """Return whether a file of an sdist is a module, or in the folder of a package.

    Others in the root folder, such as package.json and examples.json, are about the project.
    """
    return "/" in path or path.endswith((".py", ".mpy"))


def read_archive_metadata(members: dict[str, bytes]) -> tuple[list[str], bool]:
    """Return the requirements of an archive, and whether it only reserves a name."""
    requires: list[str] = []
    is_dummy_package = False
    for path, content in sorted(members.items()):
        file_name = path.rpartition("/")[2]
        if file_name == "requires.txt" and ".egg-info/" in path:
            requires += read_requires(content)
        elif file_name == "METADATA" and ".dist-info/" in path:
            requires += read_metadata(content)
        if file_name in ("PKG-INFO", "METADATA") and is_dummy(content):
            is_dummy_package = True
    return list(dict.fromkeys(requires)), is_dummy_package


def _read_dependencies(
    requires: list[str], requirement: Requirement
) -> tuple[tuple[Requirement, ...], tuple[str, ...]]:
    """Return the dependencies, without those that MicroPython has built in, and notes on these."""
    needs, notes = [], []
    for text in requires:
        try:
            need = parse_requirement(f"pypi:{text}")
        except PackageError as error:
            raise PackageError(
                f"{requirement} has an invalid dependency: {error.args[0]}"
            ) from error
        module = re.split("[-.]", need.name.removeprefix(_PREFIX))[0]
        if _BUILTIN_MODULES.fullmatch(module):
            notes.append(
                f"{requirement.key} needs {need.name}: MicroPython's built-in {module} is used"
            )
        else:
            needs.append(need)
    return tuple(needs), tuple(notes)
