"""What a raw REPL prints is separated into output, value and traceback, whatever a cell prints."""

from __future__ import annotations

import pytest

from cloudmanager.cable import repl_output
from cloudmanager.cable.repl_jobs import exception_line
from cloudmanager.cable.repl_output import OutputParser

MARK = b"\x04mark"
TRACEBACK = b'Traceback (most recent call last):\r\n  File "<stdin>", line 1\r\nValueError: '
BANNER = b"raw REPL; CTRL-B to exit\r\n>"


def answer(there=True):
    return BANNER + b"OK77 %s\r\n\x04\x04" % str(there).encode()


def parse(stream, asked=None):
    """Feed a stream; ask the REPL when it seems to have ended, or after ``asked`` bytes."""
    parser, output = OutputParser("mark"), b""
    asked_at: list[int] = []
    for n in range(len(stream)):
        assert parser.outcome is None, stream[n:]
        parser.feed(stream[n : n + 1])
        if n + 1 == asked or (asked is None and not asked_at and parser.may_have_ended()):
            assert b"77" in parser.make_question("77")
            asked_at.append(n + 1)
        output += parser.take_output()
    return output, parser.outcome


@pytest.mark.parametrize(
    ("stream", "output", "value"),
    [
        (MARK + MARK + b"\x04\x04", b"", b""),
        (b"1\r\n" + MARK + b"(42,)" + MARK + b"\x04\x04", b"1\r\n", b"(42,)"),
        (b"a\x04b" + MARK + MARK + b"\x04\x04", b"a\x04b", b""),
        (b"\x04\x04>" + MARK + b"(1,)" + MARK + b"\x04\x04", b"\x04\x04>", b"(1,)"),
        (b"\x04mar" + MARK + MARK + b"\x04\x04", b"\x04mar", b""),
        (MARK + b"(v\x04w,)" + MARK + b"\x04\x04", b"", b"(v\x04w,)"),
        (MARK + b"(\x04\x04>,)" + MARK + b"\x04\x04", b"", b"(\x04\x04>,)"),
    ],
)
def test_output_and_value_are_separated(stream, output, value):
    said, outcome = parse(stream, asked=0)
    assert (said, outcome.value, outcome.traceback) == (output, value, b"")


@pytest.mark.parametrize(
    ("stream", "output", "traceback"),
    [
        (b"\x04" + TRACEBACK + b"x\r\n\x04>", b"", TRACEBACK + b"x\r\n"),
        (b"out\x04" + TRACEBACK + b"x\r\n\x04>", b"out", TRACEBACK + b"x\r\n"),
        (b"o\x04t\x04" + TRACEBACK + b"x\r\n\x04>", b"o\x04t", TRACEBACK + b"x\r\n"),
        (b"\x04" + TRACEBACK + b"a\x04b\r\n\x04>", b"", TRACEBACK + b"a\x04b\r\n"),
        (b"\x04MemoryError: \r\n\x04>", b"", b"MemoryError: \r\n"),
        (MARK + b"(half\x04" + TRACEBACK + b"x\r\n\x04>", b"", TRACEBACK + b"x\r\n"),
    ],
)
def test_traceback_is_separated(stream, output, traceback):
    said, outcome = parse(stream + answer())
    assert (said, outcome.value, outcome.traceback) == (output, b"", traceback)


def test_imitated_end_is_output():
    """The cell goes on after it has printed what looks like its end; the REPL answers later."""
    fake = b"\x04\x04>"
    stream = fake + b"and on" + MARK + b"(1,)" + MARK + b"\x04\x04>" + answer()
    said, outcome = parse(stream, asked=len(fake))
    assert (said, outcome.value) == (fake + b"and on", b"(1,)")
    stream = fake + b"and on\x04" + TRACEBACK + b"x\r\n\x04>" + answer()
    said, outcome = parse(stream, asked=len(fake))
    assert (said, outcome.traceback) == (fake + b"and on", TRACEBACK + b"x\r\n")


@pytest.mark.parametrize(
    "stream",
    [
        b"out\x04\x04MPY: soft reboot\r\n" + BANNER,
        b'out\r\nMicroPython v1.28.0\r\nType "help()" for more information.\r\n>>> ',
    ],
)
def test_restart_is_noticed(stream):
    said, outcome = parse(stream + answer(there=False))
    assert outcome.restarted
    assert said.startswith(b"out")


def test_byte_4_does_not_hold_output_back_for_long(monkeypatch):
    monkeypatch.setattr(repl_output, "MAX_HELD_SECONDS", 0)
    said, outcome = parse(b"a\x04b and more")
    assert (said, outcome) == (b"a\x04b and more", None)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("x", "ValueError: x"),
        ("no KeyboardInterrupt", "ValueError: no KeyboardInterrupt"),
        ("x\nKeyboardInterrupt: ", "ValueError: x"),
    ],
)
def test_exception_is_named_by_the_first_line_after_the_frames(message, line):
    text = TRACEBACK.decode().replace("\r\n", "\n") + message + "\n"
    assert exception_line(text) == line
