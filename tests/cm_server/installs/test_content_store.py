"""Contents are stored once, on disk, within limits, and verified."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.installs.content_store import Content, ContentStore
from cm_server.limits import Limits
from cm_server.store.rows import TokenRow

LINK, OTHER_LINK = object(), object()
OWNER = TokenRow("a" * 64, "ann", "operator")
OTHER_OWNER = TokenRow("b" * 64, "ben", "operator")
ADMIN = TokenRow("c" * 64, "cat", "admin")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def contents(tmp_path: Path, limits: Limits) -> ContentStore:
    return ContentStore(tmp_path, limits, lambda _seconds, _act: None)


def add(contents: ContentStore, data: bytes) -> Content:
    if number := contents.start_upload(LINK, OWNER, sha(data), len(data)):
        contents.write_upload(LINK, number, data)
    content = contents.get(sha(data), OWNER.hash)
    assert content is not None
    return content


def test_content_is_available_once_it_is_complete(contents: ContentStore, tmp_path: Path):
    number = contents.start_upload(LINK, OWNER, sha(b"abcdef"), 6)
    assert contents.write_upload(LINK, number, b"abc") == 3
    assert contents.get(sha(b"abcdef"), OWNER.hash) is None
    assert contents.write_upload(LINK, number, b"def") == 6
    content = contents.get(sha(b"abcdef"), OWNER.hash)
    assert content is not None
    assert content.read(2, 3) == b"cde"
    assert content.read(4, 100) == b"ef"
    assert list(tmp_path.iterdir()) == []  # its file is unlinked


def test_known_content_needs_no_upload(contents: ContentStore):
    add(contents, b"abc")
    assert contents.start_upload(OTHER_LINK, OWNER, sha(b"abc"), 3) == 0


def test_content_is_the_tokens_own_until_another_sends_it(contents: ContentStore):
    add(contents, b"secret")
    assert contents.get(sha(b"secret"), OTHER_OWNER.hash) is None
    number = contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6)
    assert number != 0
    assert contents.get(sha(b"secret"), OTHER_OWNER.hash) is None
    contents.write_upload(OTHER_LINK, number, b"secret")
    assert contents.get(sha(b"secret"), OTHER_OWNER.hash) is contents.get(
        sha(b"secret"), OWNER.hash
    )
    assert contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6) == 0


def test_wrong_upload_of_anothers_content_does_not_give_it(contents: ContentStore):
    add(contents, b"secret")
    number = contents.start_upload(OTHER_LINK, OTHER_OWNER, sha(b"secret"), 6)
    with pytest.raises(ServerError, match="differs from its SHA-256"):
        contents.write_upload(OTHER_LINK, number, b"guess!")
    assert contents.get(sha(b"secret"), OTHER_OWNER.hash) is None
    assert contents.get(sha(b"secret"), OWNER.hash) is not None


def test_content_of_the_server_belongs_to_no_token(contents: ContentStore):
    made = contents.add_bytes(b"compiled")
    assert contents.get(sha(b"compiled"), OWNER.hash) is None
    add(contents, b"compiled")
    assert contents.get(sha(b"compiled"), OWNER.hash) is made


def test_empty_content_needs_no_upload(contents: ContentStore):
    assert contents.start_upload(LINK, OWNER, sha(b""), 0) == 0
    assert contents.get(sha(b""), OWNER.hash) is not None


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
    with pytest.raises(ServerError, match="has 1 unfinished uploads already"):
        contents.start_upload(OTHER_LINK, OWNER, sha(b"x"), 1)
    contents.discard_uploads(LINK)
    assert contents.start_upload(OTHER_LINK, OWNER, sha(b"x"), 1)


@pytest.mark.limits(content_store_files=2)
def test_evicted_content_stays_readable(contents: ContentStore):
    first, second = add(contents, b"11111"), add(contents, b"22222")
    assert contents.get(first.digest, OWNER.hash)  # now it is the most recently used
    add(contents, b"33333")
    assert contents.get(second.digest, OWNER.hash) is None
    assert contents.get(first.digest, OWNER.hash)
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


# Shares


def upload(contents: ContentStore, owner: TokenRow, data: bytes, size: int = 0) -> int:
    """Start an upload of ``data``, of which only ``size`` bytes are sent; return its number."""
    number = contents.start_upload(LINK, owner, sha(data), len(data))
    contents.write_upload(LINK, number, data[:size])
    return number


@pytest.mark.limits(uploads=10, uploads_per_token=4, reserved_uploads=2)
def test_uploads_are_bounded_per_token_with_a_reserve(contents: ContentStore):
    for n in range(4):
        upload(contents, OWNER, b"own %d" % n)
    with pytest.raises(ServerError, match="the token 'ann' has 4 unfinished uploads already"):
        upload(contents, OWNER, b"another")
    for n in range(4):
        upload(contents, OTHER_OWNER, b"other %d" % n)
    third = TokenRow("d" * 64, "dan", "operator")
    with pytest.raises(ServerError, match="the last ones are reserved for administrators"):
        upload(contents, third, b"third")
    upload(contents, ADMIN, b"admin")
    upload(contents, ADMIN, b"admin 2")
    with pytest.raises(ServerError, match="the server has 10 unfinished uploads already"):
        upload(contents, ADMIN, b"admin 3")


@pytest.mark.limits(
    content_store_bytes=100, content_store_token_bytes=50, reserved_content_store_bytes=20
)
def test_unfinished_uploads_count_for_the_bytes_on_disk(contents: ContentStore):
    upload(contents, OWNER, b"a" * 60, 50)
    with pytest.raises(ServerError, match="'ann' has 50 bytes of files in use on the server"):
        upload(contents, OWNER, b"b" * 10, 5)
    upload(contents, OTHER_OWNER, b"c" * 60, 30)
    with pytest.raises(ServerError, match="reserved for administrators; try again"):
        upload(contents, OTHER_OWNER, b"d" * 10, 5)
    upload(contents, ADMIN, b"e" * 40, 20)
    assert contents.used_bytes == 100
    contents.discard_uploads(LINK)
    assert contents.used_bytes == 0


@pytest.mark.limits(
    content_store_bytes=100, content_store_token_bytes=50, reserved_content_store_bytes=20
)
def test_contents_in_use_count_for_the_bytes_on_disk(contents: ContentStore):
    unused = sha(b"0" * 10)
    add(contents, b"0" * 10)
    jobs = [add(contents, bytes([n]) * 10) for n in range(4)]
    contents.add_bytes(b"other", OTHER_OWNER)
    jobs.append(add(contents, b"x" * 10))  # the unused content of the token is deleted
    assert contents.get(unused, OWNER.hash) is None
    with pytest.raises(ServerError, match="'ann' has 50 bytes of files in use"):
        add(contents, b"y" * 10)
    with pytest.raises(ServerError, match="'ann' has 50 bytes of files in use"):
        contents.add_bytes(b"of a plan", OWNER)
    assert contents.used_bytes == 55  # the other token's content is kept
    jobs.clear()
    add(contents, b"y" * 10)


@pytest.mark.limits(upload_idle_seconds=10.0)
def test_upload_without_progress_is_discarded(tmp_path: Path, limits: Limits):
    now = [0.0]
    timers: list[tuple[float, Callable[[], None]]] = []
    contents = ContentStore(
        tmp_path, limits, lambda seconds, act: timers.append((seconds, act)), lambda: now[0]
    )
    slow, idle = upload(contents, OWNER, b"a" * 9, 1), upload(contents, OWNER, b"b" * 9, 1)
    now[0] = 9.0
    contents.write_upload(LINK, slow, b"a")
    now[0] = 10.0
    ((seconds, on_timer),) = timers
    assert seconds == 10.0
    on_timer()
    assert contents.used_bytes == 2
    with pytest.raises(ServerError, match="no upload of this number"):
        contents.write_upload(LINK, idle, b"b")
    contents.write_upload(LINK, slow, b"a")
    assert [seconds for seconds, _ in timers] == [10.0, 9.0]
