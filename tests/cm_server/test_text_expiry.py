"""Texts of cells are deleted after their time, and the oldest when there are too many."""

from __future__ import annotations

import time

from cm_server.clock import CheckedClock
from cm_server.jobs.job_texts import JobTexts
from cm_server.limits import Limits
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from cm_server.store.text_rows import JobTextRow, text_digest
from cm_server.text_expiry import FIRST_ROUND_SECONDS, PAUSE_SECONDS, ROUND_SECONDS, TextExpiry
from cm_server.times import DAY

from .dispatching import Clock

NOW = time.time()


class Home:
    """A store with texts that were run on certain days."""

    def __init__(self, keep_days: int = 30, wrong_days: float = 0.0, **limits: int) -> None:
        self.store = Store(None)
        self.store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
        self.clock = Clock()
        self.queue = StoreQueue(self.store)
        self.wrong_days = 0.0
        checked = CheckedClock(
            self.queue, wall=lambda: time.time() + self.wrong_days * DAY, steady=lambda: NOW
        )
        self.texts = JobTexts(self.queue, self.clock.later, Limits(prune_rows=3, **limits))
        self.expiry = TextExpiry(self.texts, self.clock.later, keep_days, checked)
        checked.check()
        self.wrong_days = wrong_days

    def ran(self, text: str, days_ago: float) -> None:
        (number,) = self.store.insert_jobs(["id1"], "ann")
        row = JobTextRow(number, number, "t", "{}", text, True)
        self.store.text_rows.add([row], NOW - days_ago * DAY)

    def round(self, seconds: float = FIRST_ROUND_SECONDS) -> None:
        """Let a round begin, and all of its batches pass."""
        self.clock.turn(seconds)
        for _ in range(20):
            assert self.queue.drain()
            self.clock.turn(PAUSE_SECONDS)

    def left(self, *texts: str) -> list[str]:
        return sorted(self.store.text_rows.texts(list(map(text_digest, texts))).values())


def test_old_texts_are_deleted_in_batches():
    home = Home()
    old = [f"old {n}" for n in range(7)]
    for text in old:
        home.ran(text, 31)
    home.ran("new", 29)
    home.round()
    assert home.left("new", *old) == ["new"]
    assert home.expiry.deleted == 7
    home.ran("later", 40)
    home.round(ROUND_SECONDS)
    assert home.left("later") == []


def test_all_texts_are_deleted_if_none_are_kept():
    home = Home(keep_days=0)
    home.ran("x", 0.001)
    home.round()
    assert home.left("x") == []
    assert home.texts.keep is False


def test_nothing_is_deleted_by_an_uncertain_clock():
    home = Home(wrong_days=400)
    home.ran("x", 1)
    home.round()
    assert home.left("x") == ["x"]


def test_too_many_texts_are_reduced_to_the_last_days():
    home = Home(text_total_chars=25)
    for days in range(5):
        home.ran(f"{days}" * 10, days)
    home.round()
    assert home.left(*(f"{days}" * 10 for days in range(5))) == ["0" * 10, "1" * 10]
    assert home.texts.room == 5
