"""A caller's link, on real sockets: tokens, requests, cells, and callers that read slowly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
import traceback
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.run_options import OptionLimits, RunOptions
from cm_server.auth import credentials
from cm_server.limits import Limits
from cm_server.net import caller_socket, websocket
from tests.cm_server.peers import (
    FakeBoard,
    FakeCaller,
    Identity,
    RawPeer,
    Service,
    handshake,
    running_service,
    within,
)


@pytest.fixture
def lab(service: Service) -> Identity:
    (identity,) = service.enrol("lab-1")
    return identity


# Authentication


async def refused(service: Service, **headers: str) -> str:
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake("/caller", **{"Cm-Protocol": "1", **headers}))
        return await peer.answer()


def without_date(answer: str) -> list[str]:
    return [line for line in answer.split("\r\n") if not line.startswith("Date:")]


async def test_every_wrong_token_gets_the_same_answer(service: Service):
    answers = [
        await refused(service, Authorization=header)
        for header in (
            "",
            "Bearer",
            "Bearer x",
            f"Bearer {service.token[:-1]}",
            f"Bearer {service.token}x",
            f"Basic {service.token}",
            f"Bearer {credentials.new_token()}",
            f"Bearer {'A' * 7000}",
            "Bearer \u00e9\u00ff",
        )
    ]
    assert answers[0].startswith("HTTP/1.1 401 Unauthorized\r\n")
    assert answers[0].endswith("The server does not know this token.\n")
    assert {tuple(without_date(answer)) for answer in answers} == {tuple(without_date(answers[0]))}


async def test_token_of_a_megabyte_closes_the_connection(service: Service, caplog):
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake("/caller", Authorization="Bearer " + "A" * 1024 * 1024))
        await peer.gone()
    async with await FakeCaller.join(service) as healthy:
        assert "reply" in await healthy.ask("status")


async def test_wrong_token_is_not_written_to_the_log(service: Service, caplog):
    await refused(service, Authorization="Bearer cm_almost-a-secret")
    assert "wrong token" in caplog.text
    assert "almost" not in caplog.text


async def test_token_in_the_address_is_refused_and_not_logged(service: Service, caplog):
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake(f"/caller?token={service.token}"))
        assert (await peer.answer()).startswith("HTTP/1.1 401 ")
    assert service.token not in caplog.text


@pytest.mark.parametrize("version", ["", "0", "2", "x", "1.0"])
async def test_other_protocol_version_gets_the_supported_one(service: Service, version):
    headers = {"Authorization": f"Bearer {service.token}", "Cm-Protocol": version}
    answer = await refused(service, **headers)
    assert answer.startswith("HTTP/1.1 409 ")
    assert "\r\nCm-Protocol: 1\r\n" in answer
    assert answer.endswith("This server uses version 1 of the protocol.\n")


async def test_protocol_version_is_not_revealed_without_a_token(service: Service):
    assert "Cm-Protocol" not in await refused(service, Authorization="Bearer x")


async def test_boards_key_does_not_authenticate_a_caller(service: Service, lab: Identity):
    for secret in (lab.key.hex(), lab.id, lab.name):
        with pytest.raises(InvalidStatus):
            await FakeCaller.join(service, secret)


async def test_request_without_upgrade_is_refused(service: Service):
    headers = {"Authorization": f"Bearer {service.token}", "Upgrade": ""}
    assert (await refused(service, **headers)).startswith("HTTP/1.1 426 ")


# Expired, revoked and wrong tokens


async def test_links_of_a_revoked_token_are_closed_within_two_seconds(service: Service):
    token = service.add_token("viewer", name="lab-notebook")
    async with (
        await FakeCaller.join(service) as admin,
        await FakeCaller.join(service, token) as first,
        await RawPeer.upgraded(service, "/caller", token=token, receive_bytes=4096) as stalled,
    ):
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for caller in service.callers:
            if caller.token.name == "lab-notebook":
                caller._link.send(
                    bytes(4 * 1024 * 1024)
                )  # stays unsent, because the caller does not read
        began = time.monotonic()
        assert (await admin.ask("token-revoke", name="lab-notebook"))["reply"]["closed"] == 2
        await first.next()
        code, reason = await first.closed()
        assert code == frames.CLOSE_REVOKED
        assert reason.startswith("the token 'lab-notebook' was revoked on 2")
        await service.until(lambda: len(service.callers) == 1)
        assert time.monotonic() - began < 2
        assert "reply" in await admin.ask("status")
    answer = await refused(service, Authorization=f"Bearer {token}")
    assert answer.startswith("HTTP/1.1 401 ")
    assert "\r\nCm-Refused: the token 'lab-notebook' was revoked on 2" in answer


async def test_running_job_of_a_revoked_token_continues_and_new_ones_are_refused(service, lab):
    token = service.add_token("operator", name="lab-notebook")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as admin,
        await FakeCaller.join(service, token) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        await admin.ask("token-revoke", name="lab-notebook")
        with contextlib.suppress(ConnectionClosed):
            await caller.socket.send(wire.pack_submit(2, {"target": "lab-1"}, b"2"))
        await caller.closed()
        await board.end(job, rest=b"1")
        await service.until(lambda: service.state("lab-1") == "idle")
        row = service.store.job(job)
        assert row is not None
        assert row.status == "ok"
        assert service.store.job(job + 1) is None


async def test_token_revoked_during_the_handshake_opens_no_link(service: Service, monkeypatch):
    token = service.add_token("viewer", name="lab-notebook")
    real = websocket.accept_websocket

    async def accept(handler, link):
        service.revoke_token("lab-notebook")
        return await real(handler, link)

    monkeypatch.setattr(caller_socket, "accept_websocket", accept)
    caller = await FakeCaller.join(service, token)
    assert (await caller.closed())[0] == frames.CLOSE_REVOKED


async def test_link_is_closed_when_its_token_expires(service: Service):
    token = service.add_token("viewer", name="lab-notebook", expires=0.3)
    async with await FakeCaller.join(service, token) as caller:
        assert "reply" in await caller.ask("status")
        code, reason = await caller.closed()
        assert code == frames.CLOSE_REVOKED
        assert reason.startswith("the token 'lab-notebook' expired on 2")
    answer = await refused(service, Authorization=f"Bearer {token}")
    assert "Cm-Refused: the token 'lab-notebook' expired on 2" in answer
    assert [row.who for row in service.audited() if row.verb == "login"] == ["lab-notebook"]


async def test_valid_token_is_checked_repeatedly(service: Service, monkeypatch):
    monkeypatch.setattr(caller_socket, "TOKEN_CHECK_SECONDS", 0.01)
    token = service.add_token("viewer", name="lab-notebook", expires=3600)
    async with await FakeCaller.join(service, token) as caller:
        await asyncio.sleep(0.05)
        assert "reply" in await caller.ask("status")


async def test_token_expires_by_the_wall_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(caller_socket, "TOKEN_CHECK_SECONDS", 0.01)
    ahead = 0.0
    async with running_service(tmp_path, clock=lambda: time.time() + ahead) as service:
        token = service.add_token("viewer", name="lab-notebook", expires=3600)
        async with await FakeCaller.join(service, token) as caller:
            ahead = 7200.0
            assert (await caller.closed())[0] == frames.CLOSE_REVOKED
            assert "expired" in await refused(service, Authorization=f"Bearer {token}")
        ahead = 0.0
        async with await FakeCaller.join(service, token) as caller:  # the token is still valid
            assert "reply" in await caller.ask("status")


def test_tokens_are_checked_each_second():
    assert caller_socket.TOKEN_CHECK_SECONDS <= 1.0


async def test_clock_set_back_does_not_revive_an_expired_token(tmp_path):
    ahead = 0.0
    async with running_service(tmp_path, clock=lambda: time.time() + ahead) as service:
        token = service.add_token("viewer", name="lab-notebook", expires=0.01)
        await asyncio.sleep(0.02)
        for back in (3600.0, 86400.0, time.time()):
            ahead = -back
            assert "expired" in await refused(service, Authorization=f"Bearer {token}")
    async with running_service(tmp_path, clock=lambda: 0.0) as service:  # it starts in 1970
        assert "expired" in await refused(service, Authorization=f"Bearer {token}")


async def test_wrong_tokens_are_rate_limited_but_a_valid_one_is_accepted(service):
    (lab,) = service.enrol("lab-1")
    old = service.add_token("viewer", name="old", expires=1e-6)
    answers = [
        (await refused(service, Authorization=f"Bearer {credentials.new_token()}")).split()[1]
        for _ in range(Limits.bad_logins_per_minute + 30)
    ]
    assert answers == ["401"] * Limits.bad_logins_per_minute + ["429"] * 30
    async with await FakeCaller.join(service) as caller, await FakeBoard.join(service, lab):
        assert "reply" in await caller.ask("status")
    assert "'old' expired" in await refused(service, Authorization=f"Bearer {old}")


async def test_flood_of_wrong_tokens_writes_a_bounded_number_of_rows_and_lines(
    service: Service, caplog
):
    for _ in range(3 * Limits.stranger_rows_per_address_per_minute):
        await refused(service, Authorization="Bearer cm_almost-a-secret-that-was-guessed")
    rows = [row for row in service.audited() if row.verb == "login"]
    assert len(rows) == Limits.stranger_rows_per_address_per_minute
    assert {(row.who, row.address, row.outcome, row.detail) for row in rows} == {
        ("", "127.0.0.1", "refused", "wrong token")
    }
    assert (
        caplog.text.count("was refused as a caller") == Limits.stranger_rows_per_address_per_minute
    )
    assert "almost" not in repr(rows)


@pytest.mark.limits(callers=3, callers_per_token=2)
async def test_callers_are_bounded_in_total_and_per_token(service: Service):
    token = service.add_token("viewer", name="lab-notebook")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(await FakeCaller.join(service, token))
        await service.until(lambda: len(service.callers) == 2)
        answer = await refused(service, Authorization=f"Bearer {token}")
        assert answer.startswith("HTTP/1.1 503 ")
        assert "Cm-Refused: the token 'lab-notebook' has 2 links of callers already" in answer
        await stack.enter_async_context(await FakeCaller.join(service))
        await service.until(lambda: len(service.callers) == 3)
        answer = await refused(service, Authorization=f"Bearer {service.token}")
        assert "Cm-Refused: the server has 3 links of callers already" in answer
    await service.until(lambda: not service.callers)
    async with await FakeCaller.join(service, token) as again:
        assert "reply" in await again.ask("status")


async def test_job_is_stored_with_its_callers_name(service: Service, lab: Identity):
    async with await FakeCaller.join(service, service.add_token("operator")) as caller:
        (job,) = await caller.submit("lab-1")
        row = service.store.job(job)
        assert row is not None
        assert row.caller == "operator"


async def test_at_most_five_functions_from_the_callers_to_the_boards_link(
    service, lab, monkeypatch
):
    """Each is one more place to understand, and time in every cell."""
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service, service.token) as caller,
    ):
        link = service.server.registry.by_name["lab-1"].link
        send, chains = websocket.WebSocketLink.send, []

        def recording_send(self: websocket.WebSocketLink, data: bytes) -> None:
            if self is link:
                chains.append([frame.name for frame in traceback.extract_stack()])
            send(self, data)

        monkeypatch.setattr(websocket.WebSocketLink, "send", recording_send)
        await caller.submit("lab-1")
        (chain,) = chains
        assert chain[chain.index("_on_message") : -1] == [
            "_on_message",
            "_launch",
            "launch",
            "start_queued_jobs",
            "_send",
        ]


async def test_few_functions_are_called_for_a_repeated_cell_and_its_result(
    service, lab, monkeypatch
):
    """Half of a short cell's time in the server is such calls; budgets of Python 3.11."""
    counts = {True: 0, False: 0}  # of the board's link, and of the caller's
    data_received = websocket.WebSocketLink.data_received

    def counting(self: websocket.WebSocketLink, data: bytes) -> None:
        def count(_frame: object, event: str, _what: object) -> None:
            counts[self.is_board] += event == "call"

        sys.setprofile(count)
        try:
            data_received(self, data)
        finally:
            sys.setprofile(None)

    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service, service.token) as caller,
    ):
        monkeypatch.setattr(websocket.WebSocketLink, "data_received", counting)
        rounds = []
        for _ in range(6):
            counts.update({True: 0, False: 0})
            await caller.socket.send(wire.pack_submit(next(caller.refs), {"target": "lab-1"}, b"1"))
            job = (await board.next()).job
            await board.send(wire.RESULT, b"\0\0" + b"1", job=job)
            assert await caller.ending(job) == ("ok", "1")
            rounds.append(dict(counts))
        # The least: garbage may be collected meanwhile. 12 more if a timer has to be set again.
        assert 0 < min(each[False] for each in rounds) <= 180
        assert 0 < min(each[True] for each in rounds) <= 130


