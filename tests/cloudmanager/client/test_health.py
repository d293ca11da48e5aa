"""How the state of a fleet is judged."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudmanager.board_client import client_files
from cloudmanager.client.client_upgrade import SPARE_BYTES
from cloudmanager.client.health import (
    LOW_FLASH_BYTES,
    LOW_HEAP_BYTES,
    MANY_RESTARTS,
    WEAK_RSSI_DBM,
    Health,
    find_problems,
)

PARTS = frozenset({"link", "run", "files"})
TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 7, in main\nOSError: 5'


def board(name: str = "lab-1", **values: Any) -> dict[str, Any]:
    """Describe a connected board that has no problem."""
    now = time.time()
    usual = {"connected_since": now - 60, "last_seen": now, "program": "app.py", "state": "idle"}
    return {"name": name, **usual, "heap": 90_000, "flash": 500_000, "rssi": -60, **values}


def absent(name: str, seconds: float | None) -> dict[str, Any]:
    seen = None if seconds is None else time.time() - seconds
    return board(name, connected_since=None, last_seen=seen, heap=1, rssi=-99, flash=1)


def judge(
    *boards: dict[str, Any],
    problems: tuple[str, ...] = (),
    rollouts: tuple[dict[str, Any], ...] = (),
    **reported: Any,
) -> Health:
    usual = {"hours": 24, "restarts": {}, "crashes": [], "parts": []}
    return find_problems(boards, {**usual, **reported}, PARTS, problems, rollouts)


def crash(*names: str, text: str | None = TRACEBACK, ago: float = 0.0) -> dict[str, Any]:
    first = time.time() - ago
    return {"boards": list(names), "text": text, "first": first, "last": first}


def test_nothing_is_wrong():
    health = judge(board(), board("lab-2", rssi=None, heap=None, flash=None))
    assert (health.ok, len(health), bool(health)) == (True, 0, True)
    assert repr(health) == "2 boards, 2 connected: nothing is wrong."
    assert repr(judge(board())) == "1 board, 1 connected: nothing is wrong."
    assert health._repr_html_() is None
    assert health.to_json() == {"boards": 2, "connected": 2, "findings": []}


def test_boards_that_left_together_are_one_finding():
    boards = [absent(f"lab-{n}", 7200 + n) for n in (1, 2, 3)]
    health = judge(*boards, absent("roof", 90.0), absent("new-1", None), board("lab-9"))
    assert [(each.kind, each.boards) for each in health] == [
        ("absent", ("roof",)),
        ("absent", ("lab-1", "lab-2", "lab-3")),
        ("absent", ("new-1",)),
    ]
    roof, lab, new = health
    assert roof.text.endswith("(1 min)")
    assert roof.advice.startswith("Check power and Wi-Fi of roof;")
    assert lab.text.endswith("(2 h)")
    assert lab.since == boards[0]["last_seen"]
    assert lab.advice == "Check what they share: power, access point, network."
    assert new.sentence == (
        "new-1: never connected since enrolment. Write the settings that `mbm board-enrol new-1` "
        "prints, with a new key, to /cm.json on new-1, or remove it: `mbm board-revoke new-1`."
    )
    assert health.connected == 1


def test_what_is_too_low_is_reported_with_its_range():
    health = judge(
        board("lab-1", rssi=WEAK_RSSI_DBM - 4, heap=LOW_HEAP_BYTES - 1024),
        board("lab-2", rssi=WEAK_RSSI_DBM - 11, flash=LOW_FLASH_BYTES - 1),
        board("lab-3", rssi=WEAK_RSSI_DBM, heap=LOW_HEAP_BYTES, flash=LOW_FLASH_BYTES),
        absent("lab-4", 5.0),
    )
    found = {each.kind: (each.boards, each.text) for each in health}
    assert found["weak signal"] == (("lab-1", "lab-2"), "weak Wi-Fi (-91 to -84 dBm)")
    assert found["low heap"] == (("lab-1",), "little free heap (7.0 KB)")
    assert found["low flash"] == (("lab-2",), "little free flash (56.0 KB)")


def test_board_with_enough_flash_can_be_upgraded():
    needed = sum(map(len, client_files().values())) + SPARE_BYTES
    assert needed <= 51 * 1024 <= LOW_FLASH_BYTES  # 51 KB: also docs/cli.md, how-to/upgrading.md


def test_restarts_are_grouped_by_their_most_frequent_cause():
    health = judge(
        restarts={
            "lab-1": {"wdt": 12, "pwron": 2},
            "lab-2": {"wdt": MANY_RESTARTS},
            "lab-3": {"pwron": MANY_RESTARTS},
            "lab-4": {"pwron": MANY_RESTARTS - 1},
            "lab-5": {"": 40},
        }
    )
    assert [(each.boards, each.text) for each in health] == [
        (("lab-5",), "restarted 40 times in 24 h, mostly: cause unknown"),
        (("lab-1", "lab-2"), "restarted 3 to 14 times in 24 h, mostly: watchdog or reset"),
        (("lab-3",), "restarted 3 times in 24 h, mostly: power on"),
    ]
    assert health.findings[2].advice == "Check the power supply and its cable."


def test_equal_errors_are_one_finding_with_place_and_time():
    (finding,) = judge(board(), board("lab-2"), crashes=[crash("lab-1", "lab-2", ago=600.0)])
    assert finding.text.startswith("OSError: 5 (app.py, line 7) (20")
    assert (finding.boards, finding.detail) == (("lab-1", "lab-2"), TRACEBACK)
    assert "`mbm board-logs lab-1`" in finding.advice
    again = {**crash("lab-1", ago=600.0), "last": time.time() - 60}
    (finding,) = judge(board(), crashes=[again])
    assert finding.text.endswith(", last 1 min ago)")


def test_error_whose_text_the_caller_may_not_read():
    (finding,) = judge(board(), crashes=[crash("lab-1", text=None)])
    assert finding.text.startswith("an error, which is in the log (")
    assert finding.detail == ""


def test_safe_mode_is_reported_instead_of_the_error_before_it():
    state = "safe mode, without app.py: OSError: 5"
    health = judge(
        board("lab-1", program=state),
        board("lab-2", program=state),
        board("lab-3"),
        crashes=[crash("lab-1", "lab-2", "lab-3", ago=50.0), crash("lab-1", text="ValueError: 1")],
    )
    assert [(each.kind, each.boards) for each in health] == [
        ("safe mode", ("lab-1", "lab-2")),
        ("crashed", ("lab-3",)),
        ("crashed", ("lab-1",)),
    ]
    assert health.findings[0].text == "app.py is not started any more (OSError: 5)"
    assert time.time() - (health.findings[0].since or 0) == pytest.approx(50.0, abs=30)
    assert health.of_board("lab-2") == [health.findings[0]]


def test_client_that_lacks_files_is_old():
    health = judge(
        parts=[
            [["files", "link", "run"], ["lab-1"]],
            [["files", "link", "new", "run"], ["lab-2"]],
            [["link", "run"], ["lab-3", "lab-4"]],
            [["files", "run"], ["frozen-1"]],  # no `link`: frozen into the firmware
            [[], ["bridged-1"]],
        ]
    )
    assert [(each.kind, each.boards) for each in health] == [("old client", ("lab-3", "lab-4"))]
    assert health.findings[0].advice == "Upgrade it: `mbm board-upgrade-client 'lab-[3-4]'`."


def test_problems_of_the_server_come_first():
    health = judge(absent("lab-1", 5.0), problems=("the clock is wrong",))
    assert [each.kind for each in health] == ["server", "absent"]
    assert health.findings[0].sentence == "the clock is wrong."


def test_text_fits_on_a_screen_and_is_safe():
    crashes = [crash(f"b{n}x", text=f"Error: {n}\x1b[2J" + "x" * 500) for n in range(50)]
    text = repr(judge(board(), crashes=crashes))
    lines = text.splitlines()
    assert lines[0] == "1 board, 1 connected, 50 findings:"
    assert len(lines) == 22
    assert lines[-1] == "… and 30 more; `mbm fleet-health --json` shows all"
    assert "\x1b" not in text
    assert max(map(len, lines)) < 300
    names = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}-board" for n in range(200)]
    (finding,) = judge(crashes=[crash(*names)])
    assert finding.sentence.startswith("200 boards (aa-board,ab-board,")
    assert "<table" in str(judge(absent("lab-1", 1.0))._repr_html_())


def rollout(state: str, why: str = "", **boards: str) -> dict[str, Any]:
    """Describe the newest rollout of the group lab; the boards are those that failed."""
    failed = [{"board": name, "state": "failed", "why": why} for name, why in boards.items()]
    waiting = {"board": "lab-9", "state": "waiting", "why": ""}
    about = {"rollout": 4, "group": "lab", "changed": 5.0}
    return {**about, "state": state, "why": why, "boards": [*failed, waiting]}


def test_rollouts_that_stopped_and_boards_that_failed_are_reported():
    sensor = {"lab_1": "health: OSError: no sensor", "lab_2": "health: OSError: no sensor"}
    (failed,) = judge(rollouts=(rollout("failed", "2 failed, and max_failures is 1", **sensor),))
    assert (failed.kind, failed.boards, failed.since) == ("rollout", ("lab_1", "lab_2"), 5.0)
    assert failed.sentence == (
        "lab_[1-2]: rollout 4 of lab failed (2 failed, and max_failures is 1). "
        "`mbm fleet-status` says why."
    )
    (paused,) = judge(rollouts=(rollout("paused", "by ann"),))
    assert paused.sentence == (
        "rollout 4 of lab is paused (by ann). `mbm fleet-resume lab` lets it go on."
    )
    (some,) = judge(rollouts=(rollout("done", **sensor),))
    assert some.sentence == (
        "lab_[1-2]: failed in rollout 4 of lab (health: OSError: no sensor). "
        "Applying its file again tries it again; `mbm fleet-status` says more."
    )
    for state in ("running", "done", "aborted", "replaced"):
        assert judge(rollouts=(rollout(state),)).ok
