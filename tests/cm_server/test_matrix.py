"""Every route with every credential, and every verb with every role, from the server's tables.

A verb that is added to the server without a request here fails a test.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest

from cloudmanager.protocol import proofs, wire
from cm_server.api.verbs import MESSAGE_ROLES, VERBS
from cm_server.app import ROUTES
from cm_server.auth import credentials
from cm_server.auth.credentials import ROLES
from cm_server.store.rollout_rows import (
    GenerationRow,
    NewRollout,
    RolloutChange,
    RolloutPlace,
)
from cm_server.store.rows import AuditRow
from cm_server.store.secret_rows import SecretRow
from cm_server.store.store import Store

from .peers import FakeBoard, FakeCaller, Identity, RawPeer, Service, handshake

#: What a group of boards should be.
GROUP: dict[str, Any] = {"name": "others", "target": "lab-2", "settings": '{"a": 1}'}
#: A request for each verb; lab-1 is connected, lab-2 is not, job 1 belongs to lab-2.
BODIES: dict[str, dict[str, Any]] = {
    "status": {},
    "boards": {"target": "lab-[1-2]"},
    "label": {"target": "lab-1", "labels": {"room": "lab"}},
    "stop": {"target": "lab-1"},
    "reserve": {"target": "lab-1", "seconds": 60},
    "release": {"target": "lab-1"},
    "stay": {"target": "lab-1", "seconds": 60},
    "interrupt": {"jobs": [1]},
    "offer": {"sha256": hashlib.sha256(b"1").hexdigest(), "size": 1},
    "plan": {"target": "lab-1", "wanted": []},
    "installed": {"target": "lab-[1-2]"},
    "jobs": {},
    "job": {"job": 1},
    "history": {"target": "lab-[1-2]"},
    "history-forget": {"target": "lab-1"},
    "samples": {"target": "lab-[1-2]"},
    "sample-history": {"target": "lab-[1-2]", "since": 0},
    "logs": {"target": "lab-[1-2]"},
    "health": {},
    "fleet-plan": {"groups": [GROUP]},
    "fleet-apply": {"groups": [GROUP]},
    "fleet-status": {},
    "fleet-history": {},
    "fleet-pause": {"group": "running"},
    "fleet-resume": {"group": "paused"},
    "fleet-abort": {"group": "paused"},
    "fleet-rollback": {"group": "paused"},
    "fleet-wifi": {"target": "lab-2", "ssid": "lab", "password": "hunter2-wifi"},
    "fleet-server": {"target": "lab-2", "host": "new.example", "tcp_port": 8765},
    "firmware": {"target": "lab-1", "version": "1.29.0"},
    "enrol": {"names": ["lab-9"]},
    "enrol-token": {"target": "new-*"},
    "rename": {"target": "lab-2", "name": "lab-8"},
    "replace": {"target": "lab-2", "new": "vault-1"},
    "import": {"rows": [{"board": "lab-2", "note": "spare"}]},
    "rotate": {"target": "lab-1"},
    "revoke": {"target": "lab-2"},
    "secret-set": {"name": "mqtt", "value": "hunter2-mqtt"},
    "secret-list": {},
    "secret-remove": {"name": "mqtt"},
    "token-create": {"name": "new", "role": "viewer"},
    "token-list": {},
    "token-revoke": {"name": "victim"},
    "audit": {},
}
#: Requests about `{board}`, which the token does not reach or which does not exist, and about its
#: job `{job}`; empty for verbs that do not concern certain boards.
OUTSIDE: dict[str, list[dict[str, Any]]] = {
    "status": [],
    "boards": [{"target": "{board}"}, {"target": "lab-1,{board}"}, {"target": "{board}*"}],
    "label": [{"target": "{board}", "labels": {"a": "b"}}],
    "stop": [{"target": "{board}"}],
    "reserve": [{"target": "{board}", "seconds": 60}],
    "release": [{"target": "{board}"}],
    "stay": [{"target": "{board}", "seconds": 60}],
    "interrupt": [{"jobs": ["{job}"]}],
    "offer": [],
    "plan": [{"target": "{board}", "wanted": []}],
    "installed": [{"target": "{board}"}, {"target": "{board}*"}],
    "jobs": [{"target": "{board}"}],
    "job": [{"job": "{job}"}],
    "history": [{"target": "{board}"}, {"target": "{board}*"}],
    "history-forget": [{"target": "{board}"}, {"target": "{board}*"}],
    "samples": [{"target": "{board}"}, {"target": "{board}*"}],
    "sample-history": [
        {"target": "{board}", "since": 0},
        {"target": "{board}*", "since": 0, "every": 60},
    ],
    "logs": [{"target": "{board}"}, {"target": "{board}*"}],
    "health": [],
    "fleet-plan": [
        {"groups": [{**GROUP, "target": "{board}"}]},
        {"groups": [{**GROUP, "pin": ["{board}"]}]},
        {"groups": [{**GROUP, "boards": {"{board}": "{}"}}]},
    ],
    "fleet-apply": [{"groups": [{**GROUP, "target": "{board}"}]}],
    "fleet-status": [],
    "fleet-history": [],
    "fleet-pause": [],
    "fleet-resume": [],
    "fleet-abort": [],
    "fleet-rollback": [],
    "fleet-wifi": [{"target": "{board}", "ssid": "lab", "password": ""}],
    "fleet-server": [{"target": "{board}", "host": "x", "tcp_port": 1}],
    "firmware": [{"target": "{board}", "version": "1.29.0"}],
    "enrol": [{"names": ["{board}"]}],
    "rename": [{"target": "{board}", "name": "lab-7"}, {"target": "lab-2", "name": "{board}"}],
    "replace": [{"target": "{board}", "new": "lab-1"}, {"target": "lab-2", "new": "{board}"}],
    "import": [
        {"rows": [{"board": "{board}", "note": "mine"}]},
        {"rows": [{"board": "lab-1", "name": "{board}"}], "dry_run": True},
    ],
    "rotate": [{"target": "{board}"}],
    "revoke": [{"target": "{board}"}],
}


class Lab(NamedTuple):
    service: Service
    boards: dict[str, Identity]
    link: FakeBoard

    def audited(self, *names: str) -> list[AuditRow]:
        return [row for row in self.service.audited() if row.who in names]


def add_rollouts(store: Store, board_id: str) -> None:
    """Add a rollout that is running and one that is paused, with generations before them."""
    manifest: dict[str, Any] = {"app": {}, "packages": {}, "settings": {}, "boards": {}}
    for number, group in enumerate(("running", "paused")):
        for version in ("a", "b"):
            generation = GenerationRow(f"{version}{number}" * 8, manifest, 0.0, "ann")
            plan = {
                "target": "lab-2",
                "pin": [],
                "waves": ["100%"],
                "options": {},
                "boards": [board_id],
                "position": [0, 0.0, None],
            }
            before = None if version == "a" else f"a{number}" * 8
            new = NewRollout(group, generation, before, "", plan, {board_id: 0}, {})
            (added,) = store.add_rollouts([new], RolloutPlace("other", 1000))
        if group == "paused":
            change = RolloutChange("paused", "", ("running",))
            store.set_rollout_states([added], change)


@pytest.fixture
async def lab(service: Service) -> AsyncIterator[Lab]:
    boards = {board.name: board for board in service.enrol("lab-1", "lab-2", "vault-1")}
    service.add_token("viewer", name="victim")
    service.store.insert_jobs([boards["lab-2"].id], "ann")
    service.store.end_job(1, "ok")
    service.store.set_secret(SecretRow("mqtt", "hunter2", "all", 0.0))
    add_rollouts(service.store, boards["lab-2"].id)
    async with await FakeBoard.join(service, boards["lab-1"]) as link:
        yield Lab(service, boards, link)


# Routes


def expired(lab: Lab) -> str:
    return lab.service.add_token("admin", name="old", expires=1e-6)


def revoked(lab: Lab) -> str:
    token = lab.service.add_token("admin", name="dead")
    lab.service.revoke_token("dead")
    return token


def of_role(lab: Lab, role: str) -> str:
    return f"Bearer {lab.service.add_token(role)}"


CREDENTIALS: dict[str, tuple[bool, Callable[[Lab], str]]] = {
    "none": (False, lambda _: ""),
    "empty": (False, lambda _: "Bearer"),
    "wrong": (False, lambda _: f"Bearer {credentials.new_token()}"),
    "almost": (False, lambda lab: f"Bearer {lab.service.token[:-1]}"),
    "other scheme": (False, lambda lab: f"Basic {lab.service.token}"),
    "hash": (False, lambda lab: f"Bearer {credentials.token_hash(lab.service.token)}"),
    "a board's key": (False, lambda lab: f"Bearer {lab.boards['lab-1'].key.hex()}"),
    "a board's id": (False, lambda lab: f"Bearer {lab.boards['lab-1'].id}"),
    "expired": (False, lambda lab: f"Bearer {expired(lab)}"),
    "revoked": (False, lambda lab: f"Bearer {revoked(lab)}"),
    "local": (True, lambda lab: f"Bearer {lab.service.token}"),
    **{role: (True, functools.partial(of_role, role=role)) for role in ROLES},
}


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize(("path", "page"), ROUTES)
async def test_every_route_with_every_credential(lab: Lab, path, page, credential):
    is_valid, make = CREDENTIALS[credential]
    headers = {"Authorization": make(lab), "Cm-Protocol": "1"}
    async with await RawPeer.dial(lab.service) as peer:
        peer.say(handshake(path, **headers))
        status = int((await peer.head()).split()[1])
    assert (
        status
        == {
            "nothing": 200,
            "loopback": 200,  # other addresses: test_handlers.py
            "token": 101 if is_valid else 401,
            "token, no link": 400 if is_valid else 401,  # the arguments are missing
            "key": 101,  # a board authenticates after the upgrade: below
        }[page.required_credential]
    )


async def test_every_route_has_a_required_credential_and_other_paths_are_404(lab: Lab):
    assert {page.required_credential for _, page in ROUTES} == {
        "nothing",
        "loopback",
        "token",
        "token, no link",
        "key",
    }
    headers = {"Authorization": f"Bearer {lab.service.token}", "Cm-Protocol": "1"}
    for path in ("/", "/boards", "/callers", "/caller/", "//caller", "/Caller", "/board/lab-1"):
        async with await RawPeer.dial(lab.service) as peer:
            peer.say(handshake(path, **headers))
            assert (await peer.answer()).startswith("HTTP/1.1 404 ")


@pytest.mark.parametrize("role", ROLES)
async def test_callers_token_is_no_boards_key(lab: Lab, role):
    """A token is not accepted as a board's key, hashed or not, or in the HTTP header."""
    token, board = lab.service.add_token(role), lab.boards["lab-2"]
    for secret in (token.encode()[:32], hashlib.sha256(token.encode()).digest(), bytes(32)):
        header: dict[str, Any] = {"Authorization": f"Bearer {token}"}
        async with await FakeBoard.dial(lab.service, "/board", **header) as peer:
            await peer.greet(board.id)
            nonces = peer.nonce + (await peer.next()).payload[:16]
            proof = proofs.board_proof(secret, nonces, board.id, b"{}")
            await peer.send(wire.PROOF, proof + b"{}")
            assert (await peer.closed())[0] == 4001
    assert lab.service.state("lab-2") == "offline"


