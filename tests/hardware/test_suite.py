"""The hardware suite itself, on MicroPython's unix port: so that it works when a board is there."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.cloudmanager.chip import Chip

from .__main__ import run_suite
from .bench import Bench, Options
from .checks import Checks, Row, markdown_table, run_checks


@pytest.fixture
def chip(tmp_path: Path):
    with Chip(tmp_path) as chip:
        chip.flash[0] = 0xE9
        chip.press_reset()
        yield chip


def test_suite_passes_on_a_unix_board(chip, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CM_HOME", str(tmp_path / "home"))
    header, rows = run_suite(Options(chip.port, repeats=4), only="output")
    assert "by the bridge" in header
    assert [row.what[:10] for row in rows] == ["mbm bridge", "output: 30", "output wit"]
    assert [row.outcome for row in rows] == ["passed"] * 3, rows


class NoBoard:
    """A bench whose board is lost after a check that says so."""

    is_lost = False
    lost = ""

    def recover(self) -> str:
        self.is_lost = bool(self.lost)
        return self.lost


def test_failures_are_rows_and_a_lost_board_ends_the_run():
    checks, bench = Checks(), cast(Bench, NoBoard())
    seen: list[Row] = []

    @checks.add("fails")
    def fails(bench):
        raise ValueError("two\n lines")

    @checks.add("is not run", lambda bench: "no RESET command")
    def never(bench):
        raise AssertionError

    @checks.add("loses the board")
    def loses(bench):
        bench.lost = "the board was lost"
        return "1 s"

    @checks.add("comes after it")
    def after(bench):
        raise AssertionError

    rows = run_checks(checks, bench, seen.append)
    assert [(row.what, row.figure, row.outcome) for row in rows] == [
        ("fails", "two lines", "failed"),
        ("is not run", "no RESET command", "not run"),
        ("loses the board", "1 s; the board was lost", "failed"),
    ]
    assert seen == rows


def test_table_is_markdown_with_a_count():
    rows = [Row("a", "1 | 2", "passed", 0.26), Row("b", "", "failed", 1)]
    table = markdown_table("Pico", rows).splitlines()
    assert table[0] == "Pico"
    assert table[4:6] == ["| a | 1 \\| 2 | passed | 0.3 |", "| b |  | failed | 1.0 |"]
    assert table[-1] == "1 passed, 1 failed"