# Requests and cells


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"verb": None},
        {"verb": ["status"]},
        {"verb": "submit"},
        {"verb": "enrol"},
        {"verb": "enrol", "names": [[]]},
        {"verb": "enrol", "names": [{"a": 1}]},
        {"verb": "interrupt", "jobs": [None]},
        {"verb": "label", "labels": 7},
        {"verb": "label", "target": "\ud800", "labels": {"a": "b"}},
        {"verb": "boards", "target": "x" * 100_000},
        {"verb": "boards", "target": "a[0-999999]"},
        {"verb": "boards", "target": "file:/etc/passwd"},
    ],
    ids=lambda body: str(body)[:40],
)
async def test_malformed_request_is_answered_and_the_link_stays_open(service, body, caplog):
    async with await FakeCaller.join(service) as caller:
        await caller.send(wire.REQUEST, json.dumps(body).encode(), job=5)
        reply = await caller.next()
        assert (reply.op, reply.job) == (wire.REPLY, 5)
        error = wire.read_json(reply.payload)
        assert set(error) == {"error", "args"}
        assert len(reply.payload) < 300_000
        assert "reply" in await caller.ask("status")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40\0\0",
        wire.pack(wire.REQUEST),
        wire.pack(wire.REQUEST, b"[]"),
        wire.pack(wire.REQUEST, b"[" * 100_000),
        wire.pack(wire.REQUEST, b"\xff"),
        wire.pack(wire.SUBMIT),
        wire.pack(wire.SUBMIT, b"\0\0\0\xff{}"),
        wire.pack(wire.SUBMIT, b"\xff\xff\xff\xff{}"),
        wire.pack(wire.HELLO, b"{}"),
        wire.pack(wire.RESULT, b"\0\0"),
        wire.pack(wire.EVENTS),
        wire.pack(0xFF),
    ],
    ids=lambda data: repr(data)[2:30],
)
async def test_malformed_message_closes_the_link(service: Service, data, caplog):
    async with await FakeCaller.join(service) as caller:
        await caller.socket.send(data)
        assert (await caller.closed())[0] == frames.CLOSE_PROTOCOL_ERROR
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("target", ["", "nobody", "lab-[1", "a[0-999999]", "all", "room=x"])
async def test_target_without_boards_is_refused_and_nothing_runs(service, lab, target):
    async with await FakeCaller.join(service) as caller:
        await caller.socket.send(wire.pack_submit(9, {"target": target}, b"1"))
        reply = await caller.next()
        assert (reply.op, reply.job) == (wire.REPLY, 9)
        assert wire.read_json(reply.payload)["error"] in ("TargetError", "NoSuchBoard")
    assert service.store.job(1) is None


