"""Plans that callers ask for: of what they sent, by kinds of boards, never of our own files."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from .peers import FakeBoard, FakeCaller, Service


async def plan(service: Service, **body: Any) -> Any:
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service) as caller,
    ):
        return await caller.ask("plan", target="lab-1", **body)


async def test_a_file_that_was_sent_is_planned_for_the_boards_bytecode(service: Service):
    content = b"A = 1\n"
    service.server.contents.keep(content)
    digest = hashlib.sha256(content).hexdigest()
    told = await plan(service, wanted=["./a.py"], sent={"./a.py": {"a.py": digest}})
    reply = told["reply"]
    assert reply["boards"] == {"lab-1": 0x0306}
    ((path, sha256, size, _),) = reply["files"][str(0x0306)]
    assert (path, size > 0) == ("/lib/a.mpy", True)
    assert service.server.contents.get(sha256) is not None


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
async def test_a_request_that_is_none_is_refused_by_a_sentence(service: Service, body):
    told = await plan(service, **body)
    assert told["error"] in ("ServerError", "PackageError")
    assert "Traceback" not in str(told)
