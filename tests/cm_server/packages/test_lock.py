"""Write, parse and compare lock files (attack groups 30 and 32)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
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


def test_lock_survives_a_round_trip():
    assert lock.load(lock.dump(["log", "./d"], ALL), Limits()) == (("./d", "log"), ALL)


def test_lock_text_is_deterministic_and_diffs_by_line():
    text = lock.dump(["b", "a"], ALL)
    assert text == lock.dump(["a", "b"], ALL)
    changed = lock.dump(["a", "b"], (replace(LOG, version="1.3"), *ALL[1:]))
    differences = [
        pair
        for pair in zip(text.splitlines(), changed.splitlines(), strict=True)
        if len(set(pair)) > 1
    ]
    assert differences == [('   "version": "1.2"', '   "version": "1.3"')]


def changed(**changes):
    document = json.loads(lock.dump(["log"], [LOG]))
    document["packages"][0].update(changes)
    return json.dumps(document)


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
def test_malformed_or_incomplete_lock_is_refused(text):
    with pytest.raises(PackageError):
        lock.load(text, Limits())


def test_older_newest_version_is_refused():
    older = replace(LOG, version="1.1")
    with pytest.raises(
        PackageError, match="1.1 as the newest version, but the lock file has 1.2 already"
    ):
        lock.compare_releases([LOG], [older], pinned_keys=[])
    assert lock.compare_releases([LOG], [older], pinned_keys=["log"]) == []


def test_newer_version_is_accepted_and_compared_numerically():
    assert lock.compare_releases([LOG], [replace(LOG, version="1.10")], pinned_keys=[]) == []


def test_unchanged_release_is_accepted():
    assert lock.compare_releases([LOG], [LOG], pinned_keys=[]) == []


def test_same_version_with_other_content_is_refused():
    other = replace(LOG, parts=(ReleaseFile("log.py", sha256=OTHER),))
    with pytest.raises(PackageError, match="log.py differs from the lock file"):
        lock.compare_releases([LOG], [other], pinned_keys=["log"])


def test_moved_tag_is_refused():
    moved = replace(FORGE, version="d" * 40)
    with pytest.raises(
        PackageError, match="refs/tags/v1 was cccccccccccc in the lock file and is ddd"
    ):
        lock.compare_releases([FORGE], [moved], pinned_keys=["github:o/r"])


def test_moved_branch_is_noted():
    branch = replace(FORGE, ref="refs/heads/main")
    (note,) = lock.compare_releases([branch], [replace(branch, version="d" * 40)], pinned_keys=[])
    assert "refs/heads/main was cccccccccccc in the lock file and is dddddddddddd now" in note


def test_other_ref_and_new_package_are_accepted():
    assert (
        lock.compare_releases([FORGE], [replace(FORGE, ref="refs/tags/v2", version="d" * 40)], [])
        == []
    )
    assert lock.compare_releases([], [LOG], pinned_keys=[]) == []
