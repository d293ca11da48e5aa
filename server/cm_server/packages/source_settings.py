"""Settings of the server's administrator: where packages come from; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

DEFAULT_INDEX: Final = "https://micropython.org/pi/v2"


class ForgeUrls(NamedTuple):
    """URLs of a forge, with the placeholders ``{repo}``, ``{commit}`` and ``{path}``.

    Attributes:
        refs_url: the list of a repository's refs, in git's "smart" HTTP protocol, version 0.
        raw_url: a file at a commit.
    """

    refs_url: str
    raw_url: str


_REFS: Final = "/{repo}.git/info/refs?service=git-upload-pack"
DEFAULT_FORGES: Final = {
    "github": ForgeUrls(
        "https://github.com" + _REFS,
        "https://raw.githubusercontent.com/{repo}/{commit}/{path}",
    ),
    "gitlab": ForgeUrls(
        "https://gitlab.com" + _REFS,
        "https://gitlab.com/{repo}/-/raw/{commit}/{path}",
    ),
    "codeberg": ForgeUrls(
        "https://codeberg.org" + _REFS,
        "https://codeberg.org/api/v1/repos/{repo}/raw/{path}?ref={commit}",
    ),
}


@dataclass(frozen=True)
class SourceSettings:
    """The configured sources; unlike URLs from elsewhere, these may have private addresses.

    Attributes:
        indexes: alias of a mip index -> URL; "" is the default one.
        forges: name of a forge -> its URLs.
        pypi: the URL of the index of `pypi:`; None for the one that pip is configured with.
    """

    indexes: Mapping[str, str] = field(default_factory=lambda: {"": DEFAULT_INDEX})
    forges: Mapping[str, ForgeUrls] = field(default_factory=lambda: dict(DEFAULT_FORGES))
    pypi: str | None = None
