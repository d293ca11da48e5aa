"""Requests are bounded before any work is done for them."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.api import request_limits
from cm_server.limits import Limits

LIMITS = Limits(request_values=10, request_text_chars=20, request_bytes=100, request_depth=3)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"verb": "status", "target": "x" * 20},
        {"jobs": list(range(9))},
        {"labels": dict.fromkeys("abcd", "1")},  # keys and values count
        {"sent": {"./x": {"a.py": "f"}}},
        {"lock": "x" * 100},
    ],
)
def test_usual_request_is_accepted(body):
    request_limits.check_fields(body, LIMITS)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"jobs": list(range(10))}, "at most 10 values"),
        ({"a": [1] * 5, "b": [2] * 5}, "at most 10 values"),
        ({"labels": dict.fromkeys("abcdefghijk", "1")}, "at most 10 values"),
        ({str(n): n for n in range(11)}, "at most 10 values"),
        ({"a": [[[[]]]]}, "`a` is nested too deeply"),
        ({"target": "x" * 21}, "`target` has a text of more than 20 characters"),
        ({"labels": {"x" * 21: "1"}}, "`labels` has a text"),
        ({"wanted": ["x" * 21]}, "`wanted` has a text"),
        ({"lock": "x" * 101}, "`lock` has a text of more than 100"),
    ],
)
def test_request_beyond_a_limit_is_refused(body: Any, why):
    with pytest.raises(ServerError, match=why):
        request_limits.check_fields(body, LIMITS)


def test_deeply_nested_request_is_refused_without_recursion():
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ServerError, match="nested too deeply"):
        request_limits.check_fields({"a": value}, Limits())
    while value:  # freed one by one, without recursion
        value = value[0]


@pytest.mark.parametrize(("size", "refused"), [(0, False), (100, False), (101, True)])
def test_long_request_is_refused_before_it_is_read(size, refused):
    if refused:
        with pytest.raises(ServerError, match="at most 0 KiB"):
            request_limits.check_size(size, LIMITS)
    else:
        request_limits.check_size(size, LIMITS)


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), (-5, True), (True, False), (1.0, False), ("1", False)]
)
def test_whole_numbers(value, expected):
    assert request_limits.is_whole_number(value) is expected
