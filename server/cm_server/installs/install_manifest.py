"""Read a board's manifest and compute the changes that a plan requires; pure.

The manifest lists the installed packages and their files. It is ``/.cm/packages.json`` on the
board, and a copy is in the store. A change is staged on the board and described by a journal, which
``mpy_client/cm/switch.py`` executes, again after each power cut. The rename that activates the
journal commits the change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.names import find_installed
from cm_server.packages.install_paths import check_installed_path
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.requirement import parse_requirement

MANIFEST_PATH: Final = "/.cm/packages.json"
_MAX_DEPTH: Final = 6  # of the lists and objects of a manifest; a valid one has three
JOURNAL_PATH: Final = "/.cm/journal"
STAGING_PATH: Final = "/.cm/new"
_FILES_PER_FOLDER: Final = 8  # of the staging folder; littlefs uses two blocks for a folder
_REQUEST_KEYS: Final[tuple[str, ...]] = (
    "wanted",
    "how",
)  # of a manifest entry: what the user requested

#: Package key -> entry: version, source, needs, files (path -> SHA-256). If the user requested the
#: package: wanted (the requirement) and how (the options).
Manifest = dict[str, dict[str, Any]]
#: Path -> SHA-256 of the file on the board; "" if its size differs from the plan's.
FileHashes = Mapping[str, str]


class BoardChange(NamedTuple):
    """The changes that bring a board into the state that a plan describes.

    Attributes:
        put_files: files to write.
        removed_paths: files to remove.
        emptied_folders: folders to remove if they are empty afterwards, the innermost first.
        manifest: the manifest after the change.
    """

    put_files: tuple[PlannedFile, ...]
    removed_paths: tuple[str, ...]
    emptied_folders: tuple[str, ...]
    manifest: Manifest

    def journal_text(self) -> str:
        """Return the journal: moves of staged files, the manifest last, then removals.

        A line is ``+STAGED PATH`` (move), ``-PATH`` (remove) or ``_PATH`` (remove an empty folder).
        """
        paths = [*(file.path for file in self.put_files), MANIFEST_PATH]
        staged = [staging_name(number) for number in range(len(paths))]
        lines = [f"+{name} {path}" for name, path in zip(staged, paths, strict=True)]
        lines += [f"-{path}" for path in self.removed_paths]
        lines += [f"_{path}" for path in (*self.emptied_folders, *staging_folders(len(paths))[1:])]
        return "".join(line + "\n" for line in lines)


def staging_name(number: int) -> str:
    """Return the path of a staged file, by its number, below the staging folder.

    The time that littlefs takes to rename a file grows with the square of the number of files in
    its folder. So only a few files share a folder.
    """
    group = number // _FILES_PER_FOLDER
    return f"d{group}/{number}" if group else str(number)


def staging_folders(files: int) -> list[str]:
    """Return the folders in which this number of files is staged."""
    groups = -(-files // _FILES_PER_FOLDER)  # rounded up
    return [STAGING_PATH, *(f"{STAGING_PATH}/d{group}" for group in range(1, groups))]


def read_manifest(text: bytes) -> Manifest:
    """Parse and check a board's manifest.

    Raises:
        PackageError: it is malformed.
    """
    try:
        packages: Manifest = json.loads(text)["packages"]
        if wire.is_nested_deeper(packages, _MAX_DEPTH):
            raise ValueError("nested too deeply")
        for entry in packages.values():
            list(entry["needs"])
            str(entry["version"])
            for path, digest in entry["files"].items():
                check_installed_path(path)
                bytes.fromhex(digest)
    except (
        AttributeError,
        KeyError,
        PackageError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise PackageError(
            f"the board's list of packages {MANIFEST_PATH} is damaged; "
            "remove that file and install again"
        ) from error
    return packages


def dump_manifest(packages: Manifest) -> str:
    """Return the text of a manifest; it is the same for the same packages."""
    return json.dumps({"packages": packages}, sort_keys=True, separators=(",", ":"))


class BoardFiles(NamedTuple):
    """What a board has, before an install.

    Attributes:
        mpy: its kind of bytecode.
        file_hashes: its files at the paths of the plan.
        manifest: its manifest.
    """

    mpy: int
    file_hashes: FileHashes
    manifest: Manifest


def plan_change(
    plan: InstallPlan, options: Mapping[str, Any], board: BoardFiles, *, force: bool
) -> BoardChange:
    """Return the changes that install a plan on a board.

    Args:
        plan: the plan.
        options: the options of the install, which an upgrade repeats.
        board: what the board has.
        force: whether files of other packages and of the user may be overwritten.

    Raises:
        PackageError: a file of another package or of the user would be overwritten or removed.
    """
    mpy, file_hashes, manifest = board
    files = plan.files[mpy]
    owners = {path: key for key, entry in manifest.items() for path in entry["files"]}
    for file in files:
        _check_owner(file, owners.get(file.path), file_hashes, force)

    new_entries = manifest_entries(plan, options, files)
    new_manifest = {**manifest, **new_entries}
    old_paths: set[str] = set()
    for key in new_entries.keys() & manifest.keys():
        old_paths.update(manifest[key]["files"])
        # A package that the user requested earlier stays requested if it is a dependency now.
        request = {name: manifest[key][name] for name in _REQUEST_KEYS if name in manifest[key]}
        new_manifest[key] = {**request, **new_entries[key]}

    shadowing = _find_shadowing(plan, mpy, file_hashes)
    sources = plan.source_hashes()
    for path in sorted(shadowing):
        owner = owners.get(path)
        is_own = owner in new_entries
        is_copy = owner is None and file_hashes[path] == sources.get(path)
        if not (is_own or is_copy or force):
            raise _shadowing_error(path, owner)
    kept = all_paths(new_manifest)
    removed = sorted((old_paths - kept) | shadowing)
    put = tuple(file for file in files if file_hashes.get(file.path) != file.sha256)
    return BoardChange(put, tuple(removed), emptied_folders(removed, kept), new_manifest)


def manifest_entries(
    plan: InstallPlan, options: Mapping[str, Any], files: Sequence[PlannedFile]
) -> Manifest:
    """Return the entries of all packages of a plan in a board's manifest.

    Args:
        plan: the plan.
        options: the options of the install, which an upgrade repeats.
        files: those of the plan for the board's kind.
    """
    return {
        release.key: _manifest_entry(plan, release.key, options, files) for release in plan.packages
    }


def _find_shadowing(plan: InstallPlan, mpy: int, file_hashes: FileHashes) -> set[str]:
    """Return files on the board that would be imported in place of the plan's."""
    return {path for path in plan.shadowing_paths(mpy) if path in file_hashes}