@pytest.mark.parametrize("timeout", [0, -1, "2", [2], float("nan"), float("inf"), 10**9], ids=str)
async def test_invalid_timeout_is_refused(service, lab, timeout):
    async with await FakeCaller.join(service) as caller:
        head = {"target": "lab-1", "timeout": timeout}
        await caller.socket.send(wire.pack_submit(9, head, b"1"))
        error = wire.read_json((await caller.next()).payload)
        assert error["error"] == "ServerError"
        assert "number of seconds" in error["args"][0]


async def test_accepted_lists_left_out_boards_and_queued_jobs(service: Service):
    one, two, _ = service.enrol("lab-1", "lab-2", "lab-3")
    async with (
        await FakeBoard.join(service, one),
        await FakeBoard.join(service, two),
        await FakeCaller.join(service) as caller,
    ):
        (busy,) = await caller.submit("lab-1")
        await caller.socket.send(wire.pack_submit(7, {"target": "lab-*"}, b"1"))
        accepted = wire.read_json((await caller.event()).payload)
        assert accepted["left_out"] == ["lab-3"]
        (first, name), (second, other) = accepted["jobs"]
        assert (name, other) == ("lab-1", "lab-2")
        ((number, jobs_ahead, known),) = accepted["queued"]
        assert (number, jobs_ahead, known["callers"]) == (first, 1, ["local"])
        assert 0 <= known["elapsed"] < 60
        assert busy < first < second


