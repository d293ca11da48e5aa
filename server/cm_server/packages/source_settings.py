"""Where packages come from, as the administrator of the server says; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

DEFAULT_INDEX: Final = "https://micropython.org/pi/v2"


class ForgeUrls(NamedTuple):
    """A forge's addresses, with places for REPO, COMMIT and PATH.

    Attributes:
        refs_url: where git's own list of refs is (its "smart" protocol, version 0).
        raw_url: where a file is, at a commit.
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
    """What may be private, since an administrator wrote it down.

    Attributes:
        indexes: each mip index's URL by its alias; "" is the default one.
        forges: each forge's addresses.
        pypi: the index of `pypi:`; None is the one that pip is configured with.
    """

    indexes: Mapping[str, str] = field(default_factory=lambda: {"": DEFAULT_INDEX})
    forges: Mapping[str, ForgeUrls] = field(default_factory=lambda: dict(DEFAULT_FORGES))
    pypi: str | None = None
