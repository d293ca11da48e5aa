"""Boards enrol themselves with tokens, are renamed and revoked, and get new keys in two phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import frames, proofs, wire
from cm_server.auth import credentials
from cm_server.auth.audit import AuditEntry
from cm_server.auth.tokens import NewToken
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service, running_service
from tests.cm_server.waiting import finish

KEY, OTHER = bytes(range(32)), bytes(range(32, 64))


def token_for(service: Service, target: str, uses: int = 1, seconds: float = 60.0) -> str:
    entry = AuditEntry("local", "here", "enrol-token")
    name = f"enrol-{len(service.server.tokens.describe())}"
    request = NewToken(name, credentials.BOARD_ROLE, target, seconds, uses)
    creating = service.server.tokens.create(request, entry)
    return finish(service.server.store_queue, creating)


async def enrol(service: Service, token: str, *, tls: bool = True, **more: Any) -> Any:
    """Send ENROL; return the body of ENROLLED, or the server's close code and reason."""
    body = {"v": 1, "uid": "a1b2", "platform": "esp32", "key": KEY.hex(), "token": token, **more}
    async with await FakeBoard.dial(service, "/board", tls=tls) as board:
        await board.send(wire.ENROL, json.dumps(body).encode())
        try:
            answer = await board.next()
        except Exception:
            return await board.closed()
        assert answer.op == wire.ENROLLED
        return wire.read_json(answer.payload)


def names(service: Service) -> set[str]:
    return set(service.server.registry.by_name)


# Tokens


async def test_board_enrols_itself_and_authenticates_on_the_same_link(service: Service):
    token = token_for(service, "lab-1")
    body = {"v": 1, "uid": "a1", "platform": "esp32", "key": KEY.hex(), "token": token, "name": ""}
    async with await FakeBoard.dial(service, "/board", tls=True) as board:
        await board.send(wire.ENROL, json.dumps(body).encode())
        enrolled = wire.read_json((await board.next()).payload)
        assert enrolled["name"] == "lab-1"
        identity = Identity({**enrolled, "key": KEY.hex()})
        await board.greet(identity.id)
        await board.prove(identity, await board.next())
        assert (await board.next()).op == wire.WELCOME
        assert service.state("lab-1") == "idle"
    (row,) = [row for row in service.audited() if row.verb == "enrol"]
    assert (row.who, row.target, row.boards, row.outcome) == ("enrol-1", "lab-1", 1, "done")
    assert KEY.hex() not in str(service.audited())


@pytest.mark.parametrize(
    ("target", "requested", "expected"),
    [
        ("lab-1", "", "lab-1"),
        ("lab-1", "lab-1", "lab-1"),
        ("lab-[1-3]", "", "lab-2"),  # lab-1 is not free
        ("lab-[1-3]", "lab-3", "lab-3"),
        ("kit-*", "", "kit-a1b2"),
        ("kit-*", "kit-7", "kit-7"),
        ("all", "", "esp32-a1b2"),
        ("all", "desk", "desk"),
    ],
)
async def test_requested_or_first_free_name_is_used(service: Service, target, requested, expected):
    if target == "lab-[1-3]":
        service.enrol("lab-1")
    enrolled = await enrol(service, token_for(service, target), name=requested)
    assert enrolled["name"] == expected


@pytest.mark.parametrize(
    ("target", "requested", "reason"),
    [
        ("lab-1", "vault-1", "the token is not for a board called vault-1"),
        ("kit-*", "lab-1", "the token is not for a board called lab-1"),
        ("all", "taken", "there is a board called taken already"),
        ("taken", "", "the names of taken are taken"),
        ("room=vault", "", "room=vault makes no valid name for this board"),
        ("lab-*-*", "", "lab-*-* makes no valid name for this board"),
        ("-x*", "", "makes no valid name"),
        (".*", "", "makes no valid name"),
        ("*.*", "", "makes no valid name"),
        ("a" * 61 + "*", "", "makes no valid name"),
        ("all", "../../etc", "is not allowed here"),
        ("all", "<script>", "is not allowed here"),
        ("all", "all", "means every board"),
    ],
)
async def test_name_outside_of_the_tokens_target_is_refused(
    service: Service, target, requested, reason
):
    service.enrol("taken")
    code, text = await enrol(service, token_for(service, target), name=requested)
    assert code == 4001
    assert reason in text
    assert names(service) == {"taken"}


async def test_used_enrolment_token_is_refused(service: Service):
    token = token_for(service, "lab-[1-9]", uses=2)
    assert (await enrol(service, token))["name"] == "lab-1"
    assert (await enrol(service, token, key=OTHER.hex()))["name"] == "lab-2"
    code, reason = await enrol(service, token, key=bytes(32).hex())
    assert (code, reason) == (4001, "the token 'enrol-1' was used already")
    assert names(service) == {"lab-1", "lab-2"}


