"""Inputs: assignments before a cell, evaluated by real MicroPython."""

from __future__ import annotations

import array
import enum
import math
from collections import OrderedDict, namedtuple
from typing import Any

import numpy
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.input_values import prelude

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    def __repr__(self) -> str:
        return "Text()"


PLAIN = {
    "none": None,
    "yes": True,
    "small": -7,
    "large": 2**64,
    "huge": 7**5000,
    "third": 1 / 3,
    "text": "zw\u00f6lf \u2603\n'\"\\\\ \x00 {x} %s",
    "raw": b"\x00\xff'\\n",
    "empty": [[], (), {}, set(), "", b""],
    "nested": [1, (2,), {"a": {3, 4}, (5, 6): [None, False]}],
}
CHANGED = {
    "array": (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    "scalar": (numpy.float32(0.5), 0.5),
    "integer": (numpy.int64(7), 7),
    "truth": (numpy.bool_(True), True),
    "colour": (Colour.RED, 1),
    "derived": (Text("x"), "x"),
    "letters": (array.array("u", "ab"), ["a", "b"]),
    "view": (memoryview(b"abc")[1:], b"bc"),
    "numbers": (memoryview(array.array("h", [1, -2])), [1, -2]),
}
#: What is sent comes back as the same type.
ROUND_TRIP: dict[str, Any] = {
    "flags": [None, True, False, ...],
    "numbers": (0, -7, 2**64, -(2**200), 0.1, -0.0, 1e300, 5e-324, math.inf, -math.inf),
    "imaginary": [1 + 2j, -1.5j, complex(math.inf, -1)],
    "texts": ["", "zw\u00f6lf \u2603\n'\"\\ \x00 {x} %s", b"", b"\x00\xff'\\n"],
    "buffer": [bytearray(b"a\x00"), bytearray()],
    "nested": [1, (2,), (), [], {}, {"a": {3, 4}, (5, 6): [None, False]}],
    "sets": [{1, (2,)}, set(), frozenset({3}), frozenset()],
    "ranges": [range(3), range(9, -1, -2)],
    "ordered": OrderedDict([("b", 1), ("a", OrderedDict()), (3, [])]),
    "point": Point(1, Point([2], None)),
    "small": [array.array(code, [1, 2]) for code in "bBhHiIqQfd"],
    "negative": array.array("q", [-(2**63)]),
    "empty": array.array("i"),
}


def test_prelude_has_one_assignment_per_line():
    assert prelude({"a": 1, "b": "x\ny"}) == "a = 1\nb = 'x\\ny'"
    assert prelude({}) == ""


@pytest.mark.parametrize("name", PLAIN)
def test_boards_evaluate_literals_to_equal_values(fleet: Fleet, boards: object, name: str):
    if name == "huge":  # too long for a repr that Python reads
        assert fleet["demo-1"].run("huge == 7**5000", inputs={name: PLAIN[name]}).value is True
    else:
        assert fleet["demo-1"].run(name, inputs={name: PLAIN[name]}).value == PLAIN[name]


@pytest.mark.parametrize("name", CHANGED)
def test_subclasses_are_sent_as_their_base_types(fleet: Fleet, boards: object, name: str):
    value, read = CHANGED[name]
    assert fleet["demo-1"].run(name, inputs={name: value}).value == read


@pytest.mark.parametrize("name", ROUND_TRIP)
def test_sent_value_comes_back_as_it_was(fleet: Fleet, boards: object, name: str):
    value = fleet["demo-1"].run(name, inputs={name: ROUND_TRIP[name]}).value
    assert value == ROUND_TRIP[name]
    assert type(value).__name__ == type(ROUND_TRIP[name]).__name__
    if isinstance(value, (list, tuple)):
        assert [type(each).__name__ for each in value] == [
            type(each).__name__ for each in ROUND_TRIP[name]
        ]
    again = fleet["demo-1"].run(name, inputs={name: value}).value
    assert again == value


def test_array_is_sent_with_items_of_the_same_size():
    """The code l has 4 bytes on a chip and 8 on a host, where -2**40 fits."""
    given = array.array("l", [1])
    code = {4: "i", 8: "q"}[given.itemsize]
    assert prelude({"a": given}) == f"a = __import__('array').array('{code}',[1])"


def test_special_numbers_are_sent(fleet: Fleet, boards: object):
    given = {"a": math.inf, "b": -math.inf, "c": math.nan}
    result = fleet["demo-1"].run("(a == float('inf'), b == -a, c != c)", inputs=given)
    assert result.value == (True, True, True)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (object(), "x is of type object: boards can receive None, bool, int, float, complex,"),
        ([1, {"a": object()}], "x contains a value of type object: boards can receive"),
        (Fleet, "x is of type type: boards can receive"),
        (numpy.ndarray, "x is of type type: boards can receive"),
        (numpy.datetime64("2020-01-01"), "x contains a value of type date: boards can receive"),
    ],
)
def test_unsupported_value_error_names_variable_and_type(value: Any, sentence: str):
    with pytest.raises(TypeError) as caught:
        prelude({"x": value})
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_recursive_list_is_refused():
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(ValueError, match="x is nested too deeply for a board, or contains itself"):
        prelude({"x": ring})


@pytest.mark.parametrize("name", ["", "1x", "a b", "class", "x\n1"])
def test_invalid_variable_name_is_refused(name: str):
    with pytest.raises(ValueError, match="is not the name of a variable"):
        prelude({name: 1})
