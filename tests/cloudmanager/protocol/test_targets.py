"""Targets: which boards they select, in which order, and what is refused."""

import re
import time
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.protocol.errors import NoSuchBoard, TargetError
from cloudmanager.protocol.targets import (
    MAX_NAMES,
    MAX_PATTERNS,
    MAX_TARGET_CHARS,
    NAME_PATTERN,
    Resolution,
    Target,
    fold_names,
    parse_target,
)


class Board(NamedTuple):
    online: bool = True
    labels: dict[str, str] = {}
    facts: dict[str, str] = {}


def board(platform="esp32", room="lab", online=True, machine="ESP32 module (spiram)"):
    facts = {"platform": platform, "machine": machine, "state": "idle" if online else "offline"}
    return Board(online, {"room": room}, facts)


FLEET = {
    "lab-10": board(),
    "lab-1": board(),
    "lab-2": board("rp2", machine="Raspberry Pi Pico W"),
    "lab-3": board(),
    "lab-4": board(online=False),
    "esp-1": board("esp8266", room="green house"),
    "esp-2": board("esp8266", room="green house"),
    "esp-3": board("esp8266", room="attic", online=False),
    "bare": Board(),
}


def names(text, boards=FLEET):
    return " ".join(parse_target(text).resolve(boards).names)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("lab-1", "lab-1"),
        ("lab-2,lab-1,lab-2", "lab-2 lab-1"),
        ("lab-[1-4]", "lab-1 lab-2 lab-3 lab-4"),
        ("lab-[10,1]", "lab-10 lab-1"),
        ("lab-*", "lab-1 lab-2 lab-3 lab-10"),
        ("lab-?", "lab-1 lab-2 lab-3"),
        ("*-1", "esp-1 lab-1"),
        ("LAB-*,bare", "bare"),
        ("all", "bare esp-1 esp-2 lab-1 lab-2 lab-3 lab-10"),
        ("room=attic,lab-1", "lab-1"),
        ("room=green house", "esp-1 esp-2"),
        ("room=g*", "esp-1 esp-2"),
        ("room = lab", "lab-1 lab-2 lab-3 lab-10"),
        ("platform=esp32", "lab-1 lab-3 lab-10"),
        ("machine=Raspberry Pi Pico W", "lab-2"),
        ("machine=*?spiram?", "esp-1 esp-2 lab-1 lab-3 lab-10"),
        ("state=idle & platform=rp2", "lab-2"),
    ],
)
def test_term_selects_boards(text, chosen):
    assert names(text) == chosen


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("esp-[1-3]!esp-2", "esp-1 esp-3"),
        ("lab-*!lab-3 & platform=esp32", "lab-1 lab-10"),
        ("platform=esp32 & lab-*!lab-3", "lab-1 lab-10"),
        ("!lab-*", "bare esp-1 esp-2"),
        (" ! lab-* ", "bare esp-1 esp-2"),
        ("bare,lab-* & platform=rp2", "bare lab-2"),
        ("lab-* & platform=rp2,bare", "lab-2 bare"),
        ("lab-1,all!lab-1!esp-*!platform=rp2", "bare lab-3 lab-10"),
        ("lab-1!lab-1,lab-1", "lab-1"),
        ("lab-1,lab-2,lab-3!lab-[1-2]", "lab-3"),
        ("lab-[1-2]\n,\tbare", "lab-1 lab-2 bare"),
        ("lab-*,lab-4", "lab-1 lab-2 lab-3 lab-4 lab-10"),
        ("lab-4,lab-*", "lab-4 lab-1 lab-2 lab-3 lab-10"),
        ("all & lab-4", "lab-4"),
        ("lab-4 & all", "lab-4"),
    ],
)
def test_operators_are_union_difference_and_intersection(text, chosen):
    assert names(text) == chosen


def test_documented_example_has_seven_names():
    expected = "esp8266-008 esp8266-009 esp8266-010 esp8266-011 wipy2-1 wipy2-3 wipy2-7"
    boards = dict.fromkeys(reversed(expected.split()), Board())
    assert names("esp8266-0[08-11],wipy2-[1,3,7]", boards) == expected


