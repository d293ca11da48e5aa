"""`fresh=True`: the boards are soft-reset before the cell runs."""

from __future__ import annotations

import time

from .conftest import BOARDS, WAIT, Lab

SET_STATE = """
import sys
sys.path.append("/leftover")
leftover = 1
with open("/kept.txt", "w") as file:
    file.write("kept")
"""
READ_STATE = """
import sys
("leftover" in globals(), "/leftover" in sys.path, open("/kept.txt").read())
"""
MAX_SECONDS = 2.0  # time for a board to reset and run a short cell


def test_fresh_board_has_no_names_and_all_its_files(lab: Lab):
    assert lab.fleet["lab-1"].run(SET_STATE).ok
    assert lab.fleet["lab-1"].run(READ_STATE).value == (True, True, "kept")
    started = time.monotonic()
    assert lab.fleet["lab-1"].run(READ_STATE, fresh=True).value == (False, False, "kept")
    assert time.monotonic() - started < MAX_SECONDS


def test_several_boards_reset_in_parallel_and_others_do_not(lab: Lab):
    assert lab.fleet["all"].run(SET_STATE).ok
    boards = lab.boards.pids
    started = time.monotonic()
    results = lab.fleet["lab-[1-5]"].run(READ_STATE, fresh=True)
    assert time.monotonic() - started < MAX_SECONDS
    assert set(results.to_dict().values()) == {(False, False, "kept")}
    again = lab.boards.pids
    changed = {name for name in boards if again[name] != boards[name]}
    assert changed == {f"lab-{number}" for number in range(1, 6)}
    others = lab.fleet[f"lab-[6-{BOARDS}]"].run(READ_STATE)
    assert set(others.to_dict().values()) == {(True, True, "kept")}


def test_fresh_waits_for_the_running_cell(lab: Lab):
    busy = lab.fleet["lab-2"].submit("import time; time.sleep(0.5); leftover = 2; leftover")
    fresh = lab.fleet["lab-2"].submit("'leftover' in globals()", fresh=True)
    after = lab.fleet["lab-2"].submit("import sys; sys.platform")
    assert busy.results(WAIT).value == 2
    assert fresh.results(WAIT).value is False
    assert after.results(WAIT).value == "linux"


def test_fresh_works_repeatedly(lab: Lab):
    for _ in range(5):
        started = time.monotonic()
        assert lab.fleet["lab-3"].run("1", fresh=True).value == 1
        assert time.monotonic() - started < MAX_SECONDS
