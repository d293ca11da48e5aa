"""The results of file and package verbs as text."""

from pathlib import Path

import pytest

from cloudmanager import Result, Results
from cloudmanager.client.files import Entry, FileResult, Space, Stat, failed_result
from cloudmanager.client.packages import BoardPackages, InstallResult
from cloudmanager.client.syncing import SyncDryRun, SyncPlan
from cloudmanager.client.uploads import WrittenBytes
from cloudmanager.display.file_report import files_text, single_failure_text, value_text
from cloudmanager.protocol.errors import PackageError

TRACE = 'Traceback (most recent call last):\n  File "<stdin>", line 1, in <module>\n{}\n'


def ok(value, board="lab-1"):
    return FileResult(board, 1, "ok", text="[]", make_value=lambda _: value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (WrittenBytes(0), "already up to date"),
        (WrittenBytes.of(0, 1), "0 bytes written"),
        (WrittenBytes.of(1234, 2), "1,234 bytes written"),
        (WrittenBytes.of(0, 0, 1), "1 folder made"),
        (WrittenBytes.of(1, 1, 2), "1 byte written, 2 folders made"),
        (WrittenBytes(0).with_notes(["a", "b"]), "already up to date\nnote: a\nnote: b"),
        (b"a\xff", "a\ufffd"),
        (Path("x/y"), "x/y"),
        ([Path("x/y"), Path("z")], "x/y\nz"),
        (Stat(True, 0, 0), "folder"),
        (Stat(False, 3, 0), "3 bytes"),
        (Stat(False, 1, 0), "1 byte"),
        (Stat(False, 0, 0), "0 bytes"),
        (Space(3000, 1000, 2000), "2,000 bytes free of 3,000 bytes"),
        (
            [Entry("/lib", True, 0), Entry("/a", False, 5)],
            "           0 /lib/\n           5 /a",
        ),
        (SyncPlan((), (), 3, 0), "3 equal"),
        (BoardPackages({}), "no packages"),
        (
            BoardPackages({"a": "1", "b": ""}, drift=["a: /a is missing"]),
            "a 1\nb\ndrift: a: /a is missing",
        ),
        (
            InstallResult({"a": "1"}, ("/a",), ("/b",), 9, 99, {"a": "here"}, ("check it",)),
            "a 1  from here\n  /a\n  /b (removed)\n1 file, 9 bytes\nnote: check it",
        ),
        (InstallResult({}, (), ("/b",), 0), "  /b (removed)"),
        (InstallResult({"a": ""}, (), (), 0), "a\nnothing to send: already installed"),
        (InstallResult({}, (), (), 0), "no files to change"),
        (
            SyncPlan(("/a",), ("/b",), 1, 9),
            "copied  /a\ndeleted /b\n1 copied (9 bytes), 1 deleted, 1 equal",
        ),
        (
            SyncDryRun(("/a",), ("/b",), 1, 9),
            "copy    /a\ndelete  /b\n"
            "1 to copy (9 bytes), 1 to delete, 1 equal; dry run, nothing was changed",
        ),
    ],
)
def test_value_as_text(value, text):
    assert value_text(value) == text
    assert files_text(Results({"lab-1": ok(value)})) == text


def test_boards_with_equal_results_share_a_block():
    exception = FileNotFoundError(2, "No such file or directory", "lab-3:/a")
    results = {name: ok(WrittenBytes.of(7, 1), name) for name in ("lab-1", "lab-2")}
    text = files_text(Results({**results, "lab-3": failed_result("lab-3", exception)}, ("lab-4",)))
    first_head, value, second_head, error, left_out = text.split("\n")
    assert first_head.startswith("── lab-[1-2] ─")
    assert value == "7 bytes written"
    assert second_head.startswith("── lab-3 · error ─")
    assert error == ":/a: No such file or directory."
    assert left_out == "not connected: lab-4"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (failed_result("lab-3", FileNotFoundError(2, "Gone", "lab-3:/a")), "lab-3:/a: Gone."),
        (failed_result("lab-3", OSError(28, "Full")), "lab-3: Full."),
        (
            failed_result("lab-3", PackageError("no package is called x")),
            "lab-3: no package is called x.",
        ),
        (
            failed_result("lab-3", OSError(2, "Gone\x1b[2J", "lab-3:/\n")),
            "lab-3:/\\n: Gone\\x1b[2J.",
        ),
        (Result("lab-3", 1, "error", traceback=TRACE.format("OSError: no LED")), "lab-3: no LED."),
        (
            Result("lab-3", 1, "error", traceback=TRACE.format("MemoryError: ")),
            "lab-3: MemoryError.",
        ),
        (
            Result("lab-3", 1, "offline", why="it was last seen 3 s ago"),
            "lab-3: The board is offline: it was last seen 3 s ago. "
            "Check its power and its network, or wait for it with `--wait`.",
        ),
    ],
)
def test_failure_of_a_single_board_is_a_sentence(result, text):
    assert single_failure_text(Results({"lab-3": result})) == text


def test_control_characters_in_file_names_are_escaped():
    text = files_text(Results({"lab-1": ok([Entry("/\x1b[2J", False, 1)])}))
    assert "\x1b" not in text


def test_macro_result_shows_output_and_value():
    results = Results({"lab-1": Result("lab-1", 1, "ok", stdout="hi\n", text="3")})
    assert files_text(results) == "hi\n3"


def test_dry_run_shows_the_range_of_free_space():
    plans = [InstallResult({"a": "1"}, ("/a",), (), 9, free, {}, (), True) for free in (500, 900)]
    text = files_text(Results({"lab-1": ok(plans[0]), "lab-2": ok(plans[1], "lab-2")}))
    assert text.endswith("1 file, 9 bytes\n500 to 900 bytes free; dry run, nothing was changed")
    assert text.count("/a") == 1
    assert files_text(Results({"lab-1": ok(plans[0])})).endswith(
        "\n500 bytes free; dry run, nothing was changed"
    )


def test_packages_of_an_offline_board_show_their_time():
    text = value_text(BoardPackages({"a": "1"}, as_of=0.0))
    assert text.startswith("a 1\nas of 19")
