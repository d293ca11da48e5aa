"""One version of one package, as its source describes it, and as it is once it is here; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .requirement import Requirement


@dataclass(frozen=True)
class ReleaseFile:
    """A file that a release consists of.

    Attributes:
        path: below the install's folder, as the source says.
        url: where from; "" where it came in the release's archive or along with the request.
        hash_prefix: the first digits of its SHA-256 that the source promises; "" for no promise.
        sha256: its content's, in hex, as soon as that is here.
        size: bytes.
    """

    path: str
    url: str = ""
    hash_prefix: str = ""
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Release:
    """A package at a version.

    Attributes:
        requirement: the requirement that it is the answer to, without its version.
        version: what it calls itself; a forge's is the commit.
        ref: a forge's ref in full, such as refs/tags/v1, that led to the commit; "" for none.
        dependencies: what it requires.
        parts: its files.
        archive: the file name of the archive that they are in, "" for none.
        archive_sha256: the archive's own.
        notes: what a person should know, each a sentence.
    """

    requirement: Requirement
    version: str
    parts: tuple[ReleaseFile, ...]
    dependencies: tuple[Requirement, ...] = ()
    ref: str = ""
    archive: str = ""
    archive_sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return what it has in common with its other versions."""
        return self.requirement.key

    def __str__(self) -> str:
        if not self.version:
            return self.key
        return f"{self.key}{'==' if self.requirement.source == 'pypi' else '@'}{self.version}"
