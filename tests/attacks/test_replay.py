"""All bytes that a board sent on a link are sent again: no link opens, nothing runs twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service, running_service, within


class Recorder:
    """A TCP proxy in front of a server that records what the peer sends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.recorded = b""

    @contextlib.asynccontextmanager
    async def proxied(self) -> AsyncIterator[Service]:
        """Yield the server, with the TCP port of the proxy."""
        listener = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        async with listener:
            tcp_port = listener.sockets[0].getsockname()[1]
            yield Service(self._service.server, self._service.listener, tcp_port)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection("127.0.0.1", self._service.tcp_port)

        async def up() -> None:
            while data := await reader.read(65536):
                self.recorded += data
                far[1].write(data)
            far[1].close()

        async def down() -> None:
            while data := await far[0].read(65536):
                writer.write(data)
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(up(), down())


@pytest.mark.parametrize("kind", ["tls", "mac"])
async def test_replayed_link_is_refused(tmp_path: Path, kind: str):
    async with running_service(tmp_path, local=False) as service:
        (identity,) = service.enrol("lab-1", plain=kind == "mac")
        recorder = Recorder(service)
        async with (
            recorder.proxied() as proxied,
            await FakeCaller.join(service, tls=True) as caller,
        ):
            options = {kind: True}
            async with await FakeBoard.join(proxied, identity, **options) as board:
                (job,) = await caller.submit("lab-1")
                await board.next()
                await board.end(job, output=b"once")
                assert (await caller.ending(job))[0] == "ok"
            await service.until(lambda: service.state("lab-1") == "offline")
            for size in (len(recorder.recorded), len(recorder.recorded) - 1):
                links = service.server.registry.by_name["lab-1"].link_count
                async with await RawPeer.dial(service) as attacker:
                    attacker.say(recorder.recorded[:size])
                    with contextlib.suppress(ConnectionResetError):
                        await within(attacker.reader.read(-1))
                assert service.server.registry.by_name["lab-1"].link_count == links
                assert service.state("lab-1") == "offline"
            assert service.server.dispatch.jobs == {}
            async with await FakeBoard.join(
                service, identity, **options
            ):  # the board itself can still connect
                assert service.state("lab-1") == "idle"
