"""The lock: written, read, obeyed; FIELD 5, groups 30 and 32."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages import lock
from cm_server.packages.release import Release, ReleaseFile
from cm_server.packages.requirement import parse_requirement

SHA, OTHER = "a" * 64, "b" * 64
LOG = Release(
    parse_requirement("log"),
    "1.2",
    (ReleaseFile("log.py", "https://i.example/f/aa/aaaaaaaa", "", SHA, 5),),
)
FORGE = Release(
    parse_requirement("github:o/r"),
    "c" * 40,
    (ReleaseFile("r.py", "https://raw.example/r.py", "", SHA, 5),),
    (parse_requirement("log@1.2"),),
    ref="refs/tags/v1",
)
OLD = Release(
    parse_requirement("pypi:micropython-x"),
    "1",
    (ReleaseFile("x.py", "", "", SHA, 5),),
    archive="x-1.tar.gz",
    archive_sha256=OTHER,
)
SENT = Release(
    parse_requirement("./d", frozenset(["./d"])), "abc", (ReleaseFile("d.py", "", "", SHA, 5),)
)
ALL = (LOG, FORGE, OLD, SENT)


def test_lock_is_read_as_it_was_written():
    assert lock.load(lock.dump(["log", "./d"], ALL)) == (("./d", "log"), ALL)


def test_lock_is_the_same_text_for_the_same_plan_and_can_be_read_line_by_line():
    text = lock.dump(["b", "a"], ALL)
    assert text == lock.dump(["a", "b"], ALL)
    changed = lock.dump(["a", "b"], (replace(LOG, version="1.3"), *ALL[1:]))
    differ = [
        pair
        for pair in zip(text.splitlines(), changed.splitlines(), strict=True)
        if len(set(pair)) > 1
    ]
    assert differ == [('   "version": "1.2"', '   "version": "1.3"')]


def changed(**changes):
    said = json.loads(lock.dump(["log"], [LOG]))
    said["packages"][0].update(changes)
    return json.dumps(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"format": 2, "packages": [], "wanted": []}',
        changed(package="../x"),
        changed(package="/etc/passwd"),
        changed(package=1),
        changed(files=[{"path": "../x.py", "sha256": SHA, "size": 1}]),
        changed(files=[{"path": "x.py", "sha256": "a", "size": 1}]),
        changed(files=[{"path": "x.py", "sha256": SHA, "size": -1}]),
        changed(files=[{"path": "x.py", "sha256": SHA, "size": 10**12}]),
        changed(files=[{"path": "x.py", "sha256": SHA}]),
        changed(files={"a": 1}),
        changed(needs=["a@b@c"]),
        changed(archive={"name": "x"}),
        lock.dump([], [LOG, LOG]),
        lock.dump(["log", "gone"], [LOG]),
        lock.dump(["github:o/r"], [FORGE]),
    ],
)
def test_lock_that_somebody_mended_badly_is_refused(text):
    with pytest.raises(PackageError):
        lock.load(text)


def test_older_version_than_the_locks_is_a_rollback():
    older = replace(LOG, version="1.1")
    with pytest.raises(PackageError, match="1.1 is the newest, but the lock has 1.2 already"):
        lock.compare_releases([LOG], [older], pinned_keys=[])
    assert lock.compare_releases([LOG], [older], pinned_keys=["log"]) == []


def test_newer_version_is_fine_and_numbers_count_as_numbers():
    assert lock.compare_releases([LOG], [replace(LOG, version="1.10")], pinned_keys=[]) == []


def test_frozen_index_gives_what_the_lock_has():
    assert lock.compare_releases([LOG], [LOG], pinned_keys=[]) == []


def test_same_version_with_other_content_is_refused():
    other = replace(LOG, parts=(ReleaseFile("log.py", sha256=OTHER),))
    with pytest.raises(PackageError, match="log.py is another one than the lock has"):
        lock.compare_releases([LOG], [other], pinned_keys=["log"])


def test_tag_that_moved_is_refused():
    moved = replace(FORGE, version="d" * 40)
    with pytest.raises(PackageError, match="refs/tags/v1 was cccccccccccc in the lock, and is ddd"):
        lock.compare_releases([FORGE], [moved], pinned_keys=["github:o/r"])


def test_branch_that_moved_is_told():
    branch = replace(FORGE, ref="refs/heads/main")
    (note,) = lock.compare_releases([branch], [replace(branch, version="d" * 40)], pinned_keys=[])
    assert "refs/heads/main was cccccccccccc in the lock, and is dddddddddddd now" in note


def test_other_ref_and_new_packages_are_a_choice():
    assert (
        lock.compare_releases([FORGE], [replace(FORGE, ref="refs/tags/v2", version="d" * 40)], [])
        == []
    )
    assert lock.compare_releases([], [LOG], pinned_keys=[]) == []