@pytest.mark.parametrize("op", [wire.REQUEST, wire.SUBMIT, wire.ANSWER, wire.WATCH])
async def test_authenticated_board_cannot_send_callers_messages(lab: Lab, op):
    await lab.link.send(op, b'{"verb": "boards"}')
    assert (await lab.link.closed())[0] == 1002


# Verbs


def test_every_verb_has_a_request_in_this_file():
    assert set(BODIES) == set(VERBS)
    assert set(OUTSIDE) == {verb for verb, entry in VERBS.items() if not entry.requires_all_boards}


async def ask(lab: Lab, token: str, verb: str) -> dict[str, Any]:
    """Request a verb, watch or submit; return the body of the reply."""
    async with await FakeCaller.join(lab.service, token) as caller:
        if verb == "watch":
            await caller.send(wire.WATCH, b'{"target": "lab-1"}', job=5)
            message = await caller.next()
            return wire.read_json(message.payload) | {"reply": message.op == wire.CHANGES}
        if verb != "submit":
            body: dict[str, Any] = await caller.ask(verb, **BODIES[verb])
            return body
        await caller.socket.send(wire.pack_submit(5, {"target": "lab-1"}, b"1"))
        message = await caller.next()
        if message.op == wire.REPLY:
            return wire.read_json(message.payload)
        (accepted,) = wire.read_events(message.payload)
        return {"reply": wire.read_json(accepted.payload)}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("verb", [*VERBS, *MESSAGE_ROLES])
