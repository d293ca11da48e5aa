"""Read archives in memory; nothing is unpacked to disk, and nothing in them is executed.

An archive is refused as a whole if it contains anything but plain files in folders: links, devices,
sparse files, paths that leave the folder, two members of the same name. Sizes in headers are not
trusted; bytes are counted while the archive is inflated.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits

from .install_paths import check_relative_path

_IGNORED_MEMBERS: Final = frozenset({"pax_global_header"})
#: `zipfile` can limit the output while it inflates these; it cannot for bzip2 and LZMA.
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: What `tarfile`, `zipfile` and `zlib` raise for malformed archives.
_ARCHIVE_ERRORS: Final = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError,
    NotImplementedError, RuntimeError, struct.error, OverflowError, UnicodeError, RecursionError,
)  # fmt: skip


def unpack(raw: bytes, name: str, limits: Limits) -> dict[str, bytes]:
    """Return the files in an archive: path -> content.

    Args:
        raw: the archive.
        name: its file name; the suffix determines the format: ``.tar.gz``, ``.zip`` or ``.whl``.
        limits: the size of the archive and of its content, and how many files there are.

    Raises:
        PackageError: the archive is malformed or too big, or contains anything but plain files.
    """
    if len(raw) > limits.package_archive_bytes:
        raise PackageError(f"{name} is too big: {len(raw)} bytes")
    try:
        read = _read_zip if name.endswith((".zip", ".whl")) else _read_tar
        return _collect_files(read(raw, limits), name)
    except _ARCHIVE_ERRORS as error:
        raise PackageError(f"{name} is not a valid archive: {error}"[:300]) from error


def _collect_files(members: Iterator[tuple[str, bytes]], name: str) -> dict[str, bytes]:
    """Return the members of an archive as a dict; refuse unsafe and duplicate paths."""
    found: dict[str, bytes] = {}
    spellings: set[str] = set()
    for path, content in members:
        _check_member_path(path)
        spelling = _ignore_case(path)
        if spelling in spellings:
            raise PackageError(f"{name} contains {path!r} twice")
        spellings.add(spelling)
        found[path] = content
    return found


def _check_member_path(path: str) -> None:
    """Raise PackageError if a member's path could leave the folder it is unpacked into."""
    check_relative_path(path)


def _ignore_case(path: str) -> str:
    """Return the form in which two paths are equal if a case-insensitive file system mixes them up.

    FAT is one, and many boards use it.
    """
    return path.casefold()


def _read_tar(raw: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a .tar.gz.

    It is inflated to memory first, up to the limit. If `tarfile` inflated it, skipping one huge
    member would take unlimited time.
    """
    inflated = _inflate(raw, limits.package_unpacked_bytes)
    with tarfile.open(fileobj=io.BytesIO(inflated), mode="r:") as tar:
        count = 0
        while (member := tar.next()) is not None:
            count += 1
            if count > limits.package_files:
                raise PackageError("the archive has too many members")
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps each one otherwise
            if member.isdir() or member.name in _IGNORED_MEMBERS:
                continue
            if not _is_plain_file(member):
                raise PackageError(f"{member.name!r:.100} in the archive is not a plain file")
            stream = tar.extractfile(member)
            yield member.name.removeprefix("./"), stream.read() if stream else b""


def _is_plain_file(member: tarfile.TarInfo) -> bool:
    """Return whether a tar member is a plain file: no link, device or sparse file."""
    return member.isreg() and not member.issparse()


def _inflate(raw: bytes, max_bytes: int) -> bytes:
    """Return the tar in a .tar.gz, of at most ``max_bytes``."""
    if raw[:2] != b"\x1f\x8b":
        raise PackageError("the archive is not a .tar.gz")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: with a gzip header
    inflated = inflater.decompress(raw, _max_inflated_bytes(max_bytes))
    if len(inflated) > max_bytes:
        raise PackageError("the archive is too big when unpacked")
    if not inflater.eof:
        raise PackageError("the archive is truncated")
    return inflated


def _max_inflated_bytes(max_bytes: int) -> int:
    """Return where inflating stops: one byte above the limit, to detect that it is exceeded."""
    return max_bytes + 1


def _read_zip(raw: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a zip; `zipfile` raises an error if a file's two headers disagree."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if len(entries) > limits.package_files:
            raise PackageError("the archive has too many members")
        bytes_left = limits.package_unpacked_bytes
        for entry in entries:
            # zipfile changes names: it cuts them at a NUL and replaces the separators of Windows.
            if entry.orig_filename != entry.filename or "\\" in entry.orig_filename:
                raise PackageError(f"{entry.orig_filename!r:.100} in the archive is an unsafe path")
            if entry.is_dir():
                continue
            if not _is_plain_entry(entry):
                raise PackageError(f"{entry.filename!r:.100} in the archive is not a plain file")
            with archive.open(entry) as stream:
                content = stream.read(bytes_left + 1)
            bytes_left -= len(content)
            if bytes_left < 0:
                raise PackageError("the archive is too big when unpacked")
            yield entry.filename, content


def _is_plain_entry(entry: zipfile.ZipInfo) -> bool:
    """Return whether a zip entry is a plain file, not encrypted, of a supported compression."""
    unix_type = entry.external_attr >> 28  # the file type of st_mode; 0 if not made on Unix
    is_encrypted = entry.flag_bits & 1
    return (
        unix_type in (0, stat.S_IFREG >> 12)
        and not is_encrypted
        and entry.compress_type in _COMPRESSIONS
    )
