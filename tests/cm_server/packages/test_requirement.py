"""Requirements as users type them, and malformed ones."""

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
def test_requirement_is_parsed(text, found):
    assert parse_requirement(text) == found


@pytest.mark.parametrize("text", ["logging@0.6.1", "lab:x@2", "github:o/r/p@v1", "pypi:x==1"])
def test_requirement_survives_a_round_trip(text):
    assert str(parse_requirement(text)) == text


def test_key_does_not_depend_on_the_version():
    assert parse_requirement("a@1").key == parse_requirement("a").key == "a"
    assert parse_requirement("github:o/r@v1").key == "github:o/r"
    assert parse_requirement("lab:a").key != parse_requirement("a").key


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("logging@1@2", "two @"),
        ("github:o/r@a@b", "two @"),
        ("logging@", "after the @ is missing"),
        ("", "a requirement is"),
        ("-x", "a requirement is"),
        ("a b", "a requirement is"),
        ("pypi:x@1", "pypi:NAME==VERSION"),
        ("pypi:x; import os", "write pypi:NAME"),
        ("github:o", "OWNER/REPO"),
        ("github:o/r/../../x", "OWNER/REPO"),
        ("github:../r", "OWNER/REPO"),
        ("github:o/r/./x", "OWNER/REPO"),
        ("github:o//r", "OWNER/REPO"),
        ("github:o/r@../x", "not a branch"),
        ("github:o/r@-x", "not a branch"),
        ("file:x", "not the name of a source"),
        ("ftp://a.example/x.py", "does not read its own files"),
        ("file:///etc/passwd", "does not read its own files"),
        ("FILE:///etc/passwd", "does not read its own files"),
        ("/etc/passwd", "does not read its own files"),
        ("./local.json", "does not read its own files"),
        ("local.json", "does not read its own files"),
        ("..\\x", "does not read its own files"),
        ("https://user:secret@a.example/x.py", "without a user name"),
        ("https:///x.py", "https://HOST"),
        ("x\0y", "invisible"),
        ("x\u202ey", "invisible"),
        ("x" * 600, "too long"),
    ],
)
def test_invalid_requirement_is_refused_with_a_reason(text, why):
    with pytest.raises(PackageError, match="is not a valid requirement") as raised:
        parse_requirement(text)
    assert why in str(raised.value)


def test_only_sent_files_are_local():
    sent = frozenset(["./driver", "/etc/passwd"])
    assert parse_requirement("./driver", sent) == Requirement("local", "./driver")
    with pytest.raises(PackageError, match="does not read its own files"):
        parse_requirement("./other", sent)