async def test_one_of_two_simultaneous_enrolments_succeeds(service: Service):
    token = token_for(service, "lab-[1-9]")
    body = {"v": 1, "uid": "a1", "platform": "esp32", "token": token, "name": ""}
    async with (
        await FakeBoard.dial(service, "/board", tls=True) as one,
        await FakeBoard.dial(service, "/board", tls=True) as two,
    ):
        for board, key in ((one, KEY), (two, OTHER)):
            await board.send(wire.ENROL, json.dumps({**body, "key": key.hex()}).encode())
        assert (await one.next()).op == wire.ENROLLED
        assert (await two.closed())[0] == 4001
    assert names(service) == {"lab-1"}


async def test_repeated_enrolment_gets_the_same_identity(service: Service):
    token = token_for(service, "lab-[1-9]")
    first = await enrol(service, token)
    assert await enrol(service, token) == first
    assert names(service) == {"lab-1"}
    code, _ = await enrol(service, token, key=OTHER.hex())
    assert code == 4001


async def test_expired_and_revoked_enrolment_tokens_are_refused(service: Service):
    old = token_for(service, "lab-1", seconds=1e-6)
    assert "expired on" in (await enrol(service, old))[1]
    dead = token_for(service, "lab-1")
    service.revoke_token("enrol-2")
    assert "was revoked on" in (await enrol(service, dead))[1]


@pytest.mark.parametrize("token", ["", "cm_", None, "x" * 60_000, "cm_\0", "cm_é", 7])
async def test_malformed_enrolment_tokens_get_the_same_answer(service: Service, token):
    assert await enrol(service, token) == (4001, "the server does not know this token")


@pytest.mark.parametrize(
    "key", ["", "00", "g" * 64, "0" * 63, "0" * 65, None, 7, KEY.hex().upper()]
)
async def test_invalid_key_is_refused_and_counts_no_use(service: Service, key):
    token = token_for(service, "lab-1")
    assert (await enrol(service, token, key=key))[0] == 4001
    assert (await enrol(service, token))["name"] == "lab-1"


@pytest.mark.parametrize("more", [{"uid": "../x"}, {"platform": "<b>"}, {"uid": ""}, {"uid": 7.5}])
async def test_invalid_unique_id_or_platform_is_refused(service: Service, more):
    code, reason = await enrol(service, token_for(service, "all"), **more)
    assert (code, reason) == (4001, "a board has to send its name, or its platform and unique id")


async def test_tokens_of_callers_and_boards_are_not_interchangeable(service: Service):
    assert (await enrol(service, service.token))[0] == 4001
    token = token_for(service, "all")
    with pytest.raises(Exception, match="401"):
        await FakeCaller.join(service, token)


async def test_enrolment_without_tls_is_refused(tmp_path: Path):
    async with running_service(tmp_path, local=False) as service:
        token = token_for(service, "all")
        code, reason = await enrol(service, token, tls=False)
        assert (code, reason) == (4001, "a board can enrol itself over TLS only")
        assert (await enrol(service, token))["name"] == "esp32-a1b2"


# Links without TLS, with MACs


async def test_stripped_tls_is_refused_and_logged(tmp_path: Path, caplog):
    caplog.set_level("WARNING")
    async with running_service(tmp_path, local=False) as service:
        (identity,) = service.enrol("lab-1")
        async with await FakeBoard.dial(service, "/board") as board:
            await board.greet(identity.id)
            await board.prove(identity, await board.next())
            assert (await board.closed())[0] == 4005
        async with await FakeBoard.dial(service, "/board") as board:  # it was not enrolled for MACs
            await board.greet(identity.id, mac=1)
            await board.prove(identity, await board.next())
            assert (await board.closed())[0] == 4005
        assert "lab-1 connected without TLS; `mbm board-enrol lab-1` prints" in caplog.text
        async with await FakeBoard.join(service, identity, tls=True):
            assert service.state("lab-1") == "idle"


async def test_stripped_macs_are_refused(tmp_path: Path):
    async with running_service(tmp_path, local=False) as service:
        (identity,) = service.enrol("esp-1", plain=True)
        async with await FakeBoard.dial(service, "/board") as board:
            await board.greet(identity.id)
            await board.prove(identity, await board.next())
            assert (await board.closed())[0] == 4005
        async with await FakeBoard.join(service, identity, mac=True):
            assert service.state("esp-1") == "idle"


