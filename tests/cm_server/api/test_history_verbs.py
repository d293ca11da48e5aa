"""What ran where: who may read it, who may forget it, and what is left then."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloudmanager.client.cell_verbs import make_cell
from tests.cm_server.pairs import Two, run
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service, running_service

TEXT = "password = 'hunter2'\nread()"


async def submit(
    caller: FakeCaller, target: str, text: str = TEXT, inputs: Any = None, **head: Any
) -> list[int]:
    """Submit a cell as the library does."""
    cell = make_cell(text, inputs)
    more = {"own": cell.own, "inputs": cell.inputs, "title": cell.title}
    return await caller.submit(target, cell.code, **more, **head)


async def history(caller: FakeCaller, target: str, **body: Any) -> Any:
    """Return the reply of ``history``."""
    reply = await caller.ask("history", target=target, **body)
    return reply.get("reply", reply)


async def texts(caller: FakeCaller, target: str) -> list[Any]:
    """Return the text of each job, the newest first; None where it is not shown."""
    reply = await history(caller, target)
    return [reply["texts"].get(job["text"]) for job in reply["jobs"]]


@contextlib.asynccontextmanager
async def joined(service: Service, identity: Identity) -> AsyncIterator[tuple[FakeBoard, Any]]:
    async with (
        await FakeBoard.join(service, identity, parts=["run", "files", "boot"]) as board,
        await FakeCaller.join(service) as caller,
    ):
        yield board, caller


async def test_history_has_cells_files_and_resets_with_their_outcomes(service: Service):
    (identity,) = service.enrol("lab-1")
    async with joined(service, identity) as (board, caller):
        (first,) = await submit(caller, "lab-1", notebook="/home/a/lab.ipynb", cell="c1", number=3)
        await run(board)
        await board.end(first, "error", rest=b"Traceback:\nValueError: 5")
        await caller.ending(first)
        await caller.submit("lab-1", b"", acts=[["rm", "/a.py", False]])
        await caller.submit("lab-1", b"", fresh=True)
        await submit(caller, "lab-1", "read()", {"pins": [1, 2]}, fresh=True)
        reply = await history(caller, "lab-1")
    assert reply["before"] is None
    cell, reset, files, failed = reply["jobs"]
    assert [job["kind"] for job in reply["jobs"]] == ["cell", "reset", "files", "cell"]
    assert reply["texts"][failed["text"]] == TEXT
    assert reply["texts"][files["text"]] == "rm /a.py"
    assert reply["texts"][cell["text"]] == "read()"
    assert reset["text"] is None
    assert (failed["status"], failed["error"]) == ("error", "ValueError: 5")
    assert (failed["notebook"], failed["cell"], failed["number"]) == ("/home/a/lab.ipynb", "c1", 3)
    assert (cell["inputs"], cell["fresh"], cell["status"]) == (["pins"], True, None)
    assert failed["caller"] == "local"


async def test_text_is_for_its_author_and_for_administrators(service: Service):
    (identity,) = service.enrol("lab-1")
    tokens = {role: service.add_token(role, "lab-*", name=role) for role in ("viewer", "operator")}
    other = service.add_token("operator", name="other")
    boss = service.add_token("admin", "lab-1", name="boss")
    async with (
        await FakeBoard.join(service, identity, parts=["run", "files"]),
        await FakeCaller.join(service, tokens["operator"]) as author,
        await FakeCaller.join(service, other) as operator,
        await FakeCaller.join(service, tokens["viewer"]) as viewer,
        await FakeCaller.join(service, boss) as admin,
    ):
        await submit(author, "lab-1", notebook="secret-plan.ipynb")
        await author.submit("lab-1", b"", acts=[["rm", "/a.py", False]])
        assert await texts(author, "lab-1") == ["rm /a.py", TEXT]
        assert await texts(admin, "lab-1") == ["rm /a.py", TEXT]
        assert await texts(operator, "lab-1") == ["rm /a.py", None]
        assert await texts(viewer, "lab-1") == [None, None]
        for caller in (operator, viewer):
            reply = await history(caller, "lab-1")
            assert "hunter2" not in str(reply)
            assert "secret-plan" not in str(reply)
            assert [job["kind"] for job in reply["jobs"]] == ["files", "cell"]
        # Another token of the author's name is not the author.
        service.revoke_token("operator")
        again = service.add_token("operator", name="operator")
        async with await FakeCaller.join(service, again) as namesake:
            assert await texts(namesake, "lab-1") == ["rm /a.py", None]


async def test_successor_of_a_board_has_no_history(service: Service):
    (identity,) = service.enrol("lab-1")
    async with joined(service, identity) as (_, caller):
        await submit(caller, "lab-1")
        assert await texts(caller, "lab-1") == [TEXT]
    async with await FakeCaller.join(service) as caller:
        assert (await caller.ask("revoke", target="lab-1"))["reply"] == ["lab-1"]
        assert service.enrol("lab-1")[0].id != identity.id
        assert await texts(caller, "lab-1") == []


async def test_text_of_a_client_that_does_not_say_its_inputs_is_not_stored(service: Service):
    (identity,) = service.enrol("lab-1")
    async with joined(service, identity) as (_, caller):
        await caller.submit("lab-1", b"password = 'hunter2';1")
        assert await texts(caller, "lab-1") == [None]
        rows = service.store.database.driver.execute("SELECT * FROM texts").fetchall()
        assert rows == []


@pytest.mark.limits(reply_jobs=3, examined_jobs=2)
async def test_long_history_is_read_in_pages(service: Service):
    (identity,) = service.enrol("lab-1")
    service.enrol("lab-2")
    async with joined(service, identity) as (_, caller):
        jobs = [(await submit(caller, "lab-1", f"x = {n}"))[0] for n in range(7)]
        found: list[int] = []
        before: Any = None
        while True:
            more = {} if before is None else {"before": before}
            reply = await history(caller, "lab-1", **more)
            found += [job["job"] for job in reply["jobs"]]
            before = reply["before"]
            if before is None:
                break
            assert len(reply["jobs"]) == 3
        assert found == jobs[::-1]
        assert (await history(caller, "lab-2"))["jobs"] == []
        assert (await history(caller, "lab-1", since=9e9))["jobs"] == []


@pytest.mark.parametrize(
    "body", [{"since": "x"}, {"since": -1}, {"before": 0}, {"before": "1"}, {"before": 2**40}]
)
async def test_malformed_request_is_refused(service: Service, body):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        reply = await history(caller, "lab-1", **body)
        assert reply["error"] == "ServerError"


async def test_texts_are_not_shown_after_their_time(tmp_path):
    async with running_service(tmp_path, keep_texts=0) as service:
        (identity,) = service.enrol("lab-1")
        async with joined(service, identity) as (_, caller):
            await submit(caller, "lab-1")
            (job,) = (await history(caller, "lab-1"))["jobs"]
            assert job["kind"] == "cell"
            assert await texts(caller, "lab-1") == [None]


# Forgetting


def files_with(service: Service, text: bytes) -> list[str]:
    files = [file for file in service.server.home.iterdir() if file.name.startswith("server.db")]
    return [file.name for file in files if text in file.read_bytes()]


async def test_forgotten_text_is_in_no_reply_and_in_no_file(service: Service):
    (identity,) = service.enrol("lab-1")
    async with joined(service, identity) as (board, caller):
        (number,) = await submit(caller, "lab-1", notebook="lab.ipynb")
        await run(board)
        await board.end(number)
        await caller.ending(number)
        assert await texts(caller, "lab-1") == [TEXT]
        assert files_with(service, b"hunter2")
        reply = (await caller.ask("history-forget", target="lab-1"))["reply"]
        assert reply == {"jobs": 1, "texts": 1, "erased": True}
        (job,) = (await history(caller, "lab-1"))["jobs"]
        assert (job["status"], job["caller"], job["kind"]) == ("ok", "local", "")
        assert "hunter2" not in str(await caller.ask("jobs"))
        assert files_with(service, b"hunter2") == []
        assert files_with(service, b"lab.ipynb") == []
        (row,) = [row for row in service.audited() if row.verb == "history-forget"]
        assert (row.target, row.outcome) == ("lab-1", "done")
        # It can run, and be kept, again.
        await submit(caller, "lab-1")
        assert await texts(caller, "lab-1") == [TEXT, None]


async def test_operator_forgets_only_what_its_token_ran(service: Service):
    (identity,) = service.enrol("lab-1")
    ann, bob = (service.add_token("operator", name=name) for name in ("ann", "bob"))
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service, ann) as first,
        await FakeCaller.join(service, bob) as second,
        await FakeCaller.join(service) as admin,
    ):
        await submit(first, "lab-1", "a = 1")
        await submit(second, "lab-1", "b = 1")
        assert (await second.ask("history-forget", caller="ann"))["error"] == "NotAllowed"
        assert (await second.ask("history-forget", target="all"))["reply"]["jobs"] == 1
        assert await texts(admin, "lab-1") == [None, "a = 1"]
        assert (await admin.ask("history-forget"))["error"] == "ServerError"
        assert (await admin.ask("history-forget", older_than=3600))["reply"]["jobs"] == 0
        assert (await admin.ask("history-forget", caller="ann"))["reply"]["texts"] == 1
        assert await texts(admin, "lab-1") == [None, None]


async def test_administrator_of_some_boards_forgets_only_of_these(service: Service):
    identities = service.enrol("lab-1", "vault-1")
    some = service.add_token("admin", "lab-*", name="some")
    async with (
        await FakeBoard.join(service, identities[0]),
        await FakeBoard.join(service, identities[1]),
        await FakeCaller.join(service, some) as limited,
        await FakeCaller.join(service) as admin,
    ):
        await submit(admin, "lab-1", "a = 1")
        await submit(admin, "vault-1", "b = 1")
        assert (await limited.ask("history-forget", caller="local"))["reply"]["jobs"] == 1
        assert await texts(admin, "vault-1") == ["b = 1"]
        assert await texts(admin, "lab-1") == [None]


@pytest.mark.parametrize("body", [{"target": "lab-1"}, {"caller": "some"}])
async def test_what_a_replaced_board_ran_is_forgotten_with_its_successor(
    service: Service, body: dict[str, str]
):
    old, _ = service.enrol("lab-1", "lab-9")
    some = service.add_token("admin", "lab-*", name="some")
    async with (
        await FakeCaller.join(service, some) as limited,
        await FakeCaller.join(service) as admin,
    ):
        async with await FakeBoard.join(service, old) as board:
            (number,) = await submit(limited, "lab-1")
            await run(board)
            await board.end(number)
            await limited.ending(number)
        assert "error" not in await admin.ask("replace", target="lab-1", new="lab-9")
        assert await texts(limited, "lab-1") == [TEXT]
        forgotten = (await limited.ask("history-forget", **body))["reply"]
        assert (forgotten["jobs"], forgotten["texts"]) == (1, 1)
        assert await texts(limited, "lab-1") == [None]


async def test_what_a_board_ran_before_it_replaced_another_one_is_not_in_its_history(
    service: Service,
):
    old, new = service.enrol("lab-1", "spare")
    async with await FakeCaller.join(service) as caller:

        async def run_on(identity: Identity, name: str) -> int:
            async with await FakeBoard.join(service, identity) as board:
                (number,) = await submit(caller, name)
                await run(board)
                await board.end(number)
                await caller.ending(number)
            return number

        async def numbers() -> list[int]:
            return [job["job"] for job in (await history(caller, "lab-1"))["jobs"]]

        as_old, as_spare = await run_on(old, "lab-1"), await run_on(new, "spare")
        (waiting,) = await submit(caller, "spare", when_online=True)
        assert await numbers() == [as_old]
        assert "error" not in await caller.ask("replace", target="lab-1", new="spare")
        assert await numbers() == [waiting, as_old]
        async with await FakeBoard.join(service, new) as board:
            await run(board)
            await board.end(waiting)
            await service.until(lambda: waiting not in service.server.dispatch.jobs)
        as_new = await run_on(new, "lab-1")
        assert await numbers() == [as_new, waiting, as_old]
        forgotten = (await caller.ask("history-forget", target="lab-1"))["reply"]
        assert forgotten["jobs"] == len({as_new, waiting, as_old, as_spare})


async def test_text_of_work_that_waits_is_in_the_history(service: Service):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        (number,) = await submit(caller, "lab-1", when_online=True)
        reply = await history(caller, "lab-1")
        assert [(job["job"], job["status"]) for job in reply["jobs"]] == [(number, None)]
        assert await texts(caller, "lab-1") == [TEXT]


async def test_history_is_the_same_at_each_server(two: Two):
    (identity,) = await two.enrol("lab-1")
    async with (
        await FakeBoard.join(two.b, identity) as board,
        await FakeCaller.join(two.a) as here,
        await FakeCaller.join(two.b) as there,
    ):
        await two.seen("lab-1")
        (number,) = await submit(here, "lab-1", notebook="lab.ipynb")
        await run(board)
        await board.end(number)
        await here.ending(number)
        two.a.server.dispatch.job_texts.write_all()
        assert two.a.store is not None
        for caller in (here, there):
            assert await texts(caller, "lab-1") == [TEXT]
            (job,) = (await history(caller, "lab-1"))["jobs"]
            assert job["notebook"] == "lab.ipynb"
        assert (await there.ask("history-forget", target="lab-1"))["reply"]["texts"] == 1
        assert await texts(here, "lab-1") == [None]
