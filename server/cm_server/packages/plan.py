"""A plan: packages, files for each kind of board, what goes, what speaks against it; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .install_paths import board_path, find_clash, other_form
from .release import Release


@dataclass(frozen=True, order=True)
class PlannedFile:
    """A file that a board gets.

    Attributes:
        path: on the board, absolute.
        sha256: its content's, in hex: what `Packages.content` is asked for.
        size: bytes.
        package: the key of the package that it belongs to.
    """

    path: str
    sha256: str
    size: int
    package: str


@dataclass(frozen=True)
class InstallPlan:
    """What an install does; the same wishes and the same sources make the same plan.

    Attributes:
        wanted: the wishes, as they were given.
        target_dir: the folder on the board.
        packages: those to install, in the order of their keys.
        files: for each kind of board, by the number that it tells as its `mpy`.
        notes: what a person should know, each a sentence.
        origins: where each package comes from, by its key.
    """

    wanted: tuple[str, ...]
    target_dir: str
    packages: tuple[Release, ...]
    files: Mapping[int, tuple[PlannedFile, ...]]
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    def shadowing_paths(self, mpy: int) -> tuple[str, ...]:
        """Return paths that must not be on such a board: they would hide what is installed."""
        paths = {file.path for file in self.files[mpy]}
        others = {other for path in paths if (other := other_form(path)) and other not in paths}
        return tuple(sorted(others))

    def size_bytes(self, mpy: int) -> int:
        """Return the bytes that such a board gets."""
        return sum(file.size for file in self.files[mpy])

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to see before it happens, as JSON."""
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


def check_sizes(releases: Iterable[Release]) -> None:
    """Refuse what is too much together.

    Raises:
        PackageError: it is.
    """
    parts = [part for release in releases for part in release.parts]
    if len(parts) > limits.PACKAGE_FILES:
        raise PackageError(f"this has more than {limits.PACKAGE_FILES} files")
    if sum(part.size for part in parts) > limits.PACKAGE_UNPACKED_BYTES:
        raise PackageError("this is too big: its files together, as they are on the server")


def place_files(
    releases: Iterable[Release], folder: str, *, force: bool = False
) -> list[PlannedFile]:
    """Return the packages' files where they go, sources uncompiled.

    Raises:
        PackageError: a path is refused, or two packages want the same place.
    """
    found: dict[str, PlannedFile] = {}
    for release in releases:
        for part in release.parts:
            try:
                path = board_path(folder, part.path, force=force)
            except PackageError as error:
                raise PackageError(f"{release}: {error.args[0]}") from None
            file = PlannedFile(path, part.sha256, part.size, release.key)
            other = found.setdefault(path, file)
            if other.sha256 != file.sha256:
                both = f"{other.package} and {file.package}"
                raise PackageError(f"{both} both have a {path}, and not the same one")
    check_clash(found)
    return sorted(found.values())


def check_clash(found: Mapping[str, PlannedFile]) -> None:
    """Refuse files that cannot both be on one board.

    Raises:
        PackageError: they cannot, and whose they are.
    """
    if pair := find_clash(found):
        one, other = (found.get(path) for path in pair)
        whose = sorted({file.package for file in (one, other) if file})
        raise PackageError(f"{' and '.join(whose)}: {pair[0]} and {pair[1]} cannot both be there")
