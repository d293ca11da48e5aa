"""``mbm board-reserve`` and ``mbm board-release``, with real boards."""

from __future__ import annotations

import re
import threading
import time

import pytest

from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServerError
from tests.cloudmanager.conftest import WAIT


@pytest.fixture
def ann(server, fleet: Fleet, boards):
    """Another caller's link; nothing is reserved afterwards."""
    token = fleet.request("token-create", name="ann", role="operator")["token"]
    with Fleet(server.url, token) as caller:
        yield caller
    fleet.request("token-revoke", name="ann")
    fleet["demo-1,demo-2,demo-3"].release()


def test_reserved_board_is_listed_and_released(ann, mbm):
    done = mbm("board-reserve", "demo-[1-2]", "1h")
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(r"demo-\[1-2\]: reserved by you until .*[0-9]{2}:[0-9]{2}\.\n", done.out)
    listed = mbm("board-list", "demo-[1-3]").out.splitlines()
    assert "reserved by" in listed[0]
    assert ["the local user until" in line for line in listed[2:]] == [True, True, False]
    until = mbm("board-list", "demo-1", "--json").json[0]["reserved"]["until"]
    assert until == pytest.approx(time.time() + 3600, abs=60)
    assert mbm("board-release", "all").out == "demo-[1-2]: released.\n"
    assert mbm("board-release", "demo-1").out == "demo-1: was not reserved.\n"
    assert "reserved by" not in mbm("board-list", "demo-[1-3]").out


def test_cell_waits_for_the_end_of_a_reservation_and_says_so(ann, mbm):
    ann["demo-1"].reserve("1h")

    def release() -> None:
        time.sleep(3.0)  # the notice appears after two seconds
        ann["demo-1"].release()

    thread = threading.Thread(target=release)
    thread.start()
    done = mbm("board-execute", "demo-1", "-c", "1 + 1")
    thread.join(WAIT)
    assert (done.status, "2" in done.out) == (0, True)
    assert "mbm: waiting for demo-1: it is reserved by ann until " in done.err


def test_board_of_somebody_else_is_refused(ann, mbm):
    ann["demo-3"].reserve(60.0)
    refused = mbm("board-reserve", "demo-[2-3]", "30m")
    assert (refused.status, refused.out) == (1, "")
    assert "demo-3: reserved by ann until 20" in refused.err
    assert mbm("board-reserve", "demo-3", "soon").status == 2
    assert mbm("board-release", "demo-3").status == 0  # the local user is an administrator


async def test_both_faces_reserve(server, ann):
    async with AsyncFleet(server.url) as fleet:
        until = await fleet["demo-2"].reserve("90s")
        assert until == pytest.approx(time.time() + 90, abs=30)
        with pytest.raises(ServerError, match="reserved by local until"):
            ann["demo-2"].reserve(1)
        with pytest.raises(ValueError, match="is not a span"):
            await fleet["demo-2"].reserve("an hour")
        assert await fleet["demo-2"].release() == ["demo-2"]