def test_absent_named_boards_are_kept_and_matched_ones_left_out():
    assert parse_target("lab-[3-4],esp-*").resolve(FLEET) == Resolution(
        ("lab-3", "lab-4", "esp-1", "esp-2"), ("esp-3",)
    )
    assert parse_target("all").resolve(FLEET).left_out == ("esp-3", "lab-4")
    assert parse_target("!lab-4").resolve(FLEET).left_out == ("esp-3",)
    assert parse_target("lab-1").resolve(FLEET).left_out == ()


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("all", "bare esp-1 esp-2 esp-3 lab-1 lab-10 lab-2 lab-3 lab-4"),
        ("lab-1,lab-4,nobody", "lab-1 lab-4"),
        ("lab-[3-9]", "lab-3 lab-4"),
        ("esp-*", "esp-1 esp-2 esp-3"),
        ("state=offline", "esp-3 lab-4"),
        ("state=idle & platform=rp2", "lab-2"),
        ("room=attic", "esp-3"),
        ("colour=red", ""),
        ("!lab-*", "bare esp-1 esp-2 esp-3"),
        ("lab-*!lab-3 & platform=esp32", "lab-1 lab-10 lab-4"),
        ("bare,lab-* & platform=rp2", "bare lab-2"),
        ("lab-1,all!lab-1!esp-*!platform=rp2", "bare lab-10 lab-3 lab-4"),
        ("lab-1!lab-1,lab-1", "lab-1"),
        ("lab-4 & all", "lab-4"),
    ],
)
def test_target_covers_connected_and_offline_boards(text, covered):
    target = parse_target(text)
    assert " ".join(sorted(n for n in FLEET if target.covers(n, FLEET[n]))) == covered


def test_target_covers_boards_that_are_not_enrolled_yet():
    assert parse_target("new-*!new-3").covers("new-1", Board())
    assert not parse_target("new-*!new-3").covers("new-3", Board())
    assert not parse_target("room=lab").covers("new-1", Board())


def test_hundred_thousand_names_cover_fast():
    target = parse_target(f"b-[1-{MAX_NAMES}]")
    start = time.perf_counter()
    assert sum(target.covers(f"b-{number}", Board()) for number in range(10_000)) == 9_999
    assert time.perf_counter() - start < 0.5


def test_targets_with_equal_text_are_equal():
    assert parse_target("lab-1,esp-*").text == "lab-1,esp-*"
    assert parse_target("lab-1") == parse_target("lab-1") != parse_target("lab-2")


@pytest.mark.parametrize(
    ("text", "unknown", "suggestion", "others"),
    [
        ("lab-5", "lab-5", "lab-1", ()),
        ("Lab-2", "Lab-2", "lab-2", ()),
        ("lab-[1-4,6-8]", "lab-6", None, ("lab-7", "lab-8")),
        ("lba-[1-2]", "lba-1", "lab-1", ("lba-2",)),
        ("all!zzzzzzzz", "zzzzzzzz", None, ()),
        ("all & bear", "bear", "bare", ()),
    ],
)
def test_unknown_name_suggests_the_most_similar(text, unknown, suggestion, others):
    with pytest.raises(NoSuchBoard) as caught:
        parse_target(text).resolve(FLEET)
    error = caught.value
    assert (error.board, error.others) == (unknown, others)
    assert error.suggestion == suggestion or {suggestion, error.suggestion} <= set(FLEET)


@pytest.mark.parametrize(
    ("text", "boards", "why"),
    [
        ("all", {}, "No board is enrolled yet"),
        ("nope-*", FLEET, "No board matches"),
        ("colour=red", FLEET, "No board matches"),
        ("esp-3 & platform=rp2", FLEET, "`!` removes all boards that match"),
        ("lab-*!lab-*", FLEET, "`!` removes all boards that match"),
        ("state=offline", FLEET, r"None of the boards that match \(2\) is connected"),
    ],
)
def test_error_for_no_boards_gives_the_reason(text, boards, why):
    with pytest.raises(TargetError, match=why):
        parse_target(text).resolve(boards)


@pytest.mark.parametrize(
    ("text", "position", "why"),
    [
        ("", 0, "is empty"),
        (" \t", 0, "is empty"),
        ("a,,b", 2, "missing"),
        ("a,", 2, "missing"),
        (",a", 0, "missing"),
        ("&a", 0, "missing"),
        ("a!", 2, "missing"),
        ("!", 1, "missing"),
        ("!!a", 1, "missing"),
        ("a,!b", 2, "missing"),
        ("a b", 1, "' ' is not allowed here"),
        ("a,b c", 3, "' ' is not allowed here"),
        ("(a,b)&c", 0, "'\\(' has no meaning"),
        ("a{1,2}", 1, "'{' has no meaning"),
        ("a[[1]]", 2, "Brackets cannot be nested"),
        ("a]", 1, "never opened"),
        ("b,a[1-3", 3, "is not closed"),
        ("a[1,b&c", 1, "is not closed"),
        ("a[1&2]", 2, "not a range of numbers"),
        ("a[3-1]", 2, "descending order"),
        ("a[08-9]", 2, "differ in width"),
        ("b , a[08-9]", 6, "differ in width"),
        ("a[]", 2, "not a range"),
        ("lab-[1-2]-*", 10, r"'\*' is not allowed here"),
        ("file:/etc/passwd", 4, "':' is not allowed here"),
        ("dns:example.org", 3, "':' is not allowed here"),
        ("@group", 0, "'@' is not allowed here"),
        ("../lab*", 2, "'/' is not allowed here"),
        ("-a", 0, "is not a valid name"),
        ("a\x00", 1, r"'\\x00' is not allowed here"),
        ("gerät-1", 3, "'ä' is not allowed here"),
        ("a\u202e", 1, "is not allowed here"),
        ("a\ud800", 1, "is not allowed here"),
        ("room=", 5, "value is missing"),
        ("=x", 0, "is not a valid name"),
        ("a b=x", 1, "' ' is not allowed here"),
        ("a=b=c", 3, "'=' is not allowed here"),
        ("room=x[1-2]", 6, r"'\[' is not allowed here"),
        ("a=" + "x" * 200, 0, "too long"),
        ("x" * 65, 0, "is not a valid name"),
        ("a-[0-999999]", 0, "has 1,000,000 names"),
        (f"b-[1-{MAX_NAMES}],a", 0, None),
        (f"b-[1-{MAX_NAMES}],a-[1-2]", 13, "has 2 names; 0 are still allowed"),
        (f"b-[1-60000],a-[1-{10**60}]", 12, "40,000 are still allowed"),
        ("x" * (MAX_TARGET_CHARS + 1), MAX_TARGET_CHARS, "too long"),
        (",".join(["*"] * MAX_PATTERNS), 0, None),
        (",".join(["*"] * (MAX_PATTERNS + 1)), MAX_PATTERNS * 2, "Too many patterns"),
    ],
)
def test_malformed_target_points_at_the_place(text, position, why):
    if why is None:
        assert isinstance(parse_target(text), Target)
        return
    with pytest.raises(TargetError, match=why) as caught:
        parse_target(text)
    assert (caught.value.text, caught.value.position) == (text, position)


