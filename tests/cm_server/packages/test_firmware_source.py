"""Published firmware: the page, the image, and the cache."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
from cm_server.packages.firmware_source import FirmwareSource
from cm_server.packages.http_fetcher import HttpFetcher
from tests.firmware_images import MACHINE, app_image

NAME = "ESP32_GENERIC-OTA-20261101-v1.29.0.app-bin"
PAGE = f'<a href="/resources/firmware/{NAME}">OTA</a> <a href="/x/ESP32_GENERIC-v1.bin">x</a>'


@pytest.fixture
def requests(monkeypatch) -> Iterator[list[str]]:
    """The paths that a site of firmware was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = PAGE.encode() if self.path == "/ESP32_GENERIC/" else app_image("1.29.0")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("CM_FIRMWARE", f"http://127.0.0.1:{server.server_address[1]}/")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def source(tmp_path: Path) -> FirmwareSource:
    return FirmwareSource(HttpFetcher(Limits()), tmp_path / "firmware")


async def test_version_is_downloaded_once(source: FirmwareSource, requests: list[str]):
    found = await asyncio.gather(*[source.find("1.29.0", MACHINE) for _ in range(3)])
    assert set(found) == {app_image("1.29.0")}
    assert requests == ["/ESP32_GENERIC/", f"/resources/firmware/{NAME}"]


async def test_unknown_version_names_those_that_there_are(source, requests):
    with pytest.raises(PackageError, match=r"has no ESP32_GENERIC-OTA 1\.30\.0; it has: 1\.29\.0"):
        await source.find("1.30.0", MACHINE)


async def test_board_without_published_images_needs_a_file(source):
    with pytest.raises(PackageError, match="publishes no image with slots for Other board"):
        await source.find("1.29.0", "Other board")
