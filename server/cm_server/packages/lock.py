"""Write, read and compare lock files, which make installs repeatable byte for byte; pure.

A lock file is JSON. It is the same for the same plan, and has one value on a line, so that diffs
are readable. A lock file that a caller sends is untrusted and is checked like other input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import FORGE_NAMES
from cm_server.limits import Limits

from .documents import load_json
from .install_paths import check_relative_path
from .release import Release, ReleaseFile
from .requirement import Requirement, parse_requirement

FORMAT: Final = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SOURCE_NAME: Final = "the lock file"


class LockFile(NamedTuple):
    """A lock file: the requirements that it was made for, and the releases they resolved to."""

    wanted: tuple[str, ...]
    releases: tuple[Release, ...]


def dump(wanted: Iterable[str], releases: Iterable[Release]) -> str:
    """Return the text of a lock file."""
    document = {
        "format": FORMAT,
        "wanted": sorted(wanted),
        "packages": [_release_row(release) for release in releases],
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _release_row(release: Release) -> dict[str, Any]:
    row: dict[str, Any] = {
        "package": release.key,
        "version": release.version,
        "needs": sorted(map(str, release.dependencies)),
        "files": [
            {"path": part.path, "sha256": part.sha256, "size": part.size}
            | ({"url": part.url} if part.url else {})
            for part in release.parts
        ],
    }
    if release.requirement.source == "local":
        row["local"] = True
    if release.ref:
        row["ref"] = release.ref
    if release.archive:
        row["archive"] = {"name": release.archive, "sha256": release.archive_sha256}
    return row


def load(text: str, limits: Limits) -> LockFile:
    """Parse and check the text of a lock file.

    Raises:
        PackageError: it is malformed, incomplete or too big.
    """
    raw = text.encode()
    if len(raw) > limits.package_document_bytes:
        raise PackageError("the lock file is too big")
    document = load_json(raw, _SOURCE_NAME)
    try:
        if document["format"] != FORMAT:
            raise PackageError(
                f"the lock file has format {document['format']!r:.20}, which is not supported; "
                "install without it to write a new one"
            )
        releases = tuple(
            _read_release(row, limits.package_file_bytes) for row in document["packages"]
        )
        wanted = tuple(str(text) for text in document["wanted"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"the lock file is malformed: {error!r:.100}") from error
    keys = {release.key for release in releases}
    if len(releases) > limits.packages or len(keys) < len(releases):
        raise PackageError("the lock file has too many packages, or one twice")
    _check_complete(wanted, releases)
    return LockFile(wanted, releases)


def _check_complete(wanted: Iterable[str], releases: Sequence[Release]) -> None:
    """Raise PackageError if a required package is missing, as after a faulty edit of the file."""
    keys = {release.key for release in releases}
    local = frozenset(release.key for release in releases if release.requirement.source == "local")
    requirements = [parse_requirement(text, local) for text in wanted]
    for release in releases:
        requirements.extend(release.dependencies)
    for requirement in requirements:
        if requirement.key not in keys:
            raise PackageError(
                f"the lock file lacks the required package {requirement.key}; "
                "install without it to write a new one"
            )


def _read_release(row: dict[str, Any], max_file_bytes: int) -> Release:
    local = frozenset([row["package"]] if row.get("local") else [])
    requirement = parse_requirement(row["package"], local)
    parts = tuple(_read_part(part, max_file_bytes) for part in row["files"])
    archive = row.get("archive", {"name": "", "sha256": ""})
    _check_sha256(archive["sha256"], empty=not archive["name"])
    return Release(
        replace(requirement, version=""),
        str(row["version"]),
        parts,
        tuple(parse_requirement(need) for need in row["needs"]),
        str(row.get("ref", "")),
        str(archive["name"]),
        archive["sha256"],
    )


def _read_part(row: dict[str, Any], max_file_bytes: int) -> ReleaseFile:
    _check_sha256(row["sha256"])
    if not isinstance(row["size"], int) or not 0 <= row["size"] <= max_file_bytes:
        raise ValueError("the size of a file is not valid")
    return ReleaseFile(
        check_relative_path(row["path"]), str(row.get("url", "")), "", row["sha256"], row["size"]
    )


def _check_sha256(text: Any, empty: bool = False) -> None:
    if not (isinstance(text, str) and (_SHA256.fullmatch(text) or (empty and not text))):
        raise ValueError("a SHA-256 is not valid")


def compare_releases(
    old: Sequence[Release], new: Sequence[Release], pinned_keys: Collection[str]
) -> list[str]:
    """Compare releases with those of a lock file, to detect manipulated sources.

    Args:
        old: the releases of the lock file.
        new: the releases that the requirements resolve to now.
        pinned_keys: keys of the packages for which a version or a ref was requested.

    Returns:
        Notes on permitted changes: a branch that moved.

    Raises:
        PackageError: something changed that must not: the content of a version, the commit of a
            tag, or the newest version is older than before.
    """
    locked_by_key = {release.key: release for release in old}
    notes = []
    for release in new:
        locked = locked_by_key.get(release.key)
        if locked is None:
            continue
        if release.requirement.source in FORGE_NAMES:
            notes += _check_moved(locked, release)
        elif locked.version == release.version:
            _check_same(locked, release)
        elif release.key not in pinned_keys and _is_rollback(release, locked):
            raise PackageError(
                f"{release.key}: its source offers {release.version} as the newest version, but "
                f"the lock file has {locked.version} already; if that is intended, request "
                f"version {release.version}"
            )
    return notes


def _is_rollback(release: Release, locked_release: Release) -> bool:
    """Return whether a version is older than the locked one."""
    return _version_numbers(release.version) < _version_numbers(locked_release.version)


def _is_tag(ref: str) -> bool:
    """Return whether the full name of a ref is a tag's."""
    return ref.startswith("refs/tags/")


def _check_moved(locked_release: Release, release: Release) -> list[str]:
    """Compare the commit of a repository; return a note if a branch moved.

    Raises:
        PackageError: a tag moved, or the same commit has other files.
    """
    if locked_release.version == release.version:
        _check_same(locked_release, release)
        return []
    if not locked_release.ref or locked_release.ref != release.ref:
        return []
    change = (
        f"{release.key}: {locked_release.ref} was {locked_release.version[:12]} in the lock file "
        f"and is {release.version[:12]} now"
    )
    if _is_tag(locked_release.ref):
        raise PackageError(
            f"{change}, but a tag does not move; if that is intended, install without the lock "
            "file to write a new one"
        )
    return [change]


def _check_same(locked_release: Release, release: Release) -> None:
    """Raise PackageError if a version has other files than in the lock file.

    The files that a caller sends may change: their version is a hash of them.
    """
    locked = {part.path: part.sha256 for part in locked_release.parts}
    found = {part.path: part.sha256 for part in release.parts}
    if locked != found and release.requirement.source != "local":
        path = min(locked.items() ^ found.items())[0]
        raise PackageError(
            f"{release}: its {path} differs from the lock file, although the version is the same"
        )


def _version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers in a version, for a comparison; bounded, since versions are untrusted."""
    return tuple(int(n[:9]) for n in re.findall(r"\d+", version.partition("+")[0])[:8])


def find_pinned_keys(wanted: Iterable[Requirement], releases: Iterable[Release]) -> set[str]:
    """Return the keys of packages for which the user or another package requests a version."""
    requirements = list(wanted)
    for release in releases:
        requirements.extend(release.dependencies)
    return {requirement.key for requirement in requirements if requirement.version}