async def test_every_verb_with_every_role_writes_one_audit_row(lab: Lab, verb, role):
    needed = VERBS[verb].role if verb in VERBS else MESSAGE_ROLES[verb]
    allowed = ROLES.index(role) >= ROLES.index(needed)
    before = json.dumps([*lab.service.server.registry.by_name, lab.service.server.dispatch.jobs])
    reply = await ask(lab, lab.service.add_token(role, name="somebody"), verb)
    (row,) = lab.audited("somebody")
    assert (row.verb, row.outcome) == (verb, "done" if allowed else "refused")
    assert row.address.startswith("127.0.0.1:")
    if allowed:
        assert "reply" in reply, reply
        assert verb == "enrol-token" or "target" not in BODIES.get(verb, {}) or row.boards
    else:
        assert (reply["error"], reply["args"][0]) == ("NotAllowed", needed)
        now = [*lab.service.server.registry.by_name, lab.service.server.dispatch.jobs]
        assert json.dumps(now) == before


#: What has no verb of its own: messages with which callers follow logs, mount a folder, and type at
#: a prompt (`mbm board-repl`), whose cells may ask for input.
_MOUNT = {"number": 1, "path": "/remote", "files": [["a.py", 5]]}
OTHER_USES: dict[str, bytes] = {
    "board-logs -f": wire.pack_json(wire.WATCH, {"target": "lab-1", "logs": True}, job=5),
    "board-mount": wire.pack_submit(5, {"target": "lab-1", "mount": _MOUNT}, b""),
    "unmount": wire.pack_submit(5, {"target": "lab-1", "mount": {}}, b""),
    "board-repl": wire.pack_submit(5, {"target": "lab-1", "answers": True}, b"input()"),
    "completion of board-repl": wire.pack_submit(5, {"target": "lab-1", "idle": True}, b"dir()"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("use", OTHER_USES)
async def test_viewer_follows_no_logs_mounts_nothing_and_has_no_prompt(lab: Lab, use, role):
    token = lab.service.add_token(role, name="somebody")
    async with await FakeCaller.join(lab.service, token) as caller:
        await caller.socket.send(OTHER_USES[use])
        message = await caller.next()
    (row,) = lab.audited("somebody")
    if role == "viewer":
        assert message.op == wire.REPLY
        reply = wire.read_json(message.payload)
        assert (reply["error"], reply["args"][0]) == ("NotAllowed", "operator")
        assert row.outcome == "refused"
        assert lab.service.state("lab-1") == "idle"
    else:
        assert message.op in (wire.EVENTS, wire.CHANGES)
        assert row.outcome == "done"


@pytest.mark.parametrize("verb", [v for v, entry in VERBS.items() if entry.requires_all_boards])
async def test_admin_of_some_boards_may_not_use_verbs_for_all(lab: Lab, verb):
    reply = await ask(lab, lab.service.add_token("admin", "lab-*", name="some"), verb)
    assert (reply["error"], reply["args"][0]) == ("NotAllowed", "admin on all boards")
    assert [row.outcome for row in lab.audited("some")] == ["refused"]


async def test_audit_rows_describe_each_verb(lab: Lab):
    token = lab.service.add_token("admin", name="eve")
    async with await FakeCaller.join(lab.service, token) as caller:
        await caller.ask("label", target="lab-*,lab-2", labels={"room": "lab", "row": ""})
        await caller.ask("enrol", names=["new-1", "new-2"])
        await caller.ask("revoke", target="new-[1-2]")
        await caller.ask("interrupt", jobs=[4, 5, 7, -1, 10**30])
        (job,) = await caller.submit("lab-1 & room=lab", b"secret = 'in the cell'")
        await caller.ask("interrupt", jobs=[job])
        await caller.ask("nonsense", target="lab-1")
    rows = [row[3:] for row in lab.audited("eve")]
    assert rows == [
        ("label", "lab-*,lab-2", "room=lab row=", 2, None, None, "done"),
        ("enrol", "new-[1-2]", "", 2, None, None, "done"),
        ("revoke", "new-[1-2]", "", 2, None, None, "done"),
        ("interrupt", "", "[4-5,7]", 0, None, None, "done"),
        ("submit", "lab-1 & room=lab", "", 1, job, job, "done"),
        ("interrupt", "", str(job), 1, None, None, "done"),
        (
            "nonsense",
            "lab-1",
            "there is no request called 'nonsense'",
            None,
            None,
            None,
            "refused",
        ),
    ]


async def test_audit_log_contains_no_secret_and_no_cell(lab: Lab):
    token = lab.service.add_token("admin", name="ann")
    async with await FakeCaller.join(lab.service, token) as caller:
        for verb, body in BODIES.items():
            await caller.ask(verb, **body)
        created = (await caller.ask("token-create", name="another"))["reply"]
        enrolled = (await caller.ask("enrol", names=["new-1"]))["reply"]
        await caller.ask("boards", target=token)
        await caller.ask("token-revoke", name=created["token"])
        await caller.submit("lab-1", b"password = 'hunter2'")
    with contextlib.suppress(Exception):
        await FakeCaller.join(lab.service, token[:-1])
    text = repr(lab.service.store.audit_rows(1000))
    for secret in (token, token[:-1], created["token"], enrolled[0]["key"], "hunter2"):
        assert secret not in text
        assert secret[3:30] not in text or secret == "hunter2"
    assert credentials.token_hash(token) not in text


# Access


def fill_in(body: Any, board: str, job: int) -> Any:
    text = json.dumps(body).replace("{board}", board).replace('"{job}"', str(job))
    return json.loads(text)


OUTSIDE_REQUESTS = [(verb, body) for verb, bodies in OUTSIDE.items() for body in bodies]


@pytest.mark.parametrize(("verb", "body"), OUTSIDE_REQUESTS, ids=str)
async def test_unreachable_board_is_treated_as_not_enrolled(lab: Lab, verb, body):
    vault = lab.boards["vault-1"]
    async with (
        await FakeBoard.join(lab.service, vault),
        await FakeCaller.join(lab.service) as owner,
        await FakeCaller.join(lab.service, lab.service.add_token("admin", "lab-*")) as caller,
    ):
        (job,) = await owner.submit("vault-1", b"while True: pass")
        unreachable = await caller.ask(verb, **fill_in(body, "vault-1", job))
        unknown = await caller.ask(verb, **fill_in(body, "vault-7", 999_999))
        text = json.dumps(unreachable).replace("vault-1", "vault-7").replace(str(job), "999999")
        assert json.loads(text) == json.loads(json.dumps(unknown).replace(str(job), "999999"))
        assert lab.service.state("vault-1") == "busy"
        assert lab.service.server.registry.by_name["vault-1"].labels == {}
        assert lab.service.server.registry.by_name["vault-1"].key == vault.key


async def test_lists_contain_only_reachable_boards_and_jobs(lab: Lab):
    async with (
        await FakeBoard.join(lab.service, lab.boards["vault-1"]),
        await FakeCaller.join(lab.service) as owner,
        await FakeCaller.join(lab.service, lab.service.add_token("admin", "lab-*")) as caller,
    ):
        await owner.submit("vault-1")
        (reachable,) = await owner.submit("lab-1")
        boards = (await caller.ask("boards"))["reply"]
        assert [board["name"] for board in boards] == ["lab-1", "lab-2"]
        assert [job["job"] for job in (await caller.ask("jobs"))["reply"]] == [reachable]
        status = (await caller.ask("status"))["reply"]
        assert (status["boards"], status["online"], status["busy"]) == (2, 1, 1)
        assert len((await owner.ask("jobs"))["reply"]) == 2


async def test_jobs_of_reachable_boards_are_shown_and_interruptible(lab: Lab):
    token = lab.service.add_token("operator", "lab-*")
    async with (
        await FakeCaller.join(lab.service) as owner,
        await FakeCaller.join(lab.service, token) as caller,
    ):
        (job,) = await owner.submit("lab-1")
        assert (await caller.ask("job", job=job))["reply"]["job"] == job
        assert (await caller.ask("job", job=1))["reply"]["board"] == "lab-2"
        assert await caller.ask("interrupt", jobs=[job]) == {"reply": 1}


async def test_jobs_of_a_removed_board_are_not_those_of_its_namesake(lab: Lab):
    async with await FakeCaller.join(lab.service) as owner:
        (job,) = await owner.submit("lab-2")
        await owner.ending(job)
        await owner.ask("revoke", target="lab-2")
        await owner.ask("enrol", names=["lab-2"])
        assert (await owner.ask("job", job=job))["reply"]["board"] == "lab-2"
        token = lab.service.add_token("admin", "lab-*")
        async with await FakeCaller.join(lab.service, token) as caller:
            assert "error" in await caller.ask("job", job=job)
            assert "error" in await caller.ask("job", job=1)
            assert (await caller.ask("jobs"))["reply"] == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("vault-1", ("NoSuchBoard", "vault-1")),
        ("lab-1,vault-1", ("NoSuchBoard", "vault-1")),
        ("vault-*", ("TargetError", "No board matches.")),
        ("all!lab-*", ("TargetError", "`!` removes all boards that match.")),
    ],
)
async def test_cell_for_unreachable_boards_is_refused_as_for_unknown_ones(
    lab: Lab, target, expected
):
    async with (
        await FakeBoard.join(lab.service, lab.boards["vault-1"]),
        await FakeCaller.join(lab.service, lab.service.add_token("operator", "lab-*")) as caller,
    ):
        await caller.socket.send(wire.pack_submit(9, {"target": target}, b"1"))
        error = wire.read_json((await caller.next()).payload)
        assert (error["error"], error["args"][0]) == expected
        assert "vault" not in json.dumps(error["args"][1:]).replace(target, "")
        jobs = await caller.submit("all")
        assert len(jobs) == 1
        assert lab.service.state("vault-1") == "idle"
    assert [row.outcome for row in lab.audited("operator")] == ["refused", "done"]


async def test_removed_label_makes_a_board_unreachable_on_an_open_link(lab: Lab):
    async with (
        await FakeCaller.join(lab.service) as owner,
        await FakeCaller.join(lab.service, lab.service.add_token("operator", "room=lab")) as caller,
    ):
        assert (await caller.ask("boards"))["reply"] == []
        await owner.ask("label", target="lab-1", labels={"room": "lab"})
        assert [board["name"] for board in (await caller.ask("boards"))["reply"]] == ["lab-1"]
        (job,) = await caller.submit("lab-1")
        await owner.ask("label", target="lab-1", labels={"room": ""})
        assert await caller.ask("interrupt", jobs=[job]) == {"reply": 0}
        assert (await caller.ask("boards"))["reply"] == []
