"""Plans: paths of files, clashes, paths to remove."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
from cm_server.packages.plan import InstallPlan, PlannedFile, check_sizes, place_files
from cm_server.packages.release import Release, ReleaseFile
from cm_server.packages.requirement import parse_requirement


def release(name: str, *files: str, content: str = "x") -> Release:
    return Release(
        parse_requirement(name),
        "1",
        tuple(ReleaseFile(path, sha256=content + path) for path in files),
    )


def test_files_are_sorted_by_path_and_name_their_package():
    found = place_files([release("b", "b.py"), release("a", "a.py")], "/lib")
    assert [(file.path, file.package) for file in found.files] == [
        ("/lib/a.py", "a"),
        ("/lib/b.py", "b"),
    ]


def test_identical_file_of_two_packages_is_written_once():
    found = place_files([release("a", "x.py"), release("b", "x.py")], "/lib")
    assert len(found.files) == 1


def test_different_files_at_one_path_are_refused():
    with pytest.raises(PackageError, match="^a and b both have a file /lib/x.py"):
        place_files([release("a", "x.py"), release("b", "x.py", content="y")], "/lib")


@pytest.mark.parametrize(
    ("one", "other"), [("x.py", "x.mpy"), ("x.py", "x/y.py"), ("x.py", "X.py")]
)
def test_packages_whose_modules_hide_each_other_are_refused(one, other):
    with pytest.raises(PackageError, match="^a and b: .* cannot exist together"):
        place_files([release("a", one), release("b", other)], "/lib")


def test_error_for_a_path_names_its_package():
    with pytest.raises(PackageError, match="^a@1: the path '../x.py' is refused"):
        place_files([release("a", "../x.py")], "/lib")


@pytest.mark.parametrize(
    ("folder", "path"),
    [("", "main.py"), ("", "lib/cm/link.mpy"), ("/lib", "cm_start.py"), ("", ".cm/journal")],
)
def test_file_at_a_reserved_path_is_left_out_with_a_note(folder, path):
    found = place_files([release("a", path, "os/path.py")], folder)
    assert [file.path for file in found.files] == [f"{folder}/os/path.py"]
    assert found.notes == [f"a@1: {folder}/{path} is left out: packages may not write it"]


def plan(*paths: str) -> InstallPlan:
    files = tuple(PlannedFile(path, "0" * 64, 10, "a") for path in paths)
    return InstallPlan(("a",), "/lib", (release("a", "x.py"),), {6: files}, ("a note",))


def test_shadowing_paths_are_the_other_forms_of_modules():
    assert plan("/lib/a.mpy", "/lib/b.py", "/lib/c.json").shadowing_paths(6) == (
        "/lib/a.py",
        "/lib/b.mpy",
    )


def test_plan_is_described_as_json():
    description = json.loads(json.dumps(plan("/lib/a.mpy").describe()))
    assert description["packages"] == [{"name": "a", "version": "1", "from": "a@1", "needs": []}]
    assert description["boards"]["6"] == {
        "files": [["/lib/a.mpy", 10, "a"]],
        "removed": ["/lib/a.py"],
        "bytes": 10,
    }
    assert description["notes"] == ["a note"]


def test_too_many_files_or_bytes_are_refused():
    limits = Limits(package_files=2)
    with pytest.raises(PackageError, match="more than 2 files"):
        check_sizes([release("a", "1", "2"), release("b", "3")], limits)
    big = Release(
        parse_requirement("a"), "1", (ReleaseFile("a", size=Limits.package_unpacked_bytes + 1),)
    )
    with pytest.raises(PackageError, match="too big"):
        check_sizes([big], limits)
