"""The magics that manage boards, in an IPython shell of this process."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager import Results
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.health import Health
from cloudmanager.protocol.errors import NoSuchBoard
from cloudmanager.results.history import History

from .test_magics import Shell, ip, shell  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")


def test_reset_clears_variables_and_lists_the_boards(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet["demo-[1-2]"].run("kept = 1").raise_for_error()
    assert shell.run("r = %board_reset demo-[1-2]") == "demo-[1-2]: soft reset done."
    results: Any = shell.ip.user_ns["r"]
    assert isinstance(results, Results)
    assert set(results) == {"demo-1", "demo-2"}
    assert fleet["demo-1"].run("'kept' in globals()").value is False


def test_hard_reset_is_announced_as_such(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet["demo-1"].run("kept = 1").raise_for_error()
    assert shell.run("r = %board_reset --hard demo-1") == "demo-1: hard reset done."
    assert fleet["demo-1"].run("'kept' in globals()").value is False


def test_reset_of_an_offline_board_raises(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet.enrol(["away-1"])
    assert "away-1" in shell.run("%board_reset away-1")
    assert shell.error is not None
    assert "away-1" in str(shell.error)
    fleet.revoke("away-1")


def test_info_shows_facts_of_the_chosen_boards(shell: Shell, boards):  # noqa: F811
    shell.run("%board_use demo-[1-2]")
    shown = shell.run("%board_info")
    assert shown.startswith("── demo-1 ─")
    assert "── demo-2 ─" in shown
    lines = [line for line in shown.split("\n") if not line.startswith("──")]
    columns = {len(line) - len(line[line.index("  ") :].lstrip()) for line in lines}
    assert len(columns) == 1  # also with names that are longer than "MicroPython"
    assert ["platform", "linux"] in [line.split() for line in lines]
    assert ["state", "idle"] in [line.split() for line in lines]


def test_replace_says_what_the_new_board_is_and_shows_its_usage(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet.enrol(["dead-1", "spare-1"])
    text = shell.run("%board_replace dead-1 spare-1")
    assert text == "spare-1 is dead-1 now; the old dead-1 is no longer valid."
    assert "%board_replace OLD NEW" in shell.run("%board_replace dead-1")
    fleet.revoke("dead-1")


def test_rename_confirms_the_new_name_and_shows_its_usage(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet.enrol(["old-1"])
    assert shell.run("%board_rename old-1 new-1") == "old-1 was renamed to new-1."
    assert [board["name"] for board in fleet.boards("new-1")] == ["new-1"]
    assert "%board_rename BOARD NAME" in shell.run("%board_rename new-1")
    shell.run("%board_rename old-1 other-1")
    assert isinstance(shell.error, NoSuchBoard)
    fleet.revoke("new-1")


def test_fleet_health_returns_what_is_wrong(shell: Shell, fleet: Fleet):  # noqa: F811
    fleet.enrol(["away-2"])
    try:
        shell.run("health = %fleet_health")
        health: Any = shell.ip.user_ns["health"]
        assert isinstance(health, Health)
        assert [each.kind for each in health.of_board("away-2")] == ["absent"]
        assert "Usage: %fleet_health" in shell.run("%fleet_health lab-1")
    finally:
        fleet.revoke("away-2")


def test_history_is_returned_and_exported(shell: Shell, fleet: Fleet, tmp_path):  # noqa: F811
    fleet["demo-1"].run("before = 1").raise_for_error()
    shell.run("%%board demo-1\nkept = 42\nkept")
    shell.run("h = %board_history demo-1 --since 1h")
    history: Any = shell.ip.user_ns["h"]
    assert isinstance(history, History)
    assert [entry.text for entry in history[-2:]] == ["before = 1", "kept = 42\nkept\n"]
    assert "kept = 42" in str(history._repr_html_())
    path = tmp_path / "past.ipynb"
    assert f"to {path}." in shell.run(f"%board_history demo-1 --export {path}")
    assert "%%board demo-1\\n" in path.read_text()
    assert "Usage: %board_history" in shell.run("%board_history demo-1 demo-2")
