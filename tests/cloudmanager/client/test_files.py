"""Results of jobs with file operations: values, OSErrors, and malformed answers of boards."""

import errno

import pytest

from cloudmanager import Results
from cloudmanager.client.files import (
    Entry,
    FileJobGroup,
    FileResult,
    Space,
    Stat,
    failed_result,
    read_entries,
    read_space,
    read_stat,
)
from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import BoardError, BoardOffline, FleetError, PeerWireError

TRACE = "Traceback (most recent call last):\n{}\n"


def error(line, board="lab-1"):
    return FileResult(board, 1, "error", traceback=TRACE.format(line)).error


def test_answers_become_values():
    text = "[[('/b', 32768, 3), ('/a', 16384, 0)]]"
    result = FileResult(
        "lab-1", 1, "ok", text=text, make_value=lambda answers: read_entries(answers[0])
    )
    assert result.value == [Entry("/a", True, 0), Entry("/b", False, 3)]
    assert result.value[1].name == "b"
    assert read_stat((0x8000, 0, 0, 0, 0, 0, 9, 0, 1, 0)) == Stat(False, 9, 1)
    assert read_space((4096, 4096, 10, 4, 4, 0, 0, 0, 0, 255)) == Space(40960, 24576, 16384)
    full = (4096, 4096, 10, 2**32 - 1, 2**32 - 1, 0, 0, 0, 0, 255)
    assert read_space(full) == Space(40960, 40960, 0)


@pytest.mark.parametrize(
    ("line", "kind", "number"),
    [
        ("OSError: [Errno 2] ENOENT: /a.py", FileNotFoundError, errno.ENOENT),
        ("OSError: [Errno 21] EISDIR: /a.py", IsADirectoryError, errno.EISDIR),
        ("OSError: [Errno 17] EEXIST: /a.py", FileExistsError, errno.EEXIST),
        ("OSError: (28, '/a.py')", OSError, errno.ENOSPC),
        ("OSError: (39, '/a.py')", OSError, 39),
    ],
)
def test_errors_of_a_boards_files_are_pythons_own(line, kind, number):
    found = error(line)
    assert type(found) is kind
    assert (found.errno, found.filename) == (number, "lab-1:/a.py")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[Errno 2] ENOENT: /a\nb", "/a\nb"),
        ("[Errno 2] ENOENT: /a: b'c", "/a: b'c"),
        ("[Errno 2] ENOENT: b'/a\\xff'", "/a\udcff"),
        ('[Errno 2] ENOENT: b"/it\'s\\xff"', "/it's\udcff"),
        ("(28, '/a\\nb')", "/a\nb"),
        ('(28, "/it\'s")', "/it's"),
        ("(28, b'/a\\xff')", "/a\udcff"),
        ("[Errno 2] ENOENT", ""),
    ],
)
def test_paths_in_errors_of_boards_are_read(text, path):
    assert error(f"OSError: {text}").filename == f"lab-1:{path}"


def test_other_errors_stay_what_they_are():
    assert isinstance(error("MemoryError: "), BoardError)
    assert isinstance(FileResult("b", 1, "offline", why="x").error, BoardOffline)


def test_boards_that_fail_alike_are_one_block():
    trace = TRACE.format("OSError: [Errno 2] ENOENT: /a")
    names = ("lab-1", "lab-2")
    results = Results({n: FileResult(n, 1, "error", traceback=trace) for n in names})
    with pytest.raises(FleetError) as raised:
        results.raise_for_error()
    said = "lab-[1-2]:\n  FileNotFoundError: [Errno 2] No such file or directory: ':/a'"
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "1", "[1]", "[[1]]", "[[('a',)]]", "open('x')", "[" * 500, "[[(1, 2, 'x')]]"]
)
def test_answer_that_makes_no_sense_fails_that_board_alone(text):
    result = FileResult(
        "lab-1", 1, "ok", text=text, make_value=lambda answers: read_entries(answers[0])
    )
    assert not result.ok
    assert isinstance(result.error, PeerWireError)
    with pytest.raises(PeerWireError):
        _ = result.value


def test_json_has_names_for_what_tuples_hold():
    result = FileResult(
        "b", 1, "ok", text="[('/a', 1)]", make_value=lambda _: [Entry("/a", False, 1)]
    )
    assert result.to_json()["value"] == [{"path": "/a", "is_dir": False, "size": 1}]
    result = FileResult("b", 1, "error", traceback=TRACE.format("OSError: [Errno 2] ENOENT: /a"))
    assert result.to_json()["error"].startswith("FileNotFoundError")


def test_another_value_keeps_the_ending():
    good = FileResult("b", 1, "ok", text="[3]", elapsed=1.0).with_value(7, earlier_elapsed=2.0)
    assert (good.value, good.text, good.elapsed, good.op_results) == (7, "7", 3.0, [3])
    bad = failed_result("b", OSError(28, "full")).with_value(7)
    with pytest.raises(OSError, match="full"):
        _ = bad.value


class Sink:
    def __init__(self):
        self.came = []

    def start_file(self, board):
        self.came.append(board)

    def write(self, board, data):
        if data == b"bad":
            raise OSError(28, "full")
        self.came.append(data)


def started(**more):
    stopped: list[int] = []
    group = FileJobGroup([["get", "/a"]], **more)
    group.on_accepted({"jobs": [[7, "lab-1"]]}, stopped.extend, lambda *_: None)
    return group, group.jobs["lab-1"], stopped


def chunk(payload, flags=0):
    return wire.Message(wire.CHUNK, flags, 7, payload)


def test_bytes_go_to_the_sink_and_are_counted():
    moved, sink = [], Sink()
    group, job, _ = started(sink=sink, on_moved=lambda *args: moved.append(args))
    for message in (chunk(b"", wire.RESUME_STATE), chunk(b"abc"), chunk(b"de")):
        group.handle_message(job, message)
    assert sink.came == ["lab-1", b"abc", b"de"]
    assert moved[-1] == ("lab-1", 5)


def test_sink_that_fails_ends_the_job_with_its_error():
    group, job, stopped = started(sink=Sink())
    group.handle_message(job, chunk(b"bad"))
    group.handle_message(job, chunk(b"more"))
    assert stopped == [7]
    payload = b"\0\0" + b"Traceback:\nKeyboardInterrupt: "
    group.handle_message(job, wire.Message(wire.RESULT, 2, 7, payload))
    assert str(group.results()["lab-1"].error) == "[Errno 28] full"


def test_put_tells_what_is_written():
    moved = []
    group, job, _ = started(on_moved=lambda *args: moved.append(args))
    group.handle_message(job, chunk(bytes(36), wire.RESUME_STATE))
    group.handle_message(job, chunk((4096).to_bytes(4, "big")))
    assert moved == [("lab-1", 4096)]
