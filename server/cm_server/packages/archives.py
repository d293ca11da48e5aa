"""Archives, read in memory: nothing is unpacked to a disk, nothing in them is ever run.

What is no plain file refuses the whole archive: links, devices, sparse files, paths that leave,
one name twice. Sizes are counted while it is inflated, not believed.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .install_paths import check_relative_path

_IGNORED_MEMBERS: Final = frozenset({"pax_global_header"})
#: Only these can be inflated so far and no further.
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVE_ERRORS: Final = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError,
    NotImplementedError, RuntimeError, struct.error, OverflowError, UnicodeError, RecursionError,
)  # fmt: skip


def unpack(raw: bytes, name: str) -> dict[str, bytes]:
    """Return the files in an archive, by their paths.

    Args:
        raw: its content.
        name: its file name, which tells its kind: ``.tar.gz``, ``.zip`` or ``.whl``.

    Raises:
        PackageError: it is no such archive, holds what no package needs, or is too big.
    """
    if len(raw) > limits.PACKAGE_ARCHIVE_BYTES:
        raise PackageError(f"{name} is too big: {len(raw)} bytes")
    try:
        members = _read_zip(raw) if name.endswith((".zip", ".whl")) else _read_tar(raw)
        return _collect_files(members, name)
    except _ARCHIVE_ERRORS as error:
        raise PackageError(f"{name} is no sound archive: {error}"[:300]) from error


def _collect_files(members: Iterator[tuple[str, bytes]], name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    spellings: set[str] = set()
    for path, content in members:
        _check_member_path(path)
        spelling = _ignore_case(path)
        if spelling in spellings:
            raise PackageError(f"{name} holds {path!r} twice")
        spellings.add(spelling)
        found[path] = content
    return found


def _check_member_path(path: str) -> None:
    """Raise PackageError if a member's path could leave the folder it is unpacked into."""
    check_relative_path(path)


def _ignore_case(path: str) -> str:
    """Return what two paths have in common that name one file on a file system such as FAT."""
    return path.casefold()


def _read_tar(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Give a tar's files. It is inflated first, so far as it may grow: no seeking in a bomb."""
    inflated = _inflate(raw)
    with tarfile.open(fileobj=io.BytesIO(inflated), mode="r:") as tar:
        count = 0
        while (member := tar.next()) is not None:
            count += 1
            if count > limits.PACKAGE_FILES:
                raise PackageError("the archive has too many members")
            tar.members.clear()  # type: ignore[attr-defined]  # else it remembers each
            if member.isdir() or member.name in _IGNORED_MEMBERS:
                continue
            if not _is_plain_file(member):
                raise PackageError(f"{member.name!r:.100} in the archive is no plain file")
            stream = tar.extractfile(member)
            yield member.name.removeprefix("./"), stream.read() if stream else b""


def _is_plain_file(member: tarfile.TarInfo) -> bool:
    """Return whether a tar member is a plain file: no link, device or sparse file."""
    return member.isreg() and not member.issparse()


def _inflate(raw: bytes) -> bytes:
    """Return the tar in a .tar.gz, of at most ``limits.PACKAGE_UNPACKED_BYTES``."""
    if raw[:2] != b"\x1f\x8b":
        raise PackageError("the archive is no .tar.gz")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: with a gzip header
    inflated = inflater.decompress(raw, _max_inflated_bytes())
    if len(inflated) > limits.PACKAGE_UNPACKED_BYTES:
        raise PackageError("the archive grows too big when it is unpacked")
    if not inflater.eof:
        raise PackageError("the archive is cut off")
    return inflated


def _max_inflated_bytes() -> int:
    """Return where inflating stops: one byte past the limit shows that it was exceeded."""
    return limits.PACKAGE_UNPACKED_BYTES + 1


def _read_zip(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Give a zip's files, each as its own header and the directory at the end agree on it."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if len(entries) > limits.PACKAGE_FILES:
            raise PackageError("the archive has too many members")
        left = limits.PACKAGE_UNPACKED_BYTES
        for entry in entries:
            mode = entry.external_attr >> 16
            if entry.orig_filename != entry.filename or "\\" in entry.orig_filename:
                raise PackageError(f"{entry.orig_filename!r:.100} in the archive is no plain path")
            if entry.is_dir():
                continue
            if (
                mode >> 12 not in (0, 0o10)
                or entry.flag_bits & 1
                or entry.compress_type not in _COMPRESSIONS
            ):
                raise PackageError(f"{entry.filename!r:.100} in the archive is no plain file")
            with archive.open(entry) as stream:  # refuses a name that differs from its header's
                content = stream.read(left + 1)
            left -= len(content)
            if left < 0:
                raise PackageError("the archive grows too big when it is unpacked")
            yield entry.filename, content
