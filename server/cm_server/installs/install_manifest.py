"""What a board has of packages, and what makes it as a plan says; pure.

The record is ``/.cm/packages.json`` on the board, and rows of the store. A change is staged, and
named in a journal, which ``mpy_client/cm/switch.py`` does, as often as it takes: the rename that
brings the journal into being is the install.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.names import installed
from cm_server.packages.install_paths import check_own
from cm_server.packages.plan import File, Plan
from cm_server.packages.requirement import parse

RECORD: Final = "/.cm/packages.json"
JOURNAL: Final = "/.cm/journal"
STAGED: Final = "/.cm/new"
_PER_FOLDER: Final = 8  # files; a folder has two blocks

#: Package -> version, source, needs, files (path -> SHA-256); of what was asked for: wanted, how.
Record = dict[str, dict[str, Any]]
#: Path -> SHA-256 of what is there, "" where it has another size than the plan's.
There = Mapping[str, str]


class Change(NamedTuple):
    """What makes a board as a plan says."""

    put: tuple[File, ...]
    removed: tuple[str, ...]
    folders: tuple[str, ...]
    record: Record

    def journal(self) -> str:
        """Return what switch.py does: staged files go to their places, the record last."""
        paths = [*(file.path for file in self.put), RECORD]
        staged = [staged_as(number) for number in range(len(paths))]
        lines = [f"+{name} {path}" for name, path in zip(staged, paths, strict=True)]
        lines += [f"-{path}" for path in self.removed]
        lines += [f"_{path}" for path in (*self.folders, *staging_folders(len(paths))[1:])]
        return "".join(line + "\n" for line in lines)


def staged_as(number: int) -> str:
    """Return how a change's file is called below the folder where it is staged.

    A rename costs littlefs the square of what is in the file's folder: a few share one.
    """
    group = number // _PER_FOLDER
    return f"d{group}/{number}" if group else str(number)


def staging_folders(files: int) -> list[str]:
    """Return the folders that so many files are staged in."""
    return [STAGED, *(f"{STAGED}/d{group}" for group in range(1, -(-files // _PER_FOLDER)))]


def read_record(text: bytes) -> Record:
    """Return a board's record.

    Raises:
        PackageError: it is none.
    """
    try:
        packages: Record = json.loads(text)["packages"]
        for told in packages.values():
            list(told["needs"]), str(told["version"])
            for path, digest in told["files"].items():
                check_own(path), bytes.fromhex(digest)
    except (
        AttributeError,
        KeyError,
        PackageError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise PackageError(
            f"its record {RECORD} is not whole; remove that file and install again"
        ) from error
    return packages


def write_record(packages: Record) -> str:
    """Return a record's text, the same for the same packages."""
    return json.dumps({"packages": packages}, sort_keys=True, separators=(",", ":"))


def change(
    plan: Plan,
    mpy: int,
    how: Mapping[str, Any],
    there: There,
    record: Record,
    *,
    force: bool,
) -> Change:
    """Return what makes a board as the plan says.

    Args:
        plan: for all boards.
        mpy: the board's kind of bytecode.
        how: what an upgrade is to do alike: the options that were given.
        there: the board's files that matter.
        record: what the board has.
        force: whether other packages' files and the user's own may be overwritten.

    Raises:
        PackageError: a file would be overwritten, or go, that is another package's.
    """
    files = plan.files[mpy]
    owners = {path: key for key, told in record.items() for path in told["files"]}
    for file in files:
        _check_owner(file, owners.get(file.path), there, force)
    new = {each.key: _entry(plan, each.key, how, files) for each in plan.packages}
    after = {**record, **new}
    for key in new.keys() & record.keys():  # as a dependency now, and asked for before
        after[key] = {**{n: record[key][n] for n in _ASKED if n in record[key]}, **new[key]}
    old = {path for key in new if key in record for path in record[key]["files"]}
    kept = _paths(after)
    hiding = {path for path in plan.removed(mpy) if path in there}
    for path in sorted(hiding):
        _check_hiding(path, owners.get(path), new, force)
    gone = sorted((old - kept) | hiding)
    put = tuple(file for file in files if there.get(file.path) != file.sha256)
    return Change(put, tuple(gone), _emptied(gone, kept), after)


_ASKED: Final = ("wanted", "how")


def _paths(record: Record) -> set[str]:
    return {path for told in record.values() for path in told["files"]}


def _check_owner(file: File, owner: str | None, there: There, force: bool) -> None:
    differs = there.get(file.path, file.sha256) != file.sha256
    if differs and owner != file.package and not force:
        whose = f"a file of {owner}" if owner else "a file that no package brought"
        raise PackageError(
            f"{file.package} has a {file.path}, and that is {whose}; --force overwrites it"
        )


def _check_hiding(path: str, owner: str | None, new: Record, force: bool) -> None:
    if owner is not None and owner not in new and not force:
        raise PackageError(
            f"{path} is a file of {owner}, and would hide what is to be installed; "
            "--force takes it away"
        )


def _entry(plan: Plan, key: str, how: Mapping[str, Any], files: Sequence[File]) -> dict[str, Any]:
    (release,) = (each for each in plan.packages if each.key == key)
    entry: dict[str, Any] = {
        "version": release.version,
        "source": plan.origins[key],
        "needs": sorted(map(str, release.needs)),
        "files": {file.path: file.sha256 for file in files if file.package == key},
    }
    local = frozenset([key] if release.wish.source == "local" else [])
    wanted = [text for text in plan.wanted if parse(text, local).key == key]
    if wanted:
        entry.update({"wanted": wanted[0], "how": dict(how)})
    if local:
        entry["local"] = True
    return entry


def removal(names: Sequence[str], record: Record, *, force: bool) -> Change:
    """Return what takes packages off a board.

    Raises:
        PackageError: it has no such package, or another one needs it.
    """
    names = [installed(name, record) for name in names]
    after = {key: told for key, told in record.items() if key not in names}
    for key, told in after.items():
        needed = {parse(need).key for need in told["needs"]}.intersection(names)
        if needed and not force:
            raise PackageError(f"{key} needs {min(needed)}; uninstall both, or use --force")
    kept = _paths(after)
    gone = sorted({path for name in names for path in record[name]["files"]} - kept)
    return Change((), tuple(gone), _emptied(gone, kept), after)


def _emptied(gone: Iterable[str], kept: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that may be empty once files went, the inmost first."""
    used = {folder for path in kept for folder in folders_of(path)}
    found = {folder for path in gone for folder in folders_of(path)}
    return tuple(sorted(found - used - {"/lib"}, reverse=True))


def folders_of(path: str) -> Iterator[str]:
    """Yield the folders that a file is in, but for the root."""
    while path := path.rpartition("/")[0]:
        yield path


def drift(record: Record, there: Mapping[str, str | None]) -> tuple[str, ...]:
    """Say where a board's files are not what its record says, each in a sentence."""
    told = []
    for key, entry in sorted(record.items()):
        for path, digest in sorted(entry["files"].items()):
            if there.get(path) is None:
                told.append(f"{key}: {path} is missing")
            elif there[path] != digest:
                told.append(f"{key}: {path} was changed")
    return tuple(told)
