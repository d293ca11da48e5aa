"""The server: its start, its routes, its limits for connections, and its stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import NotAllowed, ServerError
from cloudmanager.server_options import ServerOptions
from cm_server import process
from cm_server.jobs.model import Cell, Job, Requester
from cm_server.limits import Limits
from cm_server.net import certificates
from tests.conftest import RunningServer, running_server

from .peers import FakeBoard, FakeCaller, RawPeer, Service, handshake, running_service

WAIT = 10.0  # seconds


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def start(home: Path, *options: str) -> tuple[int, dict[str, str], str]:
    """Run a server that cannot start; return its status, its line of JSON and its stderr."""
    ran = subprocess.run(
        [sys.executable, "-m", "cm_server", *options],
        env={**os.environ, "CM_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    return ran.returncode, json.loads(ran.stdout or "{}"), ran.stderr


def pin(home):
    """Return the fingerprint of a server's authority as it is appended to tokens."""
    return "." + certificates.load(home).pin


def token(server: RunningServer) -> str:
    return (server.home / "token").read_text().strip()


def fleet(server: RunningServer) -> Fleet:
    return Fleet(server.url, token(server))


# The start


def test_bus_without_a_shared_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("CM_STORE", raising=False)
    status, printed, err = start(tmp_path, "--bus", "nats://y")
    assert (status, printed) == (2, {})
    assert "--bus needs a shared store" in err


def test_port_in_use_is_reported_with_advice(tmp_path):
    with taken_port() as tcp_port:
        status, printed, err = start(tmp_path, "--port", str(tcp_port))
    assert (status, err) == (1, "")
    assert printed == {
        "error": f"TCP port {tcp_port} of 127.0.0.1 is taken by another program; "
        "choose another with `mbm server-start --port N`"
    }
    assert not (tmp_path / "server.json").exists()


def test_second_server_in_the_same_folder_does_not_start(tmp_path):
    with running_server(tmp_path) as first:
        status, printed, err = start(tmp_path, "--port", "0")
        assert (status, err) == (1, "")
        assert "runs in" in printed["error"]
        assert "`mbm server-stop`" in printed["error"]
        state = config.read_server_state(tmp_path)
        assert state is not None
        assert state["pid"] == first.process.pid
        with fleet(first) as caller:
            assert caller.status()["pid"] == first.process.pid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "65536"), "65536"),
        (("--port", "-1"), "-1"),
        (("--listen", "192.0.2.1", "--port", "0"), "cannot listen on 192.0.2.1:0"),
        (("--listen", "no such host", "--port", "0"), "cannot listen on no such host:0"),
    ],
    ids=str,
)
def test_invalid_address_is_reported_without_a_traceback(tmp_path, options, message):
    status, printed, err = start(tmp_path, *options)
    assert status != 0
    assert "Traceback" not in err
    assert message in printed.get("error", err)


def test_unreadable_database_stops_the_start_with_a_sentence(tmp_path):
    (tmp_path / "server.db").write_bytes(b"not a database" * 1000)
    status, printed, err = start(tmp_path, "--port", "0")
    assert (status, err) == (1, "")
    assert "server.db cannot be opened: file is not a database" in printed["error"]


def test_unwritable_folder_is_reported_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, printed, err = start(tmp_path / "file" / "home", "--port", "0")
    assert status == 1
    assert "Traceback" not in err
    assert str(tmp_path / "file") in printed.get("error", "")


