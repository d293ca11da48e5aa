"""Plans for callers: of files they sent, for kinds of boards, never of the server's files."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.installs.plan_cache import PlanCache, PreparedPlan
from cm_server.installs.planning import _OPTION_TYPES, _upgrade_options
from cm_server.limits import Limits
from cm_server.packages.plan import InstallPlan
from tests.cm_server.peers import FakeBoard, FakeCaller, Service

CONTENT = b"A = 1\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
#: What no field of a request about packages may be.
WRONG_VALUES: list[Any] = [True, -7, 1.5, "text", [], ["x", 1], [[]], {}, {"": 1}, {"x": []}]


async def plan(service: Service, **body: Any) -> Any:
    """Return the answer to a `plan` request; the content `A = 1` was uploaded before it."""
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service) as caller,
    ):
        upload = (await caller.ask("offer", sha256=DIGEST, size=len(CONTENT)))["reply"]
        await caller.socket.send(wire.pack_content(9, upload, CONTENT))
        assert (await caller.next()).op == wire.REPLY
        return await caller.ask("plan", target="lab-1", **body)


async def test_sent_file_is_planned_as_bytecode(service: Service):
    answer = await plan(service, wanted=["./a.py"], sent={"./a.py": {"a.py": DIGEST}})
    reply = answer["reply"]
    ((path, size, _),) = reply["plan"]["boards"][str(0x0306)]["files"]
    assert (path, size > 0) == ("/lib/a.mpy", True)
    assert '"wanted": [\n  "./a.py"\n ]' in reply["lock"]
    assert reply["number"] > 0


def planned() -> PreparedPlan:
    return PreparedPlan(InstallPlan((), "/lib", (), {}), {}, {})


def test_plan_belongs_to_its_link_and_old_plans_are_discarded():
    plans = PlanCache(Limits.plans_per_link)
    numbers = [plans.add("ann", planned()) for _ in range(Limits.plans_per_link + 1)]
    assert plans.get("ann", numbers[-1])
    for owner, number in (("ann", numbers[0]), ("bob", numbers[-1]), ("ann", None), ("ann", "1")):
        with pytest.raises(ServerError, match="discarded this plan"):
            plans.get(owner, number)
    plans.discard_plans("ann")
    with pytest.raises(ServerError):
        plans.get("ann", numbers[-1])


async def test_only_an_administrator_may_name_a_private_index(service: Service):
    request = {"wanted": ["x"], "indexes": {"": "http://127.0.0.1:9/pi"}}
    (identity,) = service.enrol("lab-1")
    operator = service.add_token("operator")
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service, operator) as operator_link,
        await FakeCaller.join(service) as admin_link,
    ):
        refused = await operator_link.ask("plan", target="lab-1", **request)
        tried = await admin_link.ask("plan", target="lab-1", **request)
    assert "private address" in refused["args"][0]
    assert "cannot be reached" in tried["args"][0]
    assert "The server fetches packages, not your computer: " in tried["args"][0]
    assert "https_proxy" in tried["args"][0]


def test_passwords_are_not_kept_for_upgrades():
    kept = _upgrade_options(
        {"indexes": {"a": "https://ann:secret@h.example/pi"}, "target_dir": "/x"}
    )
    assert kept == {"indexes": {"a": "https://h.example/pi"}, "target_dir": "/x"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"wanted": "a"},
        {"wanted": [1]},
        {"wanted": ["a"], "indexes": {"": 1}},
        {"wanted": ["a"], "sent": []},
        {"wanted": ["./a.py"], "sent": {"./a.py": 1}},
        {"wanted": ["./a.py"], "sent": {"./a.py": {"a.py": "0" * 64}}},
        {"wanted": ["./a.py"], "sent": {"./a.py": {"a.py": 7}}},
        {"wanted": ["a@b@c"]},
        {"wanted": ["/etc/passwd"]},
    ],
    ids=repr,
)
async def test_malformed_request_is_refused(service: Service, body):
    answer = await plan(service, **body)
    assert answer["error"] in ("ServerError", "PackageError")
    assert "Traceback" not in str(answer)


async def test_no_value_of_a_field_makes_the_server_fail(service: Service):
    (identity,) = service.enrol("lab-1")
    refusals = []
    async with (
        await FakeBoard.join(service, identity, parts=["run", "files"]),
        await FakeCaller.join(service) as caller,
    ):
        for field in (*_OPTION_TYPES, "force", "target"):
            for value in WRONG_VALUES:
                body = {"target": "lab-1", "wanted": [], field: value}
                refusals.append(str(await caller.ask("plan", **body)))
        for value in WRONG_VALUES:
            refusals.append(str(await caller.ask("installed", target=value)))
        wrong: list[Any] = [value for value in WRONG_VALUES if not isinstance(value, dict)]
        wrong += [{"plan": value} for value in [*WRONG_VALUES, None]]
        wrong += [{"remove": value} for value in WRONG_VALUES]
        for ref, request in enumerate(wrong, 1):
            head = {"target": "lab-1", "packages": request}
            await caller.socket.send(wire.pack_submit(ref, head, b""))
            reply = await caller.next()
            assert reply.op == wire.REPLY, request
            refusals.append(reply.payload.decode())
    assert [text for text in refusals if "server.log" in text] == []
    assert sum("of the wrong type" in text for text in refusals) > 40
