"""Values of boards: the table of what MicroPython writes, and text that is none of it."""

from __future__ import annotations

import copy
import math
import pickle
import time
from array import array
from collections import OrderedDict, namedtuple
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.results.board_values import Repr, UnreadableValue, parse_value, read_value

Point = namedtuple("Point", "x y")
MODULUS = (1 << 61) - 1  # n * MODULUS has the hash 0

#: repr as MicroPython 1.28 writes it -> value
READ = {
    "None": None,
    "True": True,
    "0": 0,
    "-7": -7,
    "1606938044258990275541962092341162602522202993782792835301376": 2**200,
    "1.5": 1.5,
    "-0.25": -0.25,
    "1e+22": 1e22,
    "3e-05": 3e-5,
    "0.999988867182683e-320": 0.999988867182683e-320,
    "inf": math.inf,
    "-inf": -math.inf,
    "[1, -inf, [inf]]": [1, -math.inf, [math.inf]],
    "(1+2j)": 1 + 2j,
    "(1.5-2e-05j)": 1.5 - 2e-5j,
    "(inf-infj)": complex(math.inf, -math.inf),
    "3j": 3j,
    "'a\\n\\x00\\u2603\\U0001f600\\'\"é'": "a\n\0\u2603\U0001f600'\"é",
    '"it\'s"': "it's",
    "'\\d'": "\\d",
    "b'\\x00\\xff\\\\n'": b"\x00\xff\\n",
    'b"\'"': b"'",
    "bytearray(b'a\\x00')": bytearray(b"a\0"),
    "bytearray(b'')": bytearray(),
    "[]": [],
    "[1, [2, []]]": [1, [2, []]],
    "()": (),
    "(1,)": (1,),
    "(1, (2, 'a'))": (1, (2, "a")),
    "{}": {},
    "{'a': 1, (1, 2): {3: None}}": {"a": 1, (1, 2): {3: None}},
    "{True: b'x', 1.5: 'y', None: []}": {True: b"x", 1.5: "y", None: []},
    "{2, 1}": {1, 2},
    "{(1, 'a')}": {(1, "a")},
    "set()": set(),
    "frozenset()": frozenset(),
    "frozenset({1, (2,)})": frozenset({1, (2,)}),
    "{frozenset({1}): 2}": {frozenset({1}): 2},
    "OrderedDict({'b': 1, 'a': [2]})": OrderedDict(b=1, a=[2]),
    "OrderedDict({})": OrderedDict(),
    "array('h', [1, -2])": array("h", [1, -2]),
    "array('d')": array("d"),
    "array('f', [1.5, inf])": array("f", [1.5, math.inf]),
    "array('Q', [18446744073709551615])": array("Q", [2**64 - 1]),
    "range(0, 3)": range(3),
    "range(9, 0, -2)": range(9, 0, -2),
    "Ellipsis": ...,
    "[Ellipsis]": [...],
    "NotImplemented": NotImplemented,
}


@pytest.mark.parametrize("text", READ)
def test_value_is_read_as_the_same_kind(text: str):
    assert parse_value(text) == READ[text]
    assert type(parse_value(text)) is type(READ[text])
    assert [type(each) for each in _children(parse_value(text))] == [
        type(each) for each in _children(READ[text])
    ]


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple)) else []


def test_nan_is_read_wherever_it_is():
    reading = parse_value("{'temp': nan, 'hum': 40, 'all': (nan, [1.0, nan])}")
    assert reading["hum"] == 40
    assert all(map(math.isnan, (reading["temp"], reading["all"][0], reading["all"][1][1])))
    assert math.isnan(parse_value("array('f', [nan])")[0])
    assert math.isnan(parse_value("(nan+infj)").real)
    assert math.isnan(parse_value("nanj").imag)


def test_named_tuple_has_its_names():
    track = parse_value("[Point(x=1, y=nan), Point(x=-1, y=Point(x=0, y=()))]")
    assert track[1] == (-1, (0, ()))
    assert type(track[0]).__name__ == "Point"
    assert type(track[0]) is type(track[1])
    assert (track[0].x, track[1].y.x, track[1]._fields) == (1, 0, ("x", "y"))


def test_named_tuple_of_an_unnamed_type_has_its_names():
    """As os.uname() on chips, and sys.implementation, which has fields Python does not allow."""
    value = parse_value("(name='micropython', version=(1, 28, 0), _mpy=2822, class=1)")
    assert value == ("micropython", (1, 28, 0), 2822, 1)
    assert (value.name, value.version, value._mpy) == ("micropython", (1, 28, 0), 2822)
    assert value._asdict()["class"] == 1
    assert repr(value) == "attrtuple(name='micropython', version=(1, 28, 0), _mpy=2822, class=1)"


