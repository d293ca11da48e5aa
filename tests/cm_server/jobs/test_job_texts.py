"""What jobs run is written after they were sent, and within limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudmanager.client.cell_verbs import make_cell
from cm_server.jobs.job_texts import WRITE_SECONDS, JobOrigin, JobTexts, describe_origin, find_text
from cm_server.limits import Limits
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from cm_server.store.text_rows import text_digest
from tests.cm_server.dispatching import Clock


class Home:
    """A store, and what writes texts to it when the test lets time pass."""

    def __init__(self, **limits: int) -> None:
        self.store = Store(None)
        self.store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
        self.clock = Clock()
        self.texts = JobTexts(StoreQueue(self.store), self.clock.later, Limits(**limits))

    def run(self, text: str, token: str = "t") -> None:
        numbers = self.store.insert_jobs(["id1"], "ann")
        self.texts.add(numbers, token, origin_of(text))

    def kept(self, *texts: str) -> list[str]:
        """Return those of these texts that are kept, after a while."""
        self.clock.turn(WRITE_SECONDS)
        assert self.texts.store_queue.drain()
        found = self.store.text_rows.texts(list(map(text_digest, texts)))
        return sorted(found.values())

    def digests(self) -> list[str | None]:
        return [row.text for row in self.store.text_rows.history(None, 2**32, 1000).rows]


def origin_of(text: str, inputs: dict[str, Any] | None = None, **head: Any) -> JobOrigin:
    cell = make_cell(text, inputs)
    return JobOrigin(
        "cell", {"own": list(cell.own), "inputs": list(cell.inputs), **head}, cell.code
    )


def test_nothing_is_written_before_the_jobs_are_sent():
    home = Home()
    home.run("x = 1")
    assert home.digests() == [None]
    assert home.kept("x = 1") == ["x = 1"]
    assert home.digests() == [text_digest("x = 1")]


@pytest.mark.parametrize("text", ["print(1)", "x", "await f()\nx", "if x:\n  y\nx", "", "é; ü"])
def test_inputs_are_not_in_the_text(text):
    found = find_text(origin_of(text, {"password": "hunter2", "pins": [1, 2]}))
    assert found == (text or None)


@pytest.mark.parametrize(
    "own", [None, "0", [0], [0, 99], [5, 2], [-1, 3], [0, 3, 2, 4], [True, 3], [0.0, 3], [[0, 3]]]
)
def test_text_of_which_the_caller_says_no_valid_places_is_not_known(own):
    assert find_text(JobOrigin("cell", {"own": own}, b"x = 1")) is None


def test_text_that_no_store_accepts_is_made_acceptable():
    text = find_text(JobOrigin("cell", {"own": [0, 4]}, b"a\0\xffb"))
    assert text == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


def test_hostile_origin_is_shortened():
    head = {
        "notebook": "n" * 1000 + "\0\ud800.ipynb",
        "cell": ["x"],
        "number": 2**80,
        "inputs": ["i" * 1000, 5, *["x"] * 1000],
        "title": "t" * 1000,
        "named": True,
        "fresh": "yes",
    }
    about = json.loads(describe_origin(JobOrigin("cell", head)))
    assert about["notebook"].endswith("\0\ud800.ipynb")
    assert len(about["notebook"]) == len(about["name"]) == len(about["inputs"][0]) == 300
    assert len(about["inputs"]) <= 64
    assert set(about) == {"kind", "notebook", "inputs", "name", "fresh"}


def test_of_a_long_text_only_the_hash_is_kept():
    home = Home(text_chars=10)
    home.run("x" * 10)
    home.run("y" * 11)
    assert home.kept("x" * 10, "y" * 11) == ["x" * 10]
    assert home.digests() == [text_digest("y" * 11), text_digest("x" * 10)]


def test_texts_of_one_token_do_not_use_the_share_of_others():
    home = Home(text_token_chars=12)
    for text in ("aaaaaaaaaa", "aaaaaaaaaa", "bbbbbbbbbb"):
        home.run(text, "mallory")
    home.run("cccccccccc", "ann")
    assert home.kept("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc") == ["aaaaaaaaaa", "cccccccccc"]


def test_no_text_is_kept_with_keep_texts_0():
    home = Home()
    home.texts.keep = False
    home.run("x = 1")
    assert home.kept("x = 1") == []
    assert home.digests() == [text_digest("x = 1")]


def test_full_store_of_texts_asks_for_room():
    home = Home(text_total_chars=15)
    asked = []
    home.texts.on_full = lambda: asked.append(home.texts.room)
    for text in ("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"):
        home.run(text)
    assert home.kept("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc") == ["aaaaaaaaaa", "bbbbbbbbbb"]
    assert asked == [-5]
