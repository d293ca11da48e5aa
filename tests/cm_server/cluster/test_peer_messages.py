"""Letters between servers: whole or not at all, and only from who has the key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.cluster import peer_messages as module
from cm_server.cluster.peer_messages import ALL, PeerMessages
from cm_server.cluster.pubsub import InProcessBroker

KEY = b"k" * 32
IDS = ("a" * 16, "b" * 16, "c" * 16)


class Recorder:
    """What a server gets."""

    def __init__(self, post: PeerMessages) -> None:
        self.post = post
        self.got: list[tuple[str, dict[str, Any], bytes]] = []
        post.handlers |= {"note": self.on_note, "ask": self.on_ask, "bad": self.on_bad}
        post.start(lambda _up: None)

    def on_note(self, *letter: Any) -> None:
        self.got.append(letter)

    def on_ask(self, _sender: str, head: dict[str, Any], payload: bytes) -> Any:
        return {"heard": head["n"]}, payload[::-1]

    def on_bad(self, *_letter: Any) -> None:
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
    a.post.send(IDS[1], "note", {"n": 1}, b"one")
    a.post.send(IDS[1], "note", {"n": 2})
    a.post.send(ALL, "note", {"n": 3})
    await settle()
    assert [(sender, head["n"], data) for sender, head, data in b.got] == [
        (IDS[0], 1, b"one"),
        (IDS[0], 2, b""),
        (IDS[0], 3, b""),
    ]
    assert [head["n"] for _, head, _ in c.got] == [3]
    assert a.got == []


async def test_long_message_is_fragmented_and_arrives_complete_or_not_at_all(
    servers: list[Recorder], hub: InProcessBroker, monkeypatch
):
    a, b, _ = servers
    monkeypatch.setattr(module, "FRAGMENT_BYTES", 1000)
    sent: list[tuple[str, bytes]] = []
    a.post.pubsub.publish = lambda subject, data: sent.append((subject, data))  # type: ignore[method-assign]
    for n in (1, 2):
        a.post.send(IDS[1], "note", {"n": n}, bytes(5000))
        a.post.flush()
    del sent[2]
    for _, data in sent:
        b.post._on_fragment(data)
    assert [(head["n"], len(data)) for _, head, data in b.got] == [(2, 5000)]


async def test_forged_changed_replayed_and_redirected_fragments_are_dropped(
    servers: list[Recorder],
):
    a, b, c = servers
    sent: list[bytes] = []
    a.post.pubsub.publish = lambda subject, data: sent.append(data)  # type: ignore[method-assign]
    a.post.send(IDS[1], "note", {"n": 1})
    a.post.flush()
    (letter,) = sent
    stranger = PeerMessages(InProcessBroker().new_client(), "f", b"x" * 32, IDS[0])
    forged = stranger._pack_fragment(IDS[1], 3, letter[33:])
    later = letter[:8] + bytes([0] * 7 + [9]) + letter[16:]
    partly = letter[:16] + b"\1" + letter[17:]
    changed = (letter[:-1] + b"\0", b"\0" * 8 + letter[8:], later, partly)
    for wrong in (b"", b"short", forged, *changed):
        b.post._on_fragment(wrong)
    c.post._on_fragment(letter)  # it is another's
    assert (b.got, c.got) == ([], [])
    b.post._on_fragment(letter)
    b.post._on_fragment(letter)
    assert len(b.got) == 1
    assert (b.post.dropped, c.post.dropped) == (8, 1)


async def test_request_returns_the_reply_or_times_out(servers: list[Recorder], monkeypatch):
    a, *_ = servers
    assert await a.post.request(IDS[1], "ask", {"n": 5}, b"abc") == ({"heard": 5}, b"cba")
    monkeypatch.setattr(module, "REPLY_SECONDS", 0.01)
    with pytest.raises(ServerError, match="does not answer"):
        await a.post.request("d" * 16, "ask", {"n": 6})


async def test_failing_handler_does_not_affect_other_messages(servers: list[Recorder], caplog):
    a, b, _ = servers
    a.post.send(IDS[1], "bad", {})
    a.post.send(IDS[1], "unknown", {})
    a.post.send(IDS[1], "note", {"n": 1})
    await settle()
    assert len(b.got) == 1
    assert "a message of another server could not be handled: bad" in caplog.text


async def test_server_with_a_new_id_receives_messages_to_it(servers: list[Recorder]):
    a, b, _ = servers
    b.post.change_server_id("e" * 16)
    a.post.send("e" * 16, "note", {"n": 1})
    await settle()
    assert len(b.got) == 1
