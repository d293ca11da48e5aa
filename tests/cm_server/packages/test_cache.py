"""The cache returns verified contents only (attack group 30)."""

from __future__ import annotations

import os

import pytest

from cm_server.packages.cache import PackageCache, sha256


@pytest.fixture
def cache(tmp_path, limits) -> PackageCache:
    return PackageCache(tmp_path, limits.package_cache_bytes)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_content_is_found_by_its_hash(cache):
    name = cache.put(b"one")
    assert (name, cache.get(name)) == (sha256(b"one"), b"one")
    assert cache.get(sha256(b"two")) is None


@pytest.mark.parametrize("name", ["", "../x", "a" * 63, "A" * 64, "/etc/passwd"])
def test_invalid_hash_is_not_found(cache, name):
    assert cache.get(name) is None


def test_damaged_content_is_removed(cache, tmp_path):
    name = cache.put(b"one")
    (path,) = files(tmp_path)
    path.write_bytes(b"two")
    assert cache.get(name) is None
    assert not path.exists()
    cache.put(b"one")
    assert cache.get(name) == b"one"


def test_failed_write_leaves_no_file(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="No space"):
            cache.put(b"one")
    assert files(tmp_path) == []
    assert cache.get(cache.put(b"one")) == b"one"


def test_content_is_found_by_its_address(cache, tmp_path):
    cache.put_address("https://a.example/x", cache.put(b"one"))
    assert cache.get_by_address("https://a.example/x") == b"one"
    assert cache.get_by_address("https://a.example/y") is None
    assert PackageCache(tmp_path, 1000).get_by_address("https://a.example/x") == b"one"


@pytest.mark.limits(package_cache_bytes=1000)
def test_least_recently_used_contents_are_evicted(cache, tmp_path):
    names = []
    for n in range(12):
        names.append(cache.put(bytes([n]) * 100))
        path = next(path for path in files(tmp_path) if path.name == names[-1])
        os.utime(path, (n, n))
        cache.get(names[0])  # so that it is never the least recently used
    kept = [cache.get(name) is not None for name in names]
    assert kept[0]
    assert kept[-1]
    assert not kept[1]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1000