async def test_idle_option_leaves_out_busy_boards(service: Service):
    one, two, _ = service.enrol("lab-1", "lab-2", "lab-3")
    async with (
        await FakeBoard.join(service, one),
        await FakeBoard.join(service, two),
        await FakeCaller.join(service) as caller,
    ):
        (busy,) = await caller.submit("lab-1")
        head = {"target": "lab-[1-3]", "idle": True}
        await caller.socket.send(wire.pack_submit(11, head, b"1"))
        accepted = wire.read_json((await caller.event()).payload)
        assert [name for _, name in accepted["jobs"]] == ["lab-2"]
        assert accepted["left_out"] == ["lab-1", "lab-3"]
        assert accepted["queued"] == []
        assert service.server.dispatch.jobs[busy].board.queue == []
        await caller.socket.send(wire.pack_submit(12, {**head, "target": "lab-1"}, b"1"))
        accepted = wire.read_json((await caller.event()).payload)
        assert (accepted["jobs"], accepted["left_out"]) == ([], ["lab-1"])


async def test_options_that_are_repeated_are_read_once(service, lab, monkeypatch):
    from_wire, read = RunOptions.from_wire, []

    def count(head: Any, limits: OptionLimits) -> RunOptions:
        read.append(head)
        return from_wire(head, limits)

    monkeypatch.setattr(RunOptions, "from_wire", count)
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service, service.token) as caller,
    ):
        heads: list[dict[str, Any]] = [{"timeout": 50}, {"timeout": 50}, {"timeout": 60}, {}]
        jobs = [(await caller.submit("lab-1", own=[[0, 1]], **head))[0] for head in heads]
        cells = [service.server.dispatch.jobs[job].cell for job in jobs]
        assert [cell.options.timeout for cell in cells] == [50, 50, 60, None]
        assert len(read) == 3
        await caller.submit("lab-1", acts=[["rm", "/a", False]])
        await caller.submit("lab-1", acts=[["rm", "/a", False]])
        assert len(read) == 5  # not of what is no cell


