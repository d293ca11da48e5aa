"""The lock file: what was installed, to the last byte, so that it can be had again; pure.

It is JSON, the same for the same plan, with one fact to a line: a difference can be read. Who
brings one may have written it himself: it is read as strictly as anything from outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .documents import load_json
from .install_paths import check_relative_path
from .release import Release, ReleaseFile
from .requirement import FORGE_NAMES, Requirement, parse_requirement

FORMAT: Final = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SOURCE_NAME: Final = "the lock"


class LockFile(NamedTuple):
    """What a lock file says: the wishes it was made for, and what they led to."""

    wanted: tuple[str, ...]
    releases: tuple[Release, ...]


def dump(wanted: Iterable[str], releases: Iterable[Release]) -> str:
    """Return a lock file's text."""
    told = {
        "format": FORMAT,
        "wanted": sorted(wanted),
        "packages": [_release_row(release) for release in releases],
    }
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _release_row(release: Release) -> dict[str, Any]:
    told: dict[str, Any] = {
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
        told["local"] = True
    if release.ref:
        told["ref"] = release.ref
    if release.archive:
        told["archive"] = {"name": release.archive, "sha256": release.archive_sha256}
    return told


def load(text: str) -> LockFile:
    """Read a lock file.

    Raises:
        PackageError: it is none.
    """
    raw = text.encode()
    if len(raw) > limits.PACKAGE_DOCUMENT_BYTES:
        raise PackageError("the lock is too big")
    said = load_json(raw, _SOURCE_NAME)
    try:
        if said["format"] != FORMAT:
            raise PackageError(f"the lock is of format {said['format']!r:.20}; make it anew")
        releases = tuple(_read_release(row) for row in said["packages"])
        wanted = tuple(str(text) for text in said["wanted"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"the lock is not whole: {error!r:.100}") from error
    if len(releases) > limits.PACKAGES or len({release.key for release in releases}) < len(
        releases
    ):
        raise PackageError("the lock has too many packages, or one twice")
    _check_complete(wanted, releases)
    return LockFile(wanted, releases)


def _check_complete(wanted: Iterable[str], releases: Sequence[Release]) -> None:
    """Refuse a lock that somebody took a package out of."""
    keys = {release.key for release in releases}
    local = frozenset(release.key for release in releases if release.requirement.source == "local")
    wishes = [parse_requirement(text, local) for text in wanted]
    for wish in (*wishes, *(need for release in releases for need in release.dependencies)):
        if wish.key not in keys:
            raise PackageError(f"the lock has no {wish.key}, which is wanted; make it anew")


def _read_release(row: dict[str, Any]) -> Release:
    local = frozenset([row["package"]] if row.get("local") else [])
    wish = parse_requirement(row["package"], local)
    parts = tuple(_read_part(part) for part in row["files"])
    archive = row.get("archive", {"name": "", "sha256": ""})
    _check_sha256(archive["sha256"], empty=not archive["name"])
    return Release(
        replace(wish, version=""),
        str(row["version"]),
        parts,
        tuple(parse_requirement(need) for need in row["needs"]),
        str(row.get("ref", "")),
        str(archive["name"]),
        archive["sha256"],
    )


def _read_part(row: dict[str, Any]) -> ReleaseFile:
    _check_sha256(row["sha256"])
    if not isinstance(row["size"], int) or not 0 <= row["size"] <= limits.PACKAGE_FILE_BYTES:
        raise ValueError("a size")
    return ReleaseFile(
        check_relative_path(row["path"]), str(row.get("url", "")), "", row["sha256"], row["size"]
    )


def _check_sha256(text: Any, empty: bool = False) -> None:
    if not (isinstance(text, str) and (_SHA256.fullmatch(text) or (empty and not text))):
        raise ValueError("a SHA-256")


def compare_releases(
    old: Sequence[Release], new: Sequence[Release], pinned_keys: Collection[str]
) -> list[str]:
    """Hold what a source says now against what it said when it was locked.

    Args:
        old: the lock's.
        new: what was found now.
        pinned_keys: keys of the packages for which somebody named a version or a ref himself.

    Returns:
        What moved as it may, each a sentence: a branch.

    Raises:
        PackageError: what must not change did: a version's content, a tag, the newest version
            to an older one.
    """
    before = {release.key: release for release in old}
    notes = []
    for release in new:
        was = before.get(release.key)
        if was is None:
            continue
        if release.requirement.source in FORGE_NAMES:
            notes += _check_moved(was, release)
        elif was.version == release.version:
            _check_same(was, release)
        elif release.key not in pinned_keys and _is_rollback(release, was):
            raise PackageError(
                f"{release.key}: its source says that {release.version} is the newest, but the "
                f"lock has {was.version} already; if that is right, name the version"
            )
    return notes


def _is_rollback(release: Release, locked_release: Release) -> bool:
    """Return whether a version is older than the locked one."""
    return _version_numbers(release.version) < _version_numbers(locked_release.version)


def _is_tag(ref: str) -> bool:
    """Return whether the full name of a ref is a tag's."""
    return ref.startswith("refs/tags/")


def _check_moved(locked_release: Release, release: Release) -> list[str]:
    if locked_release.version == release.version:
        _check_same(locked_release, release)
        return []
    if not locked_release.ref or locked_release.ref != release.ref:
        return []
    told = (
        f"{release.key}: {locked_release.ref} was {locked_release.version[:12]} in the lock, "
        f"and is {release.version[:12]} now"
    )
    if _is_tag(locked_release.ref):
        raise PackageError(f"{told}: a tag does not move; if that is right, make the lock anew")
    return [told]


def _check_same(locked_release: Release, release: Release) -> None:
    locked = {part.path: part.sha256 for part in locked_release.parts}
    found = {part.path: part.sha256 for part in release.parts}
    if locked != found and release.requirement.source != "local":
        path = min(locked.items() ^ found.items())[0]
        raise PackageError(
            f"{release}: its {path} is another one than the lock has, under the same version"
        )


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n[:9]) for n in re.findall(r"\d+", version.partition("+")[0])[:8])


def find_pinned_keys(wanted: Iterable[Requirement], releases: Iterable[Release]) -> set[str]:
    """Return the keys for which a person or a package named a version."""
    wishes = [*wanted, *(need for release in releases for need in release.dependencies)]
    return {wish.key for wish in wishes if wish.version}