def all_paths(manifest: Manifest) -> set[str]:
    """Return the paths of all files of the packages of a manifest."""
    return {path for entry in manifest.values() for path in entry["files"]}


def _check_owner(
    file: PlannedFile, owner: str | None, file_hashes: FileHashes, force: bool
) -> None:
    """Raise PackageError if a file would overwrite another package's or the user's file."""
    differs = file_hashes.get(file.path, file.sha256) != file.sha256
    if differs and owner != file.package and not force:
        owned_by = f"belongs to {owner}" if owner else "does not belong to a package"
        raise PackageError(
            f"{file.package} would overwrite {file.path}, which {owned_by}; --force overwrites it"
        )


def _shadowing_error(path: str, owner: str | None) -> PackageError:
    """Return the error for a file that would have to be removed, and is not the new package's."""
    owned_by = f"belongs to {owner}" if owner else "does not belong to a package"
    return PackageError(
        f"{path} {owned_by} and would be imported instead of the new package; --force removes it"
    )


def _manifest_entry(
    plan: InstallPlan, key: str, options: Mapping[str, Any], files: Sequence[PlannedFile]
) -> dict[str, Any]:
    """Return the manifest entry of one package of a plan."""
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
    """Return the changes that uninstall packages from a board.

    Args:
        names: full keys of the packages, or their unambiguous ends.
        manifest: the board's manifest.
        force: whether packages that others need may be removed.

    Raises:
        PackageError: the board does not have a package, or another package needs it.
    """
    keys = [find_installed(name, manifest) for name in names]
    new_manifest = {key: entry for key, entry in manifest.items() if key not in keys}
    for key, entry in new_manifest.items():
        needs = {parse_requirement(need).key for need in entry["needs"]}
        needed = needs.intersection(keys)
        if needed and not force:
            raise PackageError(f"{key} needs {min(needed)}; uninstall both, or use --force")
    kept = all_paths(new_manifest)
    removed = sorted({path for key in keys for path in manifest[key]["files"]} - kept)
    return BoardChange((), tuple(removed), emptied_folders(removed, kept), new_manifest)


def emptied_folders(removed: Iterable[str], kept: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that may be empty after files were removed, the innermost first."""
    used = {folder for path in kept for folder in parent_folders(path)}
    left = {folder for path in removed for folder in parent_folders(path)}
    return tuple(sorted(left - used - {"/lib"}, reverse=True))


def parent_folders(path: str) -> Iterator[str]:
    """Yield the folders that a file is in, the innermost first, without the root."""
    while path := path.rpartition("/")[0]:
        yield path


def describe_drift(manifest: Manifest, file_hashes: Mapping[str, str | None]) -> tuple[str, ...]:
    """Describe each file of a board that differs from the board's manifest, in one phrase each."""
    differences = []
    for key, entry in sorted(manifest.items()):
        for path, digest in sorted(entry["files"].items()):
            if file_hashes.get(path) is None:
                differences.append(f"{key}: {path} is missing")
            elif file_hashes[path] != digest:
                differences.append(f"{key}: {path} was changed")
    return tuple(differences)
