"""Which restarts and errors of boards are recorded."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cm_server.board_health import BoardHealth
from cm_server.board_logs import LogText
from cm_server.limits import Limits
from cm_server.store.health_rows import KEPT_CRASHES
from tests.cm_server.dispatching import Rig

TRACEBACK = """\
Traceback (most recent call last):
  File "app.py", line 3, in <module>
  File "app.py", line 2, in measure
ValueError: no sensor
"""


class Lab(Rig):
    """A dispatch with boards, and what records how they are."""

    def __init__(self) -> None:
        super().__init__()
        self.health = BoardHealth(self.queue, self.registry, self.clock.later, Limits())
        self.dispatch.board_messages.on_program = self.health.on_program

    def start(self, boot: str, cause: str = "pwron", **facts: Any) -> None:
        """Connect lab-1 after a start."""
        self.health.on_connected(self.board(), {"boot": boot, "reset": cause, **facts})
        self.connect(boot=boot)

    def restarts(self) -> dict[str, int]:
        self.write()
        return self.store.health_rows.restarts_since(0.0).get("id1", {})

    def log(self, *texts: str, name: str = "lab-1", lost: int = 0) -> None:
        for text in texts:
            self.health.on_log(self.board(name), LogText(time.time(), lost, text))

    def crashes(self) -> dict[str, list[str]]:
        """Return the texts of errors, each with the ids of its boards."""
        self.write()
        rows = self.store.health_rows.crashes_since(0.0)
        texts = self.store.health_rows.crash_texts([row.digest for row in rows])
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(texts[row.digest], []).append(row.board_id)
        return found

    def write(self) -> None:
        self.clock.turn(1.0)
        self.health.write()
        assert self.queue.drain()


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_restarts_are_counted_by_cause(lab: Lab):
    lab.start("b1")
    assert lab.restarts() == {}  # it is the first start that is known
    lab.start("b1")  # the link broke
    lab.start("b2", "wdt")
    lab.start("b3", "wdt")
    lab.start("b4")
    assert lab.restarts() == {"wdt": 2, "pwron": 1}


def test_wakes_and_resets_that_somebody_asked_for_are_no_restarts(lab: Lab):
    lab.start("b1")
    lab.start("b2", "deepsleep")
    lab.run(fresh=True)
    assert lab.board().is_restarting
    lab.start("b3", "soft")
    assert lab.restarts() == {}


def test_unknown_causes_are_one(lab: Lab):
    lab.start("b1")
    for number in range(20):
        lab.start(f"c{number}", f"cause {number}")
    assert lab.restarts() == {"": 20}


def test_restart_of_the_server_does_not_hide_a_restart(lab: Lab):
    lab.store.mark_board_seen("id1", {"boot": "b1"})
    again = Rig(lab.store)
    health = BoardHealth(again.queue, again.registry, again.clock.later, Limits())
    health.on_connected(again.board(), {"boot": "b2", "reset": "hard"})
    health.write()
    assert again.queue.drain()
    assert lab.store.health_rows.restarts_since(0.0) == {"id1": {"hard": 1}}


@pytest.mark.parametrize(
    "texts",
    [
        [TRACEBACK],
        TRACEBACK.splitlines(keepends=True),
        ["ready\n" + TRACEBACK.replace("\n", "\r\n") + "next\n"],
        [TRACEBACK[:60], TRACEBACK[60:]],
    ],
    ids=["whole", "lines", "between others", "pieces"],
)
def test_traceback_in_a_log_is_recorded(lab: Lab, texts: list[str]):
    lab.log(*texts)
    assert lab.crashes() == {TRACEBACK.rstrip("\n"): ["id1"]}


def test_equal_tracebacks_of_boards_are_equal_and_different_ones_are_not(lab: Lab):
    lab.log(TRACEBACK + TRACEBACK.replace("line 2", "line 7"))
    lab.log(TRACEBACK, name="lab-2")
    boards = sorted(map(sorted, lab.crashes().values()))
    assert boards == [["id1"], ["id1", "id2"]]


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: no sensor\n",
        TRACEBACK[:-1],
        "Traceback (most recent call last):\n" + "  x\n" * 999,
    ],
    ids=["no traceback", "unfinished", "endless"],
)
def test_what_is_no_whole_traceback_is_not_recorded(lab: Lab, text: str):
    lab.log(text)
    assert lab.crashes() == {}
    assert sum(map(len, lab.health._tracebacks.values())) <= Limits().traceback_chars + 40


def test_traceback_of_which_a_part_was_lost_is_not_recorded(lab: Lab):
    lab.log(TRACEBACK[:60])
    lab.log(TRACEBACK[60:], lost=7)
    assert lab.crashes() == {}
    lab.log(TRACEBACK[:60])
    lab.log(TRACEBACK, lost=7)  # the next one is whole
    assert list(lab.crashes().values()) == [["id1"]]


@pytest.mark.parametrize(
    "state", ["app.py ended: OSError: 5", "safe mode, without app.py: OSError: 5"]
)
def test_state_of_a_program_that_an_error_has_ended_is_recorded(lab: Lab, state: str):
    lab.health.on_program(lab.board(), state)
    lab.start("b1", program=state)
    assert lab.crashes() == {"OSError: 5": ["id1"]}


@pytest.mark.parametrize(
    "state", ["", "app.py", "app.py ended", "safe mode: app.py reset the board"]
)
def test_other_states_are_no_errors(lab: Lab, state: str):
    lab.health.on_program(lab.board(), state)
    assert lab.crashes() == {}


def test_first_and_last_time_of_an_error_are_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    for at in (1000.0, 5000.0, 9000.0):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        lab.log(TRACEBACK)
        lab.write()
    (row,) = lab.store.health_rows.crashes_since(6000.0)
    assert (row.first, row.last) == (1000.0, 9000.0)
    assert lab.store.health_rows.crashes_since(9001.0) == []


def test_number_of_different_errors_of_a_board_is_bounded(lab: Lab):
    for number in range(3 * KEPT_CRASHES):
        lab.health.on_program(lab.board(), f"app.py ended: Error: {number}")
    assert len(lab.health._crashes[lab.board()]) == KEPT_CRASHES
    assert len(lab.crashes()) == KEPT_CRASHES
    for number in range(KEPT_CRASHES):
        lab.health.on_program(lab.board(), f"app.py ended: Other: {number}")
    assert all(text.startswith("Other") for text in lab.crashes())


def test_nothing_is_written_of_a_board_that_was_removed(lab: Lab):
    lab.log(TRACEBACK, name="lab-2")
    lab.log(TRACEBACK[:60])
    lab.log(TRACEBACK, name="lab-3")
    lab.write()
    lab.store.delete_boards(["id2"])
    for name in ("lab-1", "lab-2"):
        lab.registry.remove(lab.board(name))
    assert lab.crashes() == {TRACEBACK.rstrip("\n"): ["id3"]}
    assert lab.health._tracebacks == {}
