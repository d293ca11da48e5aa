"""Firmware images: their headers, their sources, and the cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading

import pytest

from cloudmanager.cable import firmware
from cloudmanager.firmware_downloads import FirmwareCache
from cloudmanager.protocol import firmware_images
from cloudmanager.protocol.errors import CableError
from tests.cloudmanager import images

UF2 = b"UF2\n" + bytes(508)


@pytest.fixture(scope="module")
def site():
    """A web site on loopback: path -> bytes, and the requested paths."""
    pages: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = pages.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", pages, asked
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _home(own_home):
    """A CM_HOME of this test."""


@pytest.fixture
def downloads(site, monkeypatch):
    """Download pages like MicroPython's, with an image of one version."""
    url, pages, asked = site
    monkeypatch.setenv("CM_FIRMWARE", f"{url}/download/")
    name = "/resources/firmware/ESP8266_GENERIC-20250911-v1.28.0.bin"
    old = "/resources/firmware/ESP8266_GENERIC-20240602-v1.9.4.bin"
    preview = "/resources/firmware/ESP8266_GENERIC-20251111-v1.29.0-preview.1.g1234.bin"
    links = "".join(f'<a href="{link}">x</a>' for link in (old, name, preview))
    pages["/download/ESP8266_GENERIC/"] = links.encode()
    pages[name] = images.esp8266().read_bytes()
    asked.clear()
    return site


def test_real_esp8266_image_is_recognised():
    assert firmware_images.chip_of(images.esp8266().read_bytes()) == "ESP8266"


def test_esp32_image_is_recognised():
    assert firmware_images.chip_of(images.esp32()) == "ESP32"


def test_images_of_other_esp32_chips_are_recognised():
    image = bytearray(images.esp32())
    image[12] = 9
    assert firmware_images.chip_of(bytes(image)) == "ESP32-S3"
    image[12] = 77
    assert firmware_images.chip_of(bytes(image)) == "an unknown chip (77)"


@pytest.mark.parametrize("data", [b"", b"\xe9", b"<html>" * 9, b"\0" * 99])
def test_other_data_is_not_an_image(data):
    assert firmware_images.chip_of(data) is None


def test_uf2_is_for_rp2():
    assert firmware_images.chip_of(UF2) == "RP2"


def test_file_is_read_and_hashed():
    found = firmware.find_firmware(str(images.esp8266()), "ESP8266")
    assert (len(found.data), found.sha256) == (595_572, images.SHA256)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(CableError, match=r"none.bin: No such file.*Give --firmware a FILE"):
        firmware.find_firmware(str(tmp_path / "none.bin"), "ESP8266")


def test_image_of_another_chip_is_refused(tmp_path):
    path = tmp_path / "esp32.bin"
    path.write_bytes(images.esp32())
    with pytest.raises(CableError, match="is for ESP32, but the chip is ESP8266"):
        firmware.find_firmware(str(path), "ESP8266")


def test_web_page_in_place_of_an_image_is_refused(site):
    url, pages, _ = site
    pages["/x.bin"] = b"<html>please log in</html>"
    with pytest.raises(CableError, match="is not a firmware image"):
        firmware.find_firmware(f"{url}/x.bin", "ESP8266")


def test_url_is_downloaded_once(site):
    url, pages, asked = site
    pages["/fw.bin"] = images.esp8266().read_bytes()
    asked.clear()
    for _ in range(2):
        assert firmware.find_firmware(f"{url}/fw.bin", "ESP8266").sha256 == images.SHA256
    assert asked == ["/fw.bin"]


def test_changed_cached_image_is_downloaded_again(site, own_home):
    url, pages, asked = site
    pages["/fw.bin"] = images.esp8266().read_bytes()
    asked.clear()
    firmware.find_firmware(f"{url}/fw.bin", "ESP8266")
    (kept,) = (own_home / "firmware").glob("*.bin")
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    assert firmware.find_firmware(f"{url}/fw.bin", "ESP8266").sha256 == images.SHA256
    assert asked == ["/fw.bin", "/fw.bin"]


def test_image_with_a_wrong_hash_is_refused_and_not_cached(site, own_home):
    url, pages, _ = site
    pages["/fw.bin"] = images.esp8266().read_bytes()
    with pytest.raises(CableError, match=r"does not have the SHA-256 of its URL.*Do not flash it"):
        firmware.find_firmware(f"{url}/fw.bin#sha256={'0' * 64}", "ESP8266")
    assert not (own_home / "firmware").exists()


def test_image_with_the_right_hash_is_cached(site):
    url, pages, asked = site
    pages["/fw.bin"] = images.esp8266().read_bytes()
    asked.clear()
    given = f"{url}/fw.bin#sha256={images.SHA256}"
    assert [len(firmware.find_firmware(given, "ESP8266").data) for _ in range(2)] == [595_572] * 2
    assert asked == ["/fw.bin"]


def test_http_url_needs_a_hash():
    with pytest.raises(CableError, match=r"could be modified by others in the network.*Use https"):
        firmware.find_firmware("http://192.0.2.7/fw.bin", "ESP8266")


def test_missing_url_is_an_error(site):
    with pytest.raises(CableError, match=r"cannot be downloaded: Not Found"):
        firmware.find_firmware(f"{site[0]}/none.bin", "ESP8266")


@pytest.mark.parametrize("given", ["1.28.0", "v1.28.0", None])
def test_version_is_looked_up(downloads, given):
    found = firmware.find_firmware(given, "ESP8266")
    assert (found.source, found.sha256) == ("MicroPython 1.28.0", images.SHA256)


def test_cached_version_needs_no_network(downloads):
    _, pages, asked = downloads
    firmware.find_firmware("1.28.0", "ESP8266")
    pages.clear()
    asked.clear()
    assert firmware.find_firmware("1.28.0", "ESP8266").sha256 == images.SHA256
    assert asked == []


def test_error_of_an_unknown_version_lists_known_ones(downloads):
    with pytest.raises(CableError, match=r"no ESP8266_GENERIC 1\.27\.0; it has: 1\.28\.0, 1\.9\.4"):
        firmware.find_firmware("1.27.0", "ESP8266")


def test_version_for_a_chip_without_page_is_refused():
    with pytest.raises(CableError, match="No version is known for ESP32-P4"):
        firmware.find_firmware("1.28.0", "ESP32-P4")


def test_endless_image_is_refused(site, monkeypatch):
    url, pages, _ = site
    monkeypatch.setattr(firmware, "MAX_IMAGE_BYTES", 1000)
    pages["/big.bin"] = bytes(1001)
    with pytest.raises(CableError, match="larger than any flash"):
        firmware.find_firmware(f"{url}/big.bin", "ESP8266")


def test_broken_index_is_treated_as_empty(own_home):
    cache = FirmwareCache(own_home / "firmware")
    cache.put("a", b"x")
    (own_home / "firmware" / "index.json").write_text("[1]")
    assert cache.get("a") is None
    assert cache.get("b", hashlib.sha256(b"x").hexdigest()) == b"x"
