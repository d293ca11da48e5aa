"""The tables of boards, jobs, tokens and the audit log."""

import time
from typing import Any

import pytest

from cloudmanager.display.text_tables import (
    MAX_JOBS,
    audit_table,
    fleet_table,
    format_table,
    job_table,
    job_text,
    token_table,
)
from cloudmanager.protocol.spans import format_duration
from cloudmanager.results.rows import (
    FLEET_HEADINGS,
    MAX_CELL_CHARS,
    fleet_rows,
    format_time,
    what_text,
)

BOARD = {
    "name": "lab-1",
    "state": "idle",
    "platform": "esp32",
    "version": "1.28.0",
    "heap": 112_640,
    "connected_since": 0.0,
    "last_seen": None,
    "queued": 0,
}


def row(**fields):
    return dict(zip(FLEET_HEADINGS, fleet_rows([{**BOARD, **fields}])[0], strict=True))


def test_columns_are_aligned_under_headings():
    assert format_table(("name", "n"), [("a", "1"), ("longer", "22")]).splitlines() == [
        "name    n",
        "──────  ──",
        "a       1",
        "longer  22",
    ]


def test_table_without_rows_has_headings():
    assert format_table(("name", "state"), []) == "name  state\n────  ─────"


def test_lines_have_no_trailing_spaces():
    assert format_table(("a", "b"), [("1", ""), ("1", "22")]).splitlines()[2] == "1"


def test_fleet_table_has_a_row_per_board():
    boards = [{**BOARD, "name": f"lab-{number}"} for number in (1, 2)]
    lines = fleet_table(boards).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:4] == ["name", "state", "platform", "MicroPython"]
    assert [line.split()[:4] for line in lines[2:]] == [
        ["lab-1", "idle", "esp32", "1.28.0"],
        ["lab-2", "idle", "esp32", "1.28.0"],
    ]


def test_empty_fleet_shows_how_to_start_virtual_boards():
    assert fleet_table([]) == (
        "No board is enrolled yet. `mbm simulate 3` starts three virtual boards."
    )


def test_connected_board_shows_heap_and_connection_time():
    since = time.time() - 65
    cells = row(connected_since=since)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    assert (cells["free heap"], cells["connected since"]) == ("110.0 KB", f"{stamp} (1 min)")


@pytest.mark.parametrize(("heap", "shown"), [(1024, "1.0 KB"), (None, "-"), ("much", "-")])
def test_heap_is_shown_if_it_is_a_number(heap, shown):
    assert row(connected_since=time.time(), heap=heap)["free heap"] == shown


@pytest.mark.parametrize(("ago", "shown"), [(None, "never"), (7201, "last seen 2 h ago")])
def test_offline_board_shows_when_it_was_last_seen(ago, shown):
    cells = row(connected_since=None, last_seen=ago and time.time() - ago, state="offline")
    assert (cells["connected since"], cells["free heap"]) == (shown, "-")


def test_board_that_never_connected_has_no_facts():
    cells = row(connected_since=None, platform="", version="")
    assert (cells["platform"], cells["MicroPython"]) == ("-", "-")


def test_queue_is_shown_with_the_state():
    assert row(state="busy", queued=2)["state"] == "busy, 2 queued"


def test_facts_of_a_board_are_escaped_and_shortened():
    cells = row(platform="\x1b[2J\nx\ty", version="9" * 100)
    assert cells["platform"] == r"\x1b[2J x y"
    assert cells["MicroPython"] == "9" * (MAX_CELL_CHARS - 1) + "…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86_399, "23 h"),
        (86_400, "1 day"),
        (200_000, "2 days"),
    ],
)
def test_duration_is_in_its_largest_unit(seconds, text):
    assert format_duration(seconds) == text


JOB = {
    "job": 7,
    "board": "lab-1",
    "kind": "cell",
    "what": "print('hi')",
    "caller": "local",
    "state": "settled",
    "status": "ok",
    "started": 1e9,
    "elapsed": 0.25,
    "stdout": "hi\nyou\n",
    "value": "42",
    "error": "",
    "truncated": False,
}
STARTED = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1e9))


def test_job_table_has_a_row_per_job():
    running = {
        **JOB,
        "job": 8,
        "status": None,
        "state": "running",
        "elapsed": None,
        "started": None,
        "kind": "install",
        "what": "logging",
    }
    headings, _, *lines = job_table([JOB, running]).splitlines()
    assert headings.split() == ["job", "board", "state", "started", "took", "caller", "what"]
    assert [line.split() for line in lines] == [
        ["7", "lab-1", "ok", *STARTED.split(), "0.250", "s", "local", "print('hi')"],
        ["8", "lab-1", "running", "-", "-", "local", "install", "logging"],
    ]


