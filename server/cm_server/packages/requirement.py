"""What somebody asks for: a package's name, its one source, and perhaps a version; pure.

=====================================  ====================================================
``NAME[@VERSION]``                     the default mip index
``ALIAS:NAME[@VERSION]``               another index, which the server knows by this alias
``github:OWNER/REPO[/PATH][@REF]``     a forge; also ``gitlab:`` and ``codeberg:``
``https://…``                          a ``.py`` or ``.mpy`` file, a ``.json``, or a folder
``pypi:NAME[==VERSION]``               the index that pip is configured with
``./FOLDER``, ``FILE.py``              what the caller sent along with his request
=====================================  ====================================================

A requirement has one source: nothing is ever looked for in a second one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from cloudmanager.protocol.errors import PackageError

FORGE_NAMES: Final = ("github", "gitlab", "codeberg")
COMMIT_PATTERN: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_MAX_CHARS: Final = 500  # characters of a requirement; a URL's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+-]{0,99}")  # of a path in a forge
_SPECIFIER = re.compile(r"(?:(?:==|!=|<=|>=|~=|<|>)[A-Za-z0-9.*+!_-]{1,64},?)+")
_PYPI_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})\s*(.*)", re.DOTALL)
_LATEST: Final = ("", "latest", "*")
_SYNTAX_HINT: Final = (
    "it is written NAME[@VERSION], github:OWNER/REPO[/PATH][@REF], pypi:NAME or a URL"
)
_LOCAL_FILE_HINT: Final = "the server reads no files of its own; one of yours is written ./NAME"


@dataclass(frozen=True, order=True)
class Requirement:
    """One wish.

    Attributes:
        source: "index", one of `FORGES`, "url", "pypi" or "local".
        name: a name; OWNER/REPO[/PATH]; a URL; or what the caller calls his files.
        version: a version, a forge's ref, or a specifier such as "==1.0"; "" is the newest.
        alias: which index, "" for the default one.
    """

    source: str
    name: str
    version: str = ""
    alias: str = ""

    @property
    def key(self) -> str:
        """Return what two wishes for the same package have in common."""
        return str(replace(self, version=""))

    @property
    def repository(self) -> str:
        """Return a forge's OWNER/REPO."""
        return "/".join(self.name.split("/")[:2])

    @property
    def path(self) -> str:
        """Return the path in a forge's repository, "" for its root."""
        return "/".join(self.name.split("/")[2:])

    def __str__(self) -> str:
        if self.source == "pypi":
            return f"pypi:{self.name}{self.version}"
        before = {"index": f"{self.alias}:" if self.alias else "", "url": "", "local": ""}
        after = f"@{self.version}" if self.version else ""
        return before.get(self.source, f"{self.source}:") + self.name + after


def parse_requirement(text: str, local: frozenset[str] = frozenset()) -> Requirement:
    """Read a requirement.

    Args:
        text: as a person types it.
        local: what the caller sent files for; nothing else is ever read from a disk.

    Raises:
        PackageError: it is none.
    """
    if text in local:
        return Requirement("local", text)
    if len(text) > _MAX_CHARS or not text.isprintable():
        raise _invalid(text, "it is too long, or has characters that none can see")
    before, colon, after = text.partition(":")
    if colon and before in FORGE_NAMES:
        return _parse_forge(text, before, after)
    if colon and before == "pypi":
        return _parse_pypi(text, after)
    if before in ("http", "https"):
        return _parse_url(text)
    if "/" in text or "\\" in text or text.startswith(".") or text.endswith((".py", ".json")):
        raise _invalid(text, _LOCAL_FILE_HINT)
    if not colon:
        before, after = "", text
    elif not _ALIAS.fullmatch(before) or before in ("file", "ftp", "data"):
        raise _invalid(text, f"{before!r} is no source")
    name, version = _split_version(text, after)
    if not _NAME.fullmatch(name) or not (version in _LATEST or _VERSION.fullmatch(version)):
        raise _invalid(text, _SYNTAX_HINT)
    return Requirement("index", name, "" if version in _LATEST else version, before)


def _split_version(text: str, rest: str) -> tuple[str, str]:
    name, at, version = rest.partition("@")
    _check_single_at(text, version)
    if at and not version:
        raise _invalid(text, "a version follows the @")
    return name, version


def _check_single_at(text: str, version: str) -> None:
    """Raise PackageError if a second ``@`` follows the first: which one counts is a guess."""
    if "@" in version:
        raise _invalid(text, "it has two @, and a version has none in it")


def _parse_forge(text: str, source: str, rest: str) -> Requirement:
    name, ref = _split_version(text, rest)
    parts = name.split("/")
    if len(parts) < 2 or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise _invalid(text, f"a repository is named {source}:OWNER/REPO[/PATH][@REF]")
    if ref and (not _REF.fullmatch(ref) or ".." in ref or "//" in ref):
        raise _invalid(text, f"{ref!r} is no branch, tag or commit")
    return Requirement(source, name, "" if ref in ("HEAD", *_LATEST) else ref)


def _parse_pypi(text: str, rest: str) -> Requirement:
    found = _PYPI_NAME.fullmatch(rest.strip())
    specifier = re.sub(r"\s+", "", found[2]) if found else ""
    if specifier.startswith("@"):
        raise _invalid(text, "a version of pypi: is written pypi:NAME==VERSION")
    if not found or (specifier and not _SPECIFIER.fullmatch(specifier)):
        raise _invalid(text, "it is written pypi:NAME or pypi:NAME==VERSION")
    return Requirement("pypi", normalize_name(found[1]), specifier.rstrip(","))


def normalize_name(name: str) -> str:
    """Return the one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parse_url(text: str) -> Requirement:
    scheme, _, rest = text.partition("://")
    host = rest.partition("/")[0]
    if scheme not in ("http", "https") or not host or "@" in host or "#" in text or " " in text:
        raise _invalid(text, "a URL is https://HOST/PATH, without a user or a fragment")
    return Requirement("url", text)


def _invalid(text: str, why: str) -> PackageError:
    return PackageError(f"{text[:100]!r} names no package: {why}")
