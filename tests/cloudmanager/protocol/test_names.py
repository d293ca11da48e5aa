"""Names of boards, labels and packages, and ranges of names."""

import pytest

from cloudmanager.protocol.errors import PackageError, TargetError
from cloudmanager.protocol.names import (
    MAX_NAMES,
    check_label,
    check_name,
    expand_range,
    find_installed,
)


@pytest.mark.parametrize("name", ["a", "7", "esp8266-0", "Lab_1.west", "x" * 64, "al", "all-1"])
def test_check_name_returns_a_valid_name(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("", 0),
        ("all", 0),
        ("-a", 0),
        (".a", 0),
        ("_", 0),
        ("x" * 65, 0),
        ("../etc", 2),
        ("a b", 1),
        ("a\n", 1),
        ("bär", 1),
        ("a\x00", 1),
        ("a/b", 1),
        ("a*", 1),
    ],
)
def test_check_name_points_at_the_invalid_character(name, position):
    with pytest.raises(TargetError) as caught:
        check_name(name)
    assert (caught.value.text, caught.value.position) == (name, position)


@pytest.mark.parametrize(
    ("key", "value"), [("room", "greenhouse"), ("bay", "7"), ("at", "north side, left"[:10])]
)
def test_check_label_accepts_plain_text(key, value):
    check_label(key, value)


@pytest.mark.parametrize(
    ("key", "value", "position"),
    [
        ("platform", "esp32", 0),
        ("state", "idle", 0),
        ("", "x", 0),
        ("a b", "x", 1),
        ("room", "", 4),
        ("room", " x", 4),
        ("room", "x ", 4),
        ("room", "x" * 65, 4),
        ("room", "a,b", 6),
        ("room", "a=b", 6),
        ("room", "x*", 6),
        ("room", "x[1]", 6),
        ("room", "küche", 6),
        ("room", "\x1b", 5),
    ],
)
def test_check_label_points_at_the_invalid_character(key, value, position):
    with pytest.raises(TargetError) as caught:
        check_label(key, value)
    assert (caught.value.text, caught.value.position) == (f"{key}={value}", position)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("esp8266-0[08-11]", "esp8266-008 esp8266-009 esp8266-010 esp8266-011"),
        ("wipy2-[1,3,7]", "wipy2-1 wipy2-3 wipy2-7"),
        ("a[8-11]", "a8 a9 a10 a11"),
        ("a[0-1]", "a0 a1"),
        ("a[3,1,3,1-2]", "a3 a1 a2"),
        ("a[1,01]b", "a1b a01b"),
        ("r[1-2]b[1-2]", "r1b1 r1b2 r2b1 r2b2"),
        ("[1-2][0-1]", "10 11 20 21"),
        ("a[ 1 - 2 , 4 ]", "a1 a2 a4"),
        ("a[5]", "a5"),
    ],
)
def test_expand_returns_names_in_written_order(word, names):
    assert expand_range(word, word, 0) == tuple(names.split())


@pytest.mark.parametrize(
    ("word", "position"),
    [
        ("a[3-1]", 2),
        ("a[10-9]", 2),
        ("a[08-9]", 2),
        ("a[1-03]", 2),
        ("a[00-100]", 2),
        ("a[]", 2),
        ("a[1,]", 4),
        ("a[,1]", 2),
        ("a[-1]", 2),
        ("a[1-]", 2),
        ("a[1-2-3]", 2),
        ("a[x]", 2),
        ("a[1-9/2]", 2),
        ("a[١]", 2),
        ("a[1]*", 4),
        ("-[1]", 0),
        ("[1]" * 65, 0),
        ("a" * 63 + "[9-10]", 0),
        (f"a[{'9' * 5000}]", 2),
        (f"a[1-{'9' * 64}]", 0),
        ("a[0-999999]", 0),
        ("a[1-999][1-999]", 0),
    ],
)
def test_expand_points_at_the_error(word, position):
    with pytest.raises(TargetError) as caught:
        expand_range(word, word, 0)
    assert caught.value.position == position


def test_expand_limits_the_number_of_names():
    assert len(expand_range(f"a[1-{MAX_NAMES}]", "", 0)) == MAX_NAMES
    with pytest.raises(TargetError, match="has 11 names; 10 are still allowed"):
        expand_range("a[0-10]", "a[0-10]", 0, 10)


@pytest.mark.parametrize(
    "name",
    ["pypi:micropython-logging", "micropython-logging", "logging"],
)
def test_package_is_found_by_full_name_or_its_end(name):
    have = ["pypi:micropython-logging", "github:o/blogging", "aioble"]
    assert find_installed(name, have) == "pypi:micropython-logging"


@pytest.mark.parametrize(
    ("name", "have", "message"),
    [
        ("nope", ["aioble"], "no package is called nope: the board has aioble"),
        ("nope", [], "no package is called nope: the board has none"),
        ("x", ["github:a/x", "github:b/x"], "the board has github:a/x, github:b/x"),
    ],
)
def test_unknown_or_ambiguous_package_error_lists_installed_ones(name, have, message):
    with pytest.raises(PackageError, match=message):
        find_installed(name, have)
