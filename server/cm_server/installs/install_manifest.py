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
from cloudmanager.protocol.names import find_installed
from cm_server.packages.install_paths import check_installed_path
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.requirement import parse_requirement

MANIFEST_PATH: Final = "/.cm/packages.json"
JOURNAL_PATH: Final = "/.cm/journal"
STAGING_PATH: Final = "/.cm/new"
_FILES_PER_FOLDER: Final = 8  # files; a folder has two blocks

#: Package -> version, source, needs, files (path -> SHA-256); of what was asked for: wanted, how.
Manifest = dict[str, dict[str, Any]]
#: Path -> SHA-256 of what is there, "" where it has another size than the plan's.
FileHashes = Mapping[str, str]


class BoardChange(NamedTuple):
    """What makes a board as a plan says."""

    put_files: tuple[PlannedFile, ...]
    removed_paths: tuple[str, ...]
    emptied_folders: tuple[str, ...]
    manifest: Manifest

    def journal_text(self) -> str:
        """Return what switch.py does: staged files go to their places, the record last."""
        paths = [*(file.path for file in self.put_files), MANIFEST_PATH]
        staged = [staging_name(number) for number in range(len(paths))]
        lines = [f"+{name} {path}" for name, path in zip(staged, paths, strict=True)]
        lines += [f"-{path}" for path in self.removed_paths]
        lines += [f"_{path}" for path in (*self.emptied_folders, *staging_folders(len(paths))[1:])]
        return "".join(line + "\n" for line in lines)


def staging_name(number: int) -> str:
    """Return how a change's file is called below the folder where it is staged.

    A rename costs littlefs the square of what is in the file's folder: a few share one.
    """
    group = number // _FILES_PER_FOLDER
    return f"d{group}/{number}" if group else str(number)


