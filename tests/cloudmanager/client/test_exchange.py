"""The caller's side of the protocol, without a socket: bytes in, bytes out."""

import json
import threading
from typing import Any

import pytest

from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.exchange import MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, Exchange
from cloudmanager.client.jobs import JobGroup
from cloudmanager.config import ServerAddress
from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.errors import (
    BoardOffline,
    CellSyntaxError,
    CloudmanagerError,
    LinkLost,
    NoSuchBoard,
    NotAllowed,
    ServerError,
    ServerUnreachable,
    TargetError,
    VersionMismatch,
)
from cloudmanager.protocol.frames import FrameReader
from cloudmanager.protocol.run_options import RunOptions

ADDRESS = ServerAddress("http://lab:18266", "cm_secret", "CM_URL")
NO_SERVER = "the program that answers there is not a Cloudmanager server"


class Conversation:
    """An exchange, with what it has sent decoded as by a server."""

    def __init__(self, address=ADDRESS, *, opened=True):
        self.sent = bytearray()
        self.exchange = Exchange(address, "lab:18266", lambda data, *_: self.sent.extend(data))
        self.head = self.exchange.handshake_request().decode()
        self._reader = FrameReader(MAX_MESSAGE_BYTES, masked=True)
        if opened:
            assert self.exchange.handle_data(self.answer())

    def answer(self, status="101 Switching Protocols", *lines):
        """Return the server's response to the handshake, with the right accept key."""
        key = self.head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
        accept = f"Sec-WebSocket-Accept: {frames.accept_key(key)}"
        return "\r\n".join([f"HTTP/1.1 {status}", accept, *lines, "", ""]).encode()

    def frames(self):
        """Return the messages that were sent since the last call."""
        data = bytes(self.sent)
        self.sent.clear()
        return list(self._reader.feed(data))

    def messages(self):
        return [wire.unpack(frame.payload) for frame in self.frames()]

    def receive(self, *messages):
        return self.exchange.handle_data(
            b"".join(frames.encode_frame(message) for message in messages)
        )

    def reply(self, ref, **body):
        return self.receive(wire.pack_json(wire.REPLY, body, job=ref))

    def events(self, *messages):
        return self.receive(wire.pack_events(messages))

    def submit(self, code="1 + 1", target="lab-*", **options):
        group = JobGroup(prepare_cell(code), RunOptions(**options))
        self.exchange.submit(group, target)
        return group

    def run(self, jobs=((7, "lab-1"),)):
        """Submit a cell that the server accepts."""
        group = self.submit()
        assert self.events(accepted(self.messages()[-1].job, jobs))
        return group


def accepted(ref, jobs, **more):
    return wire.pack_json(wire.ACCEPTED, {"jobs": [list(job) for job in jobs], **more}, job=ref)


def result(job, rest=b"2", flags=0):
    return wire.pack(wire.RESULT, b"\0\0" + rest, job=job, flags=flags)


# The handshake


def test_handshake_has_token_and_version():
    lines = Conversation(opened=False).head.split("\r\n")
    assert lines[0] == "GET /caller HTTP/1.1"
    assert lines[-2:] == ["", ""]
    headers = dict(line.split(": ", 1) for line in lines[1:-2])
    key = headers.pop("Sec-WebSocket-Key")
    assert len(key) == 24
    assert headers == {
        "Host": "lab:18266",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Authorization": "Bearer cm_secret",
        "Cm-Protocol": str(wire.PROTOCOL),
    }


def test_each_handshake_has_a_new_key():
    assert Conversation(opened=False).head != Conversation(opened=False).head


def test_token_cannot_inject_a_header():
    address = ADDRESS._replace(token="a\r\nX-Evil: 1\x00é")
    head = Conversation(address, opened=False).head
    assert "Authorization: Bearer aX-Evil: 1?\r\n" in head