def test_secrets_and_state_are_private(tmp_path):
    with running_server(tmp_path) as server:
        for name in ("token", "server.json"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert json.loads((tmp_path / "server.json").read_text()) == {
            "url": server.url,
            "pid": server.process.pid,
        }


def test_local_token_stays_the_same_and_a_lost_one_is_replaced(tmp_path):
    with running_server(tmp_path) as server:
        first = token(server)
    with running_server(tmp_path) as server:
        assert token(server) == first
    (tmp_path / "token").unlink()
    with running_server(tmp_path) as server, fleet(server) as caller:
        assert token(server) != first
        assert caller.status()["boards"] == 0


def test_server_listens_on_ipv6(tmp_path):
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        with running_server(tmp_path, "--listen", "::1") as server:
            assert server.url.startswith("http://[::1]:")
            with fleet(server) as caller:
                assert caller.status()["address"] == server.url
        return
    pytest.skip("this machine has no IPv6")


# The end


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_server_reachable_from_other_machines_requires_tls(tmp_path, address):
    if address == "::":
        try:
            socket.create_server(("::", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with running_server(tmp_path, "--listen", address) as server:
        assert server.url.startswith(("https://127.0.0.1:", "https://[::1]:"))
        with Fleet(server.url, token(server) + pin(tmp_path)) as caller:
            listens = caller.status()["address"]
        assert listens.startswith("https://")
        with pytest.raises(ServerError, match="requires TLS: use https://"):
            Fleet(server.url.replace("https:", "http:"), token(server)).status()
    assert "403" in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_server_listens_on_any_loopback_address(tmp_path, address):
    with running_server(tmp_path, "--listen", address) as server:
        assert server.url.startswith(f"http://{address}:")
        with fleet(server) as caller:
            assert caller.status()["boards"] == 0


def test_lost_local_token_is_revoked(tmp_path):
    with running_server(tmp_path) as server:
        old = token(server)
    (tmp_path / "token").unlink()
    with running_server(tmp_path) as server:
        assert token(server) != old
        with (
            Fleet(server.url, old) as caller,
            pytest.raises(NotAllowed, match="the token 'local' was revoked on 2"),
        ):
            caller.status()
        with fleet(server) as caller:
            states = [(row["name"], row["state"]) for row in caller.request("token-list")]
    assert states == [("local", "revoked"), ("local", "valid")]


def test_all_files_are_private_with_any_umask(tmp_path):
    before = os.umask(0)
    try:
        with running_server(tmp_path) as server, fleet(server) as caller:
            caller.enrol(["lab-1"])
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode)
                for path in tmp_path.iterdir()
                if path.name != "server.err"  # created by the test
            }
    finally:
        os.umask(before)
    assert modes.keys() >= {"token", "server.db", "server.log", "server.json"}
    assert set(modes.values()) == {0o600}, modes


def test_allowed_origin_can_open_a_link(tmp_path):
    with (
        running_server(tmp_path, "--allow-origin", "https://lab.example") as server,
        socket.create_connection(("127.0.0.1", server.tcp_port), WAIT) as sock,
    ):
        sock.sendall(handshake("/board", Origin="https://lab.example"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_server_gracefully(tmp_path, number):
    with running_server(tmp_path) as server, fleet(server) as caller:
        caller.enrol(["lab-1"])
        server.process.send_signal(number)
        assert server.process.wait(WAIT) == 0
    assert not (tmp_path / "server.json").exists()
    assert not (tmp_path / "server.db-wal").exists()
    log = (tmp_path / "server.log").read_text()
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log
    assert token(server) not in log


def test_peers_that_do_not_read_do_not_delay_the_stop(tmp_path):
    with running_server(tmp_path) as server, contextlib.ExitStack() as stack:
        for path in ("/caller", "/board", "/healthz"):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.tcp_port)))
            headers = {"Authorization": f"Bearer {token(server)}", "Cm-Protocol": "1"}
            sock.sendall(handshake(path, **headers))
        stack.enter_context(socket.create_connection(("127.0.0.1", server.tcp_port)))
        server.process.terminate()
        assert server.process.wait(WAIT) == 0


def test_folder_is_usable_after_kill_9(tmp_path):
    with running_server(tmp_path) as server:
        with fleet(server) as caller:
            caller.enrol(["lab-1"])
        server.process.kill()
        server.process.wait(WAIT)
        assert config.read_server_state(tmp_path) is None  # the file exists, its process does not
    with running_server(tmp_path) as again, fleet(again) as caller:
        assert [board["name"] for board in caller.boards()] == ["lab-1"]


