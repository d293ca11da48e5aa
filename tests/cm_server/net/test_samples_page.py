"""``/api/samples``: CSV and JSON for programs that speak HTTP."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlencode

import pytest

from tests.cm_server.peers import Service
from tests.cm_server.test_sample_history import emit, until_kept

pytestmark = pytest.mark.timeout(120)


async def get(service: Service, token: str = "", **arguments: object) -> tuple[int, str]:
    """Request samples; return the status and the body."""
    query = urlencode(arguments, doseq=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.tcp_port)
    request = (
        f"GET /api/samples?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {token or service.token}\r\n\r\n"
    )
    writer.write(request.encode())
    text = (await reader.read()).decode()
    writer.close()
    head, _, body = text.partition("\r\n\r\n")
    if "chunked" in head:
        pieces = body.split("\r\n")
        body = "".join(pieces[1::2])
    return int(head.split()[1]), body


async def test_samples_as_csv_and_json(service: Service):
    service.enrol("lab-1")
    emit(service, "lab-1", {"temp": 21.5})
    emit(service, "lab-1", {'=1+1,"x"': -3})
    await until_kept(service, 2)
    status, text = await get(service, since=0)
    lines = text.split("\n")
    assert (status, lines[0], lines[3:]) == (200, "time,board,name,value", [""])
    assert lines[1].endswith("Z,lab-1,temp,21.5")
    assert lines[2].endswith('Z,lab-1,"\'=1+1,""x""",-3.0')  # no formula of a spreadsheet
    rows = json.loads((await get(service, since=0, format="json"))[1])
    assert [(row["name"], row["value"]) for row in rows] == [("temp", 21.5), ('=1+1,"x"', -3.0)]
    chosen = json.loads((await get(service, since=0, format="json", name=["temp", "x"]))[1])
    assert [row["name"] for row in chosen] == ["temp"]


async def test_values_of_one_moment_are_in_the_order_of_boards(service: Service):
    names = ["lab-10", "lab-9", "lab-2", "attic-1"]
    service.enrol(*names)
    for name in names:
        emit(service, name, {"temp": 1, "hum": 2})
    await until_kept(service, 8)
    rows = json.loads((await get(service, since=0, every=86400 * 365, format="json"))[1])
    boards = ["attic-1", "lab-2", "lab-9", "lab-10"]
    expected = [(board, value) for board in boards for value in ("hum", "temp")]
    assert [(row["board"], row["name"]) for row in rows] == expected


@pytest.mark.limits(history_page_values=2)
async def test_answer_has_all_pages(service: Service):
    service.enrol("lab-1")
    for number in range(7):
        emit(service, "lab-1", {"temp": number})
    kept = await until_kept_in_pages(service, 7)
    assert kept == [float(number) for number in range(7)]


async def until_kept_in_pages(service: Service, count: int) -> list[float]:
    for _ in range(200):
        rows = json.loads((await get(service, since=0, format="json"))[1])
        if len(rows) >= count:
            break
        await asyncio.sleep(0.05)
    lines = (await get(service, since=0))[1].split()[1:]
    assert [float(line.rpartition(",")[2]) for line in lines] == [row["value"] for row in rows]
    return [row["value"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "since is missing"),
        ({"since": "x"}, "since must be a number"),
        ({"since": "nan"}, "`since` must be a number"),
        ({"since": 0, "sql": "1"}, "there is no argument 'sql'"),
        ({"since": 0, "format": "xml"}, "format must be csv or json"),
        ({"since": 0, "every": 60, "how": "sum"}, "`how` must be"),
        ({"since": 0, "how": "max"}, "it needs `every`"),
        ({"since": 0, "target": "x" * 501}, "target is too long"),
    ],
)
async def test_wrong_arguments_are_refused(service: Service, arguments, why: str):
    status, text = await get(service, **arguments)
    assert status == 400
    assert why in text[0].lower() + text[1:]


async def test_samples_need_a_token_that_reaches_the_boards(service: Service):
    service.enrol("lab-1", "home-1")
    viewer = service.add_token("viewer", "lab-*")
    emit(service, "lab-1", {"temp": 1})
    emit(service, "home-1", {"temp": 2})
    await until_kept(service, 2)
    status, text = await get(service, viewer, since=0)
    assert status == 200
    assert "lab-1,temp" in text
    assert "home-1" not in text
    assert (await get(service, viewer, since=0, target="home-1"))[0] == 404
    assert (await get(service, "wrong", since=0))[0] == 401
    service.revoke_token("viewer")
    assert (await get(service, viewer, since=0))[0] == 401