def test_link_opens_when_the_server_accepts():
    talk = Conversation(opened=False)
    assert not talk.exchange.opened.done
    assert talk.exchange.handle_data(talk.answer())
    assert talk.exchange.opened.result() is None


def test_handshake_response_may_be_split_and_followed_by_frames():
    talk = Conversation(opened=False)
    *head, last = talk.answer("101 Fine", "Cm-Protocol: 1")
    assert all(talk.exchange.handle_data(bytes((byte,))) for byte in head)
    assert not talk.exchange.opened.done
    assert talk.exchange.handle_data(bytes((last,)) + frames.encode_frame(b"beat", frames.PING))
    assert talk.frames() == [(frames.PONG, b"beat")]


def refused(talk, data):
    """Return the error that ends the handshake."""
    assert talk.exchange.handle_data(data) is False
    with pytest.raises(CloudmanagerError) as caught:
        talk.exchange.opened.result()
    assert talk.frames() == []
    return caught.value


def test_unknown_token_is_not_allowed():
    talk = Conversation(opened=False)
    error = refused(talk, b"HTTP/1.1 401 Unauthorized\r\n\r\nThe token is not known here.\n")
    assert isinstance(error, NotAllowed)
    assert str(error).startswith("Not allowed: the server does not know this token. ")


def test_expired_token_error_has_the_servers_reason():
    talk = Conversation(opened=False)
    head = b"HTTP/1.1 401 Unauthorized\r\nCm-Refused: the token 'lab' expired\x1b[2J\r\n\r\n"
    error = refused(talk, head)
    assert isinstance(error, NotAllowed)
    assert str(error).startswith("Not allowed: the token 'lab' expired\\x1b[2J. Ask ")


@pytest.mark.parametrize("status", ["403 Forbidden", "429 Too Many Requests", "503 Busy"])
def test_refusal_has_the_servers_reason(status):
    talk = Conversation(opened=False)
    error = refused(talk, f"HTTP/1.1 {status}\r\nCm-Refused: no{'o' * 999}\r\n\r\n".encode())
    assert isinstance(error, ServerError)
    assert error.reason == "no" + "o" * 198


def test_revoked_token_ends_the_link_with_a_reason():
    talk = Conversation()
    group, reply = talk.submit(), talk.exchange.request("status", {})
    reason = "the token 'lab' was revoked"
    assert talk.exchange.handle_data(frames.encode_close_frame(4004, reason)) is False
    talk.exchange.on_link_lost("it closed the connection")
    for waiting in (reply, group.accepted):
        with pytest.raises(NotAllowed, match="the token 'lab' was revoked"):
            waiting.result()


def test_server_of_another_version_is_a_version_mismatch():
    talk = Conversation(opened=False)
    error = refused(talk, b"HTTP/1.1 409 Other Protocol Version\r\ncm-protocol: 2\r\n\r\n")
    assert isinstance(error, VersionMismatch)
    assert (error.ours, error.theirs) == (wire.PROTOCOL, 2)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n<html>", id="a web page"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\n\r\n", id="not found"),
        pytest.param(b"HTTP/1.1 409 Conflict\r\n\r\n", id="409 of something else"),
        pytest.param(b"HTTP/1.1 409 C\r\nCm-Protocol: 9" + b"9" * 5000 + b"\r\n\r\n", id="digits"),
        pytest.param(b"HTTP/1.1 101 Fine\r\n\r\n", id="no accept key"),
        pytest.param(b"HTTP/1.1 101\r\nSec-WebSocket-Accept: AAAA\r\n\r\n", id="wrong accept key"),
        pytest.param(b"HTTP/1.1\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 one\r\n\r\n", id="a status that is no number"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="ssh"),
        pytest.param(b"\r\n\r\n", id="nothing"),
        pytest.param(b"\xff\x00\x80\r\n\r\n", id="garbage"),
        pytest.param(b"x" * (MAX_HEAD_BYTES + 1), id="a head without end"),
    ],
)
def test_server_that_is_not_cloudmanager_is_refused(answer):
    error = refused(Conversation(opened=False), answer)
    assert isinstance(error, ServerUnreachable)
    assert str(error).startswith(f"No server at http://lab:18266 (from CM_URL): {NO_SERVER}. ")


