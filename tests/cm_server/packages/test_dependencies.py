"""Dependencies in a package.json (attack groups 28, 29 and 32)."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.dependencies import read_dependencies
from cm_server.packages.documents import PackageDocument
from cm_server.packages.requirement import parse_requirement

COMMIT = "a" * 40


def needs(package, *deps, commit=COMMIT, base=""):
    document = PackageDocument("", [], [], list(deps))
    found = read_dependencies(document, parse_requirement(package), commit, base)
    return [str(need) for need in found]


def test_dependency_gets_its_version():
    assert needs("a", ("b", "1.0"), ("c", "latest"), ("d", "*"), ("e", "")) == [
        "b@1.0",
        "c",
        "d",
        "e",
    ]


def test_name_is_looked_up_in_the_index_of_its_package():
    assert needs("lab:a", ("b", "1")) == ["lab:b@1"]
    assert needs("github:o/r", ("b", "1")) == ["b@1"]


def test_ref_does_not_apply_to_another_repository():
    assert needs("github:o/r@v1", ("github:o/other", "")) == ["github:o/other"]
    assert needs("github:o/r@v1", ("gitlab:o/r", "")) == ["gitlab:o/r"]
    assert needs("github:o/r@v1", ("github:o/r/sub", "")) == [f"github:o/r/sub@{COMMIT}"]
    assert needs("github:o/r@v1", ("github:o/r/sub", "v0")) == ["github:o/r/sub@v0"]


def test_pypi_dependency_gets_a_specifier():
    assert needs("a", ("pypi:b", "1"), ("pypi:c", ">=2")) == ["pypi:b==1", "pypi:c>=2"]


def test_relative_dependency_is_in_the_same_repository():
    assert needs("github:o/r/pkg@v1", ("../b/b.json", ""), base="pkg") == [
        f"github:o/r/b/b.json@{COMMIT}"
    ]
    with pytest.raises(PackageError, match="outside its repository"):
        needs("github:o/r/pkg@v1", ("../../b.json", ""), base="pkg")


@pytest.mark.parametrize(
    "dep",
    [
        ("b@1", "2"),
        ("b", "1@2"),
        ("lab:b", ""),
        ("./local.json", ""),
        ("/etc/passwd", ""),
        ("evil.json", ""),
        ("file:///etc/passwd", ""),
        ("b", "../x"),
        ("github:o/r/../../x", ""),
    ],
)
def test_invalid_dependency_is_refused_with_its_package(dep):
    with pytest.raises(PackageError, match="^pack "):
        needs("pack", dep)
