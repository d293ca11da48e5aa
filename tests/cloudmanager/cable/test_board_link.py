"""A bridged board's link to the real server, and to other servers."""

from __future__ import annotations

import itertools
import os
import socket
import threading

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.cable.board_link import BridgedBoardLink
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import LinkLost, NotAllowed, ServerUnreachable
from cloudmanager.protocol.frames import BINARY, encode_frame
from cloudmanager.testing.board_fixtures import wait_online
from tests.conftest import RunningServer

NUMBERS = itertools.count(1)
ABOUT = {
    "boot": "b0",
    "parts": ["run"],
    "facts": {"platform": "cable", "version": "1.28.0", "mpy": 6, "machine": "", "heap": 9000},
    "last": None,
}


@pytest.fixture
def identity(fleet: Fleet):
    name = f"linked-{next(NUMBERS)}"
    (row,) = fleet.enrol([name])
    return BoardIdentity(row["name"], row["id"], bytes.fromhex(row["key"]))


def dial(server: RunningServer, identity: BoardIdentity) -> BridgedBoardLink:
    return BridgedBoardLink(("127.0.0.1", server.tcp_port), identity, ABOUT)


def test_board_is_in_the_fleet_with_its_facts(server: RunningServer, identity, fleet: Fleet):
    link = dial(server, identity)
    try:
        assert link.name == identity.name
        assert link.heartbeat_seconds > 0
        assert link.reconnect_spread >= 2
        (board,) = fleet[identity.name].info()
        assert (board["platform"], board["heap"]) == ("cable", 9000)
    finally:
        link.close()


def test_cell_arrives_and_its_result_is_sent(server: RunningServer, identity, fleet: Fleet):
    link = dial(server, identity)
    try:
        wait_online(fleet, [identity.name])
        group = fleet[identity.name].submit("1 + 1")
        (message,) = link.receive(5)
        assert (message.op, message.payload[8:]) == (wire.EXEC, b"__cm__((1 + 1))")
        link.send(wire.pack(wire.RESULT, b"\0\x02hi2", job=message.job))
        (result,) = group.results(5).values()
        assert (result.stdout, result.value) == ("hi", 2)
    finally:
        link.close()


def test_older_link_is_closed_with_a_reason(server: RunningServer, identity):
    old = dial(server, identity)
    new = dial(server, identity)
    try:
        with pytest.raises(LinkLost, match="a newer link took over"):
            list(old.receive(5))
    finally:
        old.close()
        new.close()


def test_wrong_key_is_refused(server: RunningServer, identity):
    wrong = BoardIdentity(identity.name, identity.id, os.urandom(32))
    with pytest.raises(NotAllowed, match="the server does not have the key of linked-"):
        dial(server, wrong)


def test_closed_port_is_server_unreachable(identity):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(ServerUnreachable):
        BridgedBoardLink(address, identity, ABOUT)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70_000])
def test_other_servers_are_refused(identity, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ServerUnreachable, match=r"not a Cloudmanager server|reset"):
            BridgedBoardLink(server.getsockname(), identity, ABOUT)
        thread.join()


def test_nothing_follows_half_a_frame(server: RunningServer, identity):
    """Neither a message nor a close frame, after the server did not read for too long."""
    link = dial(server, identity)
    ours, theirs = socket.socketpair()
    with theirs:
        link._socket.close()
        link._socket = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        ours.settimeout(0.05)
        big = wire.pack(wire.OUTPUT, b"a" * 1_000_000, job=7)
        link.send(big)
        link.send(wire.pack(wire.RESULT, b"\0\0", job=7))
        with pytest.raises(LinkLost, match="the server closed the connection"):
            list(link.receive(5))
        link.close()
        got = bytearray()
        while data := theirs.recv(65536):
            got += data
    assert 0 < len(got) < len(big)
    assert encode_frame(big, BINARY, mask=True).startswith(got)