async def test_serve_returns_after_sigterm(tmp_path):
    ready = asyncio.Event()
    serving = asyncio.create_task(
        process.serve(tmp_path, ServerOptions(port=0), Limits(), lambda *_: ready.set())
    )
    await asyncio.wait_for(ready.wait(), WAIT)
    assert config.read_server_state(tmp_path) is not None
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, WAIT)
    assert config.read_server_state(tmp_path) is None


# Routes and connections


async def get(service: Service, text: str) -> str:
    async with await RawPeer.dial(service) as peer:
        peer.say(text.encode())
        return await peer.answer()


async def test_healthz_returns_only_its_status(service: Service):
    answer = await get(service, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith('\r\n\r\n{"status": "ok"}')


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /", 404),
        ("GET /server.db", 404),
        ("GET /../token", 404),
        ("GET /healthz/", 404),
        ("POST /healthz", 405),
        ("DELETE /healthz", 405),
        ("POST /caller", 405),
        ("POST /board", 405),
        ("GET /board", 426),
        ("GET /caller", 401),
    ],
)
async def test_other_requests_are_refused(service: Service, request_line, status):
    answer = await get(
        service, f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "Traceback" not in answer


@pytest.mark.parametrize(
    "head",
    [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 100_000,
        "GET /" + "x" * 100_000,
        "\0\0\0\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
    ids=lambda head: repr(head)[:40],
)
async def test_malformed_request_is_closed_and_others_are_served(
    service: Service, head, monkeypatch
):
    async with await RawPeer.dial(service) as peer:
        peer.say(head.encode("latin-1"))
        peer.writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(peer.reader.read(), WAIT)
    assert "200 OK" in await get(service, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.limits(head_seconds=0.1)
async def test_request_with_a_slow_head_is_closed(service):
    async with await RawPeer.dial(service) as silent:
        async with await RawPeer.dial(service) as slow:
            with contextlib.suppress(ConnectionError):
                head = handshake("/board")
                for start in range(0, len(head), 8):  # fewer pieces than a request may have
                    slow.say(head[start : start + 8])
                    await asyncio.wait_for(slow.writer.drain(), WAIT)
                    if slow.reader.at_eof():
                        break
                    await asyncio.sleep(0.02)
            assert await asyncio.wait_for(slow.reader.read(), WAIT) == b""
        assert await asyncio.wait_for(silent.reader.read(), WAIT) == b""


@pytest.mark.limits(head_seconds=0.1)
async def test_request_with_a_slow_body_is_closed(service):
    async with await RawPeer.dial(service) as slow:
        slow.say(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000\r\n\r\nx")
        await asyncio.wait_for(slow.reader.read(), WAIT)
        await service.until(lambda: service.server.unauthenticated.count == 0)


@pytest.mark.limits(unauthenticated_per_address=20)
async def test_flood_of_connections_is_bounded_and_others_can_connect(service):
    async with contextlib.AsyncExitStack() as stack:
        (identity,) = service.enrol("lab-1")
        for number in range(100):
            peer = await stack.enter_async_context(await RawPeer.dial(service))
            if number % 2:
                peer.say(handshake("/board"))
                await asyncio.sleep(0)
            assert service.server.unauthenticated.count <= 21
        await service.until(lambda: service.server.unauthenticated.dropped >= 80)
        async with (
            await FakeBoard.join(service, identity) as board,
            await FakeCaller.join(service) as caller,
        ):
            await service.until(lambda: service.server.unauthenticated.count <= 20)
            for _ in range(50):  # authenticated links are not closed for them
                await stack.enter_async_context(await RawPeer.dial(service))
            (job,) = await caller.submit("lab-1")
            await board.next()
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"
    assert service.server.unauthenticated.count == 0


async def test_aborted_connections_leave_no_state(service: Service):
    for _ in range(5):
        peers = [await RawPeer.dial(service) for _ in range(100)]
        for number, peer in enumerate(peers):
            peer.say((b"", b"GET /board", handshake("/board"), handshake("/caller"))[number % 4])
        for peer in peers:
            peer.writer.transport.abort()
    await service.until(lambda: service.server.unauthenticated.count == 0)
    assert service.server.unauthenticated._groups == {}


async def test_half_open_requests_do_not_delay_others(service: Service):
    (identity,) = service.enrol("lab-1")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            peer = await stack.enter_async_context(await RawPeer.dial(service))
            peer.say(b"GET /board HTTP/1.1\r\nHost: ")
        for _ in range(50):
            await stack.enter_async_context(await RawPeer.upgraded(service))
        async with (
            await FakeBoard.join(service, identity) as board,
            await FakeCaller.join(service) as caller,
        ):
            (job,) = await caller.submit("lab-1")
            await board.next()
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"


async def test_refused_request_is_logged_in_one_line_without_secrets(service: Service, caplog):
    caplog.set_level("INFO")
    await get(
        service, "GET /x%0d%0aforged?token=secret HTTP/1.1\r\nHost: localhost\r\nX-Y: cm_z\r\n\r\n"
    )
    (line,) = (record.getMessage() for record in caplog.records if "404" in record.getMessage())
    assert "secret" not in caplog.text
    assert "cm_z" not in caplog.text
    assert "\n" not in line


async def test_log_lines_about_bad_requests_are_limited(service: Service, caplog):
    caplog.set_level("INFO")
    for _ in range(Limits.stranger_rows_per_address_per_minute + 20):
        await get(service, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert caplog.text.count("GET '/nothing'") == Limits.stranger_rows_per_address_per_minute


# The time after which boards are lost


@pytest.mark.parametrize(
    ("lost_after", "boards", "grace"), [(10.0, 0, 10.0), (0.5, 0, 2.0), (3.0, 3000, 20.0)]
)
async def test_lost_after_is_not_below_the_reconnect_spread(tmp_path, lost_after, boards, grace):
    async with running_service(tmp_path) as service:
        service.enrol(*([f"lab-{n}" for n in range(boards)] or ["lab-1"]))
    async with running_service(tmp_path, lost_after=lost_after) as service:
        assert service.server.reconnects.spread == max(2.0, boards / 150)
        assert lost_after_of(service) == grace


async def test_lost_after_grows_with_the_fleet(tmp_path):
    async with running_service(tmp_path, lost_after=1) as service:
        service.enrol(*(f"lab-{n}" for n in range(600)))
        assert lost_after_of(service) == service.server.reconnects.spread == 4.0


def lost_after_of(service: Service) -> Any:
    """Return after how many seconds the jobs of a board with a broken link are lost."""
    seconds: list[float] = []
    scheduler = service.server.dispatch.scheduler
    scheduler._call_later = lambda after, _act: seconds.append(after)  # type: ignore[assignment,return-value]
    board = service.server.registry.by_name["lab-1"]
    board.queue.append(Job(1, board, Cell(b""), Requester("ann")))
    scheduler.start_grace_period(board)
    board.queue.clear()
    return seconds[0]


def test_server_needs_less_than_100_mib(tmp_path):
    with running_server(tmp_path) as server:
        rss = psutil.Process(server.process.pid).memory_info().rss
    assert rss < 100 * 1024 * 1024


def test_start_and_stop_do_not_load_what_only_some_requests_need(tmp_path: Path):
    """Each of these takes milliseconds, for which everybody waits who starts a server."""
    program = """
import asyncio, os, signal, sys
from pathlib import Path
from cm_server import process
asyncio.run(process.serve(Path(sys.argv[1]), process.ServerOptions(port=0), process.Limits(),
    lambda *_: os.kill(os.getpid(), signal.SIGTERM)))
late = "alembic cryptography duckdb nats psycopg resolvelib cm_server.packages.planner".split()
sys.exit(" ".join(name for name in late if name in sys.modules) or None)
"""
    environment = {**os.environ, "CM_HOME": str(tmp_path)}
    certificates.load(tmp_path)  # else the start makes them
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True)
