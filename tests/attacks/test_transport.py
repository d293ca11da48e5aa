"""A flood of valid frames does not delay other links."""

from __future__ import annotations

import time

from cloudmanager.protocol import frames
from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service

PINGS = 20_000


async def test_flood_of_pings_does_not_delay_others(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
        await RawPeer.upgraded(service, "/caller") as flood,
    ):
        flood.say(frames.encode_frame(b"x" * 100, frames.PING, mask=True) * PINGS)
        began = time.monotonic()
        (job,) = await caller.submit("lab-1")
        cell = await board.next()
        await board.end(cell.job)
        assert (await caller.ending(job))[0] == "ok"
        assert time.monotonic() - began < 2