@pytest.mark.parametrize("fault", ["flip", "replay", "other direction", "no tag", "other session"])
async def test_tampered_message_closes_the_link_and_has_no_effect(tmp_path: Path, fault, caplog):
    async with running_service(tmp_path, local=False) as service:
        (identity,) = service.enrol("esp-1", plain=True)
        async with (
            await FakeBoard.join(service, identity, mac=True) as board,
            await FakeCaller.join(service, tls=True) as caller,
        ):
            (job,) = await caller.submit("esp-1")
            raw = await board.socket.recv()
            assert isinstance(raw, bytes)
            assert board.mac is not None
            assert board.mac.open(raw)[0] == wire.EXEC
            result = wire.pack(wire.RESULT, b"\0\0stolen", job=job)
            sealed = board.mac.seal(wire.pack(wire.OUTPUT, b"fine", job=job))
            if fault in (
                "replay",
                "other direction",
            ):  # the second use of a number; the server's own message
                await board.socket.send(sealed)
                forged = sealed if fault == "replay" else raw
            elif fault == "flip":
                forged = sealed[:6] + bytes((sealed[6] ^ 1,)) + sealed[7:]
            elif fault == "no tag":
                forged = result
            else:
                key = proofs.session_key(identity.key, bytes(32), identity.id)
                forged = type(board.mac)(key).seal(result)
            await board.socket.send(forged)
            code, reason = await board.closed()
            assert (code, reason) == (1002, "a message's MAC is wrong.")
        assert service.server.dispatch.jobs[job].status is None
        assert b"stolen" not in service.server.dispatch.jobs[job].output_tail.text().encode()


# Revocation and renaming


async def test_revocation_closes_the_link_and_ends_waiting_jobs(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service) as admin,
    ):
        (first,) = await caller.submit("lab-1")
        await board.next()
        (second,) = await caller.submit("lab-1")
        assert (await admin.ask("revoke", target="lab-1"))["reply"] == ["lab-1"]
        assert await board.closed() == (frames.CLOSE_REVOKED, "revoked")
        assert (await caller.ending(first))[0] == "lost"
        assert await caller.ending(second) == ("offline", "it was removed from the fleet")
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(identity.id)
        await board.next()
        await board.send(wire.PROOF, bytes(32) + b"{}")
        assert (await board.closed())[0] == 4001


async def test_board_with_a_reused_name_inherits_nothing(service: Service):
    (old,) = service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        await caller.ask("label", target="lab-1", labels={"room": "vault"})
        async with await FakeBoard.join(service, old) as board:
            (job,) = await caller.submit("lab-1")
            await board.next()
            await board.end(job, output=b"secret")
            await caller.ending(job)
        await caller.ask("revoke", target="lab-1")
        (new,) = service.enrol("lab-1")
        assert new.id != old.id
        (board_facts,) = (await caller.ask("boards", target="lab-1"))["reply"]
        assert (board_facts["labels"], board_facts["last_seen"]) == ({}, None)
        assert (await caller.ask("jobs", target="lab-1"))["reply"] == []
        viewer = await FakeCaller.join(service, service.add_token("viewer", "lab-1"))
        async with viewer:
            assert "no job" in str(await viewer.ask("job", job=job))
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(old.id)
        await board.next()
        await board.send(wire.PROOF, bytes(32) + b"{}")
        assert (await board.closed())[0] == 4001


async def test_renamed_board_keeps_its_labels_and_jobs(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
    ):
        await caller.ask("label", target="lab-1", labels={"room": "lab"})
        (job,) = await caller.submit("lab-1")
        await board.next()
        assert (await caller.ask("rename", target="lab-1", name="kit-1"))["reply"] == "kit-1"
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"
        (board_facts,) = (await caller.ask("boards"))["reply"]
        described = tuple(board_facts[name] for name in ("name", "id", "labels"))
        assert described == ("kit-1", identity.id, {"room": "lab"})
        assert (await caller.ask("job", job=job))["reply"]["board"] == "kit-1"
        refused = await caller.ask("boards", target="lab-1")
        assert refused["error"] == "NoSuchBoard"
    assert [row.name for row in service.store.boards()] == ["kit-1"]


async def test_rename_to_the_name_of_another_board_is_refused(service: Service):
    service.enrol("lab-1", "lab-2")
    async with await FakeCaller.join(service) as caller:
        refused = await caller.ask("rename", target="lab-1", name="lab-2")
        assert "there is a board called lab-2 already" in str(refused)
        assert "One board is renamed at a time" in str(
            await caller.ask("rename", target="lab-[1-2]", name="x")
        )
        assert "TargetError" in str(await caller.ask("rename", target="lab-1", name="a b"))
    assert names(service) == {"lab-1", "lab-2"}


# Keys


def next_of(identity: Identity, message: wire.Message) -> Identity:
    """Return the board's identity with the key of a REKEY message."""
    gen, nonce = int.from_bytes(message.payload[:4], "big"), message.payload[4:]
    key = proofs.next_key(identity.key, gen, nonce)
    return Identity({"name": identity.name, "id": identity.id, "key": key.hex(), "gen": gen})


