"""What makes a board as a plan says, and its record; pure."""

import json

import pytest

from cloudmanager.errors import PackageError
from cloudmanager.packages import File, change, read_record, removal, write_record

A, B = "a" * 64, "b" * 64
PLAN = {"packages": [{"name": "zzz", "version": "2", "needs": ["yyy"]}], "wanted": ["zzz@2"]}
FILES = [File("/lib/zzz/a.mpy", A, 3, "zzz"), File("/lib/zzz/b.mpy", B, 4, "zzz")]
OLD = {
    "zzz": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}},
    "yyy": {"version": "1", "needs": [], "files": {"/lib/yyy.mpy": A}},
}


def made(there, record=None, *, removed=(), force=False):
    return change(PLAN, FILES, there, record or {}, removed=removed, force=force)


def test_only_what_differs_is_sent():
    assert made({}).put == tuple(FILES)
    assert made({"/lib/zzz/a.mpy": A}).put == (FILES[1],)
    assert made({"/lib/zzz/a.mpy": A, "/lib/zzz/b.mpy": B}).put == ()


def test_an_upgrade_takes_the_old_versions_files_and_no_others():
    done = made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD)
    assert done.removed == ("/lib/zzz/old.mpy",)
    record = read_record(done.record.encode())
    assert record["yyy"] == OLD["yyy"]
    assert record["zzz"]["version"] == "2"
    assert record["zzz"]["wanted"] == "zzz@2"


def test_what_would_hide_it_goes_if_it_is_there():
    assert made({"/lib/zzz/a.py": A}, removed=["/lib/zzz/a.py", "/lib/b.py"]).removed == (
        "/lib/zzz/a.py",
    )


def test_files_of_others_are_overwritten_by_force_only():
    with pytest.raises(PackageError, match="a file that no package brought; --force"):
        made({"/lib/zzz/a.mpy": B})
    theirs = {"yyy": {"version": "1", "needs": [], "files": {"/lib/zzz/a.mpy": B}}}
    with pytest.raises(PackageError, match="a file of yyy; --force"):
        made({"/lib/zzz/a.mpy": B}, theirs)
    assert FILES[0] in made({"/lib/zzz/a.mpy": B}, theirs, force=True).put


def test_the_journal_comes_last_and_names_what_is_staged():
    items = made({"/lib/zzz/a.mpy": B, "/lib/zzz/old.mpy": A}, OLD).items()
    paths = [item.path for item in items]
    assert paths == ["/.cm/new/0", "/.cm/new/1", "/.cm/new/2", "/.cm/journal.new"]
    assert b"".join(items[-1].source.pieces()).decode().splitlines() == [
        "+0 /lib/zzz/a.mpy",
        "+1 /lib/zzz/b.mpy",
        "+2 /.cm/packages.json",
        "-/lib/zzz/old.mpy",
    ]


def test_removal_takes_its_files_and_folders_and_minds_who_needs_it():
    needy = {**OLD, "zzz": {**OLD["zzz"], "needs": ["yyy@1"]}}
    done = removal(["zzz"], needy, force=False)
    assert done.removed == ("/lib/zzz/a.mpy", "/lib/zzz/old.mpy")
    assert done.folders == ("/lib/zzz",)
    with pytest.raises(PackageError, match="zzz needs yyy; uninstall both"):
        removal(["yyy"], needy, force=False)
    assert removal(["yyy", "zzz"], needy, force=False).record == write_record({})
    with pytest.raises(PackageError, match="it has no package nope"):
        removal(["nope"], OLD, force=False)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"packages": []}', b'{"packages": {"a": 1}}', b"\xff", b"null"],
    ids=repr,
)
def test_a_record_that_is_none_says_what_to_do(text):
    with pytest.raises(PackageError, match="remove that file and install again"):
        read_record(text)
    assert read_record(json.dumps({"packages": OLD}).encode()) == OLD