@pytest.mark.parametrize(
    "text",
    [
        "<Pin 4>",
        "<bound_method 7fa4f300ffa0 [].<function>>",
        "<generator object '<genexpr>' at 7fa4f30069a0>",
        "Pin(Pin.cpu.GPIO4, mode=Pin.OUT)",
        "Pin(id=4, mode=OUT)",
        "I2C(0, freq=400000, note=')')",
        "ValueError('a', 2)",
        "OSError(2,)",
        "dict_keys(['a'])",
        "array('O', [1])",
        "array('B', [300])",
        "array(1)",
        "bytearray(5)",
        "range(1, 2, 0)",
        "set(1)",
        "P(x=1, x=2)",
        "Odd(x)",
        "machine.ADC(2)",
    ],
)
def test_object_without_literal_is_a_repr_beside_values(text: str):
    value = parse_value(f"{{'a': [1, {text}], 'b': nan}}")
    assert (type(value["a"][1]), value["a"][1]) == (Repr, text)
    assert value["a"][0] == 1
    assert value["a"][1].why == "it is an object of the board, which has no literal"
    assert read_value(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it ends too early"),
        ("a b", "it is not a literal from character 1 on"),
        ("[1, 2", "it ends too early"),
        ("[1 2]", "it is not a literal from character 4 on"),
        ("{1: 2, 3}", "it is not a literal from character 9 on"),
        ("{,}", "it is not a literal from character 2 on"),
        ("1, 2", "it is not a literal from character 2 on"),
        ("'a", "it is not a literal from character 1 on"),
        ("b'\u2603'", "it has a string with a character that does not exist"),
        (r"'\U7fffffff'", "it has a string with a character that does not exist"),
        ("[<Pin 4]", "it has a bracket that is not closed"),
        ("[Pin(4]", "it has a bracket that is not closed"),
        ("{[]: 1}", "it has a key of a dict or set of an unhashable type: 'list'"),
        ("{{1}}", "it has a key of a dict or set of an unhashable type: 'set'"),
        ("9" * 5000 + ".5", "it is not a literal from character 1 on"),
        ("[" + "9" * 5000 + "x]", "it is not a literal from character 2 on"),
        ("[" * 102 + "]" * 102, "it is nested in more than 100 levels"),
        ("__import__('os').system('x')", "it is not a literal from character 17 on"),
        ("\0", "it is not a literal from character 1 on"),
    ],
)
def test_unreadable_text_is_a_repr_that_says_why(text: str, why: str):
    value = read_value(text)
    assert (type(value), value, value.why) == (Repr, text, why)
    with pytest.raises(UnreadableValue):
        parse_value(text)


@pytest.mark.parametrize("digits", ["9" * 4301, "-" + "9" * 5000])
@pytest.mark.parametrize("text", ["{}", "[1, {}, nan]", "{{'a': {}}}", "{{{}: 1}}", "P(x={})"])
def test_number_that_is_too_long_is_a_repr_beside_readable_values(text: str, digits: str):
    value = read_value(text.format(digits))
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, dict):
        items = [*value, *value.values()]
    (long,) = (item for item in items if isinstance(item, Repr))
    assert (long, long.why) == (digits, "it is a number of more than 4,300 digits")