def test_accept_key_of_another_handshake_is_refused():
    error = refused(Conversation(opened=False), Conversation(opened=False).answer())
    assert isinstance(error, ServerUnreachable)


# Cells


def test_submit_sends_target_options_and_code():
    talk = Conversation()
    talk.submit("x = 1\nx", "lab-[1-3]", timeout=2.5)
    (message,) = talk.messages()
    assert message.op == wire.SUBMIT
    head, code = wire.read_submit(message)
    assert code == b"x = 1\n__cm__((x))"
    assert head.pop("own") == [0, 6, 14, 15]  # what the user wrote
    assert head == {"target": "lab-[1-3]", "awaits": False, "timeout": 2.5, "title": "x = 1"}


def test_awaiting_cell_is_marked_in_submit():
    talk = Conversation()
    talk.submit("await x()")
    head, code = wire.read_submit(talk.messages()[0])
    assert (head["awaits"], code.startswith(b"async def __cm_cell__")) == (True, True)


def test_cell_returns_its_results():
    talk = Conversation()
    group = talk.submit()
    ref = talk.messages()[0].job
    assert not group.accepted.done
    assert talk.events(accepted(ref, [(7, "lab-1"), (8, "lab-2")], left_out=["lab-3"]))
    assert group.accepted.result() is None
    assert talk.events(
        wire.pack(wire.OUTPUT, b"hi\r\n", job=8), result(8, b"'b'"), result(7, b"'a'")
    )
    results = group.results(0)
    assert (results.to_dict(), results["lab-2"].stdout) == ({"lab-1": "a", "lab-2": "b"}, "hi\n")
    assert results.left_out == ("lab-3",)


def test_accepted_and_all_results_may_share_a_frame():
    talk = Conversation()
    group = talk.submit()
    assert talk.events(accepted(talk.messages()[0].job, [(7, "lab-1")]), result(7))
    assert group.results(0).value == 2


def test_refused_cell_raises_the_servers_error():
    talk = Conversation()
    group = talk.submit()
    assert talk.reply(talk.messages()[0].job, error="NoSuchBoard", args=["lab-7", "lab-1"])
    with pytest.raises(NoSuchBoard) as caught:
        group.accepted.result()
    assert caught.value.suggestion == "lab-1"


def test_unexpected_reply_to_a_cell_is_an_error():
    talk = Conversation()
    group = talk.submit()
    talk.reply(talk.messages()[0].job, reply=7)
    with pytest.raises(ServerError, match="a reply of another kind"):
        group.results(0)


def test_concurrent_cells_are_distinguished():
    talk = Conversation()
    one, two = talk.submit(), talk.submit()
    first, second = [message.job for message in talk.messages()]
    talk.events(accepted(second, [(8, "b")]), accepted(first, [(7, "a")]), result(8), result(7))
    assert (list(one.results(0)), list(two.results(0))) == (["a"], ["b"])


def test_interrupt_names_the_jobs():
    talk = Conversation()
    group = talk.run([(7, "a"), (8, "b")])
    group.interrupt()
    (message,) = talk.messages()
    body = wire.read_json(message.payload)
    assert (message.op, body) == (wire.REQUEST, {"verb": "interrupt", "jobs": [7, 8]})
    assert talk.reply(message.job, reply=2)


@pytest.mark.parametrize(
    ("text", "payload", "flags"), [("zwölf", "zwölf".encode(), 0), (None, b"", wire.INPUT_EOF)]
)
def test_answer_is_sent_for_its_job(text, payload, flags):
    talk = Conversation()
    group = talk.run()
    group.answer(group.jobs["lab-1"], text)
    assert talk.messages() == [(wire.ANSWER, flags, 7, payload)]


