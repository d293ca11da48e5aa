"""Samples that last, from a board's message to the reply of a request."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import NoSuchBoard, ServerError
from cloudmanager.protocol.sample_columns import unpack_stream
from cm_server.api import replies, verbs
from cm_server.store.sample_folder import FOLDER

from .peers import FakeCaller, Service, running_service


def emit(service: Service, name: str, values: dict[str, Any]) -> None:
    """Let the server receive a sample of a board."""
    board = service.server.registry.by_name[name]
    payload = (5).to_bytes(8, "big") + json.dumps(values).encode()
    service.server.sample_collector.add_message(board, wire.Message(wire.EMIT, 0, 0, payload))


async def ask(service: Service, token: str = "", **body: Any) -> list[tuple[str, str, float]]:
    """Return the reply of the verb ``sample-history``: board, name and value of each."""
    row = service.server.tokens.find_caller_token(f"Bearer {token or service.token}")
    assert row is not None
    services = service.server._caller_link_services.requests
    asked = {"verb": "sample-history", "target": "all", "since": 0, **body}
    head, *pieces = await replies.collect(await verbs.handle_request(services, row, asked))
    columns = unpack_stream(b"".join(map(base64.b64decode, pieces)))
    assert head["next"] is None
    return [
        (*head["series"][index], value)
        for index, value in zip(columns.series, columns.values, strict=True)
    ]


async def until_kept(service: Service, count: int, **body: Any) -> list[tuple[str, str, float]]:
    """Return the values when there are as many."""
    for _ in range(600):
        found = await ask(service, **body)
        if len(found) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(found)} values are kept, not {count}")


async def revoke(service: Service, name: str) -> None:
    """Remove a board from the fleet."""
    entry = service.server.audit_log.new_entry("x", "", "revoke")
    await service.server.enrolment.revoke([service.server.registry.by_name[name]], entry)


@pytest.mark.timeout(120)
async def test_numbers_of_samples_are_kept_over_a_restart(tmp_path: Path):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1", "lab-2")
        assert not (tmp_path / FOLDER).exists()
        assert await ask(service) == []
        emit(service, "lab-1", {"temp": 21.5, "open": True, "text": "x", "none": None})
        emit(service, "lab-2", {"temp": 3})
        kept = [("lab-1", "open", 1.0), ("lab-1", "temp", 21.5), ("lab-2", "temp", 3.0)]
        assert sorted(await until_kept(service, 3)) == kept
        emit(service, "lab-1", {"temp": 22})  # handed over when the server stops
    async with running_service(tmp_path) as service:
        assert sorted(await ask(service)) == [*kept[:2], ("lab-1", "temp", 22.0), kept[2]]
        assert await ask(service, target="lab-2") == kept[2:]
        assert await ask(service, names=["open"]) == kept[:1]
        thinned = await ask(service, every=86400, how="max", target="lab-1", names=["temp"])
        assert [value for _, _, value in thinned][-1] == 22.0


@pytest.mark.timeout(120)
async def test_samples_are_returned_to_those_who_reach_the_boards(service: Service):
    service.enrol("lab-1", "home-1")
    viewer = service.add_token("viewer", "lab-*")
    emit(service, "lab-1", {"temp": 1})
    emit(service, "home-1", {"temp": 2})
    await until_kept(service, 2)
    assert await ask(service, viewer) == [("lab-1", "temp", 1.0)]
    assert await ask(service, viewer, target="home-*") == []
    with pytest.raises(NoSuchBoard):
        await ask(service, viewer, target="home-1")


@pytest.mark.timeout(120)
async def test_successor_of_the_same_name_has_no_samples_of_before(service: Service):
    service.enrol("lab-1")
    emit(service, "lab-1", {"temp": 1})
    await until_kept(service, 1)
    await revoke(service, "lab-1")
    service.enrol("lab-1")
    assert await ask(service) == []
    emit(service, "lab-1", {"temp": 2})
    assert await until_kept(service, 1) == [("lab-1", "temp", 2.0)]


@pytest.mark.timeout(120)
async def test_renamed_board_keeps_its_samples(service: Service):
    (first,) = service.enrol("lab-1")
    emit(service, "lab-1", {"temp": 1})
    await until_kept(service, 1)
    board = service.server.registry.by_id[first.id]
    entry = service.server.audit_log.new_entry("x", "", "rename")
    await service.server.enrolment.rename(board, "lab-9", entry)
    assert await ask(service) == [("lab-9", "temp", 1.0)]


async def replace(service: Service, old: str, new: str) -> None:
    """Let a board replace another one."""
    async with await FakeCaller.join(service) as owner:
        assert "error" not in await owner.ask("replace", target=old, new=new)


@pytest.mark.timeout(120)
async def test_samples_of_a_dead_board_stay_when_it_is_replaced(tmp_path: Path):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1", "spare", "spare-2")
        emit(service, "lab-1", {"temp": 1})
        await until_kept(service, 1)
        await replace(service, "lab-1", "spare")
        emit(service, "lab-1", {"hum": 2})
        kept = [("lab-1", "temp", 1.0), ("lab-1", "hum", 2.0)]
        assert await until_kept(service, 2, target="lab-1") == kept
        await replace(service, "lab-1", "spare-2")
        assert await ask(service, target="lab-1") == kept
    async with running_service(tmp_path) as service:
        assert await ask(service, target="lab-1") == kept
        assert sorted(await ask(service, target="lab-1", every=60)) == sorted(kept)
        await revoke(service, "lab-1")
        service.enrol("lab-1")
        emit(service, "lab-1", {"temp": 3})
        assert await until_kept(service, 1) == [("lab-1", "temp", 3.0)]
        store = service.server.sample_history._store
        assert store is not None
        while store.tidy(0, may_delete=False):
            pass
        open_day = next((tmp_path / FOLDER).glob("*.duckdb"))
    with duckdb.connect(str(open_day), read_only=True) as connection:
        assert connection.sql("SELECT value FROM raw").fetchall() == [(3.0,)]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"since": None}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": -1}, "since"),
        ({"since": True}, "since"),
        ({"until": 1e300}, "until"),
        ({"every": 1e-9}, "every"),
        ({"how": "sum", "every": 60}, "must be mean, min, max or last"),
        ({"how": ["mean"], "every": 60}, "must be mean, min, max or last"),
        ({"how": "mean"}, "needs `every`"),
        ({"names": "temp"}, "names"),
        ({"names": []}, "names"),
        ({"names": [1]}, "names"),
    ],
)
async def test_wrong_requests_are_refused(service: Service, body: dict[str, Any], what: str):
    with pytest.raises(ServerError, match=what):
        await ask(service, **body)


@pytest.mark.timeout(120)
@pytest.mark.limits(history_board_names=3)
async def test_board_with_too_many_names_keeps_the_first(service: Service):
    service.enrol("lab-1", "lab-2")
    for number in range(10):
        emit(service, "lab-1", {f"n{number}": number})
    _, metrics = service.server.render_metrics()
    assert b"\ncm_sample_values_dropped_total 7.0\n" in metrics
    emit(service, "lab-2", {"temp": 7})
    assert sorted(await until_kept(service, 4)) == [
        *(("lab-1", f"n{number}", float(number)) for number in range(3)),
        ("lab-2", "temp", 7.0),
    ]
    assert service.server.sample_history.dropped == 7
    (note,) = service.server.status.history_warnings()
    assert note == "lab-1 has sent more names of values today than are kept; the rest is left out"


@pytest.mark.timeout(120)
@pytest.mark.limits(history_token_names=3, history_token_values=5)
async def test_boards_of_one_token_do_not_displace_those_of_others(service: Service):
    service.enrol("lab-1", "lab-2", "other")
    for name in ("lab-1", "lab-2"):  # as if they had enrolled themselves with one token
        service.server.registry.by_name[name].token = "a token's hash"
    for number in range(4):
        emit(service, "lab-1", {f"n{number % 2}": number})
        emit(service, "lab-2", {f"n{number}": number})
        emit(service, "other", {f"n{number}": number})
    found = await until_kept(service, 8)
    assert sum(board == "other" for board, _, _ in found) == 4
    assert len({(board, name) for board, name, _ in found if board != "other"}) == 3
    assert len(found) == 8  # of the first 5 values of the token, one had a fourth name


@pytest.mark.timeout(120)
@pytest.mark.limits(history_board_values=3)
async def test_board_with_too_many_values_keeps_the_first(service: Service):
    service.enrol("lab-1")
    for number in range(10):
        emit(service, "lab-1", {"temp": number})
    assert [value for _, _, value in await until_kept(service, 3)] == [0.0, 1.0, 2.0]


@pytest.mark.timeout(120)
@pytest.mark.limits(history_unwritten_values=3)
async def test_values_that_wait_for_the_disk_are_bounded(service: Service):
    service.enrol("lab-1")
    for number in range(10):  # before the timer has its turn
        emit(service, "lab-1", {"temp": number})
    assert service.server.sample_history.dropped == 7
    assert [value for _, _, value in await until_kept(service, 3)] == [0.0, 1.0, 2.0]
    emit(service, "lab-1", {"temp": 11})
    assert [value for _, _, value in await until_kept(service, 4)][3:] == [11.0]


@pytest.mark.limits(history_free_bytes=1 << 62)
async def test_full_disk_stops_keeping_and_nothing_else(service: Service):
    service.enrol("lab-1")
    emit(service, "lab-1", {"temp": 1})
    await service.until(service.server.status.warnings)
    (warning,) = service.server.status.warnings()
    assert warning.startswith("samples are not kept: less than ")
    assert warning.endswith(" MB of the disk are free")
    assert service.server.status.problems() == []
    assert len(service.server.registry.by_name["lab-1"].sample_buffer.samples) == 1
    assert await ask(service) == []
    assert service.server.sample_history.dropped == 1


async def test_server_without_a_history_says_so(tmp_path: Path):
    async with running_service(tmp_path, keep_samples=0) as service:
        service.enrol("lab-1")
        emit(service, "lab-1", {"temp": 1})
        with pytest.raises(ServerError, match="started with --keep-samples 0"):
            await ask(service)
        assert len(service.server.registry.by_name["lab-1"].sample_buffer.samples) == 1


def slow_store(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let each query take until it is interrupted; return when it was."""
    store: Any = service.server.sample_history._store
    interrupted: list[float] = []
    really_read = store.read

    def read(query: object) -> object:
        deadline = time.monotonic() + 20
        while not interrupted and time.monotonic() < deadline:
            time.sleep(0.01)
        if not interrupted:
            raise AssertionError("the query was not interrupted")
        return really_read(query)

    monkeypatch.setattr(store, "read", read)
    monkeypatch.setattr(store, "interrupt", lambda: interrupted.append(time.monotonic()))
    return interrupted


@pytest.mark.limits(history_queries_per_token=1)
async def test_token_waits_for_a_few_queries_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    interrupted = slow_store(service, monkeypatch)
    service.enrol("lab-1")
    first = asyncio.ensure_future(ask(service))
    await asyncio.sleep(0)
    with pytest.raises(ServerError, match="1 queries of this token wait"):
        await ask(service)
    interrupted.append(0.0)
    assert await first == []
    assert await ask(service) == []


@pytest.mark.limits(history_query_seconds=0.2)
async def test_long_query_is_ended(service: Service, monkeypatch: pytest.MonkeyPatch):
    interrupted = slow_store(service, monkeypatch)
    service.enrol("lab-1")
    await ask(service)
    assert len(interrupted) == 1
