"""Progress of verbs: reported in the thread that runs the verb."""

import threading

import pytest

from cloudmanager import AsyncFleet, Fleet
from cloudmanager.client.future import Future
from cloudmanager.client.progress import ProgressRelay
from cloudmanager.client.runner import run_blocking
from cloudmanager.virtual.virtual_boards import VirtualBoards


def run_with_progress(callback):
    """Run a coroutine that another thread reports progress of; return its value."""
    relay, ended = ProgressRelay(callback), Future[str]()

    def work():
        for done in (1, 2, 3):
            relay.update("a", done, 3)
        ended.set_result("value")

    async def verb():
        threading.Timer(0.01, work).start()
        return await ended

    return run_blocking(relay.run(verb()))


def test_last_state_is_reported_in_the_calling_thread():
    calls = []
    value = run_with_progress(lambda *now: calls.append((threading.current_thread(), *now)))
    assert value == "value"
    assert {call[0] for call in calls} == {threading.current_thread()}
    assert calls[-1][1:] == ("a", 3, 3)


def test_exception_of_the_callback_is_raised_by_the_verb():
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with_progress(fail)


def test_failing_callback_interrupts_the_boards_and_leaves_the_link(fleet: Fleet, boards):
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fleet["demo-1"].run("while True: pass", timeout=20, progress=fail)
    assert fleet["demo-1"].run("6 * 7").value == 42
    assert [job for job in fleet.jobs("demo-1") if job["status"] is None] == []


def test_callback_may_call_verbs(fleet: Fleet, boards):
    numbers = []
    fleet["demo-1"].run("1", progress=lambda *_: numbers.append(fleet.status()["boards"]))
    assert numbers


def test_cells_count_boards(fleet: Fleet, boards):
    states: dict[str, list[int]] = {}
    fleet["demo-[1-3]"].run(
        "1", progress=lambda board, done, total: states.setdefault(board, []).append(done)
    )
    assert {board: done[-1] for board, done in states.items()} == {
        "demo-1": 1,
        "demo-2": 1,
        "demo-3": 1,
    }


async def test_callback_is_called_in_the_event_loop(boards: VirtualBoards):
    threads = set()
    async with AsyncFleet() as fleet:
        await fleet["demo-1"].run("1", progress=lambda *_: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


def test_reading_reports_the_size(fleet: Fleet, boards):
    calls: list[tuple[str, int, int]] = []
    one = fleet["demo-1"]
    one.put(b"x" * 5000, ":p.bin")
    one.read(":p.bin", progress=lambda *now: calls.append(now))
    one.rm(":p.bin")
    assert calls[-1] == ("demo-1", 5000, 5000)
