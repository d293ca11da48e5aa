"""The check for words that do not come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plain_words import MARKER, find


@pytest.mark.parametrize(
    "line",
    [
        "what the board told us",
        "_told = 1",
        "def tell_of(told_before): ...",
        "It Opens Nothing.",
        "the reason is to be logged",
    ],
)
def test_word_is_found_in_prose_and_identifiers(line: str):
    assert {finding.line for finding in find(Path("x.py"), f"first\n{line}")} == {2}


@pytest.mark.parametrize("line", ["untoldable", "a board reports", "renewal", f"told  # {MARKER}"])
def test_other_words_and_marked_lines_are_allowed(line: str):
    assert list(find(Path("x.py"), line)) == []
