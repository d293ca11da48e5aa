"""Jobs are listed, shown and interrupted from any server, if the token covers their boards."""

from __future__ import annotations

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, run
from tests.cm_server.peers import FakeBoard, FakeCaller


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