def test_message_for_an_ended_job_is_ignored():
    talk = Conversation()
    group = talk.run()
    assert talk.events(result(7), result(7, b"3"), wire.pack(wire.OUTPUT, b"late", job=7))
    assert group.results(0).value == 2


# Requests


def test_request_sends_verb_and_body_and_gets_the_reply():
    talk = Conversation()
    reply = talk.exchange.request("boards", {"target": None})
    (message,) = talk.messages()
    assert message.op == wire.REQUEST
    assert wire.read_json(message.payload) == {"verb": "boards", "target": None}
    talk.reply(message.job, reply=[1, 2])
    assert reply.result() == [1, 2]


def test_replies_may_arrive_in_any_order():
    talk = Conversation()
    replies = [talk.exchange.request("status", {}) for _ in range(3)]
    for message in reversed(talk.messages()):
        talk.reply(message.job, reply=message.job)
    assert len({reply.result() for reply in replies}) == 3


@pytest.mark.parametrize(
    ("error", "args", "kind"),
    [
        ("NotAllowed", ["operator"], NotAllowed),
        ("NoSuchBoard", ["lab-7", "lab-1", ["lab-8"]], NoSuchBoard),
        ("TargetError", ["Backwards.", "[3-1]", 1, "Write 1-3."], TargetError),
        ("BoardOffline", ["lab-1", None, "never seen"], BoardOffline),
        ("LinkLost", ["lab-1", 7], LinkLost),
        ("CellSyntaxError", ["invalid", 1, 1, "x y"], CellSyntaxError),
        ("ServerError", ["the queue is full"], ServerError),
    ],
)
def test_error_of_the_server_is_raised_as_the_same_class(error, args, kind):
    talk = Conversation()
    reply = talk.exchange.request("boards", {})
    talk.reply(talk.messages()[0].job, error=error, args=args)
    with pytest.raises(kind) as caught:
        reply.result()
    assert (type(caught.value), json.loads(json.dumps(caught.value.args))[: len(args)]) == (
        kind,
        args,
    )


@pytest.mark.parametrize(
    ("error", "args"),
    [
        pytest.param("FutureError", ["x"], id="a class of a newer server"),
        pytest.param("NoSuchBoard", [1, 2, 3, 4, 5], id="too many arguments"),
        pytest.param("ServerError", [7], id="an argument of another type"),
        pytest.param("FleetError", [["a"]], id="a list for a dict"),
        pytest.param("NotAllowed", None, id="no arguments"),
        pytest.param("Sequence", ["x"], id="a class that is no error"),
        pytest.param("clean", ["x"], id="a function"),
        pytest.param("__name__", ["x"], id="an attribute"),
        pytest.param(None, ["x"], id="null"),
        pytest.param(["x"], {}, id="a list"),
    ],
)
def test_unknown_error_class_is_a_server_error(error, args):
    talk = Conversation()
    reply = talk.exchange.request("boards", {})
    assert talk.reply(talk.messages()[0].job, error=error, args=args)
    with pytest.raises(ServerError, match="The server refused"):
        reply.result()


def test_reply_without_a_request_is_ignored():
    assert Conversation().reply(99, reply=1)


# Beats and the end


def test_ping_is_answered():
    talk = Conversation()
    assert talk.exchange.handle_data(frames.encode_frame(b"beat", frames.PING))
    assert talk.frames() == [(frames.PONG, b"beat")]


def test_pong_is_ignored():
    talk = Conversation()
    assert talk.exchange.handle_data(frames.encode_frame(b"", frames.PONG))
    assert talk.frames() == []