@pytest.mark.parametrize(
    ("kind", "title", "text"),
    [
        ("cell", "import gc", "import gc"),
        ("cell", "", "a cell"),  # such as for a viewer
        ("reset", "", "reset"),
        ("files", "put :/main.py", "put :/main.py"),
        ("uninstall", "logging", "uninstall logging"),
        ("", "", "-"),  # of a job that the store has
    ],
)
def test_job_is_called_by_its_code_or_by_what_it_does(kind, title, text):
    assert what_text({"kind": kind, "what": title}) == text


def test_long_line_of_code_is_cut_and_escaped_in_the_table():
    wide = {**JOB, "what": "\x1b[2J" + "x" * 500}
    (line,) = job_table([wide]).splitlines()[2:]
    assert line.endswith("x…")
    assert "\\x1b[2J" in line
    assert len(line) < 250


def test_job_table_counts_omitted_jobs():
    lines = job_table([JOB] * (MAX_JOBS + 1234)).splitlines()
    assert (len(lines), lines[-1]) == (MAX_JOBS + 3, "… and 1,234 more; `--json` shows all")


def test_empty_job_table_is_a_sentence():
    assert job_table([]) == "No jobs are running, and none ended recently."


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {},
            f"job 7 on lab-1: ok, 0.250 s, for local, started {STARTED}\n"
            "what: print('hi')\nhi\nyou\nOut: 42",
        ),
        (
            {"status": "error", "error": "OSError: 5\n", "truncated": True},
            f"job 7 on lab-1: error, 0.250 s, for local, started {STARTED}\n"
            "what: print('hi')\n… (earlier output was not kept)\nhi\nyou\nOSError: 5",
        ),
        (
            {"board": "e0ca", "board_removed": True, "kind": "", "stdout": "", "truncated": True},
            "job 7 on a board that was removed from the fleet (id e0ca): ok, 0.250 s, for local, "
            f"started {STARTED}\n… (output is kept of recent jobs)\nOut: 42",
        ),
        (
            {"status": None, "state": "queued", "started": None, "elapsed": None, "stdout": ""},
            "job 7 on lab-1: queued, for local, started -\nwhat: print('hi')",
        ),
        (
            {"stdout": "\x1b[2J", "value": ""},
            f"job 7 on lab-1: ok, 0.250 s, for local, started {STARTED}\n"
            "what: print('hi')\n\\x1b[2J",
        ),
    ],
    ids=["ok", "error", "removed", "queued", "control characters"],
)
def test_job_text_shows_state_output_and_outcome(fields, text):
    assert job_text({**JOB, **fields}) == text


# Tokens and the audit log

TOKEN: dict[str, Any] = {
    "name": "lab-notebook",
    "role": "operator",
    "target": "lab-*",
    "state": "valid",
    "created": 1_700_000_000.0,
    "expires": None,
}
AUDIT = {
    "at": 1_700_000_000.0,
    "who": "ann",
    "address": "192.0.2.1:5",
    "verb": "submit",
    "target": "lab-*",
    "detail": "",
    "boards": 3,
    "first_job": 7,
    "last_job": 9,
    "outcome": "done",
}


def test_token_table_has_a_row_per_token():
    ends = {**TOKEN, "expires": 1_800_000_000.0}
    first, second = token_table([TOKEN, ends]).splitlines()[2:]
    assert first.split()[:4] == ["lab-notebook", "operator", "lab-*", "valid"]
    assert first.endswith(f"{format_time(TOKEN['created'])}  never")
    assert second.endswith(format_time(1_800_000_000.0))


def test_audit_table_has_a_row_per_request():
    one = {**AUDIT, "at": 1_700_000_001.0, "who": "", "boards": None, "first_job": None}
    other = {**AUDIT, "last_job": 7, "target": ""}
    first, second, third = audit_table([AUDIT, one, other]).splitlines()[2:]
    assert first.split()[2:] == ["ann", "192.0.2.1:5", "submit", "lab-*", "3", "7-9", "done"]
    assert second.split()[2:] == ["-", "192.0.2.1:5", "submit", "lab-*", "-", "-", "done"]
    assert third.split()[2:] == ["ann", "192.0.2.1:5", "submit", "-", "3", "7", "done"]
    assert audit_table([]) == "The audit log is empty."


@pytest.mark.parametrize("field", ["who", "address", "verb", "target", "detail"])
def test_audit_table_escapes_and_shortens_untrusted_text(field):
    hostile = "x\x1b[2J\r\n2023-11-14 22:13:20  ann\u202e" + "y" * 999
    shown = audit_table([{**AUDIT, field: hostile}])
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert max(map(len, shown.splitlines())) < 300


def test_labels_are_a_column_if_a_board_has_some():
    boards = [{**BOARD, "name": "lab-1", "labels": {"room": "dark", "floor": "2"}}]
    boards.append({**BOARD, "name": "lab-2", "labels": {}})
    lines = fleet_table(boards).splitlines()
    assert lines[0].split()[:3] == ["name", "state", "labels"]
    assert "room=dark, floor=2" in lines[2]
    assert "labels" not in fleet_table(boards[1:])
