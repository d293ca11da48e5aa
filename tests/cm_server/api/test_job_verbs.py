"""Jobs are listed, shown and interrupted from any server, if the token covers their boards."""

from __future__ import annotations

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, run
from tests.cm_server.peers import FakeBoard, FakeCaller, Service


async def test_jobs_of_all_servers_are_listed_once_if_the_token_covers_them(pair: Two):
    first, second = await pair.enrol("lab-1", "lab-2")
    token = pair.a.add_token("operator", "lab-2")
    await pair.b.until(lambda: len(pair.b.server.tokens.describe()) == 3)
    async with (
        await FakeBoard.join(pair.b, first) as one,
        await FakeBoard.join(pair.a, second) as two,
        await FakeCaller.join(pair.a) as caller,
        await FakeCaller.join(pair.b, token) as limited,
    ):
        await pair.seen("lab-1")
        await pair.seen("lab-2")
        jobs = await caller.submit("lab-[1-2]")
        for board in (one, two):
            await run(board)
        listed = (await caller.ask("jobs"))["reply"]
        assert sorted(line["job"] for line in listed) == sorted(jobs)
        assert {line["state"] for line in listed} == {"running"}
        assert [line["board"] for line in (await limited.ask("jobs"))["reply"]] == ["lab-2"]
        assert (await caller.ask("jobs", target="lab-1"))["reply"][0]["board"] == "lab-1"
        assert "no job" in str(await limited.ask("job", job=jobs[0]))
        assert (await limited.ask("interrupt", jobs=jobs))["reply"] == 1
        assert (await two.next()).op == wire.INTERRUPT
        await one.end(jobs[0], rest=b"1")
        await caller.ending(jobs[0])
        ended = (await caller.ask("jobs"))["reply"]
        assert [(line["job"], line["state"]) for line in ended] == [
            (jobs[1], "running"),
            (jobs[0], "ended"),
        ]
        assert (await caller.ask("stop", target="lab-1"))["reply"] == ["lab-1"]
        assert (await one.next()).job == 0


CELL = b"__cm__((read()))"


async def listed(caller: FakeCaller) -> list[tuple[str, str]]:
    """Return kind and title of each job, the newest first, as list and single job agree."""
    jobs = (await caller.ask("jobs"))["reply"]
    for job in jobs:
        shown = (await caller.ask("job", job=job["job"]))["reply"]
        assert (shown["kind"], shown["what"]) == (job["kind"], job["what"])
    return [(job["kind"], job["what"]) for job in jobs]


async def test_jobs_are_listed_with_what_they_are(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, parts=["run", "files", "boot"]),
        await FakeCaller.join(service) as caller,
    ):
        await caller.submit("lab-1", CELL, title="read()")
        await caller.submit("lab-1", b"x" * 500, title="x" * 500 + "\n\x1b[2J")
        await caller.submit("lab-1", b"", fresh=True)
        await caller.submit("lab-1", b"", acts=[["rm", "/a.py", False]])
        assert await listed(caller) == [
            ("files", "rm /a.py"),
            ("reset", ""),
            ("cell", "x" * 120),
            ("cell", "read()"),
        ]


async def test_title_is_kept_after_the_end_and_code_is_not(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
    ):
        (number,) = await caller.submit("lab-1", CELL, title="read()")
        await run(board)
        await board.end(number, rest=b"1")
        await caller.ending(number)
        assert await listed(caller) == [("cell", "read()")]
        ended = service.server.dispatch.recent_jobs.get(number)
        assert ended is not None
        assert ended.cell.code == b""


async def test_code_is_seen_by_its_author_and_by_administrators(service: Service):
    """The title of a job is its first line, which may contain a password."""
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service) as administrator,
        await FakeCaller.join(service, service.add_token("operator", "all", name="ann")) as author,
        await FakeCaller.join(service, service.add_token("operator", "all", name="bob")) as other,
        await FakeCaller.join(service, service.add_token("viewer", "all")) as viewer,
    ):
        await author.submit("lab-1", CELL, title="password = 'x'")
        for caller in (author, administrator):
            assert await listed(caller) == [("cell", "password = 'x'")]
        for caller in (other, viewer):
            assert await listed(caller) == [("cell", "")]
            assert "password" not in str(await caller.ask("boards"))


async def test_viewers_do_not_see_paths(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity),
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service, service.add_token("operator", "all", name="bob")) as other,
        await FakeCaller.join(service, service.add_token("viewer", "all")) as viewer,
    ):
        await caller.submit("lab-1", b"", acts=[["rm", "/a.py", False]])
        assert await listed(other) == [("files", "rm /a.py")]
        assert await listed(viewer) == [("files", "")]


async def test_other_servers_list_what_a_job_is(pair: Two):
    (first,) = await pair.enrol("lab-1")
    viewer_token = pair.a.add_token("viewer", "all")
    await pair.b.until(lambda: len(pair.b.server.tokens.describe()) == 3)
    async with (
        await FakeBoard.join(pair.b, first) as board,
        await FakeCaller.join(pair.a) as caller,
        await FakeCaller.join(pair.b) as other,
        await FakeCaller.join(pair.a, viewer_token) as viewer,
    ):
        await pair.seen("lab-1")
        await caller.submit("lab-1", CELL, title="read()")
        await run(board)
        assert await listed(other) == [("cell", "read()")]
        assert await listed(viewer) == [("cell", "")]
