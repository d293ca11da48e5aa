"""``Fleet`` with a real server and real MicroPython."""

import contextlib
import signal
import threading
import time
import traceback
from typing import Any

import pytest

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import (
    BoardError,
    BoardOffline,
    CellSyntaxError,
    FleetError,
    NoSuchBoard,
    ServerError,
    ServerUnreachable,
    TargetError,
)
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards, running_server, wait_online

WAIT = 60.0  # seconds that anything here may take on a busy machine
ALL = ["demo-1", "demo-2", "demo-3"]
PACKAGE = config.__file__.removesuffix("config.py")


class CountingFleet(Fleet):
    """Counts the connections to the server."""

    def __init__(self, *args):
        self.conversations = 0
        super().__init__(*args)

    def exchange(self):
        self.conversations += 1
        return super().exchange()


@pytest.fixture(autouse=True)
def _boards(boards: VirtualBoards, fleet: Fleet):
    """Wait until the three boards are connected and idle, before and after each test."""
    yield
    left = [job["job"] for job in fleet.jobs() if job["status"] is None]
    fleet.interrupt(left)
    until(lambda: all(job["status"] for job in fleet.jobs()), "a board is still busy")
    assert left == []


def until(true, what):
    """Wait until a condition is true that has no event."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# Looking round


def test_repr_of_fleet_has_the_address_but_no_token(server: RunningServer):
    with Fleet() as fleet:
        assert repr(fleet) == f"Fleet('{server.url}')"
        assert fleet.address == config.find_server()


def test_fleet_lists_its_boards_by_name(fleet: Fleet):
    found = {board["name"]: board for board in fleet.boards()}
    assert [name for name in found if name in ALL] == ALL
    assert found["demo-1"]["platform"] == "linux"
    assert found["demo-1"]["state"] == "idle"
    assert not any("key" in board for board in found.values())


def test_fleet_lists_the_boards_of_a_target(fleet: Fleet):
    assert [board["name"] for board in fleet.boards("demo-[3,1]")] == ["demo-3", "demo-1"]


def test_boards_of_a_target_are_counted_and_iterated(fleet: Fleet, boards: VirtualBoards):
    chosen = fleet["demo-[1-2]"]
    assert (len(chosen), chosen.names()) == (2, ["demo-1", "demo-2"])
    assert [each.run("6*7").value for each in chosen] == [42, 42]
    assert bool(fleet["nobody-*"])
    with pytest.raises(TargetError, match="No board matches"):
        len(fleet["nobody-*"])


def test_status_has_the_servers_state(fleet: Fleet, server: RunningServer):
    status = fleet.status()
    assert (status["address"], status["pid"]) == (server.url, server.process.pid)
    assert status["online"] >= 3


def test_selecting_boards_sends_nothing():
    fleet = CountingFleet()
    boards = fleet["demo-[1-3]"]
    assert (repr(boards), boards.target) == ("Boards('demo-[1-3]')", "demo-[1-3]")
    assert fleet.conversations == 0


def test_info_has_the_boards_facts(fleet: Fleet):
    assert [board["name"] for board in fleet["demo-2"].info()] == ["demo-2"]


def test_labels_select_boards(fleet: Fleet):
    assert fleet["demo-[1-2]"].label({"room": "greenhouse"}) == ["demo-1", "demo-2"]
    assert list(fleet["room=greenhouse"].run("1")) == ["demo-1", "demo-2"]
    fleet["demo-[1-2]"].label({"room": ""})
    with pytest.raises(TargetError):
        fleet["room=greenhouse"].run("1")


# Running


def test_cell_runs_on_all_boards(fleet: Fleet):
    results = fleet["demo-[1-3]"].run("import sys; print('hi'); sys.platform")
    assert results.to_dict() == dict.fromkeys(ALL, "linux")
    assert {result.stdout for result in results.values()} == {"hi\n"}
    assert all(0 < result.elapsed < WAIT for result in results.values())


def test_variables_persist_between_cells(fleet: Fleet):
    fleet["demo-1"].run("answer = 40").raise_for_error()
    assert fleet["demo-1"].run("answer + 2").value == 42


def test_any_text_survives_a_round_trip(fleet: Fleet):
    cell = "print('é日🐍')\nb'\\xff', 'é日🐍'"
    result = fleet["demo-1"].run(cell)["demo-1"]
    assert (result.value, result.stdout) == ((b"\xff", "é日🐍"), "é日🐍\n")


def test_long_cell_and_long_value_are_complete(fleet: Fleet):
    text = "x" * 12_000
    # All tests share the board: restart it, so that its heap has that much in one piece.
    assert fleet["demo-1"].run(f"'{text}'", fresh=True).value == text


def test_cell_may_await(fleet: Fleet):
    assert fleet["demo-1"].run("import asyncio\nawait asyncio.sleep_ms(1)\n7").value == 7


def test_failure_is_in_the_result_with_its_line(fleet: Fleet):
    results = fleet["demo-[1-2]"].run("import sys\n1 / 0")
    assert not results.ok
    assert [result.status for result in results.values()] == ["error", "error"]
    assert results["demo-1"].traceback == (
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 2, in <module>\n'
        "    1 / 0\n"
        "ZeroDivisionError: divide by zero\n"
    )
    with pytest.raises(FleetError, match="2 boards failed"):
        results.raise_for_error()


def test_failure_of_one_board_is_raised_as_its_error(fleet: Fleet):
    with pytest.raises(BoardError) as caught:
        _ = fleet["demo-2"].run("int('x')").value
    assert (caught.value.board, caught.value.ename) == ("demo-2", "ValueError")


def test_timeout_ends_the_cell_and_keeps_variables(fleet: Fleet):
    fleet["demo-1"].run("kept = 7").raise_for_error()
    result = fleet["demo-1"].run("while True: pass", timeout=0.2)["demo-1"]
    assert result.status == "timeout"
    assert 0.2 <= result.elapsed < WAIT
    assert fleet["demo-1"].run("kept").value == 7


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9, "1"])
def test_invalid_timeout_is_refused(fleet: Fleet, timeout):
    with pytest.raises(ServerError, match="timeout is a number of seconds above 0"):
        fleet["demo-1"].run("1", timeout=timeout)


def test_offline_board_does_not_stop_others(fleet: Fleet):
    fleet.enrol(["absent-1"])
    try:
        results = fleet["demo-1,absent-1"].run("1")
        assert (results["demo-1"].value, results["absent-1"].status) == (1, "offline")
        with pytest.raises(BoardOffline, match="it has never connected"):
            results.raise_for_error()
    finally:
        fleet.revoke("absent-1")


def test_connected_board_cannot_be_enrolled_again(fleet: Fleet):
    with pytest.raises(ServerError, match="demo-1"):
        fleet.enrol(["demo-1"])


# What is refused


def test_unknown_board_suggests_the_most_similar(fleet: Fleet):
    with pytest.raises(NoSuchBoard) as caught:
        fleet["demmo-1"].run("1")
    assert (caught.value.board, caught.value.suggestion) == ("demmo-1", "demo-1")


@pytest.mark.parametrize("target", ["", "demo-[3-1]", "nothing-*", "demo-1!demo-1"])
def test_target_that_selects_no_boards_is_refused(fleet: Fleet, target):
    for ask in (fleet[target].run, fleet[target].submit):
        with pytest.raises(TargetError):
            ask("1")


def test_invalid_cell_is_not_sent():
    fleet = CountingFleet()
    for ask in (fleet["demo-1"].run, fleet["demo-1"].submit):
        with pytest.raises(CellSyntaxError) as caught:
            ask("x = 1\nx = = 2")
        assert (caught.value.lineno, fleet.conversations) == (2, 0)


# Submitting


def test_results_of_a_submitted_cell(fleet: Fleet):
    group = fleet["demo-[1-3]"].submit("print('a'); 1")
    assert sorted(group.jobs) == ALL
    assert group.wait(WAIT)
    assert group.results(0).to_dict() == dict.fromkeys(ALL, 1)


def test_submitted_cell_is_interrupted(fleet: Fleet):
    group = fleet["demo-[1-2]"].submit("while True: pass")
    assert not group.wait(0.05)
    with pytest.raises(TimeoutError, match="2 of 2 boards are not done"):
        group.results(0.01)
    group.interrupt()
    results = group.results(WAIT)
    assert [result.status for result in results.values()] == ["interrupted"] * 2
    assert fleet["demo-[1-2]"].run("1").ok


def test_output_arrives_while_the_cell_runs(fleet: Fleet):
    group = fleet["demo-1"].submit("print('begun')\nwhile True: pass", listen=True)
    events = group.events(WAIT)
    assert [(event.kind, event.text) for event in [next(events)] if event] == [
        ("output", "begun\n")
    ]
    group.interrupt()
    assert [event.kind for event in events if event and event.kind == "ended"] == ["ended"]


def test_queued_cell_can_be_interrupted(fleet: Fleet):
    first = fleet["demo-1"].submit("while True: pass")
    second = fleet["demo-1"].submit("1", listen=True)
    events = second.events(WAIT)
    queued = next(events)
    assert queued is not None
    assert queued.kind == "queued"
    second.interrupt()
    assert "did not run" in second.results(WAIT)["demo-1"].why
    first.interrupt()
    assert first.wait(WAIT)


def test_input_is_answered(fleet: Fleet):
    group = fleet["demo-1"].submit("input('how many? ')", listen=True, answers=True)
    for event in group.events(WAIT):
        assert event is not None
        if event.kind == "input":
            assert event.text == "how many? "
            group.answer(event.job, "zwölf")
    assert group.results(0).value == "zwölf"


def test_input_without_a_reader_raises_eoferror(fleet: Fleet):
    assert fleet["demo-1"].run("input()")["demo-1"].traceback.endswith("EOFError: \n")


def test_several_threads_run_cells_concurrently(fleet: Fleet):
    """Over one link, each of many threads gets the value of its own cell."""
    wrong: list[object] = []

    def work(number):
        for step in range(20):
            target = ALL[(number + step) % 3]
            value = fleet[target].run(f"({number}, {step})").value
            if value != (number, step):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert (wrong, [thread.is_alive() for thread in threads]) == ([], [False] * 6)


def test_jobs_are_listed_shown_and_interrupted(fleet: Fleet):
    group = fleet["demo-1"].submit("print('hi')\nwhile True: pass")
    number = group.jobs["demo-1"].number
    until(lambda: fleet.job(number)["stdout"] == "hi\n", "the output is not there")
    assert fleet.jobs("demo-1")[0]["job"] == number
    assert fleet.interrupt([number, 10**9]) == 1
    assert group.results(WAIT)["demo-1"].status == "interrupted"
    until(lambda: fleet.job(number)["status"] == "interrupted", "the job has not ended")


# Ctrl-C


def test_ctrl_c_interrupts_the_boards(fleet: Fleet):
    """It is raised after the interrupt was sent; the boards keep their links and variables."""

    def press():
        until(lambda: fleet.boards("demo-1")[0]["state"] == "busy", "nothing runs")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    fleet["demo-[1-2]"].run("kept = 7").raise_for_error()
    thread = threading.Thread(target=press)
    thread.start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fleet["demo-[1-2]"].run("while True: pass", timeout=60)
    assert time.monotonic() - before < WAIT
    thread.join(WAIT)
    assert fleet["demo-[1-2]"].run("kept").to_dict() == {"demo-1": 7, "demo-2": 7}


# Links that come and go


def test_fleet_reconnects_after_close():
    fleet = Fleet()
    assert fleet["demo-1"].run("1").value == 1
    fleet.close()
    assert fleet["demo-1"].run("2").value == 2
    fleet.close()
    fleet.close()


def test_error_without_a_server_names_the_source_of_the_url(monkeypatch):
    monkeypatch.setenv("CM_URL", "http://127.0.0.1:1")
    with (
        Fleet() as fleet,
        pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1 \(from CM_URL\)"),
    ):
        fleet.boards()


def test_fleet_reconnects_after_a_restart_of_the_server(tmp_path, monkeypatch):
    """The boards reconnect by themselves and keep their variables."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    with contextlib.ExitStack() as stack:
        with running_server(tmp_path) as server:
            fleet = stack.enter_context(Fleet(server.url))
            stack.enter_context(running_boards(server, fleet, ["again-1"]))
            fleet["again-1"].run("kept = 7").raise_for_error()
            running = fleet["again-1"].submit("import time\ntime.sleep(1)\nkept += 1")
        lost = running.results(WAIT)["again-1"]
        assert (lost.status, "the cell continues" in lost.why) == ("lost", True)
        with pytest.raises(ServerUnreachable):
            fleet.boards()
        stack.enter_context(running_server(tmp_path, tcp_port=server.tcp_port))
        wait_online(fleet, ["again-1"])
        assert fleet["again-1"].run("kept").value == 8


