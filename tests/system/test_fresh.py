"""`fresh=True`: the boards restart first, then the cell runs, as if nobody had been there."""

from __future__ import annotations

import time

from .conftest import BOARDS, WAIT, Lab

MAKE = """
import sys
sys.path.append("/left")
left = 1
with open("/kept.txt", "w") as file:
    file.write("kept")
"""
LOOK = """
import sys
("left" in globals(), "/left" in sys.path, open("/kept.txt").read())
"""
QUICK = 2.0  # seconds in which a board has restarted and run a short cell


def test_fresh_board_has_no_names_and_all_its_files(lab: Lab):
    assert lab.fleet["lab-1"].run(MAKE).ok
    assert lab.fleet["lab-1"].run(LOOK).value == (True, True, "kept")
    started = time.monotonic()
    assert lab.fleet["lab-1"].run(LOOK, fresh=True).value == (False, False, "kept")
    assert time.monotonic() - started < QUICK


def test_several_boards_are_fresh_at_once_and_the_others_are_left_alone(lab: Lab):
    assert lab.fleet["all"].run(MAKE).ok
    boards = lab.boards.pids
    started = time.monotonic()
    results = lab.fleet["lab-[1-5]"].run(LOOK, fresh=True)
    assert time.monotonic() - started < QUICK
    assert set(results.to_dict().values()) == {(False, False, "kept")}
    again = lab.boards.pids
    changed = {name for name in boards if again[name] != boards[name]}
    assert changed == {f"lab-{number}" for number in range(1, 6)}
    others = lab.fleet[f"lab-[6-{BOARDS}]"].run(LOOK)
    assert set(others.to_dict().values()) == {(True, True, "kept")}


def test_fresh_waits_for_the_cell_that_runs(lab: Lab):
    busy = lab.fleet["lab-2"].submit("import time; time.sleep(0.5); left = 2; left")
    fresh = lab.fleet["lab-2"].submit("'left' in globals()", fresh=True)
    after = lab.fleet["lab-2"].submit("import sys; sys.platform")
    assert busy.results(WAIT).value == 2
    assert fresh.results(WAIT).value is False
    assert after.results(WAIT).value == "linux"


def test_fresh_again_and_again(lab: Lab):
    for _ in range(5):
        started = time.monotonic()
        assert lab.fleet["lab-3"].run("1", fresh=True).value == 1
        assert time.monotonic() - started < QUICK
