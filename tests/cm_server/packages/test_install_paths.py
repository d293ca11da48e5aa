"""Paths that packages may write (attack groups 25 and 26)."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.install_paths import (
    check_folder,
    check_relative_path,
    find_clash,
    is_reserved,
    other_form,
)


@pytest.mark.parametrize(
    "path",
    [
        "../main.py",
        "/../boot.py",
        "lib/..",
        "..",
        ".",
        "",
        "a/../b.py",
        "a//b.py",
        "/etc/passwd",
        "./a.py",
        "a/./b.py",
        "..\\a.py",
        "a\\b.py",
        "C:a.py",
        "c:/a.py",
        "a\0.py",
        "a\n.py",
        "a.py.",
        "a.py ",
        "a /b.py",
        " a.py",
        "dir./b.py",
        "...",
        "a\u202e.py",
        "e\u0301.py",
        "\ud800.py",
        "a/" * 9 + "x.py",
        "a" * 200,
    ],
)
def test_unsafe_path_is_refused(path):
    with pytest.raises(PackageError, match="is refused"):
        check_relative_path(path)


@pytest.mark.parametrize("path", ["logging.py", "a/b/__init__.mpy", "data/é.json", ".hidden/x"])
def test_safe_path_is_accepted(path):
    assert check_relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "/boot.py",
        "/Boot.PY",
        "/main.py",
        "/main.mpy",
        "/cm.json",
        "/.cm/journal",
        "/.cm.new",
        "/cm",
        "/cm/link.py",
        "/cm.py",
        "/cm_start.py",
        "/CM_START.mpy",
        "/lib/cm",
        "/lib/cm/link.mpy",
        "/lib/CM/link.mpy",
        "/lib/cm.mpy",
        "/lib/cm.old/link.mpy",
        "/lib/cm_start.mpy",
        "/rom/x.py",
    ],
)
def test_path_of_owner_or_client_is_reserved(path):
    assert is_reserved(path)


@pytest.mark.parametrize(
    "path",
    ["/lib/os.py", "/lib/json/__init__.mpy", "/ssl.mpy", "/lib/main.py", "/cmath.py", "/lib/cmd.py",
     "/cm_starter.py", "/apps/cm.py", "/lib/boot.py"],
)  # fmt: skip
def test_other_path_is_not_reserved(path):
    """Built-in modules' names too: packages extend them."""
    assert not is_reserved(path)


@pytest.mark.parametrize("folder", ["lib", "//lib", "/lib/..", "/../x", "/cm", "/lib/cm/", "/.cm"])
def test_invalid_or_reserved_folder_is_refused(folder):
    with pytest.raises(PackageError):
        check_folder(folder)


def test_trailing_slash_of_a_folder_is_removed():
    assert (check_folder("/lib/"), check_folder("/")) == ("/lib", "")


def test_other_form_of_a_module():
    assert (other_form("/lib/a.py"), other_form("/lib/a.mpy"), other_form("/lib/a.json")) == (
        "/lib/a.mpy",
        "/lib/a.py",
        None,
    )


@pytest.mark.parametrize(
    "paths",
    [
        ["/lib/a.py", "/lib/a.mpy"],
        ["/lib/A.py", "/lib/a.py"],
        ["/lib/a.py", "/lib/a/b.py"],
        ["/lib/a.mpy", "/lib/a/__init__.mpy"],
        ["/lib/a", "/lib/a/b.py"],
        ["/lib/a/b.py", "/lib/a/c.py", "/lib/A.py"],
    ],
)
def test_clashing_files_are_found(paths):
    assert find_clash(paths)
    assert find_clash(reversed(paths))


def test_distinct_files_do_not_clash():
    assert (
        find_clash(["/lib/a.py", "/lib/ab.py", "/lib/b/a.py", "/lib/b/__init__.py", "/lib/b.json"])
        is None
    )