async def test_few_of_a_links_cells_are_remembered(service: Service, lab: Identity):
    """And none that is long."""
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service, service.token) as caller,
    ):
        for number in range(20):
            await caller.submit("lab-1", title=f"cell {number}")
        await caller.submit("lab-1", title="x" * 1000)
        await caller.submit("lab-1", b"#" * 1000, title="a long one")
        (connection,) = service.callers
        assert len(connection._heads) == 16
        assert sum(map(len, connection._heads)) < 16 * 512
        assert connection._cells.keys() < connection._heads.keys()
        assert len(connection._cells) == 15
        assert connection._named_boards.keys() == connection._heads.keys()


async def test_boards_of_a_repeated_cell_are_those_that_have_its_names_now(service: Service):
    one, two = service.enrol("lab-1", "lab-2")
    async with await FakeCaller.join(service, service.token) as caller:
        (connection,) = service.callers

        async def boards_of(target: str) -> list[str]:
            numbers = await caller.submit(target)
            assert [(await caller.ending(n))[0] for n in numbers] == ["offline"] * len(numbers)
            jobs = map(service.server.dispatch.recent_jobs.get, numbers)
            return [job.board.id for job in jobs if job is not None]

        for _ in range(2):
            assert await boards_of("lab-1") == [one.id]
            assert await boards_of("lab-[2,1]") == [two.id, one.id]
        assert len(connection._named_boards) == 2
        await caller.ask("rename", target="lab-1", name="lab-3")
        await caller.ask("rename", target="lab-2", name="lab-1")
        assert await boards_of("lab-1") == [two.id]
        await caller.ask("revoke", target="lab-1")
        await caller.socket.send(wire.pack_submit(99, {"target": "lab-1"}, b"1"))
        assert "NoSuchBoard" in str(wire.read_json((await caller.next()).payload))
        (three,) = service.enrol("lab-1")
        assert await boards_of("lab-1") == [three.id]