@pytest.mark.parametrize(
    ("close", "answer"),
    [(frames.encode_close_frame(1001, "the server stops"), b"\x03\xe9"), (b"\x88\0", b"")],
)
def test_close_is_answered_and_ends_the_link(close, answer):
    talk = Conversation()
    assert not talk.exchange.handle_data(close)
    assert talk.frames() == [(frames.CLOSE, answer)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frames.encode_frame(b"x", mask=True), 1002, id="a mask"),
        pytest.param(b"\x81\0", 1003, id="text"),
        pytest.param(b"\x82\x7f" + (2**62).to_bytes(8, "big"), 1009, id="too long"),
        pytest.param(frames.encode_frame(b"x"), 1002, id="less than a header"),
        pytest.param(frames.encode_frame(wire.pack(wire.HELLO)), 1002, id="a message of boards"),
        pytest.param(
            frames.encode_frame(wire.pack(wire.REPLY, b"[]")), 1002, id="a reply of no object"
        ),
        pytest.param(frames.encode_frame(wire.pack_events([b"x"])), 1002, id="half an event"),
        pytest.param(
            frames.encode_frame(wire.pack_events([accepted(9, [(7, "a")])])), 1002, id="no ref"
        ),
    ],
)
def test_protocol_violation_ends_the_link_with_a_close_code(data, code):
    talk = Conversation()
    assert not talk.exchange.handle_data(data)
    assert [frames.read_close_code(frame.payload) for frame in talk.frames()] == [code]


@pytest.mark.parametrize(
    "body", [{}, {"jobs": 7}, {"jobs": [[7]]}, {"jobs": [[7, "a"]], "queued": [8]}]
)
def test_malformed_accepted_ends_the_link_and_all_waits(body):
    talk = Conversation()
    group = talk.submit()
    message = wire.pack_json(wire.ACCEPTED, body, job=talk.messages()[0].job)
    assert not talk.events(message)
    talk.exchange.on_link_lost()
    with pytest.raises(ServerUnreachable):
        group.accepted.result()


@pytest.mark.parametrize("payload", [b"", b"\0\7x", b"\0"])
def test_malformed_result_ends_the_link_and_all_waits(payload):
    talk = Conversation()
    group = talk.run()
    assert not talk.events(wire.pack(wire.RESULT, payload, job=7))
    talk.exchange.on_link_lost()
    assert group.results(0)["lab-1"].status == "lost"


def test_link_lost_before_the_handshake():
    talk = Conversation(opened=False)
    talk.exchange.on_link_lost("no answer in time")
    with pytest.raises(ServerUnreachable, match=r"\(from CM_URL\): no answer in time\."):
        talk.exchange.opened.result()


def test_link_lost_before_the_cell_was_accepted():
    talk = Conversation()
    group = talk.submit()
    talk.exchange.on_link_lost()
    with pytest.raises(ServerUnreachable, match="it is not known whether the cell runs"):
        group.accepted.result()
    assert talk.exchange.closed


def test_link_lost_while_the_cell_runs_keeps_its_output():
    talk = Conversation()
    group = talk.run([(7, "a"), (8, "b")])
    talk.events(result(7), wire.pack(wire.OUTPUT, b"so far", job=8))
    talk.exchange.on_link_lost()
    results = group.results(0)
    assert (results["a"].value, results["b"].status, results["b"].stdout) == (2, "lost", "so far")
    assert "the cell continues" in results["b"].why


def test_link_lost_before_a_reply():
    talk = Conversation()
    reply = talk.exchange.request("status", {})
    talk.exchange.on_link_lost()
    with pytest.raises(ServerUnreachable):
        reply.result()


def test_link_may_be_lost_twice():
    talk = Conversation()
    group = talk.run()
    talk.exchange.on_link_lost("one")
    talk.exchange.on_link_lost("two")
    assert group.results(0)["lab-1"].status == "lost"


def test_nothing_is_sent_after_the_link_was_lost():
    talk = Conversation()
    talk.exchange.on_link_lost()
    group, reply = talk.submit(), talk.exchange.request("status", {})
    for ask in (group.accepted.result, group.results, reply.result):
        with pytest.raises(ServerUnreachable, match="the link broke"):
            ask()
    assert talk.frames() == []


