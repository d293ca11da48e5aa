"""What indexes, repositories and archives say of a package: read strictly, bounded; pure.

Formats: MicroPython's package.json and mip index v2; requires.txt (setuptools) and METADATA
(core metadata) of the old ``micropython-*`` distributions; a git server's list of refs.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

_HASH_PREFIX = re.compile(r"[0-9a-f]{8,64}")  # of a SHA-256 in hex; mip's indexes give 8 digits
_DUMMY_SUMMARY = re.compile(r"^Summary: Dummy ", re.MULTILINE)


class PackageDocument(NamedTuple):
    """A package.json.

    Attributes:
        version: "" where it says none.
        hashes: pairs of path and the first digits of a SHA-256.
        urls: pairs of path and where from.
        deps: pairs of requirement and version, "" for none.
    """

    version: str
    hashes: list[tuple[str, str]]
    urls: list[tuple[str, str]]
    deps: list[tuple[str, str]]


def load_json(raw: bytes, source_name: str) -> Any:
    """Return what JSON says.

    Raises:
        PackageError: it is none, nests too deep, names a key twice, or is no plain JSON.
    """
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{source_name} is not the JSON that it should be: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def read_document(raw: bytes, source_name: str) -> PackageDocument:
    """Read a package.json; fields that it lacks are empty, others are passed over.

    Raises:
        PackageError: a field is of another kind than the format says.
    """
    said = load_json(raw, source_name)
    if not isinstance(said, dict):
        raise PackageError(f"{source_name} is no package.json: it is no object")
    version = said.get("version") or ""
    if isinstance(version, (int, float)) and not isinstance(version, bool):
        version = str(version)  # "version": 0.1 is seen in the wild
    if not isinstance(version, str) or len(version) > 64 or not version.isprintable():
        raise PackageError(f"{source_name}: its version is no text")
    if said.get("v", 1) != 1:
        raise PackageError(f"{source_name} is of format {said['v']!r:.20}; only 1 is known")
    hashes = _read_pairs(said, "hashes", source_name)
    for path, short in hashes:
        if not _HASH_PREFIX.fullmatch(short):
            raise PackageError(f"{source_name}: {path!r:.100} has no hash of 8 digits or more")
    return PackageDocument(
        version,
        hashes,
        _read_pairs(said, "urls", source_name),
        _read_pairs(said, "deps", source_name),
    )


def _read_pairs(document: dict[str, Any], field: str, source_name: str) -> list[tuple[str, str]]:
    """Return a field's pairs; a dependency may be without its version."""
    rows = document.get(field) or []
    if isinstance(rows, dict):
        rows = list(rows.items())
    if not isinstance(rows, list) or len(rows) > limits.PACKAGE_FILES:
        raise PackageError(f"{source_name}: {field!r} is no list, or too long")
    found = []
    for row in rows:
        pair = [row] if isinstance(row, str) else row
        if field == "deps" and isinstance(pair, list) and len(pair) == 1:
            pair = [*pair, ""]
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise PackageError(f"{source_name}: {field!r} has an entry that is no pair")
        value = "" if pair[1] is None else pair[1]
        if not isinstance(value, str):
            raise PackageError(f"{source_name}: {field!r} has an entry that is no pair of texts")
        found.append((pair[0], value))
    return found


def read_requires(raw: bytes) -> list[str]:
    """Return what a requires.txt needs, extras left out, each as ``NAME[SPECIFIER]``."""
    needed = []
    for line in _lines(raw):
        if line.startswith("["):
            break
        if line and not line.startswith("#"):
            needed.append(_strip_requirement(line))
    return needed


def read_metadata(raw: bytes) -> list[str]:
    """Return what a METADATA or PKG-INFO needs, extras left out."""
    needed = []
    for line in _lines(raw):
        if not line:
            break  # the description follows
        if line.lower().startswith("requires-dist:") and "extra" not in line.partition(";")[2]:
            needed.append(_strip_requirement(line.partition(":")[2]))
    return needed


def is_dummy(raw: bytes) -> bool:
    """Say whether a METADATA or PKG-INFO is of a package that only keeps a name."""
    return bool(_DUMMY_SUMMARY.search(raw.decode("utf-8", "replace")))


def _lines(raw: bytes) -> list[str]:
    return [line.strip() for line in raw.decode("utf-8", "replace").splitlines()]


def _strip_requirement(line: str) -> str:
    """Return a requirement without extras, marker and brackets."""
    return re.sub(r"\[[^\]]*\]|[()\s]", "", line.partition(";")[0])


def read_refs(raw: bytes, source_name: str) -> dict[str, str]:
    """Return a repository's refs and their commits, from git's answer to info/refs.

    An annotated tag's entry is the commit that it stands for (``NAME^{}`` on the wire).

    Raises:
        PackageError: it is no such answer.
    """
    refs: dict[str, str] = {}
    for line in _read_packets(raw, source_name):
        commit, _, name = line.partition(b"\0")[0].strip().partition(b" ")
        if not name or len(commit) not in (40, 64):
            continue  # "# service=git-upload-pack"
        refs[name.decode("utf-8", "replace").removesuffix("^{}")] = commit.decode(
            "ascii", "replace"
        )
    if not refs:
        raise PackageError(f"{source_name} has no branch and no tag")
    return refs


def _read_packets(raw: bytes, source_name: str) -> list[bytes]:
    """Split git's packet lines: four digits of length, themselves included; 0000 is a mark."""
    found, at = [], 0
    while at < len(raw):
        try:
            length = int(raw[at : at + 4], 16)
        except ValueError:
            length = -1
        if length < 0 or at + length > len(raw) or length in (1, 2, 3):
            raise PackageError(f"{source_name} is not what a git server says")
        found.append(raw[at + 4 : at + length])
        at += max(length, 4)
    return found
