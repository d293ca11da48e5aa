"""References in a package.json to files and to other documents; pure.

A reference is an address (a URL, or a file of a repository such as ``github:OWNER/REPO/PATH``), or
a path relative to the package.json, in which ``.`` and ``..`` have their usual meaning.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urljoin

from .errors import PackageError

DOCUMENT_NAME: Final = "package.json"
FORGE_NAMES: Final = ("github", "gitlab", "codeberg")
#: Of a URL: what is between the slashes and the last ``@`` before the path.
_CREDENTIALS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/*)[^/?#\s]*@")
_ADDRESS_PREFIXES: Final = ("http://", "https://", *(f"{name}:" for name in FORGE_NAMES))


def is_address(reference: str) -> bool:
    """Return whether a reference is complete by itself, so not relative to a package.json."""
    return reference.startswith(_ADDRESS_PREFIXES)


def is_relative_document(dependency: str) -> bool:
    """Return whether a dependency is the path of another package.json, such as ``../b/b.json``."""
    is_path = dependency.startswith(("./", "../")) or dependency.endswith(".json")
    return is_path and ":" not in dependency


def join_path(folder: str, reference: str, package: object) -> str:
    """Return the path of a relative reference, without ``.`` and ``..``.

    Args:
        folder: the folder of the package.json, relative to its repository.
        reference: relative to that folder.
        package: what the error message calls the package.

    Raises:
        PackageError: the reference leaves the repository, or is not a relative path.
    """
    parts = folder.split("/") if folder else []
    for part in reference.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or not part or ":" in part or "\\" in part:
            raise PackageError(
                f"{package} names a file outside its repository or folder: {reference[:100]!r}"
            )
        elif part != ".":
            parts.append(part)
    if not parts:
        raise PackageError(f"{package} names a folder instead of a file: {reference[:100]!r}")
    return "/".join(parts)


def hide_credentials(text: str) -> str:
    """Return a text without the user names and passwords of URLs in it."""
    return _CREDENTIALS.sub(r"\1***@", text)


def join_url(base: str, reference: str, package: object) -> str:
    """Return the URL of a relative reference.

    Args:
        base: the URL of the package.json.
        reference: relative to it; ``..`` never leaves the host.
        package: what the error message calls the package.

    Raises:
        PackageError: the result is not an http or https URL.
    """
    try:
        url = urljoin(base, reference)
    except ValueError:
        url = ""
    if not url.startswith(("http://", "https://")) or "\\" in reference:
        raise PackageError(
            f"{package} names a file that is not at an http URL: {reference[:100]!r}"
        )
    return url
