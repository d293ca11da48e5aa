"""Which events are alarms, once each, and gathered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.targets import natural_key
from cm_server import alarms
from cm_server.alarms import GATHER_SECONDS, LOST_SECONDS, QUIET_SECONDS, Alarms, BoardAlarms
from cm_server.jobs.model import Board, RemoteBoardState
from cm_server.jobs.registry import Registry
from cm_server.store.rows import new_board_row

from .dispatching import Clock, RecordingLink
from .pairs import two_servers
from .peers import FakeBoard, FakeCaller, Service, running_service
from .receiver import running_receiver

SECRET = "0123456789abcdef"


class Home:
    """Boards, and the alarms about them, with a clock that the test turns."""

    def __init__(self, count: int = 3) -> None:
        rows = [new_board_row(f"id{n}", f"lab-{n}", bytes(32)) for n in range(1, count + 1)]
        self.registry = Registry(rows)
        self.clock = Clock()
        self.is_leader = True
        self.sent: list[dict[str, Any]] = []
        gathered = Alarms(self.sent.append, self.clock.later, lambda: 1.0)
        self.alarms = BoardAlarms(
            self.registry,
            gathered,
            self.clock.later,
            is_leader=lambda: self.is_leader,
            clock=lambda: self.clock.now,
        )
        self.clock.turn(2)

    def board(self, name: str = "lab-1") -> Board:
        return self.registry.by_name[name]

    def connect(self, name: str = "lab-1", **facts: Any) -> None:
        self.board(name).connect(RecordingLink(), facts, 1500)
        self.clock.turn(2)

    def drop(self, *names: str) -> None:
        for name in names or ("lab-1",):
            self.board(name).disconnect()

    def events(self, seconds: float = LOST_SECONDS + 2 * GATHER_SECONDS) -> list[dict[str, Any]]:
        """Return the events that are sent in some seconds."""
        del self.sent[:]
        self.clock.turn(seconds)
        return [event for message in self.sent for event in message["events"]]


def event(kind: str, *names: str, times: int = 0) -> dict[str, Any]:
    times = times or len(names)
    return {"kind": kind, "count": len(names), "times": times, "names": list(names)}


def test_outage_of_a_site_is_one_message():
    home = Home(120)
    for name in home.registry.by_name:
        home.connect(name)
    names = sorted(home.registry.by_name, key=natural_key)
    home.drop(*reversed(names[20:]))
    home.clock.turn(5)
    home.drop(*reversed(names[:20]))
    (found,) = home.events()
    assert (found["kind"], found["count"]) == ("board-lost", 120)
    assert found["names"] == names[:50]
    assert len(home.sent) == 1
    assert set(home.sent[0]) == {"id", "at", "events"}
    assert home.events(10 * LOST_SECONDS) == []


def test_board_that_is_back_in_time_is_no_alarm():
    home = Home()
    home.connect()
    home.drop()
    home.clock.turn(LOST_SECONDS - 5)
    home.connect()
    home.drop()
    home.clock.turn(LOST_SECONDS - 5)
    home.connect()
    assert home.events() == []


def test_board_that_is_lost_again_is_reported_again():
    home = Home()
    for _ in range(2):
        home.connect()
        home.drop()
        assert home.events() == [event("board-lost", "lab-1")]
        assert home.events(QUIET_SECONDS) == []


def test_board_that_flaps_is_one_message_with_a_number_every_ten_minutes():
    home = Home()

    def flap(seconds: float) -> list[dict[str, Any]]:
        """Return what is sent while a board is in safe mode and out of it every 10 s."""
        del home.sent[:]
        for _ in range(round(seconds / 10)):
            for program in ("safe mode, without app.py", "app.py runs"):
                home.connect(program=program)  # which takes 2 s
                home.clock.turn(3)
        return [event for message in home.sent for event in message["events"]]

    assert flap(30) == [event("safe-mode", "lab-1")]
    (counted,) = flap(QUIET_SECONDS)
    assert counted == event("safe-mode", "lab-1", times=counted["times"])
    assert 55 < counted["times"] < 65
    home.connect("lab-2", program="safe mode, without app.py")
    assert home.events() == [event("safe-mode", "lab-2")]  # at once: another board
    (last,) = home.events(2 * QUIET_SECONDS)
    assert last["names"] == ["lab-1"]
    assert home.events(2 * QUIET_SECONDS) == []
    assert home.alarms._alarms._quiet == {}
    home.connect(program="safe mode, without app.py")
    assert home.events() == [event("safe-mode", "lab-1")]  # at once: it was quiet for long


def test_rollout_that_stops_again_is_reported_at_once():
    home = Home()
    for _ in range(2):  # somebody has let it go on
        home.alarms._alarms.add("rollout-stopped", "greenhouse")
        assert home.events(2 * GATHER_SECONDS) == [event("rollout-stopped", "greenhouse")]


def test_boards_that_were_absent_at_the_start_or_are_removed_are_no_alarm():
    home = Home()
    assert home.events() == []
    home.connect("lab-2")
    home.drop("lab-2")
    home.registry.remove(home.board("lab-2"))
    assert home.events() == []


def test_board_at_another_server_is_present_and_only_the_leader_reports_it():
    home = Home()
    home.board().remote_state = RemoteBoardState("b", 1, "idle", since=1.0)
    home.clock.turn(2)
    home.board().remote_state = RemoteBoardState("b", 1, "offline")
    assert home.events() == [event("board-lost", "lab-1")]
    home.is_leader = False
    home.connect()
    home.drop()
    assert home.events() == []


def test_sleeping_board_is_overdue_once(monkeypatch):
    home = Home()
    wall = time.time()
    monkeypatch.setattr(time, "time", lambda: wall + home.clock.now)
    home.connect()
    board = home.board()
    for _ in range(2):
        due = time.time() + 500
        board.connect(RecordingLink(), {"wakes_at": due - 100, "overdue_at": due}, 1500)
        board.disconnect()
        assert home.events(490) == []
        assert home.events(100) == [event("board-overdue", "lab-1")]
        assert home.events(1000) == []


def test_safe_mode_is_reported_once_until_the_program_runs_again():
    home = Home()
    home.connect(program="app.py runs")
    home.connect(program="safe mode, without app.py: secret text of a board")
    assert home.events() == [event("safe-mode", "lab-1")]
    assert "secret" not in str(home.sent)
    home.connect(program="safe mode, without app.py: again")
    assert home.events(QUIET_SECONDS) == []
    home.connect(program="app.py runs")
    home.connect(program="safe mode: app.py reset the board")
    assert home.events() == [event("safe-mode", "lab-1")]
    home.connect("lab-2", program={"safe mode": 1})
    assert home.events() == []


def test_many_boards_are_examined_in_turns_and_forgotten():
    home = Home(1200)
    for name in home.registry.by_name:
        home.board(name).connect(RecordingLink(), {}, 1500)
    home.clock.turn(2)
    for _ in range(20):  # of a board that flickers, not more and more is kept
        home.drop("lab-1")
        home.clock.turn(2)
        home.connect("lab-1")
    assert len(home.alarms._due) < 3
    home.drop(*home.registry.by_name)
    assert home.events()[0]["count"] == 1200
    assert home.alarms._due == []
    assert home.alarms._due_at == {}


def test_different_events_are_one_message():
    home = Home()
    gathered = home.alarms._alarms
    gathered.add("rollout-stopped", "greenhouse")
    home.connect("lab-1", program="safe mode: app.py reset the board")
    assert home.events() == [event("rollout-stopped", "greenhouse"), event("safe-mode", "lab-1")]
    assert len(home.sent) == 1


# With servers and a receiver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are sent after a moment."""
    monkeypatch.setattr(alarms, "LOST_SECONDS", 0.3)
    monkeypatch.setattr(alarms, "GATHER_SECONDS", 0.7)
    monkeypatch.setattr(alarms, "_CHECK_SECONDS", 0.05)


