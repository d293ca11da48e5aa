"""What makes a board as a plan says, and its record; pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.install_manifest import (
    Change,
    change,
    drift,
    read_record,
    removal,
    staging_folders,
    write_record,
)
from cm_server.packages.plan import File, Plan
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse

A, B = "a" * 64, "b" * 64
MPY = 0x2806
FILES = (File("/lib/zzz/a.mpy", A, 3, "zzz"), File("/lib/zzz/b.mpy", B, 4, "zzz"))
RELEASE = Release(parse("zzz"), "2", (), (parse("yyy"),))
PLAN = Plan(("zzz@2",), "/lib", (RELEASE,), {MPY: FILES}, origins={"zzz": "an index"})
OLD: dict[str, dict[str, Any]] = {
    "zzz": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}},
    "yyy": {"version": "1", "needs": [], "files": {"/lib/yyy.mpy": A}},
}


def made(there, record=None, *, plan=PLAN, how=None, force=False):
    return change(plan, MPY, how or {}, there, record or {}, force=force)


def test_only_what_differs_is_sent():
    assert made({}).put == FILES
    assert made({"/lib/zzz/a.mpy": A}).put == (FILES[1],)
    assert made({"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B}).put == ()


def test_an_upgrade_takes_the_old_versions_files_and_no_others():
    done = made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD, how={"source_only": True})
    assert done.removed == ("/lib/zzz/old.mpy",)
    assert done.record["yyy"] == OLD["yyy"]
    assert done.record["zzz"] == {
        "version": "2",
        "source": "an index",
        "needs": ["yyy"],
        "files": {"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B},
        "wanted": "zzz@2",
        "how": {"source_only": True},
    }


def test_what_was_asked_for_stays_so_when_it_comes_as_a_dependency():
    plan = Plan(("other",), "/lib", (RELEASE,), {MPY: FILES}, origins={"zzz": ""})
    asked = {**OLD, "zzz": {**OLD["zzz"], "wanted": "zzz@1", "how": {"target_dir": "/x"}}}
    entry = made({}, asked, plan=plan).record["zzz"]
    assert (entry["wanted"], entry["how"], entry["version"]) == (
        "zzz@1",
        {"target_dir": "/x"},
        "2",
    )


def test_what_would_hide_it_goes_if_it_is_there():
    assert made({"/lib/zzz/a.py": A}).removed == ("/lib/zzz/a.py",)
    other = {"other": {"version": "1", "needs": [], "files": {"/lib/zzz/a.py": A}}}
    with pytest.raises(PackageError, match="a.py is a file of other, and would hide.*--force"):
        made({"/lib/zzz/a.py": A}, other)
    assert made({"/lib/zzz/a.py": A}, other, force=True).removed == ("/lib/zzz/a.py",)
    own = {"zzz": other["other"]}  # installed as source before
    assert made({"/lib/zzz/a.py": A}, own).removed == ("/lib/zzz/a.py",)


def test_folder_that_an_upgrade_empties_goes():
    moved = {"zzz": {"version": "1", "needs": [], "files": {"/lib/www/deep/x.mpy": A}}}
    done = made({"/lib/www/deep/x.mpy": A}, moved)
    assert (done.removed, done.folders) == (
        ("/lib/www/deep/x.mpy",),
        ("/lib/www/deep", "/lib/www"),
    )


def test_files_of_others_are_overwritten_by_force_only():
    with pytest.raises(PackageError, match="a file that no package brought; --force"):
        made({"/lib/zzz/a.mpy": B})
    with pytest.raises(PackageError, match="a file that no package brought; --force"):
        made({"/lib/zzz/a.mpy": ""})
    theirs = {"yyy": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B}}}
    with pytest.raises(PackageError, match="a file of yyy; --force"):
        made({"/lib/zzz/a.mpy": B}, theirs)
    assert FILES[0] in made({"/lib/zzz/a.mpy": B}, theirs, force=True).put


def test_the_journal_names_what_is_staged_and_the_record_last():
    assert made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD).journal().splitlines() == [
        "+0 /lib/zzz/a.mpy",
        "+1 /lib/zzz/b.mpy",
        "+2 /.cm/packages.json",
        "-/lib/zzz/old.mpy",
    ]


def test_many_files_are_staged_a_few_to_a_folder_and_the_folders_go():
    many = tuple(File(f"/lib/m{n}.mpy", A, 1, "zzz") for n in range(20))
    lines = Change(many, (), (), {}).journal().splitlines()
    assert lines[7:9] == ["+7 /lib/m7.mpy", "+d1/8 /lib/m8.mpy"]
    assert lines[20:] == ["+d2/20 /.cm/packages.json", "_/.cm/new/d1", "_/.cm/new/d2"]
    assert staging_folders(21) == ["/.cm/new", "/.cm/new/d1", "/.cm/new/d2"]
    assert staging_folders(8) == ["/.cm/new"]


def test_removal_takes_its_files_and_folders_and_minds_who_needs_it():
    needy = {**OLD, "zzz": {**OLD["zzz"], "needs": ["yyy@1"]}}
    done = removal(["zzz"], needy, force=False)
    assert done.removed == ("/lib/zzz/a.mpy", "/lib/zzz/old.mpy")
    assert done.folders == ("/lib/zzz",)
    with pytest.raises(PackageError, match="zzz needs yyy; uninstall both"):
        removal(["yyy"], needy, force=False)
    assert removal(["yyy"], needy, force=True).removed == ("/lib/yyy.mpy",)
    assert removal(["yyy", "zzz"], needy, force=False).record == {}
    with pytest.raises(PackageError, match="no package is called nope"):
        removal(["nope"], OLD, force=False)


def test_drift_is_what_is_missing_or_was_changed():
    there = {"/lib/zzz/a.mpy": A, "/lib/yyy.mpy": A}
    assert drift(OLD, there) == (
        "zzz: /lib/zzz/a.mpy was changed",
        "zzz: /lib/zzz/old.mpy is missing",
    )


def entry(path: str, digest: str = A) -> bytes:
    told = {"version": "1", "needs": [], "files": {path: digest}}
    return json.dumps({"packages": {"a": told}}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"packages": []}',
        b'{"packages": {"a": 1}}',
        b"\xff",
        b"null",
        b"[" * 100_000,
        entry("/boot.py"),
        entry("/lib/cm/link.mpy"),
        entry("/lib/../main.py"),
        entry("/lib/a\n-/main.py"),
        entry("/lib/a.py", "no hash"),
    ],
    ids=lambda text: repr(text[:60]),
)
def test_a_record_that_is_none_says_what_to_do(text):
    with pytest.raises(PackageError, match="remove that file and install again"):
        read_record(text)


def test_a_record_is_read_as_it_was_written():
    assert read_record(write_record(OLD).encode()) == OLD