def staging_folders(files: int) -> list[str]:
    """Return the folders that so many files are staged in."""
    return [
        STAGING_PATH,
        *(f"{STAGING_PATH}/d{group}" for group in range(1, -(-files // _FILES_PER_FOLDER))),
    ]


def read_manifest(text: bytes) -> Manifest:
    """Return a board's record.

    Raises:
        PackageError: it is none.
    """
    try:
        packages: Manifest = json.loads(text)["packages"]
        for told in packages.values():
            list(told["needs"]), str(told["version"])
            for path, digest in told["files"].items():
                check_installed_path(path), bytes.fromhex(digest)
    except (
        AttributeError,
        KeyError,
        PackageError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise PackageError(
            f"its record {MANIFEST_PATH} is not whole; remove that file and install again"
        ) from error
    return packages


def dump_manifest(packages: Manifest) -> str:
    """Return a record's text, the same for the same packages."""
    return json.dumps({"packages": packages}, sort_keys=True, separators=(",", ":"))


def plan_change(
    plan: InstallPlan,
    mpy: int,
    options: Mapping[str, Any],
    file_hashes: FileHashes,
    manifest: Manifest,
    *,
    force: bool,
) -> BoardChange:
    """Return what makes a board as the plan says.

    Args:
        plan: for all boards.
        mpy: the board's kind of bytecode.
        options: what an upgrade is to do alike: the options that were given.
        file_hashes: the board's files that matter.
        manifest: what the board has.
        force: whether other packages' files and the user's own may be overwritten.

    Raises:
        PackageError: a file would be overwritten, or go, that is another package's.
    """
    files = plan.files[mpy]
    owners = {path: key for key, told in manifest.items() for path in told["files"]}
    for file in files:
        _check_owner(file, owners.get(file.path), file_hashes, force)
    new = {each.key: _manifest_entry(plan, each.key, options, files) for each in plan.packages}
    after = {**manifest, **new}
    for key in new.keys() & manifest.keys():  # as a dependency now, and asked for before
        after[key] = {
            **{n: manifest[key][n] for n in _REQUEST_KEYS if n in manifest[key]},
            **new[key],
        }
    old = {path for key in new if key in manifest for path in manifest[key]["files"]}
    kept = _all_paths(after)
    hiding = _find_shadowing(plan, mpy, file_hashes)
    for path in sorted(hiding):
        _check_shadowing(path, owners.get(path), new, force)
    gone = sorted((old - kept) | hiding)
    put = tuple(file for file in files if file_hashes.get(file.path) != file.sha256)
    return BoardChange(put, tuple(gone), _emptied_folders(gone, kept), after)


_REQUEST_KEYS: Final = ("wanted", "how")


def _find_shadowing(plan: InstallPlan, mpy: int, file_hashes: FileHashes) -> set[str]:
    """Return files on the board that would be imported in place of the plan's."""
    return {path for path in plan.shadowing_paths(mpy) if path in file_hashes}


def _all_paths(manifest: Manifest) -> set[str]:
    return {path for told in manifest.values() for path in told["files"]}


def _check_owner(
    file: PlannedFile, owner: str | None, file_hashes: FileHashes, force: bool
) -> None:
    differs = file_hashes.get(file.path, file.sha256) != file.sha256
    if differs and owner != file.package and not force:
        whose = f"a file of {owner}" if owner else "a file that no package brought"
        raise PackageError(
            f"{file.package} has a {file.path}, and that is {whose}; --force overwrites it"
        )


def _check_shadowing(path: str, owner: str | None, new_packages: Manifest, force: bool) -> None:
    if owner is not None and owner not in new_packages and not force:
        raise PackageError(
            f"{path} is a file of {owner}, and would hide what is to be installed; "
            "--force takes it away"
        )


def _manifest_entry(
    plan: InstallPlan, key: str, options: Mapping[str, Any], files: Sequence[PlannedFile]
) -> dict[str, Any]:
    (release,) = (each for each in plan.packages if each.key == key)
    entry: dict[str, Any] = {
        "version": release.version,
        "source": plan.origins[key],
        "needs": sorted(map(str, release.dependencies)),
        "files": {file.path: file.sha256 for file in files if file.package == key},
    }
    local = frozenset([key] if release.requirement.source == "local" else [])
    wanted = [text for text in plan.wanted if parse_requirement(text, local).key == key]
    if wanted:
        entry.update({"wanted": wanted[0], "how": dict(options)})
    if local:
        entry["local"] = True
    return entry


def plan_removal(names: Sequence[str], manifest: Manifest, *, force: bool) -> BoardChange:
    """Return what takes packages off a board.

    Raises:
        PackageError: it has no such package, or another one needs it.
    """
    names = [find_installed(name, manifest) for name in names]
    after = {key: told for key, told in manifest.items() if key not in names}
    for key, told in after.items():
        needed = {parse_requirement(need).key for need in told["needs"]}.intersection(names)
        if needed and not force:
            raise PackageError(f"{key} needs {min(needed)}; uninstall both, or use --force")
    kept = _all_paths(after)
    gone = sorted({path for name in names for path in manifest[name]["files"]} - kept)
    return BoardChange((), tuple(gone), _emptied_folders(gone, kept), after)


def _emptied_folders(removed: Iterable[str], kept: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that may be empty once files went, the inmost first."""
    used = {folder for path in kept for folder in parent_folders(path)}
    found = {folder for path in removed for folder in parent_folders(path)}
    return tuple(sorted(found - used - {"/lib"}, reverse=True))


def parent_folders(path: str) -> Iterator[str]:
    """Yield the folders that a file is in, but for the root."""
    while path := path.rpartition("/")[0]:
        yield path


def describe_drift(manifest: Manifest, file_hashes: Mapping[str, str | None]) -> tuple[str, ...]:
    """Say where a board's files are not what its record says, each in a sentence."""
    told = []
    for key, entry in sorted(manifest.items()):
        for path, digest in sorted(entry["files"].items()):
            if file_hashes.get(path) is None:
                told.append(f"{key}: {path} is missing")
            elif file_hashes[path] != digest:
                told.append(f"{key}: {path} was changed")
    return tuple(told)
