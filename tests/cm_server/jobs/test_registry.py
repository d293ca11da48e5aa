"""The registry: all enrolled boards, their states and facts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cloudmanager.protocol.targets import parse_target
from cm_server.jobs.model import MIN_BUFFER, Board, Cell, Job, Requester
from cm_server.jobs.registry import Registry
from cm_server.store.rows import BoardRow

FACTS = {
    "platform": "esp32",
    "version": "1.27.0",
    "mpy": 0x0B06,
    "machine": "ESP32 module",
    "client": "0.1",
    "heap": 111168,
    "boot": "b1",
}


class Link:
    def send(self, message: bytes) -> None:
        raise AssertionError("the registry sends nothing")

    def close(self, code: int, reason: str = "") -> None:
        raise AssertionError("the registry closes nothing")

    def abort(self) -> None:
        raise AssertionError("the registry closes nothing")


def row(name: str = "lab-1", facts: dict[str, Any] | None = None) -> BoardRow:
    return BoardRow(f"id-{name}", name, b"k" * 32, {"room": "lab"}, facts or {}, 1.0, 5.0)


def busy(board: Board) -> None:
    job = Job(7, board, Cell(b"1"), Requester("ann"))
    job.state, job.started = "running", time.time()
    board.current_job = job


def test_boards_are_found_by_name_and_by_id():
    registry = Registry([row("lab-1"), row("lab-2")])
    added = registry.add(row("lab-3"))
    assert list(registry.by_name) == ["lab-1", "lab-2", "lab-3"]
    assert registry.by_id["id-lab-3"] is added is registry.by_name["lab-3"]


def test_online_returns_boards_with_a_link():
    registry = Registry([row("lab-1"), row("lab-2")])
    registry.by_name["lab-2"].connect(Link(), FACTS, 1500)
    assert [board.name for board in registry.online()] == ["lab-2"]


def test_board_is_offline_idle_busy_or_lost():
    board = Board(row())
    seen = [(board.state, board.online)]
    board.connect(Link(), FACTS, 1500)
    seen.append((board.state, board.online))
    busy(board)
    seen.append((board.state, board.online))
    board.disconnect()
    seen.append((board.state, board.online))
    assert seen == [("offline", False), ("idle", True), ("busy", True), ("lost", False)]


def test_links_are_counted_and_dated():
    board = Board(row())
    before = time.time()
    board.connect(Link(), FACTS, 1500)
    board.connect(Link(), FACTS, 300)
    assert (board.link_count, board.buffer_size) == (2, 300)
    assert board.connected_since is not None
    assert before - 60 < board.connected_since <= time.time()
    described = board.describe()
    assert described["last_seen"] >= before
    board.disconnect()
    assert board.describe()["connected_since"] is None
    assert board.describe()["last_seen"] >= described["last_seen"]


def test_board_that_never_connected_has_the_smallest_buffer():
    assert Board(row()).buffer_size == MIN_BUFFER


def test_targets_can_select_by_facts():
    board = Board(row(facts=FACTS))
    assert board.facts == {
        "platform": "esp32",
        "version": "1.27.0",
        "machine": "ESP32 module",
        "state": "offline",
        "mpy": "6.3",
        "client": "0.1",
    }
    board.connect(Link(), FACTS, 1500)
    chosen = parse_target("platform=esp32 & mpy=6.3 & state=idle & room=lab").resolve(
        {"lab-1": board}
    )
    assert chosen.names == ("lab-1",)


@pytest.mark.parametrize("facts", [{}, {"mpy": None}, {"mpy": "6.3"}, {"mpy": [6]}])
def test_invalid_mpy_fact_gives_no_bytecode_version(facts):
    assert Board(row(facts=facts)).facts["mpy"] == ""


def test_describe_is_json_without_the_key():
    board = Board(row(facts=FACTS))
    board.connect(Link(), FACTS, 1500)
    busy(board)
    described = board.describe()
    text = json.dumps(described)
    assert "kkkk" not in text
    assert (b"k" * 32).hex() not in text
    assert described["name"] == "lab-1"
    assert described["labels"] == {"room": "lab"}
    assert described["heap"] == 111168
    assert described["job"]["job"] == 7
    assert described["job"]["caller"] == "ann"
    assert described["queued"] == 0


def test_describe_contains_when_an_offline_board_was_seen():
    described = Board(row()).describe()
    assert (described["state"], described["last_seen"], described["job"]) == ("offline", 5.0, None)
    board = Board(row())
    board.connect(Link(), FACTS, 1500)
    assert board.describe()["last_seen"] >= board.connected_since


def test_listener_is_called_at_each_change():
    registry = Registry([row()])
    changed: list[Board] = []
    registry.subscriptions_listener = changed.append
    board = registry.by_name["lab-1"]
    changes = [
        lambda: board.connect(Link(), FACTS, 1000),
        lambda: busy(board),
        lambda: setattr(board, "current_job", None),
        lambda: setattr(board, "labels", {"room": "attic"}),
        board.disconnect,
        lambda: registry.remove(board),
        lambda: registry.add(row("lab-2")),
    ]
    for change in changes:
        changed.clear()
        change()
        assert changed, change
    assert changed == [registry.by_name["lab-2"]]