async def lose_two_boards(service: Service, reached: Service) -> None:
    """Let two boards connect to a server, and then be lost."""
    identities = service.enrol("lab-1", "lab-2")
    await reached.until(lambda: len(reached.server.registry.by_name) == 2)
    async with contextlib.AsyncExitStack() as stack:
        for identity in identities:
            await stack.enter_async_context(await FakeBoard.join(reached, identity))
        await service.until(lambda: service.state("lab-2") == "idle")
        await asyncio.sleep(0.2)


async def test_lost_boards_of_a_server_are_one_message(quick: None, tmp_path: Path):
    with running_receiver() as receiver:
        environment: dict[str, Any] = {"webhook": receiver.url, "webhook_secret": SECRET}
        async with running_service(tmp_path, **environment) as service:
            await lose_two_boards(service, service)
            await service.until(lambda: receiver.posts)
            (message,) = receiver.messages
            (found,) = message["events"]
            assert (found["kind"], sorted(found["names"])) == ("board-lost", ["lab-1", "lab-2"])
            async with await FakeCaller.join(service) as caller:  # the secret is nowhere
                assert SECRET not in str(await caller.ask("status"))


async def test_two_servers_send_one_message(quick: None, tmp_path: Path):
    with running_receiver() as receiver:
        environment: dict[str, Any] = {"webhook": receiver.url, "webhook_secret": SECRET}
        async with two_servers(tmp_path, tmp_path / "shared.db", **environment) as two:
            await lose_two_boards(two.a, two.b)
            await two.a.until(lambda: receiver.posts)
            await asyncio.sleep(1.5)  # in which the other server would send the same
            (message,) = receiver.messages
            assert message["events"][0]["count"] == 2