async def test_only_the_boards_of_short_lists_of_names_are_remembered(service: Service):
    """What else a target selects, and what a token reaches, depends on more than names."""
    service.enrol(*(f"lab-{number}" for number in range(1, 18)))
    reader = service.add_token("operator", "lab-1,lab-2")
    async with (
        await FakeCaller.join(service, service.token) as caller,
        await FakeCaller.join(service, reader) as other,
    ):
        for target, options in (
            ("lab-1,lab-2!l*-2", {}),
            ("lab-[1-17]", {}),
            ("lab-1", {"idle": 1}),
        ):
            for number in await caller.submit(target, **options):
                await caller.ending(number)
        await other.submit("lab-1")
        assert not any(connection._named_boards for connection in service.callers)
        await caller.submit("lab-[1-16]")
        (remembered,) = [c._named_boards for c in service.callers if c._named_boards]
        assert [len(named.boards) for named in remembered.values()] == [16]


async def test_job_for_a_named_offline_board_ends_as_offline(service: Service, lab: Identity):
    async with await FakeCaller.join(service) as caller:
        (job,) = await caller.submit("lab-1")
        assert await caller.ending(job) == ("offline", "it has never connected")


async def test_any_operator_may_interrupt_a_job(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service, service.add_token("operator")) as other,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        assert await other.ask("interrupt", jobs=[job, 999]) == {"reply": 1}
        message = await board.next()
        assert (message.op, message.job) == (wire.INTERRUPT, job)


async def test_only_the_jobs_caller_can_answer_its_input(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service) as other,
    ):
        (job,) = await caller.submit("lab-1", answers=True)
        await board.next()
        await board.send(wire.INPUT, b"name? ", job=job)
        assert (await caller.event()).payload == b"name? "
        await other.send(wire.ANSWER, b"mallory", job=job)
        await other.ask("status")  # the server has handled the answer
        await caller.send(wire.ANSWER, b"nobody", job=999)
        await caller.send(wire.ANSWER, b"ann", job=job)
        answer = await board.next()
        assert (answer.op, answer.payload, answer.flags) == (wire.ANSWER, b"ann", 0)
        await board.send(wire.INPUT, b"again? ", job=job)
        assert (await caller.event()).payload == b"again? "
        await caller.send(wire.ANSWER, job=job, flags=wire.INPUT_EOF)
        assert (await board.next()).flags == wire.INPUT_EOF


async def test_later_cell_without_input_does_not_affect_an_earlier_one(service, lab):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1", answers=True)
        await caller.submit("lab-1", answers=False)
        await board.next()
        await board.send(wire.INPUT, b"name? ", job=job)
        assert (await caller.event()).payload == b"name? "


