"""Contents are stored once, on disk, within limits, and verified."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.installs.content_store import Content, ContentStore
from cm_server.limits import Limits

LINK, OTHER_LINK = object(), object()
OWNER, OTHER_OWNER = "token-a", "token-b"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def contents(tmp_path: Path, limits: Limits) -> ContentStore:
    return ContentStore(tmp_path, limits)


def add(contents: ContentStore, data: bytes) -> Content:
    if number := contents.start_upload(LINK, OWNER, sha(data), len(data)):
        contents.write_upload(LINK, number, data)
    content = contents.get(sha(data), OWNER)
    assert content is not None
    return content


def test_content_is_available_once_it_is_complete(contents: ContentStore, tmp_path: Path):
    number = contents.start_upload(LINK, OWNER, sha(b"abcdef"), 6)
    assert contents.write_upload(LINK, number, b"abc") == 3
    assert contents.get(sha(b"abcdef"), OWNER) is None
    assert contents.write_upload(LINK, number, b"def") == 6
    content = contents.get(sha(b"abcdef"), OWNER)
    assert content is not None
    assert content.read(2, 3) == b"cde"
    assert content.read(4, 100) == b"ef"
    assert list(tmp_path.iterdir()) == []  # its file is unlinked


def test_known_content_needs_no_upload(contents: ContentStore):
    add(contents, b"abc")
    assert contents.start_upload(OTHER_LINK, OWNER, sha(b"abc"), 3) == 0


def test_content_is_the_tokens_own_until_another_sends_it(contents: ContentStore):
    add(contents, b"secret")
    assert contents.get(sha(b"secret"), OTHER_OWNER) is None
    number = contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6)
    assert number != 0
    assert contents.get(sha(b"secret"), OTHER_OWNER) is None
    contents.write_upload(OTHER_LINK, number, b"secret")
    assert contents.get(sha(b"secret"), OTHER_OWNER) is contents.get(sha(b"secret"), OWNER)
    assert contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6) == 0


def test_wrong_upload_of_anothers_content_does_not_give_it(contents: ContentStore):
    add(contents, b"secret")
    number = contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6)
    with pytest.raises(ServerError, match="differs from its SHA-256"):
        contents.write_upload(OTHER_LINK, number, b"guess!")
    assert contents.get(sha(b"secret"), OTHER_OWNER) is None
    assert contents.get(sha(b"secret"), OWNER) is not None


def test_content_of_the_server_belongs_to_no_token(contents: ContentStore):
    made = contents.add_bytes(b"compiled")
    assert contents.get(sha(b"compiled"), OWNER) is None
    add(contents, b"compiled")
    assert contents.get(sha(b"compiled"), OWNER) is made


def test_empty_content_needs_no_upload(contents: ContentStore):
    assert contents.start_upload(LINK, OWNER, sha(b""), 0) == 0
    assert contents.get(sha(b""), OWNER) is not None


@pytest.mark.parametrize(
    ("digest", "size", "why"),
    [
        (None, 1, "SHA-256"),
        ("ab", 1, "SHA-256"),
        ("A" * 64, 1, "SHA-256"),
        ("a" * 64, -1, "at most"),
        ("a" * 64, "1", "at most"),
        ("a" * 64, Limits.content_bytes + 1, "at most 64 MiB"),
    ],
)
def test_malformed_or_too_large_upload_is_refused(contents: ContentStore, digest, size, why):
    with pytest.raises(ServerError, match=why):
        contents.start_upload(LINK, OWNER, digest, size)


def test_upload_that_differs_from_its_announcement_is_discarded(contents: ContentStore):
    number = contents.start_upload(LINK, OWNER, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="differs from its SHA-256"):
        contents.write_upload(LINK, number, b"abd")
    number = contents.start_upload(LINK, OWNER, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="longer"):
        contents.write_upload(LINK, number, b"abcd")
    with pytest.raises(ServerError, match="no upload of this number"):
        contents.write_upload(LINK, number, b"")


def test_upload_of_another_link_is_refused(contents: ContentStore):
    number = contents.start_upload(LINK, OWNER, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="no upload of this number"):
        contents.write_upload(OTHER_LINK, number, b"abc")
    assert contents.write_upload(LINK, number, b"abc") == 3


@pytest.mark.limits(uploads=1)
def test_uploads_of_a_closed_link_are_discarded(contents: ContentStore):
    contents.start_upload(LINK, OWNER, sha(b"abc"), 3)
    with pytest.raises(ServerError, match="too many"):
        contents.start_upload(OTHER_LINK, OWNER, sha(b"x"), 1)
    contents.discard_uploads(LINK)
    assert contents.start_upload(OTHER_LINK, OWNER, sha(b"x"), 1)


@pytest.mark.limits(content_store_bytes=10)
def test_evicted_content_stays_readable(contents: ContentStore):
    first, second = add(contents, b"11111"), add(contents, b"22222")
    assert contents.get(first.digest, OWNER)  # now it is the most recently used
    add(contents, b"33333")
    assert contents.get(second.digest, OWNER) is None
    assert contents.get(first.digest, OWNER)
    assert second.read(0, 9) == b"22222"


@pytest.mark.limits(content_store_files=1)
def test_file_is_closed_with_its_last_reader(contents: ContentStore):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(50):
        add(contents, b"%d" % n)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_full_disk_is_reported(contents: ContentStore, monkeypatch):
    number = contents.start_upload(LINK, OWNER, sha(b"abc"), 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ServerError, match="No space left"):
        contents.write_upload(LINK, number, b"abc")


@pytest.mark.limits(file_read_bytes=4)
def test_prefix_is_compared_by_hash(contents: ContentStore):
    content = add(contents, b"0123456789")
    assert content.starts_with(7, hashlib.sha256(b"0123456").digest())
    assert not content.starts_with(7, hashlib.sha256(b"0123457").digest())
    assert not content.starts_with(11, bytes(32))
