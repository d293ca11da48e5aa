"""The two ways to drive a verb, and what leaves for the server; no sockets here."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cloudmanager.client import verbs
from cloudmanager.client.future import Future
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import ServerError
from cloudmanager.results.results import Results


class RecordingExchange:
    """Notes what is asked and submitted; answers by hand."""

    def __init__(self):
        self.requests = []
        self.submitted = []
        self.on_submit = lambda group: None

    def request(self, verb, body):
        self.requests.append((verb, body))
        reply: Future[list[object]] = Future()
        reply.set_result([])
        return reply

    def submit(self, group, target, options):
        self.submitted.append((group, target, options))
        self.on_submit(group)


class Boards:
    """Just enough for the verbs of boards."""

    target = "lab-*"

    def __init__(self):
        self.talk = RecordingExchange()

    def exchange(self):
        return self.talk

    run = verbs.blocking(verbs.BoardsVerbs.run)
    info = verbs.blocking(verbs.BoardsVerbs.info)


@pytest.fixture
def boards():
    return Boards()


def finish(group: JobGroup) -> None:
    group.finished.set_result(Results({}))


def test_run_returns_what_the_group_ends_with(boards):
    boards.talk.on_submit = finish
    assert dict(boards.run("1")) == {}


def test_options_that_are_the_defaults_do_not_travel(boards):
    boards.talk.on_submit = finish
    boards.run("1")
    boards.run("1", timeout=2, fresh=True, wait=3)
    sent = [options for _, _, options in boards.talk.submitted]
    assert sent == [{}, {"timeout": 2, "fresh": True, "wait": 3}]


def test_a_timeout_of_zero_travels_so_that_the_server_can_refuse_it():
    assert verbs.submit_options(0, fresh=False, wait=0) == {"timeout": 0}


def test_the_same_cell_is_prepared_once():
    assert verbs.prepare_cached("x + 1") is verbs.prepare_cached("x + 1")


def test_a_refusal_is_raised_where_the_verb_was_called(boards):
    boards.talk.on_submit = lambda group: group.on_refused(ServerError("no"))
    with pytest.raises(ServerError, match="no"):
        boards.run("1")


def test_a_verb_that_waits_is_woken_by_another_thread(boards):
    boards.talk.on_submit = lambda group: threading.Timer(0.01, finish, [group]).start()
    assert boards.run("1").ok


def test_an_interrupt_of_the_wait_interrupts_the_boards(boards):
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


def test_a_verb_keeps_its_name_its_help_and_its_signature():
    assert Boards.run.__name__ == "run"
    assert "Run a cell on all of the boards in parallel" in (Boards.run.__doc__ or "")


async def test_a_cancelled_wait_interrupts_the_boards(boards):
    from cloudmanager.client.async_fleet import asynchronous

    stopped = asyncio.Event()

    class AsyncBoards:
        target, talk, exchange = boards.target, boards.talk, boards.exchange
        run = asynchronous(verbs.BoardsVerbs.run)

        async def connect(self):
            """Is connected."""

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


def test_info_asks_for_the_target(boards):
    boards.info()
    assert boards.talk.requests == [("boards", {"target": "lab-*"})]