def test_at_most_four_functions_from_submit_to_the_socket(fleet: Fleet):
    """Each is one more place to understand, and time in every cell."""
    fleet["demo-1"].run("1")
    link: Any = fleet._holder.link
    write, chains = link._outgoing._write, []

    def recording_write(*arguments: Any) -> int:
        stack = traceback.extract_stack()
        chains.append([frame.name for frame in stack if frame.filename.startswith(PACKAGE)])
        return int(write(*arguments))

    link._outgoing._write = recording_write
    fleet["demo-1"].submit("1").results(WAIT)
    link._outgoing._write = write
    (chain,) = [chain[chain.index("submit") :] for chain in chains if "submit" in chain]
    assert chain == ["submit", "submit", "send", "_write_now"]


# What a notebook shows, and iteration


def test_fleet_and_its_boards_are_shown_as_tables(fleet: Fleet):
    for html in (fleet._repr_html_(), fleet["demo-*"]._repr_html_(), fleet.boards()._repr_html_()):
        assert html is not None
        assert ">demo-2</th>" in html
    assert fleet["demo-2"].info()._repr_html_().count("<tr>") == 2
    fleet["demo-1"].run("1")
    assert ">demo-1</td>" in fleet.jobs("demo-1")._repr_html_()
    group = fleet["demo-[1-2]"].submit("1")
    group.wait(WAIT)
    assert (group._repr_html_() or "").count("<tr>") == 3
    assert repr(group.jobs["demo-1"]) == f"<Job {group.jobs['demo-1'].number} on demo-1: ok>"


