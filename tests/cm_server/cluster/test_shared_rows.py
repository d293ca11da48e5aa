"""Changes of boards, labels and tokens at several servers, also while no messages arrive."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from cloudmanager.server_options import ServerOptions
from cm_server.cluster.membership import local_token_name
from cm_server.store.postgres_database import Postgres
from tests.cm_server.pairs import Two, others_of, run
from tests.cm_server.peers import FakeBoard, FakeCaller, running_service


def cut(pair: Two) -> None:
    """Take the bus away."""
    assert pair.hub is not None
    pair.hub.set_connected(False)


async def test_key_that_was_replaced_is_refused_by_a_server_that_missed_it(pair: Two):
    (old,) = await pair.enrol("lab-1")
    cut(pair)
    (new,) = pair.a.enrol("lab-1")
    assert old.key != new.key
    board: FakeBoard = await FakeBoard.dial(pair.b, "/board")
    async with board:
        await board.greet(old.id, gen=old.gen)
        await board.prove(old, await board.next())
        assert (await board.closed())[0] == 4001
    async with await FakeBoard.join(pair.b, new):
        await pair.b.until(lambda: pair.b.state("lab-1") == "idle")


async def test_labels_that_two_servers_change_at_a_time_are_merged(pair: Two):
    await pair.enrol("lab-1")
    cut(pair)
    async with await FakeCaller.join(pair.a) as a, await FakeCaller.join(pair.b) as b:
        await a.ask("label", target="lab-1", labels={"room": "lab", "shelf": "3"})
        await b.ask("label", target="lab-1", labels={"owner": "ann", "shelf": ""})
        await a.ask("label", target="lab-1", labels={"row": "7"})
        labels = (await a.ask("boards"))["reply"][0]["labels"]
        assert labels == {"room": "lab", "owner": "ann", "row": "7"}


async def test_local_token_of_a_server_that_starts_is_known_to_the_others(
    pair: Two, tmp_path: Path
):
    assert pair.hub is not None
    (tmp_path / "c").mkdir()
    store = tmp_path / "shared.db"
    async with running_service(
        tmp_path / "c", store=store, lost_after=20.0, pubsub=pair.hub.new_client()
    ) as c:
        name = local_token_name(c.server.home)
        await pair.a.until(lambda: name in [row["name"] for row in pair.a.server.tokens.describe()])
        async with await FakeCaller.join(pair.a, c.token) as caller:
            assert (await caller.ask("boards"))["reply"] == []


async def test_revoked_local_token_is_replaced_by_its_server(pair: Two):
    first = pair.b.token
    async with await FakeCaller.join(pair.a) as caller, await FakeCaller.join(pair.b) as its_user:
        name = local_token_name(pair.b.server.home)
        reply = (await caller.ask("token-revoke", name=name))["reply"]
        assert reply == {"name": name, "closed": 1}
        assert "was revoked" in (await its_user.closed())[1]
    path = pair.b.server.home / "token"
    await pair.b.until(lambda: path.read_text().strip() != first)
    async with await FakeCaller.join(pair.a, path.read_text().strip()) as caller:
        assert (await caller.ask("boards"))["reply"] == []


async def test_token_revocation_counts_links_of_all_servers(pair: Two):
    token = pair.a.add_token("viewer")
    async with (
        await FakeCaller.join(pair.a) as admin,
        await FakeCaller.join(pair.a, token),
        await FakeCaller.join(pair.b, token),
        await FakeCaller.join(pair.b, token),
    ):
        reply = (await admin.ask("token-revoke", name="viewer"))["reply"]
        assert reply == {"name": "viewer", "closed": 3}


async def test_new_token_opens_another_server_that_missed_it(pair: Two):
    cut(pair)
    token = pair.a.add_token("viewer")
    async with await FakeCaller.join(pair.b, token) as caller:
        assert (await caller.ask("boards"))["reply"] == []


async def test_name_that_another_server_gave_is_refused_in_one_sentence(pair: Two):
    cut(pair)
    async with await FakeCaller.join(pair.a) as a, await FakeCaller.join(pair.b) as b:
        assert "reply" in await a.ask("token-create", name="ann", role="viewer")
        assert "reply" in await a.ask("enrol", names=["lab-1"])
        for verb, body in (
            ("token-create", {"name": "ann", "role": "viewer"}),
            ("enrol", {"names": ["lab-1"]}),
        ):
            assert (await b.ask(verb, **body))["args"] == [
                "the name was given meanwhile, at another server; choose another one"
            ]


async def test_cell_finds_a_board_of_which_its_server_has_heard_nothing(pair: Two):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        known = pair.a.server.registry.by_name["lab-1"]
        known.remote_state, known.epoch = None, 0
        assert pair.a.state("lab-1") == "offline"
        (job,) = await caller.submit("lab-1")
        assert (await run(board)).job == job
        await board.end(job, rest=b"7")
        assert await caller.ending(job) == ("ok", "7")


async def test_cell_of_an_offline_board_ends_offline(pair: Two):
    await pair.enrol("lab-1")
    async with await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1")
        assert await caller.ending(job) == ("offline", "it has never connected")


async def test_jobs_are_listed_by_time(pair: Two):
    boards = await pair.enrol("lab-1", "lab-2", "lab-3")
    async with await FakeCaller.join(pair.a) as a, await FakeCaller.join(pair.b) as b:
        order = []
        for identity, caller in zip(boards, (a, b, a), strict=True):
            (job,) = await caller.submit(identity.name, wait=60)
            order.append(job)
        assert order[1] > order[2]  # servers reserve numbers by the thousand
        listed = [job["job"] for job in (await a.ask("jobs"))["reply"]]
        assert listed == order[::-1]


async def test_timeout_counts_where_a_server_does_not_confirm_that_it_runs_a_job(pair: Two):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        others_of(pair.b).peer_messages.pubsub.publish = lambda *_: None  # type: ignore[method-assign]
        started = asyncio.get_running_loop().time()
        (job,) = await caller.submit("lab-1", timeout=0.3)
        await run(board)
        assert (await caller.ending(job))[0] in ("lost", "timeout")  # here, or in the store
        assert asyncio.get_running_loop().time() - started < 2.5


async def test_server_with_a_shared_store_and_no_bus_warns(tmp_path: Path):
    (tmp_path / "a").mkdir()
    store = tmp_path / "shared.db"
    async with running_service(tmp_path / "a", store=store, lost_after=20.0) as service:
        (warning,) = service.server.status.warnings()
        assert warning == (
            "it has a shared store but no bus (--bus): only one server may use that store"
        )
        async with await FakeCaller.join(service) as caller:
            status = (await caller.ask("status"))["reply"]
        assert (status["store"], status["bus"], len(status["servers"])) == ("SQLite", "none", 1)


async def test_status_shows_the_servers_and_the_bus(pair: Two):
    async with await FakeCaller.join(pair.a) as caller:
        status = (await caller.ask("status"))["reply"]
        assert (status["bus"], len(status["servers"])) == ("up", 2)
        cut(pair)
        status = (await caller.ask("status"))["reply"]
        assert status["bus"] == "down"
        assert status["problems"] == [
            "its bus is down: boards of other servers cannot be given new cells"
        ]


def test_defaults_of_several_servers_are_shorter():
    one, several = ServerOptions(), ServerOptions(store="postgresql://x")
    assert (one.beat_seconds, one.lost_after_seconds) == (30, 10)
    assert (several.beat_seconds, several.lost_after_seconds) == (4, 20)
    # Boards dial again after three beats: before their jobs are taken for lost.
    assert 3 * several.beat_seconds < several.lost_after_seconds
    given = ServerOptions(store="postgresql://x", beat=30, lost_after=100)
    assert (given.beat_seconds, given.lost_after_seconds) == (30, 100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'connection failed: connection to server at "10.0.0.9", port 5432 failed: Connection '
            "refused\n\tIs the server running on that host?",
            "the connection was refused",
        ),
        ('could not translate host name "db.example" to address', None),
        ('connection to server on socket "/run/pg" failed: FATAL:  role "cm" is missing', None),
        ("connection timeout expired", "it does not answer"),
        ("terminating connection due to unexpected postmaster exit", None),
    ],
)
def test_errors_of_postgresql_name_no_addresses(text: str, reason: str | None):
    error = psycopg.OperationalError(text)
    described = Postgres.describe_error(None, error)  # type: ignore[arg-type]
    assert described == (reason or "the connection to it broke or cannot be opened")
