"""Values of the package verbs: the packages of a board, the outcome of an install; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cloudmanager.results.html_table import render_table


class InstallResult(NamedTuple):
    """The outcome of an install, an uninstall or a dry run on one board.

    Attributes:
        packages: name -> version of the requested packages that the board has now.
        put: paths of the files that were sent.
        removed: paths of the files that were deleted.
        size_bytes: how much was sent.
        free_bytes: how much space was free before.
        origins: name -> the source of the package.
        notes: remarks for the user, each a sentence.
        dry_run: whether this is only what would be done.
    """

    packages: dict[str, str]
    put: tuple[str, ...]
    removed: tuple[str, ...]
    size_bytes: int
    free_bytes: int = 0
    origins: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    def _repr_html_(self) -> str:
        """Return the packages as an HTML table, with the number of files and notes below it."""
        rows = [[name, each, self.origins.get(name, "")] for name, each in self.packages.items()]
        done = ("to send", "to remove") if self.dry_run else ("sent", "removed")
        counts = [
            f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {word}"
            for paths, word in zip((self.put, self.removed), done, strict=True)
            if paths
        ]
        notes = [", ".join(counts) or "no files to change", *self.notes]
        return render_table(["package", "version", "from"], rows, notes)

    @classmethod
    def from_op_results(cls, op_results: list[Any]) -> InstallResult:
        """Return the outcome that the server reports."""
        (body,) = op_results
        return cls(
            dict(body.get("packages", {})),
            tuple(body["put"]),
            tuple(body["removed"]),
            int(body["size_bytes"]),
            int(body["free_bytes"]),
            dict(body.get("origins", {})),
            tuple(body["notes"]),
            bool(body["dry_run"]),
        )

    def merged_with(self, other: InstallResult) -> InstallResult:
        """Return the combined outcome of this and a later one."""
        return InstallResult(
            {**self.packages, **other.packages},
            self.put + other.put,
            self.removed + other.removed,
            self.size_bytes + other.size_bytes,
            self.free_bytes,
            {**self.origins, **other.origins},
            tuple(dict.fromkeys(self.notes + other.notes)),
            other.dry_run,
        )


class BoardPackages(dict[str, str]):
    """The packages of a board: name -> version.

    Attributes:
        as_of: when the board last reported them, in seconds since 1970; None for now.
        drift: files that differ from what was installed, each described in a sentence.
        upgrade_info: name -> what an upgrade needs: ``wanted``, the requirement; ``how``, the
            options; ``local``, whether it was installed from local files.
    """

    def __init__(
        self,
        versions: Mapping[str, str],
        *,
        as_of: float | None = None,
        drift: Iterable[str] = (),
        upgrade_info: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(versions)
        self.as_of = as_of
        self.drift = tuple(drift)
        self.upgrade_info = dict(upgrade_info or {})

    def _repr_html_(self) -> str:
        """Return the packages as an HTML table, with their files that differ below it."""
        return render_table(["package", "version"], [[*each] for each in self.items()], self.drift)

    @classmethod
    def from_op_results(cls, op_results: list[Any]) -> BoardPackages:
        """Return the packages that a board reports."""
        (body,) = op_results
        return cls(body["packages"], drift=body["drift"], upgrade_info=body["record"])

    @classmethod
    def from_record(cls, row: Mapping[str, Any]) -> BoardPackages:
        """Return the packages that the server recorded for a board that is not connected."""
        versions = {name: package["version"] for name, package in row["packages"].items()}
        return cls(versions, as_of=row["confirmed"])