async def test_job_continues_when_its_caller_disconnects(service: Service, lab: Identity):
    async with await FakeBoard.join(service, lab) as board:
        async with await FakeCaller.join(service) as caller:
            (job,) = await caller.submit("lab-1", answers=True)
            await board.next()
            await board.send(wire.INPUT, b"name? ", job=job)
            await caller.event()
        assert (await board.next()).flags == wire.INPUT_EOF
        assert service.state("lab-1") == "busy"
        await board.end(job, rest=b"1")
        await service.until(lambda: service.state("lab-1") == "idle")
    row = service.store.job(job)
    assert row is not None
    assert row.status == "ok"


# Many boards; callers that read slowly


async def test_messages_of_many_boards_share_frames(service: Service):
    identities = service.enrol(*(f"lab-{n}" for n in range(1, 31)))
    async with contextlib.AsyncExitStack() as stack:
        boards = [
            await stack.enter_async_context(await FakeBoard.join(service, identity))
            for identity in identities
        ]
        caller = await stack.enter_async_context(await FakeCaller.join(service))
        jobs = await caller.submit("all")
        caller.frames = 0
        await asyncio.gather(*(board.next() for board in boards))
        await asyncio.gather(*(board.end(job) for board, job in zip(boards, jobs, strict=True)))
        ended = [(await caller.event()).job for _ in jobs]
    assert sorted(ended) == sorted(jobs)
    assert caller.frames <= len(jobs) / 2


async def test_short_cell_is_answered_in_one_frame(service: Service, lab: Identity, monkeypatch):
    monkeypatch.setattr(caller_socket, "ACCEPTED_DELAY_SECONDS", 1.0)  # this machine may be slow
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        await caller.socket.send(wire.pack_submit(1, {"target": "lab-1"}, b"1"))
        cell = await board.next()
        await board.end(cell.job, output=b"hi\r\n", rest=b"1")
        assert [(await caller.event()).op for _ in range(2)] == [wire.ACCEPTED, wire.RESULT]
        assert caller.frames == 1


#: The server reads a board's flood without pauses: the test is about the caller.
no_read_pauses = pytest.mark.limits(read_pause_seconds=0.0)


class SlowCaller:
    """A caller that submits and then does not read."""

    def __init__(self, service: Service, peer: RawPeer) -> None:
        self.peer = peer
        self.ref = 0
        (self.connection,) = service.callers
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def submit(self, code: bytes = b"1") -> None:
        self.ref += 1
        message = wire.pack_submit(self.ref, {"target": "lab-1"}, code)
        self.peer.say(frames.encode_frame(message, mask=True))

    @property
    def pending_bytes(self) -> int:
        """The bytes that the server keeps for this caller."""
        transport = self.connection._link._transport
        assert transport is not None, "its link was closed"
        return self.connection._outbox.pending_bytes + transport.get_write_buffer_size()

    async def read(self, results: int) -> list[wire.Message]:
        """Start to read, until a number of jobs have ended; return all messages."""
        self.peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        messages: list[wire.Message] = []
        while results:
            frame = await self.peer.frame()
            assert frame is not None, "the link was closed before all jobs had ended"
            if frame.opcode == frames.BINARY:
                events = list(wire.read_events(frame.payload[wire.HEADER.size :]))
                results -= sum(event.op in wire.JOB_END_OPS for event in events)
                messages += events
        return messages


@no_read_pauses
async def test_slow_caller_gets_truncated_output_and_its_result(service, lab):
    chunk = bytes(50_000)
    async with (
        await FakeBoard.join(service, lab) as board,
        await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer,
    ):
        slow = SlowCaller(service, peer)
        slow.submit()
        job = (await board.next()).job
        for _ in range(240):  # 12 MB
            await board.send(wire.OUTPUT, chunk, job=job)
            assert slow.pending_bytes < 4 * Limits.outbox_bytes + len(chunk)
        await board.end(job, output=b"the end", rest=b"42")
        await service.until(lambda: service.state("lab-1") == "idle")
        assert slow.pending_bytes < 4 * Limits.outbox_bytes
        messages = await slow.read(1)
    assert [m.op for m in messages if m.op not in (wire.OUTPUT, wire.TRUNCATED)] == [
        wire.ACCEPTED,
        wire.RESULT,
    ]
    assert messages[-1].op == wire.RESULT
    assert wire.read_result(messages[-1]).value_or_traceback == b"42"
    assert wire.TRUNCATED in [m.op for m in messages]
    assert sum(len(m.payload) for m in messages) < 9_000_000


