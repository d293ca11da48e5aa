"""Parse requirements: the name of a package, its source, and optionally a version; pure.

=====================================  ====================================================
``NAME[@VERSION]``                     the default mip index
``ALIAS:NAME[@VERSION]``               another mip index, by its alias
``github:OWNER/REPO[/PATH][@REF]``     a repository; also ``gitlab:`` and ``codeberg:``
``https://…``                          a ``.py`` or ``.mpy`` file, a ``.json``, or a folder
``pypi:NAME[==VERSION]``               the index that pip is configured with
``./FOLDER``, ``FILE.py``              files that the caller sent with its request
=====================================  ====================================================

A requirement has exactly one source; a package is never looked up in another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import FORGE_NAMES, hide_credentials

COMMIT_PATTERN: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_MAX_CHARS: Final = 500  # of a requirement; enough for a URL
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # such as __future__
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+-]{0,99}")  # of a path in a repository
_SPECIFIER = re.compile(r"(?:(?:==|!=|<=|>=|~=|<|>)[A-Za-z0-9.*+!_-]{1,64},?)+")
_PYPI_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})\s*(.*)", re.DOTALL)
_LATEST: Final = ("", "latest", "*")
_SYNTAX_HINT: Final = (
    "a requirement is NAME[@VERSION], github:OWNER/REPO[/PATH][@REF], pypi:NAME or a URL"
)
_LOCAL_FILE_HINT: Final = "the server does not read its own files; for one of yours write ./NAME"


@dataclass(frozen=True, order=True)
class Requirement:
    """A request for a package.

    Attributes:
        source: "index", one of `FORGE_NAMES`, "url", "pypi" or "local".
        name: the name of the package; OWNER/REPO[/PATH]; a URL; or the caller's name of its files.
        version: a version, a ref of a repository, or a specifier such as "==1.0"; "" is the newest.
        alias: the alias of the index; "" for the default one.
    """

    source: str
    name: str
    version: str = ""
    alias: str = ""

    @property
    def key(self) -> str:
        """Return the key of the package: the requirement without its version."""
        return str(replace(self, version=""))

    @property
    def repository(self) -> str:
        """Return OWNER/REPO of a requirement for a repository."""
        return "/".join(self.name.split("/")[:2])

    @property
    def path(self) -> str:
        """Return the path in the repository, "" for its root."""
        return "/".join(self.name.split("/")[2:])

    def __str__(self) -> str:
        if self.source == "pypi":
            return f"pypi:{self.name}{self.version}"
        before = {"index": f"{self.alias}:" if self.alias else "", "url": "", "local": ""}
        after = f"@{self.version}" if self.version else ""
        return before.get(self.source, f"{self.source}:") + self.name + after


def parse_requirement(text: str, local: frozenset[str] = frozenset()) -> Requirement:
    """Parse a requirement.

    Args:
        text: the requirement, as the user typed it.
        local: the requirements for which the caller sent files. Other paths are refused: the
            server never reads files of its own.

    Raises:
        PackageError: it is malformed.
    """
    if text in local:
        return Requirement("local", text)
    if len(text) > _MAX_CHARS or not text.isprintable():
        raise _invalid(text, "it is too long or has invisible characters")
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
        raise _invalid(text, f"{before!r} is not the name of a source")
    name, version = _split_version(text, after)
    if not _NAME.fullmatch(name) or not (version in _LATEST or _VERSION.fullmatch(version)):
        raise _invalid(text, _SYNTAX_HINT)
    return Requirement("index", name, "" if version in _LATEST else version, before)


def _split_version(text: str, rest: str) -> tuple[str, str]:
    """Split NAME[@VERSION]; ``text`` is the requirement for error messages."""
    name, at, version = rest.partition("@")
    _check_single_at(text, version)
    if at and not version:
        raise _invalid(text, "the version after the @ is missing")
    return name, version


def _check_single_at(text: str, version: str) -> None:
    """Raise PackageError if there is a second ``@``, since it would be ambiguous."""
    if "@" in version:
        raise _invalid(text, "it has two @, and a version cannot contain one")


def _parse_forge(text: str, source: str, rest: str) -> Requirement:
    name, ref = _split_version(text, rest)
    parts = name.split("/")
    if len(parts) < 2 or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise _invalid(text, f"for a repository write {source}:OWNER/REPO[/PATH][@REF]")
    if ref and (not _REF.fullmatch(ref) or ".." in ref or "//" in ref):
        raise _invalid(text, f"{ref!r} is not a branch, tag or commit")
    return Requirement(source, name, "" if ref in ("HEAD", *_LATEST) else ref)


def _parse_pypi(text: str, rest: str) -> Requirement:
    match = _PYPI_NAME.fullmatch(rest.strip())
    specifier = re.sub(r"\s+", "", match[2]) if match else ""
    if specifier.startswith("@"):
        raise _invalid(text, "for a version write pypi:NAME==VERSION")
    if not match or (specifier and not _SPECIFIER.fullmatch(specifier)):
        raise _invalid(text, "write pypi:NAME or pypi:NAME==VERSION")
    return Requirement("pypi", normalize_name(match[1]), specifier.rstrip(","))


def normalize_name(name: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parse_url(text: str) -> Requirement:
    scheme, _, rest = text.partition("://")
    host = rest.partition("/")[0]
    if scheme not in ("http", "https") or not host or "@" in host or "#" in text or " " in text:
        raise _invalid(text, "a URL must be https://HOST/PATH, without a user name or a fragment")
    return Requirement("url", text)


def _invalid(text: str, why: str) -> PackageError:
    return PackageError(f"{hide_credentials(text)[:100]!r} is not a valid requirement: {why}")
