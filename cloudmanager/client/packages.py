"""What boards have of packages, and what an install came to; values of results, pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class InstallResult(NamedTuple):
    """What an install, an uninstall or its dry run comes to on one board.

    Attributes:
        packages: name -> version: what the board has then, of what was asked for.
        put: paths of the files that were sent.
        removed: paths of the files that went.
        size_bytes: how much was sent.
        free_bytes: how much room there was before.
        origins: name -> where the package comes from.
        notes: what a person should know, each a sentence.
        dry_run: whether nothing was done.
    """

    packages: dict[str, str]
    put: tuple[str, ...]
    removed: tuple[str, ...]
    size_bytes: int
    free_bytes: int = 0
    origins: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @classmethod
    def from_op_results(cls, op_results: list[Any]) -> InstallResult:
        """Return what the server tells of it."""
        (told,) = op_results
        return cls(
            dict(told.get("packages", {})),
            tuple(told["put"]),
            tuple(told["removed"]),
            int(told["size_bytes"]),
            int(told["free_bytes"]),
            dict(told.get("origins", {})),
            tuple(told["notes"]),
            bool(told["dry_run"]),
        )

    def merged_with(self, other: InstallResult) -> InstallResult:
        """Return what both come to, one after the other."""
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
    """What a board has: name -> version.

    Attributes:
        as_of: when it last said so, in seconds since 1970; None: now.
        drift: where its files are not what was installed, each in a sentence.
        upgrade_info: of each package, what an upgrade wants to know: wanted, how, local.
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

    @classmethod
    def from_op_results(cls, op_results: list[Any]) -> BoardPackages:
        """Return what a board tells of itself."""
        (told,) = op_results
        return cls(told["packages"], drift=told["drift"], upgrade_info=told["record"])

    @classmethod
    def from_record(cls, row: Mapping[str, Any]) -> BoardPackages:
        """Return what the server recorded of a board that is not there."""
        versions = {name: told["version"] for name, told in row["packages"].items()}
        return cls(versions, as_of=row["confirmed"])
