"""Watches, over real links that break and reconnect."""

import concurrent.futures
import socket
import threading
import time
from typing import Any

import pytest

from cloudmanager.client.exchange import Exchange
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.watch import Update, Watch, _UpdateBuffer, read_update
from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import NoSuchBoard, NotAllowed, PeerWireError, ServerUnreachable
from tests.conftest import running_boards, running_server

WAIT = 60.0  # seconds that anything here may take on a busy machine


def changes(*boards, flags=0, **more):
    body = {"boards": list(boards), "gone": [], "samples": [], "left_out": 0, "time": 1.0, **more}
    return wire.Message(wire.CHANGES, flags, 1, wire.pack_json(0, body)[6:])


def board(name, **more):
    return {"name": name, **more}


def read(inbox) -> Any:
    return inbox.get()


def until(watch, true):
    """Read updates until one satisfies a condition."""
    deadline = time.monotonic() + WAIT
    for update in watch:
        if true(update):
            return update
        assert time.monotonic() < deadline
    raise AssertionError("the watch ended")


# Pending updates


def test_slow_reader_gets_the_last_state():
    inbox = _UpdateBuffer()
    inbox.put(changes(board("a", n=1), board("b", n=1), flags=wire.FULL_SNAPSHOT))
    inbox.put(changes(board("a", n=2), gone=["b"], samples=[["a", 1.0, 2, 0, {"t": 1}]]))
    inbox.put(changes(samples=[["a", 2.0, 3, 1, {"t": 2}]], left_out=4, time=9.0))
    update = read(inbox)
    assert (update.boards, update.gone, update.whole) == ([board("a", n=2)], ["b"], True)
    assert [sample.values["t"] for sample in update.samples] == [1, 2]
    assert (update.left_out, update.time, update.lost) == (4, 9.0, "")


def test_snapshot_replaces_earlier_updates():
    inbox = _UpdateBuffer()
    inbox.put(changes(board("a"), samples=[["a", 1.0, 2, 0, {"t": 1}]]))
    inbox.put(changes(board("b"), flags=wire.FULL_SNAPSHOT))
    assert read(inbox) == Update([board("b")], whole=True, time=1.0)


def test_pending_samples_are_limited(monkeypatch):
    monkeypatch.setattr("cloudmanager.client.watch._MAX_PENDING_SAMPLES", 3)
    inbox = _UpdateBuffer()
    for n in range(5):
        inbox.put(changes(samples=[["a", 1.0, n, 0, {"t": n}]]))
    update = read(inbox)
    assert ([sample.ticks for sample in update.samples], update.left_out) == ([2, 3, 4], 2)


def test_pending_logs_are_limited_by_their_length():
    inbox = _UpdateBuffer(max_log_chars=100_000)
    for n in range(400):
        inbox.put(changes(logs=[["a", 1.0, 0, f"{n} " + "x" * (9000 if n < 20 else 0)]]))
    update = read(inbox)
    kept, dropped = len(update.logs), update.logs_left_out
    assert [int(text.split()[0]) for *_, text in update.logs] == [*range(dropped, 400)]
    assert 380 < kept < 400
    for _ in range(2000):
        inbox.put(changes(logs=[["a", 1.0, 0, ""]]))
    assert 500 < len(read(inbox).logs) < 1000, "an empty piece counts, too"


def test_updates_before_an_error_are_read_first():
    inbox = _UpdateBuffer()
    inbox.put(changes(board("a")))
    inbox.put(NotAllowed("viewer"))
    assert read(inbox).boards == [board("a")]
    with pytest.raises(NotAllowed):
        read(inbox)


@pytest.mark.parametrize("payload", [b"{}", b'{"boards": 1}', b"x"])
def test_malformed_changes_are_a_peer_wire_error(payload):
    with pytest.raises(PeerWireError):
        read_update(wire.Message(wire.CHANGES, 0, 1, payload))


@pytest.mark.parametrize("logs", [5, [5], [["a"]], [[]], "abcd"], ids=str)
def test_malformed_logs_are_a_peer_wire_error(logs):
    with pytest.raises(PeerWireError):
        read_update(changes(logs=logs))


# On real links


def test_watch_yields_a_snapshot_then_changes(fleet, boards):
    with fleet.watch("demo-*") as watch:
        first = next(watch)
        assert first.whole
        assert {board["name"] for board in first.boards} == {"demo-1", "demo-2", "demo-3"}
        group = fleet["demo-2"].submit("import cm\ncm.emit(t=7)\nwhile True: pass")
        try:
            busy = until(watch, lambda u: any(b["state"] == "busy" for b in u.boards))
            (board,) = [b for b in busy.boards if b["state"] == "busy"]
            assert (board["name"], board["job"]["caller"]) == ("demo-2", "local")
            samples = busy.samples or until(watch, lambda u: u.samples).samples
            assert [(sample.board, sample.values) for sample in samples] == [("demo-2", {"t": 7})]
        finally:
            group.interrupt()
        until(watch, lambda u: any(b["state"] == "idle" for b in u.boards))
    assert fleet.samples("demo-2")[-1].values == {"t": 7}


def test_close_from_another_thread_ends_the_watch(fleet, boards):
    watch = fleet.watch("demo-1", samples=False)
    next(watch)
    threading.Timer(0.1, watch.close).start()
    assert list(watch) == []
    assert list(watch) == []
    assert fleet["demo-1"].run("1 + 1").value == 2  # the fleet's link is another one


def test_second_reader_waits_for_the_first():
    dials, gone = threading.Event(), threading.Event()

    def connect() -> Exchange:
        dials.set()
        assert gone.wait(5)
        raise ServerUnreachable("http://127.0.0.1:1", "CM_URL")

    watch = Watch(connect)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(next, watch, None)
        assert dials.wait(5)
        watch.close()
        second = pool.submit(list, watch)
        concurrent.futures.wait([second], timeout=0.1)
        gone.set()
        lost = first.result(5)
        assert lost is not None
        assert "CM_URL" in lost.lost
        assert second.result(5) == []


def test_unknown_name_is_an_error(fleet):
    with pytest.raises(NoSuchBoard):
        next(fleet.watch("nobody-7"))


def test_unreachable_server_is_an_update():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with Fleet(url, "cm_x") as fleet, fleet.watch() as watch:
        assert "no program listens there" in next(watch).lost


def test_watch_continues_after_a_restart_of_the_server(tmp_path):
    with running_server(tmp_path) as server:
        token, tcp_port = (tmp_path / "token").read_text().strip(), server.tcp_port
        fleet = Fleet(server.url, token)
        watch = fleet.watch()
        fleet.enrol(["lab-1"])
        assert [b["name"] for b in until(watch, lambda u: u.boards).boards] == ["lab-1"]
    lost = until(watch, lambda u: u.lost)
    assert (lost.boards, lost.whole) == ([], False)
    with (
        running_server(tmp_path, tcp_port=tcp_port) as server,
        running_boards(server, fleet, ["lab-2"]),
    ):
        back = until(watch, lambda u: u.whole)
        assert {"lab-1"} <= {board["name"] for board in back.boards}
        if not any(board["name"] == "lab-2" for board in back.boards):
            until(watch, lambda u: any(board["name"] == "lab-2" for board in u.boards))
        watch.close()
        fleet.close()


def test_revoked_token_ends_the_watch(fleet, server):
    token = fleet.request("token-create", name="watcher", role="viewer")["token"]
    with Fleet(server.url, token) as theirs, theirs.watch() as watch:
        next(watch)
        fleet.request("token-revoke", name="watcher")
        with pytest.raises(NotAllowed, match="revoked"):
            until(watch, lambda u: False)
