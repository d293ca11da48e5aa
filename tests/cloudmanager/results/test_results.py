"""Results of a cell: values, errors, tables, JSON."""

import json
import math

import pytest

from cloudmanager.protocol.errors import BoardError, BoardOffline, FleetError, LinkLost
from cloudmanager.results import results as results_module
from cloudmanager.results.board_values import Repr
from cloudmanager.results.results import Result, Results

HEADER = "Traceback (most recent call last):\n"
TRACEBACK = """\
Traceback (most recent call last):
  File "<cell>", line 1, in <module>
ZeroDivisionError: divide by zero
"""


def ok(text="", board="lab-1", **fields):
    return Result(board, 7, "ok", text=text, **fields)


def failed(board="lab-1", status="error", traceback=TRACEBACK, **fields):
    return Result(board, 7, status, traceback=traceback, **fields)


def results(*each, **fields):
    return Results({result.board: result for result in each}, **fields)


# A value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("42", 42),
        ("-1.5", -1.5),
        ("True", True),
        ("None", None),
        ("'é'", "é"),
        ("b'\\x00'", b"\0"),
        ("(1, [2, {'a': (3,)}])", (1, [2, {"a": (3,)}])),
        ("{1, 2}", {1, 2}),
        ("1+2j", 1 + 2j),
        ("12345678901234567890123", 12345678901234567890123),
    ],
)
def test_literal_value_is_a_python_object(text, value):
    assert ok(text).value == value
    assert type(ok(text).value) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<Pin 4>", id="an object"),
        pytest.param("{[]: 1}", id="a key that cannot be one"),
        pytest.param("-" * 100_000 + "1", id="very deep"),
        pytest.param("1" + "+1" * 100_000, id="very long"),
        pytest.param("[" * 5_000, id="brackets"),
        pytest.param("9" * 5_000, id="a number without end"),
        pytest.param("\0", id="a zero byte"),
        pytest.param("1if 1else 2", id="what Python warns of"),
    ],
)
def test_non_literal_value_is_a_repr(text):
    value = ok(text).value
    assert type(value) is Repr
    assert value == text


def test_invalid_escapes_are_read_without_a_warning():
    assert ok(r"'\d'").value == r"\d"


def test_truncated_value_is_a_repr():
    """The end of [10, 20, ..., 300] could be a literal with another value."""
    value = ok("123", value_truncated=True).value
    assert (type(value), value) == (Repr, "123")


def test_repr_is_shown_unquoted_and_sanitized():
    assert repr(Repr("<Pin 4>")) == "<Pin 4>"
    assert repr(Repr("\x1b[2J")) == r"\x1b[2J"
    assert str(Repr("\x1b[2J")) == "\x1b[2J"


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (failed(), BoardError),
        (failed(status="offline", traceback="", why="it was last seen 3 s ago"), BoardOffline),
        (failed(status="lost", traceback="", why="the board restarted"), LinkLost),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.status,
)
def test_value_of_a_failed_result_raises(result, kind):
    with pytest.raises(kind):
        _ = result.value


# Errors


@pytest.mark.parametrize(
    ("traceback", "ename", "evalue"),
    [
        (TRACEBACK, "ZeroDivisionError", "divide by zero"),
        ("MemoryError: memory allocation failed, allocating 9 bytes\n", "MemoryError", "memory"),
        ('Traceback:\n  File "x", line 1, in f\nKeyboardInterrupt: \n', "KeyboardInterrupt", ""),
        (
            'T:\n  File "x", line 1\n    x y\nSyntaxError: invalid syntax\n',
            "SyntaxError",
            "invalid",
        ),
        ('T:\n  File "x", line 1, in f\nValueError: one\ntwo\n', "ValueError", "one\ntwo"),
        ('T:\n  File "x", line 1, in f\nKeyError: a: b\n', "KeyError", "a: b"),
        ("strange", "strange", ""),
        (f"{HEADER}RuntimeError: 9 ms too late\n", "RuntimeError", "9 ms too late"),
        (f'{HEADER}  File "x", line 1, in f\nE: {HEADER}x\n', "E", f"{HEADER}x"),
    ],
)
def test_error_names_the_boards_exception(traceback, ename, evalue):
    error = failed(traceback=traceback).error
    assert isinstance(error, BoardError)
    assert error.traceback == traceback
    assert error.evalue.startswith(evalue)
    assert error.ename == ename


def test_error_without_traceback_has_the_servers_reason():
    error = failed(status="timeout", traceback="", why="it has not confirmed that it stopped").error
    assert isinstance(error, BoardError)
    assert (error.status, error.evalue) == ("timeout", "it has not confirmed that it stopped")
    assert str(error).startswith("lab-1: it has not confirmed that it stopped")


def test_lost_job_carries_its_number():
    error = failed(status="lost", traceback="").error
    assert isinstance(error, LinkLost)
    assert (error.board, error.job) == ("lab-1", 7)


def test_ok_has_no_error():
    assert ok("1").error is None


# JSON


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("1", 1),
        ("1.5", 1.5),
        ("'é'", "é"),
        ("[1, 'a', None, True]", [1, "a", None, True]),
        ("{'a': [1, {'b': 2}]}", {"a": [1, {"b": 2}]}),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("[1.0, 1e999]", "[1.0, 1e999]"),
        ("(1, 2)", "(1, 2)"),
        ("[(1, 2)]", "[(1, 2)]"),
        ("{1: 2}", "{1: 2}"),
        ("{1, 2}", "{1, 2}"),
        ("b'x'", "b'x'"),
        ("1j", "1j"),
        ("<Pin 4>", "<Pin 4>"),
        ("0x" + "f" * 5000, "0x" + "f" * 5000),
    ],
)
def test_json_has_the_value_or_its_repr(text, value):
    body = ok(text, stdout="hi\n", elapsed=0.1234567).to_json()
    assert body == {
        "status": "ok",
        "stdout": "hi\n",
        "value": value,
        "error": None,
        "elapsed": 0.123457,
    }
    assert json.loads(json.dumps(body, allow_nan=False)) == body


