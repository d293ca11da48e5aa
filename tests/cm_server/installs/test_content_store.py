"""Contents: each once, on disk, bounded, and what was announced."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server import limits
from cm_server.installs.content_store import Content, ContentStore

ME, OTHER = object(), object()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def contents(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def held(contents: ContentStore, data: bytes) -> Content:
    if number := contents.start_upload(ME, sha(data), len(data)):
        contents.write_upload(ME, number, data)
    content = contents.get(sha(data))
    assert content is not None
    return content


def test_content_comes_in_pieces_and_is_there_once_it_is_whole(
    contents: ContentStore, tmp_path: Path
):
    number = contents.start_upload(ME, sha(b"abcdef"), 6)
    assert contents.write_upload(ME, number, b"abc") == 3
    assert contents.get(sha(b"abcdef")) is None
    assert contents.write_upload(ME, number, b"def") == 6
    content = contents.get(sha(b"abcdef"))
    assert content is not None
    assert content.read(2, 3) == b"cde"
    assert content.read(4, 100) == b"ef"
    assert list(tmp_path.iterdir()) == []  # its file has no name


def test_content_that_is_there_is_not_taken_again(contents: ContentStore):
    held(contents, b"abc")
    assert contents.start_upload(OTHER, sha(b"abc"), 3) == 0


def test_empty_content_is_there_at_once(contents: ContentStore):
    assert contents.start_upload(ME, sha(b""), 0) == 0
    assert contents.get(sha(b"")) is not None


@pytest.mark.parametrize(
    ("digest", "size", "why"),
    [
        (None, 1, "SHA-256"),
        ("ab", 1, "SHA-256"),
        ("A" * 64, 1, "SHA-256"),
        ("a" * 64, -1, "at most"),
        ("a" * 64, "1", "at most"),
        ("a" * 64, limits.CONTENT_BYTES + 1, "at most 64 MiB"),
    ],
)
def test_malformed_or_too_large_offers_are_refused(contents: ContentStore, digest, size, why):
    with pytest.raises(ServerError, match=why):
        contents.start_upload(ME, digest, size)


def test_what_is_not_as_announced_is_refused_and_dropped(contents: ContentStore):
    number = contents.start_upload(ME, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="changed meanwhile"):
        contents.write_upload(ME, number, b"abd")
    number = contents.start_upload(ME, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="longer"):
        contents.write_upload(ME, number, b"abcd")
    with pytest.raises(ServerError, match="nobody offered"):
        contents.write_upload(ME, number, b"")


def test_nobody_writes_to_anothers_upload(contents: ContentStore):
    number = contents.start_upload(ME, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="nobody offered"):
        contents.write_upload(OTHER, number, b"abc")
    assert contents.write_upload(ME, number, b"abc") == 3


def test_who_goes_away_leaves_nothing_begun(contents: ContentStore, monkeypatch):
    monkeypatch.setattr(limits, "UPLOADS", 1)
    contents.start_upload(ME, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="too many"):
        contents.start_upload(OTHER, sha(b"x"), 1)
    contents.discard_uploads(ME)
    assert contents.start_upload(OTHER, sha(b"x"), 1)


def test_the_oldest_go_but_not_from_those_that_use_them(contents: ContentStore, monkeypatch):
    monkeypatch.setattr(limits, "CONTENT_STORE_BYTES", 10)
    first, second = held(contents, b"11111"), held(contents, b"22222")
    assert contents.get(first.digest)  # now it is the newest
    held(contents, b"33333")
    assert contents.get(second.digest) is None
    assert contents.get(first.digest)
    assert second.read(0, 9) == b"22222"


def test_files_are_closed_with_their_last_user(contents: ContentStore, monkeypatch):
    monkeypatch.setattr(limits, "CONTENT_STORE_FILES", 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(50):
        held(contents, b"%d" % n)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_full_disk_is_said(contents: ContentStore, monkeypatch):
    number = contents.start_upload(ME, sha(b"abc"), 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ServerError, match="No space left"):
        contents.write_upload(ME, number, b"abc")


def test_beginning_is_known_by_its_hash(contents: ContentStore, monkeypatch):
    monkeypatch.setattr(limits, "FILE_READ_BYTES", 4)
    content = held(contents, b"0123456789")
    assert content.starts_with(7, hashlib.sha256(b"0123456").digest())
    assert not content.starts_with(7, hashlib.sha256(b"0123457").digest())
    assert not content.starts_with(11, bytes(32))