def test_concurrent_submits_all_end_when_the_link_is_lost():
    """Each thread gets the error from on_link_lost, or from its own submit after it."""
    talk = Conversation()
    begun = threading.Barrier(5)
    groups: list[JobGroup] = []

    def work():
        begun.wait(20)
        groups.extend(talk.submit() for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    talk.exchange.on_link_lost()
    for thread in threads:
        thread.join(20)
    assert [group.wait(0) for group in groups] == [True] * 200


# Watching


def watched(conversation, target="lab-*"):
    received: list[Any] = []
    ref = conversation.exchange.watch(target, {"samples": True}, received.append)
    (message,) = conversation.messages()
    assert (message.op, message.job) == (wire.WATCH, ref)
    assert wire.read_json(message.payload) == {"target": target, "samples": True}
    return ref, received


def test_changes_are_passed_to_their_watch():
    conversation = Conversation()
    (_, first), (two, second) = watched(conversation, "a"), watched(conversation, "b")
    conversation.receive(wire.pack(wire.CHANGES, b"{}", job=two))
    conversation.receive(wire.pack(wire.CHANGES, b"{}", job=999))
    assert ([message.job for message in second], first) == ([two], [])
    conversation.exchange.unwatch(two)
    conversation.exchange.unwatch(two)
    (message,) = conversation.messages()
    assert (message.op, message.job) == (wire.UNWATCH, two)
    assert conversation.receive(wire.pack(wire.CHANGES, b"{}", job=two)), "it crossed the UNWATCH"
    assert len(second) == 1


def test_refused_watch_gets_the_error_and_ends():
    conversation = Conversation()
    ref, received = watched(conversation)
    conversation.reply(ref, error="TargetError", args=["No.", "lab-*", 0, ""])
    assert [type(error) for error in received] == [TargetError]
    conversation.exchange.on_link_lost()
    assert len(received) == 1


def test_lost_link_ends_watches():
    conversation = Conversation()
    _, received = watched(conversation)
    conversation.exchange.on_link_lost("it closed the connection")
    later: list[Any] = []
    conversation.exchange.watch("all", {"samples": False}, later.append)
    assert [type(error) for error in (*received, *later)] == [ServerUnreachable] * 2


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([[1, 2], [3], []], [1, 2, 3]),
        ([{"a": 1}, {"b": 2}], {"a": 1, "b": 2}),
        ([[]], []),
    ],
)
def test_parts_of_a_long_reply_are_joined(parts, whole):
    talk = Conversation()
    reply, other = talk.exchange.request("boards", {}), talk.exchange.request("status", {})
    ref, other_ref = (message.job for message in talk.messages())
    for part in parts[:-1]:
        talk.receive(wire.pack_json(wire.REPLY, {"reply": part}, job=ref, flags=wire.MORE_PARTS))
        assert not reply.done
    talk.reply(other_ref, reply="between the parts")
    talk.reply(ref, reply=parts[-1])
    assert reply.result() == whole
    assert other.result() == "between the parts"


def test_error_ends_a_reply_of_several_parts():
    talk = Conversation()
    reply = talk.exchange.request("boards", {})
    (message,) = talk.messages()
    talk.receive(wire.pack_json(wire.REPLY, {"reply": [1]}, job=message.job, flags=wire.MORE_PARTS))
    talk.reply(message.job, error="ServerError", args=["the store failed"])
    with pytest.raises(ServerError, match="the store failed"):
        reply.result()


@pytest.mark.parametrize("parts", [([1], {"a": 1}), ({"a": 1}, 5), (1, 2)], ids=str)
def test_parts_of_different_kinds_close_the_link(parts):
    talk = Conversation()
    talk.exchange.request("boards", {})
    (message,) = talk.messages()
    flags = wire.MORE_PARTS
    for part, is_open in zip(parts, (True, False), strict=True):
        data = wire.pack_json(wire.REPLY, {"reply": part}, job=message.job, flags=flags)
        assert talk.receive(data) is is_open