@no_read_pauses
async def test_slow_caller_does_not_delay_boards_or_other_callers(service: Service):
    noisy, calm = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, noisy) as flood,
        await FakeBoard.join(service, calm) as board,
        await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer,
    ):
        slow = SlowCaller(service, peer)
        slow.submit()
        job = (await flood.next()).job
        async with await FakeCaller.join(service) as caller:
            for _ in range(20):
                for _ in range(20):
                    await flood.send(wire.OUTPUT, bytes(50_000), job=job)
                (mine,) = await caller.submit("lab-2")
                await board.next()
                await board.end(mine)
                assert (await caller.ending(mine))[0] == "ok"


@no_read_pauses
async def test_no_result_is_dropped_for_a_slow_caller(service: Service, lab: Identity):
    count, rest = 200, b"x" * 60_000  # 12 MB of results
    async with (
        await FakeBoard.join(service, lab) as board,
        await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer,
    ):
        slow = SlowCaller(service, peer)
        for _ in range(count):
            slow.submit()
        for _ in range(count):
            await board.end((await board.next()).job, rest=rest)
        await service.until(lambda: service.state("lab-1") == "idle")
        messages = await slow.read(count)
    results = [wire.read_result(m) for m in messages if m.op == wire.RESULT]
    assert len(results) == count
    assert all(result.value_or_traceback == rest for result in results)


@no_read_pauses
async def test_truncated_value_is_marked(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab) as board,
        await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer,
    ):
        slow = SlowCaller(service, peer)
        slow.submit()
        job = (await board.next()).job
        for _ in range(240):
            await board.send(wire.OUTPUT, bytes(50_000), job=job)
        await board.send(wire.VALUE, b"[1, 2, ", job=job)
        await board.end(job, rest=b"3]")
        await service.until(lambda: service.state("lab-1") == "idle")
        messages = await slow.read(1)
    truncated = [m.flags for m in messages if m.op == wire.TRUNCATED]
    assert wire.VALUE not in [m.op for m in messages]
    assert wire.VALUE_TRUNCATED in truncated
    assert 0 in truncated


async def test_link_is_closed_when_the_server_stops(service: Service):
    async with await FakeCaller.join(service) as caller:
        service.server.stop()
        assert await within(caller.closed()) == (frames.CLOSE_GOING_AWAY, "the server stops")


async def test_cell_sent_twice_runs_once(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        message = wire.pack_submit(5, {"target": "lab-1"}, b"1")
        await caller.socket.send(message)
        await caller.socket.send(message)
        assert (await caller.closed())[0] == 1002
        assert (await board.next()).op == wire.EXEC
        assert len(service.server.dispatch.jobs) == 1


async def test_request_whose_caller_leaves_before_its_turn_is_not_begun(service: Service):
    """A coroutine that is never awaited would be a warning on the server's error stream."""
    service.enrol("lab-1")
    async with await FakeCaller.join(service):
        (connection,) = service.callers
        rename = {"verb": "rename", "target": "lab-1", "name": "lab-2"}
        for body in ({"verb": "jobs"}, {"verb": "logs"}, rename):
            connection._on_message(wire.pack_json(wire.REQUEST, body, job=7))
        connection._link.work.record(3600.0)  # before their turn; now others are served
        assert len(connection._reply_tasks) == 3
        connection._link.abort()
    await service.until(lambda: not service.callers)
    del connection
    gc.collect()
    assert list(service.server.registry.by_name) == ["lab-1"]
