"""Changes that a plan requires on a board, and the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.install_manifest import (
    BoardChange,
    BoardFiles,
    describe_drift,
    dump_manifest,
    plan_change,
    plan_removal,
    read_manifest,
    staging_folders,
)
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.release import Release, ReleaseFile
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


def change(file_hashes, manifest=None, *, plan=PLAN, options=None, force=False):
    board = BoardFiles(MPY, file_hashes, manifest or {})
    return plan_change(plan, options or {}, board, force=force)


def test_only_changed_files_are_written():
    assert change({}).put_files == FILES
    assert change({"/lib/zzz/a.mpy": A}).put_files == (FILES[1],)
    assert change({"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B}).put_files == ()


def test_upgrade_removes_files_of_the_old_version_only():
    changes = change(
        {"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD, options={"source_only": True}
    )
    assert changes.removed_paths == ("/lib/zzz/old.mpy",)
    assert changes.manifest["yyy"] == OLD["yyy"]
    assert changes.manifest["zzz"] == {
        "version": "2",
        "source": "an index",
        "needs": ["yyy"],
        "files": {"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B},
        "wanted": "zzz@2",
        "how": {"source_only": True},
    }


def test_requested_package_stays_requested_as_a_dependency():
    plan = InstallPlan(("other",), "/lib", (RELEASE,), {MPY: FILES}, origins={"zzz": ""})
    requested = {**OLD, "zzz": {**OLD["zzz"], "wanted": "zzz@1", "how": {"target_dir": "/x"}}}
    entry = change({}, requested, plan=plan).manifest["zzz"]
    assert (entry["wanted"], entry["how"], entry["version"]) == (
        "zzz@1",
        {"target_dir": "/x"},
        "2",
    )


def test_shadowing_file_is_removed():
    source = replace(RELEASE, parts=(ReleaseFile("zzz/a.py", sha256=A, size=1),))
    copied = InstallPlan(("zzz",), "/lib", (source,), {MPY: FILES}, origins={"zzz": ""})
    assert change({"/lib/zzz/a.py": A}, plan=copied).removed_paths == ("/lib/zzz/a.py",)
    for plan in (copied, PLAN):
        with pytest.raises(
            PackageError, match="a.py does not belong to a package and would be imported"
        ):
            change({"/lib/zzz/a.py": B}, plan=plan)
        assert change({"/lib/zzz/a.py": B}, plan=plan, force=True).removed_paths == (
            "/lib/zzz/a.py",
        )
    other = {"other": {"version": "1", "needs": [], "files": {"/lib/zzz/a.py": A}}}
    with pytest.raises(
        PackageError, match="a.py belongs to other and would be imported instead.*--force"
    ):
        change({"/lib/zzz/a.py": A}, other)
    assert change({"/lib/zzz/a.py": A}, other, force=True).removed_paths == ("/lib/zzz/a.py",)
    own = {"zzz": other["other"]}  # installed as source before
    assert change({"/lib/zzz/a.py": A}, own).removed_paths == ("/lib/zzz/a.py",)


def test_emptied_folder_is_removed():
    moved = {"zzz": {"version": "1", "needs": [], "files": {"/lib/www/deep/x.mpy": A}}}
    changes = change({"/lib/www/deep/x.mpy": A}, moved)
    assert (changes.removed_paths, changes.emptied_folders) == (
        ("/lib/www/deep/x.mpy",),
        ("/lib/www/deep", "/lib/www"),
    )


def test_overwriting_other_files_needs_force():
    with pytest.raises(PackageError, match="which does not belong to a package; --force"):
        change({"/lib/zzz/a.mpy": B})
    with pytest.raises(PackageError, match="which does not belong to a package; --force"):
        change({"/lib/zzz/a.mpy": ""})
    manifest = {"yyy": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B}}}
    with pytest.raises(PackageError, match="which belongs to yyy; --force"):
        change({"/lib/zzz/a.mpy": B}, manifest)
    assert FILES[0] in change({"/lib/zzz/a.mpy": B}, manifest, force=True).put_files


def test_journal_moves_the_manifest_last():
    assert change(
        {"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD
    ).journal_text().splitlines() == [
        "+0 /lib/zzz/a.mpy",
        "+1 /lib/zzz/b.mpy",
        "+2 /.cm/packages.json",
        "-/lib/zzz/old.mpy",
    ]


def test_files_are_staged_in_folders_of_limited_size():
    many = tuple(PlannedFile(f"/lib/m{n}.mpy", A, 1, "zzz") for n in range(20))
    lines = BoardChange(many, (), (), {}).journal_text().splitlines()
    assert lines[7:9] == ["+7 /lib/m7.mpy", "+d1/8 /lib/m8.mpy"]
    assert lines[20:] == ["+d2/20 /.cm/packages.json", "_/.cm/new/d1", "_/.cm/new/d2"]
    assert staging_folders(21) == ["/.cm/new", "/.cm/new/d1", "/.cm/new/d2"]
    assert staging_folders(8) == ["/.cm/new"]


def test_removal_of_a_needed_package_needs_force():
    manifest = {**OLD, "zzz": {**OLD["zzz"], "needs": ["yyy@1"]}}
    changes = plan_removal(["zzz"], manifest, force=False)
    assert changes.removed_paths == ("/lib/zzz/a.mpy", "/lib/zzz/old.mpy")
    assert changes.emptied_folders == ("/lib/zzz",)
    with pytest.raises(PackageError, match="zzz needs yyy; uninstall both"):
        plan_removal(["yyy"], manifest, force=False)
    assert plan_removal(["yyy"], manifest, force=True).removed_paths == ("/lib/yyy.mpy",)
    assert plan_removal(["yyy", "zzz"], manifest, force=False).manifest == {}
    with pytest.raises(PackageError, match="no package is called nope"):
        plan_removal(["nope"], OLD, force=False)


def test_drift_lists_missing_and_changed_files():
    file_hashes = {"/lib/zzz/a.mpy": A, "/lib/yyy.mpy": A}
    assert describe_drift(OLD, file_hashes) == (
        "zzz: /lib/zzz/a.mpy was changed",
        "zzz: /lib/zzz/old.mpy is missing",
    )


def entry(path: str, digest: str = A) -> bytes:
    fields = {"version": "1", "needs": [], "files": {path: digest}}
    return json.dumps({"packages": {"a": fields}}).encode()


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
        b'{"packages": {"a": {"version": %s, "needs": [], "files": {}}}}' % (b"[" * 9 + b"]" * 9),
        entry("/boot.py"),
        entry("/lib/cm/link.mpy"),
        entry("/lib/../main.py"),
        entry("/lib/a\n-/main.py"),
        entry("/lib/a.py", "not a hash"),
    ],
    ids=lambda text: repr(text[:60]),
)
def test_malformed_manifest_is_refused(text):
    with pytest.raises(PackageError, match="remove that file and install again"):
        read_manifest(text)


def test_manifest_survives_a_round_trip():
    assert read_manifest(dump_manifest(OLD).encode()) == OLD
