"""Inputs: assignments before a cell, evaluated by real MicroPython."""

from __future__ import annotations

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
    "point": (Point(1, 2), (1, 2)),
    "ordered": (OrderedDict(a=1), {"a": 1}),
    "colour": (Colour.RED, 1),
    "derived": (Text("x"), "x"),
    "buffer": (bytearray(b"ab"), bytearray(b"ab")),
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
    code = f"bytes({name})" if name == "buffer" else name
    assert fleet["demo-1"].run(code, inputs={name: value}).value == read


def test_special_numbers_are_sent(fleet: Fleet, boards: object):
    given = {"a": math.inf, "b": -math.inf, "c": math.nan}
    result = fleet["demo-1"].run("(a == float('inf'), b == -a, c != c)", inputs=given)
    assert result.value == (True, True, True)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (object(), "x is of type object: boards can receive None, bool, int, float, str, bytes,"),
        ([1, {"a": 1j}], "x contains a value of type complex: boards can receive"),
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
