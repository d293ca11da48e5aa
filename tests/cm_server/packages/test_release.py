"""A release is called by what leads to it again."""

from __future__ import annotations

import pytest

from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement


@pytest.mark.parametrize(
    ("wish", "version", "told"),
    [
        ("log", "1.0", "log@1.0"),
        ("lab:log", "1.0", "lab:log@1.0"),
        ("pypi:log", "1.0", "pypi:log==1.0"),
        ("github:o/r", "a" * 40, "github:o/r@" + "a" * 40),
        ("https://a.example/x.py", "", "https://a.example/x.py"),
    ],
)
def test_release_is_told_as_a_requirement_for_exactly_it(wish, version, told):
    assert str(Release(parse_requirement(wish), version, ())) == told
    assert parse_requirement(told).key == parse_requirement(wish).key
