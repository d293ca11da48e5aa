"""Tables of `mbm`: drawn for the width of a terminal, plain in a pipe."""

import io
import re

import pytest

from cloudmanager.client.files import FileResult
from cloudmanager.display.file_report import files_lines
from cloudmanager.display.folding import plain_text
from cloudmanager.display.terminal import print_error, print_text
from cloudmanager.display.text_tables import format_table
from cloudmanager.results.results import Result, Results

TABLE = format_table(
    ("name", "state", "connected since"),
    [("greenhouse-1", "idle", "2026-11-30 01:58:21 (55 s)"), ("lab-1", "offline", "never")],
    "… and 2 more",
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, columns, **settings):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": str(columns), **settings}.items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    print_text(TABLE, out)
    return out.getvalue()


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("columns", [200, 80, 50, 40, 32])
def test_table_fits_the_terminal(monkeypatch, columns):
    lines = plain(drawn(monkeypatch, columns)).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("columns", "headings", "hidden"),
    [(30, "name state", "connected since"), (20, "name", "state, connected since")],
)
def test_columns_without_room_are_named(monkeypatch, columns, headings, hidden):
    *lines, note = plain(drawn(monkeypatch, columns)).splitlines()
    assert " ".join(lines[0].split()) == headings
    assert lines[2].startswith("greenhouse-1")
    assert max(map(len, lines)) <= columns
    assert note == f"… no room for {hidden}; `--json` shows all"


def test_names_are_shown_whole_and_the_last_column_is_cut_first(monkeypatch):
    lines = plain(drawn(monkeypatch, 40)).splitlines()
    assert lines[2].startswith("greenhouse-1  idle ")
    assert "2026-11-30" in lines[2]
    assert "(55 s)" not in lines[2]


def test_states_are_coloured_in_a_terminal_with_colours(monkeypatch):
    assert "\x1b[2moffline\x1b[0m" in drawn(monkeypatch, 80)
    assert "\x1b" not in drawn(monkeypatch, 80, NO_COLOR="1")
    assert "\x1b" not in drawn(monkeypatch, 80, TERM="dumb")


def test_table_in_a_pipe_is_plain_and_complete(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    print_text(TABLE, out)
    assert out.getvalue() == f"{TABLE}\n"
    assert str(TABLE).endswith("\n… and 2 more")


def test_markup_in_a_cell_is_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    print_text(format_table(("name", "note"), [("a", "[red]x[/red] :smile:")]), out)
    assert "[red]x[/red] :smile:" in out.getvalue()


def test_last_column_that_is_cut_says_so_and_keeps_one_line(monkeypatch):
    lines = plain(drawn(monkeypatch, 40)).splitlines()
    assert len(lines) == 5
    assert lines[2].rstrip().endswith("…")


def test_state_with_more_words_has_the_colour_of_its_first(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    print_text(format_table(("name", "state"), [("offline", "busy, 2 queued")]), out)
    assert "\x1b[36mbusy, 2 queued" in out.getvalue()
    assert "\x1b[2moffline" not in out.getvalue()  # a board may have this name


@pytest.mark.parametrize(
    ("out", "variables", "prefix"),
    [
        (io.StringIO, {}, "mbm:"),
        (Terminal, {}, "\x1b[1;31mmbm:\x1b[0m"),
        (Terminal, {"NO_COLOR": "1"}, "mbm:"),
        (Terminal, {"NO_COLOR": ""}, "\x1b[1;31mmbm:\x1b[0m"),
        (Terminal, {"TERM": "dumb"}, "mbm:"),
    ],
)
def test_errors_have_a_colour_in_terminals_that_have_some(monkeypatch, out, variables, prefix):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    stream = out()
    print_error("nope", stream)
    assert stream.getvalue() == f"{prefix} nope\n"


def test_heads_of_failed_file_verbs_have_the_colour_of_failures():
    failed = FileResult("lab-1", 1, "error", failure=OSError(2, "Gone", "lab-1:/a"))
    late = Result("lab-2", 2, "timeout", why="late")
    lines = files_lines(Results({"lab-1": failed, "lab-2": late}))
    assert [line[0][1] for line in lines] == ["bad", "", "warn", ""]
    assert plain_text(lines[:1]).startswith("── lab-1 · error ───")
