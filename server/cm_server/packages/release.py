"""A release: one version of one package, before and after its files were fetched; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .requirement import Requirement


@dataclass(frozen=True)
class ReleaseFile:
    """A file of a release.

    Attributes:
        path: relative to the folder of the install, as the source names it.
        url: where it is fetched from; "" if it is in an archive or was sent by the caller.
        hash_prefix: the first digits of its SHA-256 according to the source; "" if not known.
        sha256: of its content, in hexadecimal; "" before it was fetched.
        size: of its content, in bytes; 0 before it was fetched.
    """

    path: str
    url: str = ""
    hash_prefix: str = ""
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Release:
    """One version of a package.

    Attributes:
        requirement: the requirement that it fulfils, without the version.
        version: its version; of a repository, the commit.
        parts: its files.
        dependencies: the requirements of its dependencies.
        ref: the full name of the ref that was resolved to the commit, such as refs/tags/v1; ""
            if there is none.
        archive: the file name of the archive that contains the files; "" if there is none.
        archive_sha256: the SHA-256 of the archive.
        notes: remarks for the user, one sentence each.
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
        """Return the key of the package, which is the same for all of its versions."""
        return self.requirement.key

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Release:
        """Return a release that ``dataclasses.asdict`` made JSON of."""
        fields = {
            **body,
            "requirement": Requirement(**body["requirement"]),
            "parts": tuple(ReleaseFile(**part) for part in body["parts"]),
            "dependencies": tuple(Requirement(**each) for each in body["dependencies"]),
            "notes": tuple(body["notes"]),
        }
        return cls(**fields)

    def __str__(self) -> str:
        if not self.version:
            return self.key
        return f"{self.key}{'==' if self.requirement.source == 'pypi' else '@'}{self.version}"
