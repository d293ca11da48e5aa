"""Peer messages arrive complete or not at all, and only from servers that have the key."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.cluster import peer_messages as module
from cm_server.cluster.peer_messages import ALL, PeerMessages
from cm_server.cluster.pubsub import InProcessBroker

KEY = b"k" * 32
IDS = ("a" * 16, "b" * 16, "c" * 16)


class Recorder:
    """Records the messages that a server receives."""

    def __init__(self, peer_messages: PeerMessages) -> None:
        self.peer_messages = peer_messages
        self.received: list[tuple[str, dict[str, Any], bytes]] = []
        peer_messages.handlers |= {"note": self.on_note, "ask": self.on_ask, "bad": self.on_bad}
        peer_messages.start(lambda _connected: None)

    def on_note(self, *message: Any) -> None:
        self.received.append(message)

    def on_ask(self, _sender: str, head: dict[str, Any], payload: bytes) -> Any:
        return {"received": head["n"]}, payload[::-1]

    def on_bad(self, *_message: Any) -> None:
        raise RuntimeError("a bug")


@pytest.fixture
def hub() -> InProcessBroker:
    return InProcessBroker()


@pytest.fixture
def servers(hub: InProcessBroker) -> list[Recorder]:
    return [Recorder(PeerMessages(hub.new_client(), "f", KEY, server)) for server in IDS]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_messages_arrive_at_one_or_all_servers_in_order(servers: list[Recorder]):
    a, b, c = servers
    a.peer_messages.send(IDS[1], "note", {"n": 1}, b"one")
    a.peer_messages.send(IDS[1], "note", {"n": 2})
    a.peer_messages.send(ALL, "note", {"n": 3})
    await settle()
    assert [(sender, head["n"], data) for sender, head, data in b.received] == [
        (IDS[0], 1, b"one"),
        (IDS[0], 2, b""),
        (IDS[0], 3, b""),
    ]
    assert [head["n"] for _, head, _ in c.received] == [3]
    assert a.received == []


async def test_pieces_in_a_row_are_one_message_and_keep_their_place(servers: list[Recorder]):
    a, b, _ = servers
    a.peer_messages.send(IDS[1], "note", {"n": 1})
    for piece in (b"a", b"b", b"c"):
        a.peer_messages.send_piece(IDS[1], "note", piece)
    a.peer_messages.send(IDS[1], "note", {"n": 2})
    a.peer_messages.send_piece(IDS[1], "note", b"d")
    await settle()
    received = [(head.get("n"), data) for _, head, data in b.received]
    assert received == [(1, b""), (None, b"abc"), (2, b""), (None, b"d")]


async def test_pieces_wait_for_more_until_something_else_is_sent_or_a_moment_has_passed(
    servers: list[Recorder], monkeypatch
):
    a, b, _ = servers
    monkeypatch.setattr(module, "BATCH_SECONDS", 60.0)
    for piece in (b"a", b"b"):
        a.peer_messages.send_piece(IDS[1], "note", piece, more_follow=True)
        await settle()
    assert b.received == []
    a.peer_messages.send_piece(IDS[1], "note", b"c")
    await settle()
    assert [data for _, _, data in b.received] == [b"abc"]
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.01)
    a.peer_messages.send_piece(IDS[1], "note", b"d", more_follow=True)
    while len(b.received) < 2:  # noqa: ASYNC110 - the timer is what is tested
        await asyncio.sleep(0.01)
    assert [data for _, _, data in b.received] == [b"abc", b"d"]


async def test_long_message_is_fragmented_and_arrives_complete_or_not_at_all(
    servers: list[Recorder], hub: InProcessBroker, monkeypatch
):
    a, b, _ = servers
    monkeypatch.setattr(module, "FRAGMENT_BYTES", 1000)
    sent: list[tuple[str, bytes]] = []
    a.peer_messages.pubsub.publish = lambda subject, data: sent.append((subject, data))  # type: ignore[method-assign]
    for n in (1, 2):
        a.peer_messages.send(IDS[1], "note", {"n": n}, bytes(5000))
        a.peer_messages.flush()
    del sent[2]
    for _, data in sent:
        b.peer_messages._on_fragment(data)
    assert [(head["n"], len(data)) for _, head, data in b.received] == [(2, 5000)]


async def test_forged_changed_replayed_and_redirected_fragments_are_dropped(
    servers: list[Recorder],
):
    a, b, c = servers
    sent: list[bytes] = []
    a.peer_messages.pubsub.publish = lambda subject, data: sent.append(data)  # type: ignore[method-assign]
    a.peer_messages.send(IDS[1], "note", {"n": 1})
    a.peer_messages.flush()
    (message,) = sent
    stranger = PeerMessages(InProcessBroker().new_client(), "f", b"x" * 32, IDS[0])
    forged = stranger._pack_fragment(IDS[1], 3, message[33:])
    later = message[:8] + bytes([0] * 7 + [9]) + message[16:]
    partly = message[:16] + b"\1" + message[17:]
    changed = (message[:-1] + b"\0", b"\0" * 8 + message[8:], later, partly)
    for wrong in (b"", b"short", forged, *changed):
        b.peer_messages._on_fragment(wrong)
    c.peer_messages._on_fragment(message)  # it is addressed to another server
    assert (b.received, c.received) == ([], [])
    b.peer_messages._on_fragment(message)
    b.peer_messages._on_fragment(message)
    assert len(b.received) == 1
    assert (b.peer_messages.dropped, c.peer_messages.dropped) == (8, 1)


async def test_request_returns_the_reply_or_times_out(servers: list[Recorder], monkeypatch):
    a, *_ = servers
    assert await a.peer_messages.request(IDS[1], "ask", {"n": 5}, b"abc") == (
        {"received": 5},
        b"cba",
    )
    monkeypatch.setattr(module, "REPLY_SECONDS", 0.01)
    with pytest.raises(ServerError, match="does not answer"):
        await a.peer_messages.request("d" * 16, "ask", {"n": 6})


async def test_failing_handler_does_not_affect_other_messages(servers: list[Recorder], caplog):
    a, b, _ = servers
    a.peer_messages.send(IDS[1], "bad", {})
    a.peer_messages.send(IDS[1], "unknown", {})
    a.peer_messages.send(IDS[1], "note", {"n": 1})
    await settle()
    assert len(b.received) == 1
    assert "the message 'bad' of another server failed" in caplog.text


async def test_server_with_a_new_id_receives_messages_to_it(servers: list[Recorder]):
    a, b, _ = servers
    b.peer_messages.change_server_id("e" * 16)
    a.peer_messages.send("e" * 16, "note", {"n": 1})
    await settle()
    assert len(b.received) == 1


def test_every_peer_message_is_in_protocol_md():
    """The handlers' tables in the source are the list of them: no server has them all in one."""
    root = Path(__file__).parents[3]
    sources = (root / "server/cm_server/cluster").glob("*.py")
    handled = re.compile(r'"([\w-]+)": (?:self\._on_\w+|_ignore)')
    ops = {op for path in sources for op in handled.findall(path.read_text(encoding="utf-8"))}
    assert {"run", "boards", "beat", "reply"} <= ops
    text = (root / "docs/protocol.md").read_text(encoding="utf-8")
    rows = text[text.index("## Peer messages") :]
    assert [op for op in sorted(ops) if f'"{op}"' not in rows] == []
