"""Tables of `mbm`: drawn for the width of a terminal, plain in a pipe."""

import io
import re

import pytest

from cloudmanager.display.terminal import print_text
from cloudmanager.display.text_tables import format_table

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


@pytest.mark.parametrize("columns", [200, 80, 50, 40, 20])
def test_table_fits_the_terminal(monkeypatch, columns):
    lines = plain(drawn(monkeypatch, columns)).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= columns


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
