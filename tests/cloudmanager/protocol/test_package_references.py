"""References of a package.json: relative paths and URLs, and what they must not reach."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import (
    is_address,
    is_relative_document,
    join_path,
    join_url,
)


@pytest.mark.parametrize(
    ("folder", "reference", "path"),
    [
        ("", "x.py", "x.py"),
        ("", "./x.py", "x.py"),
        ("pkg", "x.py", "pkg/x.py"),
        ("pkg", "./x.py", "pkg/x.py"),
        ("pkg", "../x.py", "x.py"),
        ("a/b", "../c/./x.py", "a/c/x.py"),
        ("a/b", "../../x.py", "x.py"),
        ("a", "b/../x.py", "a/x.py"),
        ("a", "data/.hidden", "a/data/.hidden"),
        ("a", "é #%.py", "a/é #%.py"),
    ],
)
def test_relative_path_is_joined(folder, reference, path):
    assert join_path(folder, reference, "pack") == path


@pytest.mark.parametrize(
    ("folder", "reference"),
    [
        ("", "../x.py"),
        ("a", "../../x.py"),
        ("a", "b/../../../x.py"),
        ("", "/etc/passwd"),
        ("a", "b//x.py"),
        ("", ""),
        ("", "."),
        ("a", ".."),
        ("", "x/"),
        ("", "C:/x.py"),
        ("", "file:x"),
        ("", "a\\..\\x.py"),
    ],
)
def test_path_that_is_not_below_the_root_is_refused(folder, reference):
    with pytest.raises(PackageError, match="^pack names a f"):
        join_path(folder, reference, "pack")


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("x.py", "https://a.example/p/q/x.py"),
        ("./x.py", "https://a.example/p/q/x.py"),
        ("../x.py", "https://a.example/p/x.py"),
        ("../../../../x.py", "https://a.example/x.py"),
        ("/x.py", "https://a.example/x.py"),
        ("http://b.example/x.py", "http://b.example/x.py"),
    ],
)
def test_relative_url_is_joined(reference, url):
    assert join_url("https://a.example/p/q/package.json", reference, "pack") == url


@pytest.mark.parametrize(
    "reference", ["file:///etc/passwd", "ftp://a/x", "\\\\a\\x", "javascript:x", "http:x:y[", "//["]
)
def test_reference_to_another_scheme_is_refused(reference):
    with pytest.raises(PackageError, match="pack names a file that is not at an http URL"):
        join_url("https://a.example/p/package.json", reference, "pack")


def test_kinds_of_references():
    assert is_address("github:o/r/x.py")
    assert is_address("https://a.example/x")
    assert not is_address("x.py")
    assert all(map(is_relative_document, ["./b", "../b/package.json", "b.json", "sub/b.json"]))
    assert not any(map(is_relative_document, ["b", "github:o/r/b.json", "https://a/b.json"]))
