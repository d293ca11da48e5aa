"""Running a verb, blocking and in asyncio, and the requests it sends; no sockets here."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cloudmanager.client import cell_verbs
from cloudmanager.client.future import Future
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.verb import Asynchronous, Blocking
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.results.results import Results


class RecordingExchange:
    """Records requests and submitted groups; tests set the replies."""

    def __init__(self):
        self.requests = []
        self.submitted = []
        self.on_submit = lambda group: None

    def request(self, verb, body):
        self.requests.append((verb, body))
        reply: Future[list[object]] = Future()
        reply.set_result([])
        return reply

    def submit(self, group, target):
        self.submitted.append((group, target))
        self.on_submit(group)


class Boards(Blocking, cell_verbs.CellVerbs):
    """The attributes that the verbs of boards need."""

    target = "lab-*"

    def __init__(self):
        self.talk = RecordingExchange()

    def exchange(self):
        return self.talk


@pytest.fixture
def boards():
    return Boards()


def finish(group: JobGroup) -> None:
    group.finished.set_result(Results({}))


def test_run_returns_the_results_of_the_group(boards):
    boards.talk.on_submit = finish
    assert dict(boards.run("1")) == {}


def test_default_options_are_not_sent(boards):
    boards.talk.on_submit = finish
    boards.run("1")
    boards.run("1", timeout=2, fresh=True, wait=3)
    sent = [group.submit_head() for group, _ in boards.talk.submitted]
    assert sent == [
        {"awaits": False, "title": "1", "own": (8, 9)},
        {"awaits": False, "timeout": 2, "fresh": True, "wait": 3, "title": "1", "own": (8, 9)},
    ]


def test_timeout_of_zero_is_sent():
    assert RunOptions(timeout=0).to_wire() == {"timeout": 0}


def test_equal_cells_are_prepared_once():
    assert cell_verbs.prepare_cached("x + 1") is cell_verbs.prepare_cached("x + 1")


def test_verb_raises_a_refusal(boards):
    boards.talk.on_submit = lambda group: group.on_refused(ServerError("no"))
    with pytest.raises(ServerError, match="no"):
        boards.run("1")


def test_blocked_verb_is_woken_by_another_thread(boards):
    boards.talk.on_submit = lambda group: threading.Timer(0.01, finish, [group]).start()
    assert boards.run("1").ok


def test_interrupted_wait_interrupts_the_boards(boards):
    stopped = []

    class Interrupted(Future[Results]):
        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt
            return True

    def interrupt_the_wait(group):
        group.finished = Interrupted()
        group.interrupt = lambda: stopped.append(group)

    boards.talk.on_submit = interrupt_the_wait
    with pytest.raises(KeyboardInterrupt):
        boards.run("while True: pass")
    assert stopped == [boards.talk.submitted[0][0]]


def test_wrapped_verb_keeps_name_docstring_and_signature():
    assert Boards.run.__name__ == "run"
    assert "Run a cell on all of the boards in parallel" in (Boards.run.__doc__ or "")


async def test_cancelled_wait_interrupts_the_boards(boards):
    stopped = asyncio.Event()

    class AsyncBoards(Asynchronous, cell_verbs.CellVerbs):
        target = boards.target

        def exchange(self):
            return boards.talk

        async def connect(self):
            """Do nothing: it is connected."""

    submitted = asyncio.Event()

    def on_submit(group):
        group.interrupt = stopped.set
        submitted.set()

    boards.talk.on_submit = on_submit
    waiting = asyncio.ensure_future(AsyncBoards().run("while True: pass"))
    await submitted.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert stopped.is_set()


def test_info_requests_the_target(boards):
    boards.info()
    assert boards.talk.requests == [("boards", {"target": "lab-*"})]
