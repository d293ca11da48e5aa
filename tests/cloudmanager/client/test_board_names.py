"""The name before the cursor, which Tab completes in the kernel and in `mbm board-repl`."""

from __future__ import annotations

import pytest

from cloudmanager.client.board_names import token_before


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("", ("", "", False)),
        ("pri", ("", "pri", False)),
        ("x = os.pa", ("os", "pa", False)),
        ("f(a.b.", ("a.b", "", False)),
        ("1 + ", ("", "", False)),
        ("import ma", ("", "ma", True)),
        ("import os, ma", ("", "ma", True)),
        ("import asyncio.lo", ("asyncio", "lo", True)),
        ("from machine import P", ("machine", "P", True)),
        ("from machine import Pin, P", ("machine", "P", True)),
        ("x = 1\ny.z", ("y", "z", False)),
    ],
)
def test_token(code: str, found: tuple[str, str, bool]):
    assert token_before(code, len(code)) == found


def test_token_ends_at_the_cursor():
    assert token_before("os.path", 5) == ("os", "pa", False)