def test_fleet_without_a_server_is_shown_as_text(monkeypatch):
    monkeypatch.setenv("CM_URL", "http://127.0.0.1:1")
    with Fleet() as fleet:
        assert fleet._repr_html_() is None
        assert fleet["demo-1"]._repr_html_() is None
        assert bool(fleet)


def test_fleet_is_iterated_by_board(fleet: Fleet):
    targets = [boards.target for boards in fleet]
    assert {"demo-1", "demo-2", "demo-3"} <= set(targets)
    assert len(fleet) == len(targets)
    assert "demo-1" in fleet
    assert "nosuch" not in fleet
    assert 1 not in fleet


# Inputs of each board


def test_each_board_has_its_own_inputs(fleet: Fleet):
    boards = fleet["demo-[1-3]"]
    chunks = {name: {"part": [n, n + 1]} for n, name in enumerate(boards.names())}
    seen: dict[str, int] = {}
    results = boards.run(
        "sum(part) * factor",
        inputs={"factor": 10},
        inputs_by_board=chunks,
        progress=lambda board, done, _total: seen.update({board: done}),
    )
    assert results.to_dict() == {"demo-1": 10, "demo-2": 30, "demo-3": 50}
    assert seen == {"demo-1": 1, "demo-2": 1, "demo-3": 1}


