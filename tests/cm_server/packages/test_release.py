"""The text of a release is a requirement for exactly this release."""

from __future__ import annotations

import pytest

from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement


@pytest.mark.parametrize(
    ("requirement", "version", "text"),
    [
        ("log", "1.0", "log@1.0"),
        ("lab:log", "1.0", "lab:log@1.0"),
        ("pypi:log", "1.0", "pypi:log==1.0"),
        ("github:o/r", "a" * 40, "github:o/r@" + "a" * 40),
        ("https://a.example/x.py", "", "https://a.example/x.py"),
    ],
)
def test_text_of_a_release_is_an_exact_requirement(requirement, version, text):
    assert str(Release(parse_requirement(requirement), version, ())) == text
    assert parse_requirement(text).key == parse_requirement(requirement).key
