"""The address that boards connect to, and the content of their /cm.json."""

import socket
from typing import Any

import pytest

from cloudmanager.cable import board_settings
from cloudmanager.cable.board_settings import DialAddress, find_dial_address
from cloudmanager.config import ServerAddress

ROW = {
    "name": "a",
    "id": "b",
    "key": "00",
    "gen": 0,
    "ca": "MII=",
    "state": "valid",
    "uses": 1,
}


class Somewhere:
    """A fleet whose server is reached at one address and listens on another."""

    def __init__(self, url, listens):
        self.address = ServerAddress(url, "cm_x", "url=")
        self.listens = listens

    def status(self):
        return {"address": self.listens}


@pytest.mark.parametrize(
    ("url", "listens", "server", "place"),
    [
        ("http://127.0.0.1:7", "http://127.0.0.1:7", None, DialAddress("127.0.0.1", 7, False)),
        ("https://10.1.1.1:7", "https://0.0.0.0:7", None, DialAddress("10.1.1.1", 7, True)),
        ("https://127.0.0.1:7", "https://10.1.1.1:7", None, DialAddress("10.1.1.1", 7, True)),
        (
            "https://127.0.0.1:7",
            "https://0.0.0.0:7",
            "lab.example",
            DialAddress("lab.example", 7, True),
        ),
        ("https://127.0.0.1:7", "https://0.0.0.0:7", "lab:443", DialAddress("lab", 443, True)),
        ("https://lab", "https://0.0.0.0:18266", None, DialAddress("lab", 18266, True)),
    ],
)
def test_boards_connect_to_the_address_of_the_server(url, listens, server, place):
    fleet: Any = Somewhere(url, listens)
    assert find_dial_address(fleet, server) == place


@pytest.mark.parametrize("listens", ["https://0.0.0.0:7", "https://[::]:7", "https://:7"])
def test_server_on_all_addresses_is_reached_at_this_machines_address(listens, monkeypatch):
    monkeypatch.setattr(board_settings, "_own_address", lambda: "10.9.8.7")
    fleet: Any = Somewhere("https://127.0.0.1:7", listens)
    assert find_dial_address(fleet) == DialAddress("10.9.8.7", 7, True)


def test_this_machine_has_an_address_or_a_name(monkeypatch):
    assert board_settings._own_address()
    monkeypatch.setattr(board_settings, "_UNUSED_ADDRESS", ("256.0.0.1", 9))
    assert board_settings._own_address() == socket.gethostname()


def test_settings_contain_only_what_a_board_needs():
    kept = board_settings.make_board_settings(ROW, DialAddress("h", 1, True))
    assert kept == {
        "host": "h",
        "tcp_port": 1,
        "name": "a",
        "id": "b",
        "key": "00",
        "ca": "MII=",
    }
