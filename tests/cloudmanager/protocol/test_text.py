"""Sanitized text, carets, natural order and folded names."""

import sys
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.protocol.text import (
    fold_names,
    line_with_caret,
    natural_key,
    nearest_name,
    sanitize_text,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é 日本 🐍", "plain\n\ttext é 日本 🐍"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]52;c;aGk=\x07", r"\x1b]52;c;aGk=\x07"),
        ("50%\r99%\x00", r"50%\x0d99%\x00"),
        ("\x7f\x80\x85\x9b\x9f\xa0", "\\x7f\\x80\\x85\\x9b\\x9f\xa0"),
        ("\u202aa\u202e\u2066b\u2069", r"\u202aa\u202e\u2066b\u2069"),
        ("\u061c\u200e\u200f\u2028\u2029", r"\u061c\u200e\u200f\u2028\u2029"),
        ("a\u200bd\u2060min\ufeff\xad", r"a\u200bd\u2060min\ufeff\xad"),
        ("ad\u200cm\u200din", r"ad\u200cm\u200din"),
        ("x\U000e0041\U000e007f", r"x\U000e0041\U000e007f"),
        ("\u3164\u115f\uffa0\u034f\ufe00", r"\u3164\u115f\uffa0\u034f\ufe00"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥", "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥"),
        ("👨\u200d \u200d👩", r"👨\u200d \u200d👩"),
        ("half \ud83d of a pair \udc0d", r"half \ud83d of a pair \udc0d"),
    ],
)
def test_sanitize_escapes_control_characters_only(text, shown):
    assert sanitize_text(text) == shown


def test_sanitize_escapes_all_format_characters():
    formats = [char for char in map(chr, range(sys.maxunicode + 1)) if category(char) == "Cf"]
    assert len(formats) > 150
    assert [char for char in formats if sanitize_text(char) == char] == []


@given(st.text(st.characters()))
@settings(max_examples=50)
def test_sanitized_text_is_encodable_and_stable(text):
    cleaned = sanitize_text(text)
    assert sanitize_text(cleaned) == cleaned
    cleaned.encode()
    assert all(char.isprintable() or ord(char) > 0xA0 or char in "\n\t\xa0" for char in cleaned)


@pytest.mark.parametrize(
    ("line", "position", "shown"),
    [
        ("esp-[3-1]", 5, "    esp-[3-1]\n         ^"),
        ("", 0, "    \n    ^"),
        ("ab", 99, "    ab\n      ^"),
        ("ab", -3, "    ab\n    ^"),
        ("\tx y", 3, "    \tx y\n    \t  ^"),
        ("\x1b[31m!", 5, "    \\x1b[31m!\n            ^"),
        ("a\nb", 2, "    a b\n      ^"),
    ],
)
def test_caret_is_under_the_character(line, position, shown):
    assert line_with_caret(line, position) == shown


def test_long_line_is_cut_around_the_caret():
    line, caret = line_with_caret("a" * 500 + "!" + "b" * 500, 500).split("\n")
    assert len(line) < 90
    assert line[caret.index("^")] == "!"
    assert line.startswith("    ...a")
    assert line.endswith("b...")


def test_natural_key_sorts_numbers_by_value():
    names = ["b-1", "a-10", "a-9", "a-1b2", "a-1b10", "a", "10", "9", "a-009"]
    assert sorted(names, key=natural_key) == [
        *("9", "10", "a", "a-1b2", "a-1b10", "a-009", "a-9", "a-10", "b-1"),
    ]


def test_natural_key_accepts_a_number_of_any_length():
    assert natural_key("9" * 5000) > natural_key("9" * 10)


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], ""),
        (["spare"], "spare"),
        (["demo-5"], "demo-5"),
        (["demo-1", "demo-1"], "demo-1"),
        (["demo-3", "demo-1", "demo-2", "demo-5"], "demo-[1-3,5]"),
        (["demo-9", "demo-10", "demo-11", "demo-99", "demo-100"], "demo-[9-11,99-100]"),
        (["esp-008", "esp-009", "esp-010", "esp-011"], "esp-[008-011]"),
        (["esp-98", "esp-99", "esp-100", "esp-08"], "esp-[08,98-99,100]"),
        (["a-1", "a-01", "a-2", "a-02"], "a-[1-2,01-02]"),
        (["a-0", "a-1", "a-00"], "a-[0-1,00]"),
        (["wipy2-1", "esp-2", "esp-1", "x"], "esp-[1-2],wipy2-1,x"),
        (["r1-b1", "r1-b2", "r10-b1", "r2-b1"], "r1-b[1-2],r2-b1,r10-b1"),
        (["1", "2", "b2a", "b1a"], "[1-2],b[1-2]a"),
    ],
)
def test_fold_returns_the_target_of_the_names(names, folded):
    assert fold_names(names) == folded


@pytest.mark.parametrize(
    ("name", "meant"),
    [("greenhose-7", "greenhouse-7"), ("lab_1", "lab-1"), ("LAB-1", "lab-1"), ("zzzzzz", None)],
)
def test_nearest_name_is_the_most_similar(name, meant):
    boards = ["lab-1", "lab-2", *(f"greenhouse-{number}" for number in range(500))]
    assert nearest_name(name, boards) == meant


def test_nearest_name_of_no_names_is_none():
    assert nearest_name("lab-1", []) is None
