"""What boards print outside of cells: rates, what is kept, what followers receive."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError
from cm_server.board_logs import BoardLogs, LogText
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.store.log_rows import LogRows
from cm_server.store.rows import BoardRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

LIMITS = dataclasses.replace(
    Limits(),
    log_bytes_per_second=1000,
    log_burst_bytes=2000,
    log_chars=100,
    log_trim_chars=20,
    log_total_chars=300,
    log_total_trim_chars=50,
    log_unwritten_chars=400,
    log_min_chars=1,
)


class Timer:
    def cancel(self) -> None:
        pass


class Lab:
    """Logs of some boards, a store in memory, and a timer that a test fires."""

    def __init__(
        self, names: list[str], limits: Limits = LIMITS, store: Store | None = None
    ) -> None:
        self.store = store or Store(None)
        rows = [BoardRow(f"id-{name}", name, b"k" * 32, {}, {}, 0.0, None) for name in names]
        self.store.enrol_boards(rows)
        self.registry = Registry(rows)
        self.queue = StoreQueue(self.store, limits)
        self.timers: list[Callable[[], None]] = []
        self.logs = BoardLogs(self.queue, self.registry, self._later, limits)
        self.heard: list[tuple[str, LogText]] = []
        self.logs.listeners.append(lambda board, text: self.heard.append((board.name, text)))

    def _later(self, _seconds: float, act: Callable[[], None]) -> Timer:
        self.timers.append(act)
        return Timer()

    def board(self, name: str) -> Board:
        return self.registry.by_name[name]

    def log(self, name: str, data: bytes, lost: int = 0) -> None:
        payload = lost.to_bytes(4, "big") + data
        self.logs.add_message(self.board(name), wire.Message(wire.LOG, 0, 0, payload))

    async def write(self) -> None:
        """Let the timer fire until everything is written."""
        while self.timers:
            timers, self.timers = self.timers, []
            for act in timers:
                act()
            if (operation := self.logs.write()) is not None:
                await operation

    def stored(self, *names: str, **where: Any) -> list[tuple[str, int, str]]:
        ids = [self.board(name).id for name in names]
        page = self.store.log_rows.read(
            ids, where.get("since", 0.0), where.get("after", 0), where.get("max_chars", 10**6)
        )
        return [(row.board_id.removeprefix("id-"), row.lost, row.text) for row in page.rows]


async def test_what_a_board_prints_is_heard_and_stored():
    lab = Lab(["a", "b"])
    lab.log("a", b"one\n")
    lab.log("b", b"two\n", lost=7)
    assert [(name, text.lost, text.text) for name, text in lab.heard] == [
        ("a", 0, "one\n"),
        ("b", 7, "two\n"),
    ]
    await lab.write()
    assert lab.stored("a", "b") == [("a", 0, "one\n"), ("b", 7, "two\n")]
    assert lab.stored("b") == [("b", 7, "two\n")]


async def test_output_of_a_program_is_a_log():
    lab = Lab(["a"])
    lab.logs.add_message(lab.board("a"), wire.Message(wire.OUTPUT, 0, 0, b"from 0.1\n"))
    await lab.write()
    assert lab.stored("a") == [("a", 0, "from 0.1\n")]


async def test_characters_in_two_messages_and_bytes_that_are_no_text():
    lab = Lab(["a"])
    data = "\N{DEGREE SIGN}C".encode()
    lab.log("a", data[:1])
    lab.log("a", data[1:])
    lab.log("a", b"\xff\0\n")
    assert "".join(text.text for _, text in lab.heard) == "\N{DEGREE SIGN}C\ufffd\ufffd\n"


async def test_excess_is_lost_and_counted_also_when_nothing_follows():
    lab = Lab(["a"])
    lab.log("a", b"x" * 3000)
    assert len(lab.heard[0][1].text) == 2000
    await lab.write()
    assert [text.lost for _, text in lab.heard] == [0, 1000]


async def test_board_keeps_its_newest_text():
    lab = Lab(["a", "b"])
    lab.log("b", b"quiet\n")
    for number in range(20):
        lab.log("a", b"line %5d\n" % number)
        await lab.write()
    texts = [text for _, _, text in lab.stored("a")]
    assert texts[-1] == "line    19\n"
    assert 80 <= sum(map(len, texts)) <= 120
    assert lab.stored("b") == [("b", 0, "quiet\n")]


async def test_all_boards_together_keep_a_bounded_amount():
    names = [f"n{number}" for number in range(20)]
    lab = Lab(names)
    for name in names:
        for number in range(4):
            lab.log(name, b"%s %d ........\n" % (name.encode(), number))
        await lab.write()
    stored = lab.stored(*names)
    assert sum(len(text) for _, _, text in stored) <= 300 + 70
    assert sum(name == "n19" for name, _, _ in stored) == 4  # the quietest lose theirs first


async def test_pages_continue_where_the_last_one_ended():
    lab = Lab(["a"])
    for number in range(9):
        lab.log("a", b"%d" % number)
    await lab.write()
    first = lab.store.log_rows.read(["id-a"], 0.0, 0, 3)
    assert ("".join(row.text for row in first.rows), first.complete) == ("0123", False)
    second = lab.store.log_rows.read(["id-a"], 0.0, first.last_id, 100)
    assert ("".join(row.text for row in second.rows), second.complete) == ("45678", True)


async def test_log_is_erased_with_its_board():
    lab = Lab(["a"])
    board = lab.board("a")
    lab.log("a", b"before\n")
    await lab.write()
    lab.log("a", b"not written yet\n")
    lab.store.delete_boards([board.id])
    lab.registry.remove(board)
    await lab.write()
    assert lab.store.log_rows.read([board.id], 0.0, 0, 100).rows == []


async def test_while_the_store_stands_still_the_oldest_is_dropped():
    limits = dataclasses.replace(Limits(), log_unwritten_chars=400)
    lab, gate = Lab(["a"], limits), threading.Event()
    lab.queue.run(lambda _: gate.wait(10), durable=True)
    for number in range(100):
        lab.log("a", b"%99d" % number)
        lab.logs.write()
    gate.set()
    await lab.write()
    await lab.write()
    numbers = [int(text) for _, _, text in lab.stored("a")]
    assert numbers == [0, 96, 97, 98, 99]  # the first write was on its way


async def test_empty_and_short_texts_count_too():
    limits = dataclasses.replace(LIMITS, log_min_chars=10)
    lab = Lab(["a", "b"], limits)
    for number in range(200):
        lab.log("a", b"", lost=1)
        lab.log("b", b"%d" % (number % 10))
        if number % 5 == 4:
            await lab.write()
    for name in ("a", "b"):
        assert 10 <= len(lab.stored(name)) <= 13
    assert lab.stored("b")[-1] == ("b", 0, "9")


async def test_empty_texts_that_wait_for_the_store_are_bounded():
    limits = dataclasses.replace(LIMITS, log_min_chars=10)
    lab, gate = Lab(["a"], limits), threading.Event()
    lab.queue.run(lambda _: gate.wait(10), durable=True)
    for _ in range(500):
        lab.log("a", b"", lost=1)
        lab.logs.write()
    assert len(lab.logs._unwritten) == 40
    gate.set()
    await lab.write()


async def test_huge_losses_are_stored_as_the_largest_number():
    lab = Lab(["a"])
    for _ in range(3):
        lab.log("a", b"x", lost=2**32 - 1)
    await lab.write()
    assert lab.stored("a") == [("a", 2**31 - 1, "x")] * 3


async def test_write_that_is_tried_again_stores_each_text_once(tmp_path, monkeypatch):
    lab = Lab(["a"], store=Store(tmp_path / "server.db"))
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    outcomes = [error, error]
    trim = LogRows._trim_board

    def fail_twice(*args: Any) -> None:
        if outcomes:
            raise outcomes.pop()
        trim(*args)

    monkeypatch.setattr(LogRows, "_trim_board", fail_twice)
    lab.log("a", b"one")
    await lab.write()
    assert (lab.stored("a"), outcomes) == ([("a", 0, "one")], [])
    lab.queue.close()


@pytest.mark.parametrize("payload", [b"", b"\0\0\0"])
def test_malformed_log_is_refused(payload: bytes):
    with pytest.raises(PeerWireError):
        wire.read_log(wire.Message(wire.LOG, 0, 0, payload))
