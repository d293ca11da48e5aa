"""Describe what an install does: packages, and files for each kind of board; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import MIB, Limits

from .install_paths import check_relative_path, find_clash, is_reserved, other_form
from .release import Release


@dataclass(frozen=True, order=True)
class PlannedFile:
    """A file that an install writes.

    Attributes:
        path: the absolute path on the board.
        sha256: of the content, in hexadecimal; `PackagePlanner.read_content` returns the content.
        size: of the content, in bytes.
        package: the key of the package that the file belongs to.
    """

    path: str
    sha256: str
    size: int
    package: str


@dataclass(frozen=True)
class InstallPlan:
    """What an install does; it is the same for the same requirements and sources.

    Attributes:
        wanted: the requirements, as the user gave them.
        target_dir: the folder on the board.
        packages: the releases to install, in the order of their keys.
        files: the files for each kind of board, by the board's fact `mpy`.
        notes: remarks for the user, one sentence each.
        origins: package key -> where the package comes from, for the user.
    """

    wanted: tuple[str, ...]
    target_dir: str
    packages: tuple[Release, ...]
    files: Mapping[int, tuple[PlannedFile, ...]]
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    def shadowing_paths(self, mpy: int) -> tuple[str, ...]:
        """Return the paths that must not exist on a board of this kind.

        A source would be imported instead of the bytecode that is installed, and the reverse.
        """
        paths = {file.path for file in self.files[mpy]}
        shadowing = set()
        for path in paths:
            other = other_form(path)
            if other and other not in paths:
                shadowing.add(other)
        return tuple(sorted(shadowing))

    def source_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file of the packages, before it is compiled, by its path."""
        return {
            f"{self.target_dir}/{part.path}": part.sha256
            for release in self.packages
            for part in release.parts
        }

    def size_bytes(self, mpy: int) -> int:
        """Return the total size of the files for boards of this kind."""
        return sum(file.size for file in self.files[mpy])

    def describe(self) -> dict[str, Any]:
        """Return a description of the plan for the user, as JSON."""
        return {
            "wanted": list(self.wanted),
            "target_dir": self.target_dir or "/",
            "packages": [
                {
                    "name": release.key,
                    "version": release.version,
                    "from": self.origins.get(release.key, str(release)),
                    "needs": sorted(map(str, release.dependencies)),
                }
                for release in self.packages
            ],
            "boards": {
                str(mpy): {
                    "files": [[file.path, file.size, file.package] for file in files],
                    "removed": list(self.shadowing_paths(mpy)),
                    "bytes": self.size_bytes(mpy),
                }
                for mpy, files in sorted(self.files.items())
            },
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the whole plan as JSON, for ``from_json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> InstallPlan:
        """Return a plan that ``to_json`` made, and that was JSON meanwhile."""
        files = {
            int(mpy): tuple(PlannedFile(**file) for file in each)
            for mpy, each in body["files"].items()
        }
        return cls(
            tuple(body["wanted"]),
            body["target_dir"],
            tuple(map(Release.from_json, body["packages"])),
            files,
            tuple(body["notes"]),
            body["origins"],
        )


def check_sizes(releases: Iterable[Release], limits: Limits) -> None:
    """Check the number and the total size of the files of all releases.

    Raises:
        PackageError: there are too many files, or they are too big.
    """
    parts = [part for release in releases for part in release.parts]
    if len(parts) > limits.package_files:
        raise PackageError(f"the packages have more than {limits.package_files} files")
    if sum(part.size for part in parts) > limits.package_unpacked_bytes:
        max_mib = limits.package_unpacked_bytes // MIB
        raise PackageError(f"the files of the packages are too big: more than {max_mib} MiB")


class PlacedFiles(NamedTuple):
    """The files of releases with their paths on the board.

    Attributes:
        files: in the order of their paths.
        notes: which files are left out, one sentence each.
    """

    files: list[PlannedFile]
    notes: list[str]


def place_files(releases: Iterable[Release], folder: str) -> PlacedFiles:
    """Return where the files of all releases are put on the board; sources are not compiled.

    Files at reserved paths are left out.

    Args:
        releases: the releases, with hashes and sizes of their files.
        folder: the folder of the install, as `check_folder` returns it.

    Raises:
        PackageError: a path is refused, or two packages have different files of the same path.
    """
    by_path: dict[str, PlannedFile] = {}
    notes = []
    for release in releases:
        for part in release.parts:
            try:
                path = f"{folder}/{check_relative_path(part.path)}"
            except PackageError as error:
                raise PackageError(f"{release}: {error.args[0]}") from None
            if is_reserved(path):
                notes.append(f"{release}: {path} is left out: packages may not write it")
                continue
            file = PlannedFile(path, part.sha256, part.size, release.key)
            other = by_path.setdefault(path, file)
            if other.sha256 != file.sha256:
                raise PackageError(
                    f"{other.package} and {file.package} both have a file {path}, "
                    "with different contents"
                )
    check_clash(by_path)
    return PlacedFiles(sorted(by_path.values()), notes)


def check_clash(by_path: Mapping[str, PlannedFile]) -> None:
    """Check that no two files exclude each other, such as a module's source and its bytecode.

    Raises:
        PackageError: two files do; the message names their packages.
    """
    if pair := find_clash(by_path):
        packages = sorted({by_path[path].package for path in pair if path in by_path})
        raise PackageError(
            f"{' and '.join(packages)}: {pair[0]} and {pair[1]} cannot exist together"
        )