async def test_idle_board_gets_a_new_key_and_proves_it(service: Service):
    (old,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, old) as board,
        await FakeCaller.join(service) as caller,
    ):
        assert (await caller.ask("rotate", target="lab-1"))["reply"] == {"lab-1": "asked"}
        asked = await board.next()
        assert asked.op == wire.REKEY
        new = next_of(old, asked)
        await board.send(wire.REKEYED, proofs.rekey_proof(new.key, 1, asked.payload[4:]))
        await service.until(lambda: service.server.registry.by_name["lab-1"].gen == 1)
    assert new.key.hex() not in str(service.audited())
    (row,) = service.store.boards()
    assert (row.key, row.gen, row.nonce) == (new.key, 1, None)
    async with await FakeBoard.dial(
        service, "/board"
    ) as board:  # the old key is not valid any more
        await board.greet(old.id)
        with pytest.raises(AssertionError):
            await board.prove(old, await board.next())
    async with await FakeBoard.join(service, new):
        assert service.state("lab-1") == "idle"


async def test_both_keys_are_valid_until_the_new_one_is_used(service: Service):
    """The board may have stored the new key or not, so both are valid until one is used."""
    (old,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, old) as board,
        await FakeCaller.join(service) as caller,
    ):
        await caller.ask("rotate", target="lab-1")
        new = next_of(old, await board.next())
    async with await FakeBoard.join(service, old) as board:  # as after a power cut
        assert next_of(old, await board.next()).key == new.key  # it gets the same key again
    async with await FakeBoard.join(service, new):
        assert service.server.registry.by_name["lab-1"].key == new.key
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(old.id)
        with pytest.raises(AssertionError):
            await board.prove(old, await board.next())


async def test_rotation_continues_after_a_restart(tmp_path: Path):
    async with running_service(tmp_path) as service:
        (old,) = service.enrol("lab-1")
        async with await FakeCaller.join(service) as caller:
            assert (await caller.ask("rotate", target="lab-1"))["reply"] == {"lab-1": "waits"}
    async with running_service(tmp_path) as service, await FakeBoard.join(service, old) as board:
        new = next_of(old, await board.next())
    async with running_service(tmp_path) as service, await FakeBoard.join(service, new):
        assert service.server.registry.by_name["lab-1"].gen == 1


async def test_busy_board_gets_its_new_key_when_it_is_idle(service: Service):
    (old,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, old) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        assert (await caller.ask("rotate", target="lab-1"))["reply"] == {"lab-1": "waits"}
        await board.end(job)
        assert (await board.next()).op == wire.REKEY


@pytest.mark.parametrize("proof", [b"", bytes(32), bytes(31), bytes(33)], ids=len)
async def test_new_key_without_proof_is_not_accepted(service: Service, proof, caplog):
    (old,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, old) as board,
        await FakeCaller.join(service) as caller,
    ):
        await board.send(wire.REKEYED, proof)  # no rotation is pending
        await caller.ask("rotate", target="lab-1")
        await board.next()
        await board.send(wire.REKEYED, proof)
        (job,) = await caller.submit("lab-1")
        await board.next()
        await board.end(job)
        await caller.ending(job)
    assert service.server.registry.by_name["lab-1"].gen == 0
    assert "lab-1 did not prove its new key" in caplog.text


@pytest.mark.parametrize("gen", [2, 7, 2**31])
async def test_unknown_key_number_gets_a_random_challenge(service: Service, gen):
    (old,) = service.enrol("lab-1")
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(old.id, gen=gen)
        with pytest.raises(AssertionError):
            await board.prove(old, await board.next())


async def test_enrolling_again_gives_a_key_newer_than_a_pending_one(service: Service):
    (old,) = service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        await caller.ask("rotate", target="lab-1")
    (new,) = service.enrol("lab-1")
    assert new.gen == 2
    async with await FakeBoard.join(service, new):
        assert service.state("lab-1") == "idle"
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(old.id)
        with pytest.raises(AssertionError):
            await board.prove(old, await board.next())


async def test_enrolling_a_connected_board_again_closes_its_link(
    service: Service,
):
    (old,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, old) as board,
        await FakeCaller.join(service) as caller,
    ):
        (first,) = await caller.submit("lab-1")
        await board.next()
        (second,) = await caller.submit("lab-1")
        (new,) = service.enrol("lab-1")
        assert (await board.closed())[0] == frames.CLOSE_REVOKED
        async with await FakeBoard.join(service, new) as newer:
            assert (await caller.ending(first))[0] == "lost"
            assert (await newer.next()).op == wire.EXEC
            await newer.end(second)
            assert (await caller.ending(second))[0] == "ok"
