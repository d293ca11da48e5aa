"""Parse the documents of indexes, repositories and archives strictly and within limits; pure.

Formats: MicroPython's package.json and mip index v2; requires.txt (setuptools) and METADATA
(core metadata) of the old ``micropython-*`` distributions; a git server's list of refs.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import PackageError

_HASH_PREFIX = re.compile(r"[0-9a-f]{8,64}")  # of a SHA-256 in hex; mip's indexes give 8 digits
_DUMMY_SUMMARY = re.compile(r"^Summary: Dummy ", re.MULTILINE)


class PackageDocument(NamedTuple):
    """A package.json.

    Attributes:
        version: "" if it has none.
        hashes: pairs of a path and the first digits of a SHA-256.
        urls: pairs of a path and the address of the file.
        deps: pairs of a requirement and a version, "" for none.
    """

    version: str
    hashes: list[tuple[str, str]]
    urls: list[tuple[str, str]]
    deps: list[tuple[str, str]]


def load_json(raw: bytes, source_name: str) -> Any:
    """Parse JSON strictly.

    Args:
        raw: the text, in UTF-8.
        source_name: what error messages call it.

    Raises:
        PackageError: it is malformed, is nested too deeply, has a duplicate key or has NaN or an
            infinity.
    """
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{source_name} is not valid JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def read_document(raw: bytes, source_name: str, max_entries: int) -> PackageDocument:
    """Parse a package.json; missing fields are empty, unknown fields are ignored.

    Args:
        raw: the document.
        source_name: what it is, for error messages.
        max_entries: of each of its lists.

    Raises:
        PackageError: a field has a value of the wrong type.
    """
    fields = load_json(raw, source_name)
    if not isinstance(fields, dict):
        raise PackageError(f"{source_name} is not a package.json: it is not a JSON object")
    version = fields.get("version") or ""
    if isinstance(version, (int, float)) and not isinstance(version, bool):
        version = str(version)  # existing packages have "version": 0.1
    if not isinstance(version, str) or len(version) > 64 or not version.isprintable():
        raise PackageError(f"{source_name}: its version is not a short text")
    if fields.get("v", 1) != 1:
        raise PackageError(f"{source_name} has format {fields['v']!r:.20}; only 1 is supported")

    def read_pairs(field: str) -> list[tuple[str, str]]:
        return _read_pairs(fields.get(field) or [], field, source_name, max_entries)

    hashes = read_pairs("hashes")
    for path, prefix in hashes:
        if not _HASH_PREFIX.fullmatch(prefix):
            raise PackageError(f"{source_name}: {path!r:.100} has no hash of 8 digits or more")
    return PackageDocument(
        version,
        hashes,
        read_pairs("urls"),
        read_pairs("deps"),
    )


def _read_pairs(rows: Any, field: str, source_name: str, max_entries: int) -> list[tuple[str, str]]:
    """Return the pairs of a field.

    A dependency may consist of its name only. A third item of a row and further ones are ignored,
    as mip's successors may define them.
    """
    if isinstance(rows, dict):
        rows = list(rows.items())
    if not isinstance(rows, list) or len(rows) > max_entries:
        raise PackageError(f"{source_name}: {field!r} is not a list, or too long")
    pairs = []
    for row in rows:
        pair = [row] if isinstance(row, str) else row
        if field == "deps" and isinstance(pair, list) and len(pair) == 1:
            pair = [*pair, ""]
        if not (isinstance(pair, (list, tuple)) and len(pair) >= 2 and isinstance(pair[0], str)):
            raise PackageError(f"{source_name}: {field!r} has an entry that is not a pair")
        value = "" if pair[1] is None else pair[1]
        if not isinstance(value, str):
            raise PackageError(f"{source_name}: {field!r} has an entry that is not a pair of texts")
        pairs.append((pair[0], value))
    return pairs


def read_requires(raw: bytes) -> list[str]:
    """Return the requirements of a requires.txt, without extras, each as ``NAME[SPECIFIER]``."""
    needed = []
    for line in _lines(raw):
        if line.startswith("["):
            break  # the requirements of an extra follow
        if line and not line.startswith("#"):
            needed.append(_strip_requirement(line))
    return needed


def read_metadata(raw: bytes) -> list[str]:
    """Return the requirements of a METADATA or PKG-INFO, without extras."""
    needed = []
    for line in _lines(raw):
        if not line:
            break  # the description follows
        if line.lower().startswith("requires-dist:") and "extra" not in line.partition(";")[2]:
            needed.append(_strip_requirement(line.partition(":")[2]))
    return needed


def is_dummy(raw: bytes) -> bool:
    """Return whether a METADATA or PKG-INFO is of a package that only reserves a name."""
    return bool(_DUMMY_SUMMARY.search(raw.decode("utf-8-sig", "replace")))


def _lines(raw: bytes) -> list[str]:
    return [line.strip() for line in raw.decode("utf-8-sig", "replace").splitlines()]


def _strip_requirement(line: str) -> str:
    """Return a requirement without extras, marker, parentheses and spaces."""
    return re.sub(r"\[[^\]]*\]|[()\s]", "", line.partition(";")[0])


def read_refs(raw: bytes, source_name: str) -> dict[str, str]:
    """Parse a git server's response to info/refs; return the commit of each ref.

    The commit of an annotated tag is the one that it refers to (``NAME^{}`` in the response), not
    that of the tag object.

    Raises:
        PackageError: the response is malformed, or has no refs.
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
    """Split git's packet lines (gitprotocol-common).

    A line begins with its length in four hexadecimal digits, which count too. 0000 is a separator.
    """
    packets = []
    offset = 0
    while offset < len(raw):
        try:
            length = int(raw[offset : offset + 4], 16)
        except ValueError:
            length = -1
        if length < 0 or offset + length > len(raw) or length in (1, 2, 3):
            raise PackageError(f"{source_name} did not send a list of refs as git servers do")
        packets.append(raw[offset + 4 : offset + length])
        offset += max(length, 4)
    return packets
