"""What makes a board as a plan says, and its record; pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.install_manifest import (
    BoardChange,
    describe_drift,
    dump_manifest,
    plan_change,
    plan_removal,
    read_manifest,
    staging_folders,
)
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement

A, B = "a" * 64, "b" * 64
MPY = 0x2806
FILES = (PlannedFile("/lib/zzz/a.mpy", A, 3, "zzz"), PlannedFile("/lib/zzz/b.mpy", B, 4, "zzz"))
RELEASE = Release(parse_requirement("zzz"), "2", (), (parse_requirement("yyy"),))
PLAN = InstallPlan(("zzz@2",), "/lib", (RELEASE,), {MPY: FILES}, origins={"zzz": "an index"})
OLD: dict[str, dict[str, Any]] = {
    "zzz": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}},
    "yyy": {"version": "1", "needs": [], "files": {"/lib/yyy.mpy": A}},
}


def made(there, record=None, *, plan=PLAN, how=None, force=False):
    return plan_change(plan, MPY, how or {}, there, record or {}, force=force)


def test_only_what_differs_is_sent():
    assert made({}).put_files == FILES
    assert made({"/lib/zzz/a.mpy": A}).put_files == (FILES[1],)
    assert made({"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B}).put_files == ()


def test_an_upgrade_takes_the_old_versions_files_and_no_others():
    done = made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD, how={"source_only": True})
    assert done.removed_paths == ("/lib/zzz/old.mpy",)
    assert done.manifest["yyy"] == OLD["yyy"]
    assert done.manifest["zzz"] == {
        "version": "2",
        "source": "an index",
        "needs": ["yyy"],
        "files": {"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B},
        "wanted": "zzz@2",
        "how": {"source_only": True},
    }


def test_what_was_asked_for_stays_so_when_it_comes_as_a_dependency():
    plan = InstallPlan(("other",), "/lib", (RELEASE,), {MPY: FILES}, origins={"zzz": ""})
    asked = {**OLD, "zzz": {**OLD["zzz"], "wanted": "zzz@1", "how": {"target_dir": "/x"}}}
    entry = made({}, asked, plan=plan).manifest["zzz"]
    assert (entry["wanted"], entry["how"], entry["version"]) == (
        "zzz@1",
        {"target_dir": "/x"},
        "2",
    )


def test_what_would_hide_it_goes_if_it_is_there():
    assert made({"/lib/zzz/a.py": A}).removed_paths == ("/lib/zzz/a.py",)
    other = {"other": {"version": "1", "needs": [], "files": {"/lib/zzz/a.py": A}}}
    with pytest.raises(PackageError, match="a.py is a file of other, and would hide.*--force"):
        made({"/lib/zzz/a.py": A}, other)
    assert made({"/lib/zzz/a.py": A}, other, force=True).removed_paths == ("/lib/zzz/a.py",)
    own = {"zzz": other["other"]}  # installed as source before
    assert made({"/lib/zzz/a.py": A}, own).removed_paths == ("/lib/zzz/a.py",)


def test_folder_that_an_upgrade_empties_goes():
    moved = {"zzz": {"version": "1", "needs": [], "files": {"/lib/www/deep/x.mpy": A}}}
    done = made({"/lib/www/deep/x.mpy": A}, moved)
    assert (done.removed_paths, done.emptied_folders) == (
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
    assert FILES[0] in made({"/lib/zzz/a.mpy": B}, theirs, force=True).put_files


def test_the_journal_names_what_is_staged_and_the_record_last():
    assert made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD).journal_text().splitlines() == [
        "+0 /lib/zzz/a.mpy",
        "+1 /lib/zzz/b.mpy",
        "+2 /.cm/packages.json",
        "-/lib/zzz/old.mpy",
    ]


def test_many_files_are_staged_a_few_to_a_folder_and_the_folders_go():
    many = tuple(PlannedFile(f"/lib/m{n}.mpy", A, 1, "zzz") for n in range(20))
    lines = BoardChange(many, (), (), {}).journal_text().splitlines()
    assert lines[7:9] == ["+7 /lib/m7.mpy", "+d1/8 /lib/m8.mpy"]
    assert lines[20:] == ["+d2/20 /.cm/packages.json", "_/.cm/new/d1", "_/.cm/new/d2"]
    assert staging_folders(21) == ["/.cm/new", "/.cm/new/d1", "/.cm/new/d2"]
    assert staging_folders(8) == ["/.cm/new"]


def test_removal_takes_its_files_and_folders_and_minds_who_needs_it():
    needy = {**OLD, "zzz": {**OLD["zzz"], "needs": ["yyy@1"]}}
    done = plan_removal(["zzz"], needy, force=False)
    assert done.removed_paths == ("/lib/zzz/a.mpy", "/lib/zzz/old.mpy")
    assert done.emptied_folders == ("/lib/zzz",)
    with pytest.raises(PackageError, match="zzz needs yyy; uninstall both"):
        plan_removal(["yyy"], needy, force=False)
    assert plan_removal(["yyy"], needy, force=True).removed_paths == ("/lib/yyy.mpy",)
    assert plan_removal(["yyy", "zzz"], needy, force=False).manifest == {}
    with pytest.raises(PackageError, match="no package is called nope"):
        plan_removal(["nope"], OLD, force=False)


def test_drift_is_what_is_missing_or_was_changed():
    there = {"/lib/zzz/a.mpy": A, "/lib/yyy.mpy": A}
    assert describe_drift(OLD, there) == (
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
        read_manifest(text)


def test_a_record_is_read_as_it_was_written():
    assert read_manifest(dump_manifest(OLD).encode()) == OLD