SIZE = 200_000
#: Text that would take a careless parser, or what is made from the text, long.
HOSTILE = {
    "ints of one hash in a set": "{" + ",".join(str(n * MODULUS) for n in range(1, 10_000)) + "}",
    "ints of one hash in a dict": "{" + ",".join(f"{n * MODULUS}:0" for n in range(10_000)) + "}",
    "tuples of one hash": "{" + ",".join(f"({n * MODULUS},)" for n in range(1, 10_000)) + "}",
    "floats of one hash": "{" + ",".join(f"{n * MODULUS}.0" for n in range(1, 500)) + "}",
    "keys of an OrderedDict": "OrderedDict({"
    + ",".join(f"{n * MODULUS}:0" for n in range(10_000))
    + "})",
    "a frozenset": "frozenset({" + ",".join(str(n * MODULUS) for n in range(1, 10_000)) + "})",
    "lists": "[" * SIZE + "]" * SIZE,
    "open lists": "[" * SIZE,
    "open dicts": "{1:" * SIZE,
    "calls": "A(" * SIZE + ")" * SIZE,
    "open calls": "A(x=" * SIZE,
    "objects": "<" * SIZE + ">" * SIZE,
    "open objects": "[" + "<a," * SIZE,
    "named tuples that are none": "A(x=" * 90 + "[" + "1," * SIZE + "]" + ",y)" * 90,
    "kinds of named tuples": "[" + ",".join(f"A{n}(x=1)" for n in range(SIZE // 10)) + "]",
    "fields": "A(" + ",".join(f"x{n}=1" for n in range(SIZE // 10)) + ")",
    "signs": "-" * SIZE + "1",
    "a sum": "1" + "+1" * SIZE,
    "digits": "9" * SIZE,
    "decimals": "0." + "9" * SIZE,
    "exponent": "1e" + "9" * SIZE,
    "exponents": "[" + "1e999999999," * (SIZE // 12) + "]",
    "adjacent strings": "''" * SIZE,
    "open string": "'" + "\\'" * SIZE,
    "open strings": "[" + "'a\\', " * SIZE,
    "spaces": " " * SIZE,
    "spaces in a list": "[" + " " * SIZE,
    "names": "a." * SIZE,
    "a name": "a" * SIZE + "(",
    "range": "range(0, " + "9" * 4000 + ")",
    "bytearray of a size": "bytearray(9999999999)",
    "array of a size": "array('d', 9999999999)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_value_is_harmless_and_fast(name: str):
    """Under one second each on a busy machine; the worst of them take 0.1 s."""
    before = time.process_time()
    value = read_value(HOSTILE[name])
    assert repr(value)
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    "name", ["ints of one hash in a set", "ints of one hash in a dict", "tuples of one hash"]
)
def test_flood_of_one_hash_is_a_repr_that_says_why(name: str):
    assert read_value(HOSTILE[name]).why == "too many keys of a dict or set have the same hash"


def test_large_honest_values_are_read():
    numbers = list(range(50_000))
    assert parse_value(repr(numbers)) == numbers
    assert parse_value(repr(set(numbers))) == set(numbers)
    assert parse_value(repr(bytes(range(256)) * 500)) == bytes(range(256)) * 500
    assert parse_value("[" * 90 + "]" * 90)


def test_repr_explains_itself_where_a_key_is_expected():
    value = read_value("<Pin 4>")
    assert (value[1:4], value[-1]) == ("Pin", ">")
    with pytest.raises(TypeError, match="only the text of a board's object: it is an object of"):
        _ = value["hum"]


def test_repr_survives_copying_and_pickling():
    value = read_value("<Pin 4>")
    for made in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (type(made), made, made.why) == (Repr, value, value.why)


#: Expression on a board -> value here
ON_BOARDS: dict[str, Any] = {
    "[float('inf'), -float('inf'), 1e100, 1e-7, 0.1, 1/3]": [
        math.inf, -math.inf, 1e100, 1e-7, 0.1, 1 / 3,
    ],
    "(1+2j, 3j, -1j)": (1 + 2j, 3j, -1j),
    "(bytearray(b'a\\x00'), b'\\xff', 'a\\n\\u2603\\'\"')": (
        bytearray(b"a\0"), b"\xff", "a\n\u2603'\"",
    ),
    "({1, 2}, set(), frozenset({(1, 'a')}), frozenset())": (
        {1, 2}, set(), frozenset({(1, "a")}), frozenset(),
    ),
    "from collections import OrderedDict\nOrderedDict([('b', 1), ('a', [2])])": OrderedDict(
        b=1, a=[2]
    ),
    "from collections import namedtuple\nnamedtuple('Point', 'x y')(1, (2,))": Point(1, (2,)),
    "from array import array\n[array('h', [1, -2]), array('f', [0.5]), array('B')]": [
        array("h", [1, -2]), array("f", [0.5]), array("B"),
    ],
    "(2**200, -2**64, ..., range(3), range(5, 0, -2))": (
        2**200, -(2**64), ..., range(3), range(5, 0, -2),
    ),
    "{(1, 2): {None: [True]}}": {(1, 2): {None: [True]}},
}  # fmt: skip


@pytest.mark.parametrize("code", ON_BOARDS)
def test_boards_value_comes_back(fleet: Fleet, boards: object, code: str):
    value = fleet["demo-1"].run(code).value
    assert value == ON_BOARDS[code]
    assert type(value).__name__ == type(ON_BOARDS[code]).__name__


def test_boards_objects_come_back_as_reprs_beside_values(fleet: Fleet, boards: object):
    value = fleet["demo-1"].run("import sys\n[print, sys, ValueError('a'), {1: int}, 2]").value
    assert value[4] == 2
    assert [type(each) for each in (*value[:3], value[3][1])] == [Repr] * 4
    implementation = fleet["demo-1"].run("import sys\nsys.implementation").value
    assert (implementation.name, type(implementation._mpy)) == ("micropython", int)