def test_json_of_a_value_nested_too_deeply_has_its_repr(monkeypatch):
    def deep(_):
        raise RecursionError

    monkeypatch.setattr(results_module, "_is_json", deep)
    assert ok("[1]").to_json()["value"] == "[1]"


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (failed(), TRACEBACK),
        (failed(status="offline", traceback="", why="never seen"), "never seen"),
        (failed(status="lost", traceback=""), "lost"),
    ],
    ids=lambda value: getattr(value, "status", ""),
)
def test_json_of_a_failure_has_traceback_or_reason(result, error):
    body = result.to_json()
    assert (body["status"], body["value"], body["error"]) == (result.status, None, error)


# Results


def test_results_are_a_mapping_in_the_targets_order():
    found = results(ok("1", "b"), ok("2", "a"), left_out=("c",))
    assert list(found) == ["b", "a"]
    assert [result.value for result in found.values()] == [1, 2]
    assert (found["a"].value, len(found), "c" in found) == (2, 2, False)
    assert found.left_out == ("c",)


def test_results_have_ok_and_failed():
    found = results(ok("1", "a"), failed("b"), failed("c"))
    assert not found.ok
    assert list(found.failed) == ["b", "c"]
    assert results(ok()).ok
    assert len(results(ok()).failed) == 0


def test_value_of_results_with_one_board():
    assert results(ok("[1, 2]")).value == [1, 2]


@pytest.mark.parametrize("each", [[], [ok("1", "a"), ok("2", "b")]])
def test_value_of_several_boards_is_refused(each):
    with pytest.raises(ValueError, match=f"there are {len(each)} boards: .* to_dict"):
        _ = results(*each).value


def test_to_dict_has_the_values():
    assert results(ok("1", "a"), ok("<Pin>", "b")).to_dict() == {"a": 1, "b": "<Pin>"}


def test_to_dict_raises_what_failed():
    with pytest.raises(BoardError):
        results(ok("1", "a"), failed("b")).to_dict()


def test_to_pandas_has_one_row_per_board():
    table = results(ok("1", "a", stdout="hi", elapsed=0.5), failed("b")).to_pandas()
    assert list(table.columns) == ["status", "value", "stdout", "elapsed"]
    assert table.loc["a"].to_dict() == {"status": "ok", "value": 1, "stdout": "hi", "elapsed": 0.5}
    assert table.loc["b", "status"] == "error"
    assert math.isnan(table.loc["b", "value"])


def test_to_pandas_of_no_boards_has_the_columns():
    assert list(results().to_pandas().columns) == ["status", "value", "stdout", "elapsed"]


def test_raise_for_error_returns_successful_results():
    found = results(ok("1"))
    assert found.raise_for_error() is found


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (failed("b"), BoardError),
        (failed("b", "offline"), BoardOffline),
        (failed("b", "lost"), LinkLost),
    ],
    ids=["error", "offline", "lost"],
)
def test_one_failure_is_raised_as_itself(result, kind):
    with pytest.raises(kind) as caught:
        results(ok("1", "a"), result).raise_for_error()
    assert caught.value.board == "b"


def test_several_failures_are_raised_as_one():
    with pytest.raises(FleetError) as caught:
        results(failed("a"), ok("1", "b"), failed("c", "offline", "")).raise_for_error()
    assert {board: type(error) for board, error in caught.value.errors.items()} == {
        "a": BoardError,
        "c": BoardOffline,
    }


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (ok("42"), "lab-1: 42"),
        (ok(stdout="hi\nyou\n"), "lab-1: hi you"),
        (ok(), "lab-1: ok"),
        (ok("'\x1b[2J'"), r"lab-1: '\x1b[2J'"),
        (ok("x" * 100), "lab-1: " + "x" * 80 + "…"),
        (failed(), "lab-1: error (ZeroDivisionError: divide by zero)"),
        (failed(traceback="KeyboardInterrupt: \n"), "lab-1: error (KeyboardInterrupt)"),
        (failed(traceback=f"{HEADER}OSError: 1 ms\n"), "lab-1: error (OSError: 1 ms)"),
        (failed(status="offline", traceback="", why="never seen"), "lab-1: offline (never seen)"),
        (failed(status="lost", traceback=""), "lab-1: lost"),
    ],
)
def test_repr_of_results_has_one_line_per_board(result, line):
    assert repr(results(result)) == line


def test_repr_of_no_results():
    assert repr(results()) == "<no results>"


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (ok("42"), "<Result lab-1: ok 42>"),
        (ok(), "<Result lab-1: ok>"),
        (failed(), "<Result lab-1: error ZeroDivisionError>"),
        (failed(status="offline", traceback="", why="\x1b"), r"<Result lab-1: offline \x1b>"),
    ],
)
def test_repr_of_a_result_is_one_line(result, line):
    assert repr(result) == line


# Output


def test_full_heap_has_a_hint_in_words():
    trace = "MemoryError: memory allocation failed, allocating 320 bytes\n"
    error = Result("lab-1", 1, "error", traceback=trace).error
    expected = "The board's heap is full: `--fresh` frees the variables of earlier cells."
    assert isinstance(error, BoardError)
    assert error.hint == expected
    assert expected in str(error)
