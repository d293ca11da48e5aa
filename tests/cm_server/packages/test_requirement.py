"""What people type, and what is refused."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.requirement import Requirement, parse_requirement


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("logging", Requirement("index", "logging")),
        ("logging@0.6.1", Requirement("index", "logging", "0.6.1")),
        ("logging@latest", Requirement("index", "logging")),
        ("lab:sensor@2", Requirement("index", "sensor", "2", "lab")),
        ("github:o/r", Requirement("github", "o/r")),
        ("github:o/r@HEAD", Requirement("github", "o/r")),
        ("gitlab:o/r/sub/dir@v1.2", Requirement("gitlab", "o/r/sub/dir", "v1.2")),
        ("codeberg:o/r.py@feature/x", Requirement("codeberg", "o/r.py", "feature/x")),
        ("https://a.example/x/y.py", Requirement("url", "https://a.example/x/y.py")),
        ("pypi:Micropython_Logging", Requirement("pypi", "micropython-logging")),
        ("pypi:micropython-os.path==0.1-2", Requirement("pypi", "micropython-os-path", "==0.1-2")),
        ("pypi:x >= 1, < 2", Requirement("pypi", "x", ">=1,<2")),
    ],
)
def test_requirement_is_read(text, found):
    assert parse_requirement(text) == found


@pytest.mark.parametrize("text", ["logging@0.6.1", "lab:x@2", "github:o/r/p@v1", "pypi:x==1"])
def test_requirement_is_written_as_it_is_read(text):
    assert str(parse_requirement(text)) == text


def test_wishes_for_one_package_have_one_key():
    assert parse_requirement("a@1").key == parse_requirement("a").key == "a"
    assert parse_requirement("github:o/r@v1").key == "github:o/r"
    assert parse_requirement("lab:a").key != parse_requirement("a").key


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("logging@1@2", "two @"),
        ("github:o/r@a@b", "two @"),
        ("logging@", "follows the @"),
        ("", "written"),
        ("-x", "written"),
        ("a b", "written"),
        ("pypi:x@1", "pypi:NAME==VERSION"),
        ("pypi:x; import os", "written"),
        ("github:o", "OWNER/REPO"),
        ("github:o/r/../../x", "OWNER/REPO"),
        ("github:../r", "OWNER/REPO"),
        ("github:o/r/./x", "OWNER/REPO"),
        ("github:o//r", "OWNER/REPO"),
        ("github:o/r@../x", "no branch"),
        ("github:o/r@-x", "no branch"),
        ("file:x", "no source"),
        ("ftp://a.example/x.py", "no files of its own"),
        ("file:///etc/passwd", "no files of its own"),
        ("FILE:///etc/passwd", "no files of its own"),
        ("/etc/passwd", "no files of its own"),
        ("./local.json", "no files of its own"),
        ("local.json", "no files of its own"),
        ("..\\x", "no files of its own"),
        ("https://user:secret@a.example/x.py", "without a user"),
        ("https:///x.py", "https://HOST"),
        ("x\0y", "none can see"),
        ("x\u202ey", "none can see"),
        ("x" * 600, "too long"),
    ],
)
def test_what_names_no_package_is_refused_in_a_sentence(text, why):
    with pytest.raises(PackageError, match="names no package") as raised:
        parse_requirement(text)
    assert why in str(raised.value)


def test_only_what_the_caller_sent_is_local():
    sent = frozenset(["./driver", "/etc/passwd"])
    assert parse_requirement("./driver", sent) == Requirement("local", "./driver")
    with pytest.raises(PackageError, match="no files of its own"):
        parse_requirement("./other", sent)