def test_huge_range_is_refused_before_it_is_expanded():
    start = time.perf_counter()
    with pytest.raises(TargetError):
        parse_target(f"a[0-{'9' * 60}]")
    assert time.perf_counter() - start < 1


def test_thousand_names_of_the_greatest_length_fit():
    long = [f"{number:0>64}" for number in range(1000)]
    assert parse_target(",".join(long)).resolve(dict.fromkeys(long, Board())).names == tuple(long)


@pytest.mark.parametrize("text", ["b-*", "b-[0-9999]", "all!b-[1-9998]", "*?-*9*9*9*9*,platform=x"])
def test_ten_thousand_boards_resolve_fast(text):
    boards = {f"b-{number}": Board() for number in range(10_000)}
    start = time.perf_counter()
    parse_target(text).resolve(boards)
    assert time.perf_counter() - start < 0.5  # some 10 ms; generous to a busy machine


@pytest.mark.parametrize("text", ["[" * 60000, "[1]" * 20000, "*" * 60000, "a" + " " * 60000])
def test_hostile_text_is_refused_fast(text):
    start = time.perf_counter()
    with pytest.raises((TargetError, NoSuchBoard)):
        parse_target(text).resolve(FLEET)
    assert time.perf_counter() - start < 1


PIECES = st.sampled_from(
    [*"[]()!&,=*?-:. \t", "lab-", "1", "08", "all", "room", "é", "\0", "99999"]
)


@given(st.lists(PIECES | st.text(max_size=2), max_size=12).map("".join))
@settings(max_examples=150)
def test_parse_raises_nothing_but_target_error(text):
    try:
        read: Target | TargetError = parse_target(text)
    except TargetError as caught:
        read = caught
    assert read.text == text
    if isinstance(read, TargetError):
        assert 0 <= read.position <= len(text)
        assert re.search(r"^\s+\^$", str(read), re.MULTILINE)


TERMS = st.sampled_from(["all", "lab-*", "esp-1", "lab-[1-4]", "room=lab", "platform=rp2", "bare"])


@given(st.lists(st.tuples(st.sampled_from(",&!"), TERMS), min_size=1, max_size=8))
@settings(max_examples=200)
def test_covers_agrees_with_resolve_if_all_are_connected(steps):
    here = {name: board._replace(online=True) for name, board in FLEET.items()}
    target = parse_target("".join(sign + term for sign, term in steps).lstrip(",&"))
    try:
        resolved = set(target.resolve(here).names)
    except TargetError:
        resolved = set()
    assert {name for name in here if target.covers(name, here[name])} == resolved


NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
FEW = st.builds("{}{:0{}}{}".format, st.sampled_from("ab"), *[st.integers(0, 12)] * 2, st.just(""))


@given(st.lists((NAMES | FEW).filter(lambda name: name != "all"), min_size=1, max_size=25))
@settings(max_examples=100)
def test_fold_is_the_inverse_of_expansion(chosen):
    expanded = parse_target(fold_names(chosen)).resolve(dict.fromkeys(chosen, Board())).names
    assert sorted(expanded) == sorted(set(chosen))
    assert fold_names(expanded) == fold_names(chosen)


def test_list_of_boards_has_those_that_are_not_connected_too():
    listed = ["lab-1", "lab-2", "lab-3", "lab-4", "lab-10"]
    assert parse_target("lab-*").listed_names(FLEET) == listed
    assert parse_target("room=attic").listed_names(FLEET) == ["esp-3"]
    with pytest.raises(TargetError, match="No board matches"):
        parse_target("nobody-*").listed_names(FLEET)
