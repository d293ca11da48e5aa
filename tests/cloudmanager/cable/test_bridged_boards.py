"""Bridged boards keep their identities."""

from __future__ import annotations

import json

import pytest

from cloudmanager.cable.bridged_boards import BridgedIdentities
from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer


@pytest.fixture
def members(fleet: Fleet):
    yield BridgedIdentities(fleet, ["cabled-1", "cabled-2"])
    for name in {board["name"] for board in fleet.boards()} & {"cabled-1", "cabled-2"}:
        fleet.revoke(name)


def test_board_is_enrolled_once_and_recognised(members, fleet: Fleet):
    first = members.get_identity("usb-1", "rp2")
    assert (first.name, len(first.key)) == ("cabled-1", 32)
    assert BridgedIdentities(fleet, []).get_identity("usb-1", "rp2") == first
    assert members.get_identity("usb-2", "rp2").name == "cabled-2"


def test_revoked_board_is_enrolled_again(members, fleet: Fleet):
    first = members.get_identity("usb-1", "rp2")
    fleet.revoke("cabled-1")
    again = members.get_identity("usb-1", "rp2")
    assert (again.name, again.id != first.id) == ("cabled-1", True)


def test_keys_are_readable_by_their_owner_only(members, server: RunningServer):
    members.get_identity("usb-1", "rp2")
    kept = server.home / "bridge.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["usb-1"]["name"] == "cabled-1"


def test_broken_file_is_treated_as_empty(members, server: RunningServer):
    (server.home / "bridge.json").write_text("[")
    assert members.get_identity("usb-1", "rp2").name == "cabled-1"