def test_input_of_a_board_replaces_the_common_one(fleet: Fleet):
    own = {"demo-1": {"n": 2}, "demo-2": {}}
    results = fleet["demo-[1-2]"].run("n", inputs={"n": 1}, inputs_by_board=own)
    assert results.to_dict() == {"demo-1": 2, "demo-2": 1}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"demo-1": {}}, "has nothing for demo-2"),
        ({"demo-1": {}, "demo-2": {}, "demo-9": {}}, "has inputs for demo-9"),
        ({"demo-1": {"1x": 1}, "demo-2": {}}, "not the name of a variable"),
    ],
)
def test_inputs_of_other_boards_are_refused(fleet: Fleet, given, why):
    before = {job["job"] for job in fleet.jobs()}  # empty if this is the first test
    with pytest.raises(ValueError, match=why):
        fleet["demo-[1-2]"].run("1", inputs_by_board=given)
    assert {job["job"] for job in fleet.jobs()} == before


def test_interrupted_wait_interrupts_the_cells_of_all_boards(fleet: Fleet):
    own: dict[str, dict[str, object]] = {name: {} for name in ("demo-1", "demo-2")}

    def stop_when_started(_board: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet["demo-[1-2]"].run("while True: pass", inputs_by_board=own, progress=stop_when_started)
    assert fleet["demo-[1-2]"].run("1").ok
