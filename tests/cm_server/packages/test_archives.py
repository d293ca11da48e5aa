"""Hostile archives (attack group 25): nothing is written to disk or executed."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import warnings
import zipfile

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
from cm_server.packages.archives import unpack

from .package_server import bomb, sdist, wheel

BAD_PATHS = [
    "../boot.py",
    "a/../../boot.py",
    "/etc/passwd",
    "C:/x.py",
    "C:x.py",
    "a\\b.py",
    "..\\b.py",
    "a.py.",
    "a.py ",
    "dir /a.py",
    "x\n.py",
]

LIMITS = Limits()


def tar_of(*members: tuple[tarfile.TarInfo, bytes], pax: bool = True) -> bytes:
    raw = io.BytesIO()
    kind = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=raw, mode="w:gz", format=kind) as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else member.size
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def assert_refused(
    raw: bytes, why: str = ".", name: str = "p-1.tar.gz", limits: Limits = LIMITS
) -> None:
    with pytest.raises(PackageError, match=why):
        unpack(raw, name, limits)


def test_plain_archives_are_read():
    files = {"p/a.py": b"1", "p/b/c.py": b"2"}
    assert unpack(sdist("p", {"a.py": b"1", "b/c.py": b"2"}), "p.tar.gz", LIMITS) == files
    assert unpack(wheel(files), "p.whl", LIMITS) == unpack(wheel(files), "p.zip", LIMITS) == files


def test_folders_and_pax_comments_are_ignored():
    raw = tar_of((member("p", tarfile.DIRTYPE), b""), (member("./p/a.py"), b"1"))
    assert unpack(raw, "p.tar.gz", LIMITS) == {"p/a.py": b"1"}


@pytest.mark.parametrize("path", BAD_PATHS)
def test_unsafe_member_path_in_tar_is_refused(path):
    assert_refused(tar_of((member("p/a.py"), b"1"), (member(path), b"2")))


@pytest.mark.parametrize("path", BAD_PATHS)
def test_unsafe_member_path_in_zip_is_refused(path):
    assert_refused(wheel({"p/a.py": "1", path: "2"}), name="p.whl")


def test_nul_in_zip_member_name_is_refused():
    raw = wheel({"p/a.pyZ.txt": "2"}).replace(b"p/a.pyZ.txt", b"p/a.py\0.txt")
    assert_refused(raw, name="p.whl")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
def test_tar_with_link_device_or_sparse_file_is_refused(kind):
    odd = member("p/x", kind, "/etc")
    raw = tar_of((odd, b""), (member("p/x/passwd"), b"written through the link"), pax=False)
    if kind == tarfile.CONTTYPE:  # a plain file, by POSIX
        assert unpack(raw, "p.tar.gz", LIMITS)["p/x"] == b""
    else:
        assert_refused(raw, "not a plain file|not a valid archive")


def test_zip_with_symbolic_link_is_refused():
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        info = zipfile.ZipInfo("p/x")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert_refused(raw.getvalue(), "not a plain file", "p.zip")


def test_names_that_differ_in_case_only_are_refused():
    assert_refused(sdist("p", {"a.py": "1", "A.py": "2"}), "twice")
    assert_refused(wheel({"a.py": "1", "A.PY": "2"}), "twice", "p.whl")


def test_duplicate_member_is_refused():
    assert_refused(tar_of((member("p/a.py"), b"1"), (member("p/a.py"), b"2")), "twice")
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.py", "1")
        archive.writestr("a.py", "2")
    assert_refused(raw.getvalue(), "twice", "p.zip")


def test_path_in_pax_header_is_checked():
    info = member("p/harmless.py")
    info.pax_headers = {"path": "../../boot.py"}
    assert_refused(tar_of((info, b"1")), "is refused")


def test_endless_gnu_long_names_are_refused():
    header = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 0
    block = header.tobuf(tarfile.GNU_FORMAT)
    assert_refused(gzip.compress(block * 20_000 + b"\0" * 1024), "not a valid archive")


def peak_memory_of_refusal(raw: bytes, name: str, seconds: float, limits: Limits) -> int:
    """Assert that an archive is refused within some CPU time; return the peak memory in bytes."""
    tracemalloc.start()
    try:
        since = time.process_time()
        assert_refused(raw, name=name, limits=limits)
        assert time.process_time() - since < seconds
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_decompression_bomb_is_refused_before_it_is_inflated():
    limits = Limits(package_unpacked_bytes=1024**2)
    raw = bomb()
    zipped = wheel({"p/a.py": b"\0" * 64 * 1024**2})
    for packed, name in ((raw, "p.tar.gz"), (zipped, "p.whl")):
        assert len(packed) < 1024**2
        assert peak_memory_of_refusal(packed, name, 5, limits) < 8 * 1024**2


def test_zip_with_wrong_sizes_is_refused():
    content = b"\0" * 100_000
    raw = wheel({"p/a.py": content})
    lying = raw.replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    assert_refused(lying, name="p.zip")


def test_zip_with_inconsistent_headers_is_refused():
    raw = wheel({"p/good.py": "1"})
    assert_refused(raw.replace(b"p/good.py", b"p/evil.py", 1), "not a valid archive", "p.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_with_unbounded_compression_method_is_refused(method):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        archive.writestr("p/a.py", "1")
    assert_refused(raw.getvalue(), "not a plain file", "p.zip")


def test_too_many_members_are_refused():
    limits = Limits(package_files=10)
    files = {f"a{n}.py": "" for n in range(11)}
    assert_refused(sdist("p", files), "too many", limits=limits)
    assert_refused(wheel(files), "too many", "p.whl", limits)


@pytest.mark.timeout(20)
def test_archive_of_many_members_is_refused_quickly():
    block = member("p/a.py").tobuf()
    assert_refused(gzip.compress(block * 60_000, 1), "too many|twice|too big")


def test_too_big_archive_is_refused_unread():
    limits = Limits(package_archive_bytes=10)
    assert_refused(sdist("p", {"a.py": "1"}), "too big", limits=limits)


def test_archive_in_archive_is_not_unpacked():
    inner = sdist("q", {"evil.py": "1"})
    assert unpack(sdist("p", {"inner.tar.gz": inner}), "p.tar.gz", LIMITS) == {
        "p/inner.tar.gz": inner
    }


@pytest.mark.parametrize("name", ["p.tar.gz", "p.whl", "p.zip"])
def test_invalid_or_truncated_archive_is_refused(name):
    whole = sdist("p", {"a.py": "1" * 5000}) if name == "p.tar.gz" else wheel({"a.py": "1" * 5000})
    for raw in (b"", b"<html>", b"\x1f\x8b", b"PK\3\4", whole[: len(whole) // 2], b"\0" * 1000):
        assert_refused(raw, name=name)
