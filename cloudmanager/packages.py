"""Packages on boards: a plan of the server's, a board's record, and the journal between them; pure.

The record is ``/.cm/packages.json`` on the board. The journal is what ``mpy_client/cm/switch.py``
does, as often as it takes: the rename that brings it into being is the install.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from . import sources
from .errors import PackageError
from .uploads import Item

RECORD: Final = "/.cm/packages.json"
JOURNAL: Final = "/.cm/journal"
STAGED: Final = "/.cm/new"


class File(NamedTuple):
    """A file of a plan; ``size`` in bytes, ``sha256`` in hex."""

    path: str
    sha256: str
    size: int
    package: str


class Installed(NamedTuple):
    """What an install, an uninstall or its dry run comes to on one board.

    Attributes:
        packages: name -> version: what the board has then, of what was asked for.
        put: paths of the files that were sent.
        removed: paths of the files that went.
        size_bytes: how much was sent.
    """

    packages: dict[str, str]
    put: tuple[str, ...]
    removed: tuple[str, ...]
    size_bytes: int


class Change(NamedTuple):
    """What makes a board as a plan says."""

    put: tuple[File, ...]
    removed: tuple[str, ...]
    folders: tuple[str, ...]
    record: str

    def items(self) -> list[Item]:
        """Return what is sent: the staged files, the record, and last the journal."""
        placed = [(file.path, sources.Source(b"", file.size, file.sha256)) for file in self.put]
        placed.append((RECORD, sources.of_bytes(self.record.encode())))
        lines = [f"+{number} {path}" for number, (path, _) in enumerate(placed)]
        lines += [f"-{path}" for path in self.removed] + [f"_{path}" for path in self.folders]
        journal = sources.of_bytes("".join(line + "\n" for line in lines).encode())
        staged = [Item(source, f"{STAGED}/{n}") for n, (_, source) in enumerate(placed)]
        return [*staged, Item(journal, JOURNAL + ".new")]


Record = dict[str, dict[str, Any]]


def read_record(text: bytes) -> Record:
    """Return a board's record: package -> version, needs, files (path -> SHA-256), wanted.

    Raises:
        PackageError: it is none.
    """
    try:
        packages = json.loads(text)["packages"]
        for told in packages.values():
            dict(told["files"]), list(told["needs"]), str(told["version"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PackageError(
            f"its record {RECORD} is not whole; remove that file and install again"
        ) from error
    return dict(packages)


def write_record(packages: Record) -> str:
    """Return a record's text, the same for the same packages."""
    return json.dumps({"packages": packages}, sort_keys=True, separators=(",", ":"))


def change(
    plan: Mapping[str, Any],
    files: Sequence[File],
    there: Mapping[str, str | None],
    record: Record,
    *,
    removed: Sequence[str],
    force: bool,
) -> Change:
    """Return what makes a board as the plan says.

    Args:
        plan: as the server describes it.
        files: those of the board's kind.
        there: the board's files that matter: path -> SHA-256, None where it is another's.
        record: what the board has.
        removed: paths that would hide what is installed.
        force: whether other packages' files and the user's own may be overwritten.

    Raises:
        PackageError: a file would be overwritten that is not the package's.
    """
    owners = {path: key for key, told in record.items() for path in told["files"]}
    for file in files:
        _check_owner(file, owners.get(file.path), there, force)
    new = {one["name"]: _entry(one, plan["wanted"], files) for one in plan["packages"]}
    after = {**record, **new}
    old = {path for key in new if key in record for path in record[key]["files"]}
    kept = {path for told in after.values() for path in told["files"]}
    gone = sorted((old - kept) | {path for path in removed if path in there})
    put = tuple(file for file in files if there.get(file.path) != file.sha256)
    return Change(put, tuple(gone), (), write_record(after))


def _check_owner(
    file: File, owner: str | None, there: Mapping[str, str | None], force: bool
) -> None:
    foreign = file.path in there and there[file.path] != file.sha256 and owner != file.package
    if foreign and not force:
        whose = f"a file of {owner}" if owner else "a file that no package brought"
        raise PackageError(
            f"{file.package} has a {file.path}, and that is {whose}; --force overwrites it"
        )


def _entry(one: Mapping[str, Any], wanted: Sequence[str], files: Sequence[File]) -> dict[str, Any]:
    own = {file.path: file.sha256 for file in files if file.package == one["name"]}
    entry = {"version": one["version"], "needs": one["needs"], "files": own}
    asked = [wish for wish in wanted if wish == one["name"] or wish.startswith(one["name"] + "@")]
    asked += [wish for wish in wanted if wish.startswith(one["name"] + "=")]
    return {**entry, "wanted": asked[0]} if asked else entry


def removal(names: Sequence[str], record: Record, *, force: bool) -> Change:
    """Return what takes packages off a board.

    Raises:
        PackageError: it has no such package, or another one needs it.
    """
    if missing := [name for name in names if name not in record]:
        raise PackageError(f"it has no package {missing[0]}")
    after = {key: told for key, told in record.items() if key not in names}
    for key, told in after.items():
        needed = [name for name in names if any(_means(need, name) for need in told["needs"])]
        if needed and not force:
            raise PackageError(f"{key} needs {needed[0]}; uninstall both, or use --force")
    kept = {path for told in after.values() for path in told["files"]}
    gone = {path for name in names for path in record[name]["files"]} - kept
    folders = {path.rpartition("/")[0] for path in gone} - {"", "/lib"}
    return Change(
        (), tuple(sorted(gone)), tuple(sorted(folders, reverse=True)), write_record(after)
    )


def _means(need: str, name: str) -> bool:
    return need == name or need.startswith((name + "@", name + "="))
