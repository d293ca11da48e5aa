"""``mbm secret-set`` and its siblings, and secrets in the settings of real boards."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from tests.cloudmanager.conftest import MBM, WAIT

PASSWORD = "correct horse ü"


@pytest.fixture
def mqtt(fleet: Fleet, boards):
    """A secret; it and the settings of all boards are removed afterwards."""
    fleet.set_secret("mqtt", PASSWORD)
    yield
    for secret in fleet.secrets():
        fleet.remove_secret(secret["name"])
    fleet["demo-[1-3]"].rm(":settings.json")


def test_value_is_read_from_standard_input(mqtt, mbm, monkeypatch, fleet):
    stdin = io.TextIOWrapper(io.BytesIO(f"{PASSWORD}\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    done = mbm("secret-set", "wifi", "--target", "demo-[1-2]")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        "Stored the secret wifi for demo-[1-2]. "
        """`mbm board TARGET set KEY '{"secret": "wifi"}'` writes it to boards.\n"""
    )
    listed = mbm("secret-list").out.splitlines()
    assert listed[0].split() == ["name", "target", "changed"]
    assert [line.split()[:2] for line in listed[2:]] == [["mqtt", "all"], ["wifi", "demo-[1-2]"]]
    assert PASSWORD not in mbm("secret-list", "--json").out
    assert mbm("board", "demo-1", "set", "wifi", '{"secret": "wifi"}').status == 0
    assert json.loads(fleet["demo-1"].read(":settings.json").value) == {"wifi": PASSWORD}
    refused = mbm("board", "demo-3", "set", "wifi", '{"secret": "wifi"}')
    assert (refused.status, refused.out) == (1, "")
    assert "there is no secret called 'wifi' for this board" in refused.err
    assert mbm("secret-remove", "wifi").out.startswith("Removed the secret wifi; boards that")
    assert mbm("secret-remove", "wifi").status == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_is_no_part_of_the_value(mqtt, mbm, monkeypatch, fleet, encoding: str):
    """Windows' editors and shells write such files."""
    stdin = io.TextIOWrapper(io.BytesIO(f"{PASSWORD}\r\n".encode(encoding)))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert mbm("secret-set", "wifi").status == 0
    assert mbm("board", "demo-1", "set", "wifi", '{"secret": "wifi"}').status == 0
    assert json.loads(fleet["demo-1"].read(":settings.json").value) == {"wifi": PASSWORD}


def test_value_is_asked_for_in_a_terminal_and_not_shown(server, mqtt, fleet):
    master, slave = pty.openpty()
    command = [MBM, "secret-set", "typed"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        shown = b""
        while b"not shown): " not in shown:
            shown += os.read(master, 1024)
        os.write(master, b"hunter22\n")
        while b"again: " not in shown:
            shown += os.read(master, 1024)
        os.write(master, b"hunter22\n")
        assert process.wait(WAIT) == 0
    try:
        while piece := os.read(master, 1024):
            shown += piece
    except OSError:  # how Linux reports the end
        pass
    os.close(master)
    assert b"hunter22" not in shown
    assert b"Stored the secret typed for all boards." in shown
    code = "import json; json.load(open('/settings.json'))['t']"
    assert fleet["demo-2"].change_settings({"t": {"secret": "typed"}}).ok
    assert fleet["demo-2"].run(code).value == "hunter22"


def test_two_different_typed_values_are_refused(nobody, mbm, monkeypatch):
    """Nothing is asked of a server: here there is none."""
    typed = iter(["hunter22", "hunter2"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    done = mbm("secret-set", "typed")
    assert (done.status, done.out) == (2, "")
    assert done.err == "mbm: The two values differ; nothing was stored.\n"


def test_value_is_never_an_argument(mbm):
    done = mbm("secret-set", "mqtt", "hunter22")
    assert done.status == 2


@pytest.mark.parametrize("value", ['{"secret": "mqtt"}', '{ secret = "mqtt" }'])
def test_settings_show_references(mqtt, mbm, fleet, value: str):
    assert mbm("board", "demo-1", "set", "interval", "30").out == ""
    done = mbm("board", "demo-1", "set", "mqtt", value)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert mbm("board", "demo-1", "settings").out == 'interval = 30\nmqtt = {"secret": "mqtt"}\n'
    assert PASSWORD not in mbm("board", "demo-1", "settings", "--json").out
    code = "import json\nwith open('/settings.json') as f: s = json.load(f)\ns"
    assert fleet["demo-1"].run(code).value == {"interval": 30, "mqtt": PASSWORD}
    fleet.set_secret("mqtt", "battery staple")
    mbm("board", "demo-1", "set", "interval", "60")
    assert fleet["demo-1"].run(code).value == {"interval": 60, "mqtt": "battery staple"}
    job = fleet.jobs("demo-1")[1]["job"]
    assert "battery" not in mbm("job-show", str(job)).out
    rows = [row for row in mbm("audit", "-n", "50", "--json").json if row["verb"] == "settings"]
    assert rows[-1]["detail"] == "interval"
    assert "mqtt (secrets: mqtt)" in [row["detail"] for row in rows]


def test_unknown_secret_is_an_error_of_the_board(mqtt, mbm, fleet):
    done = mbm("board", "demo-[1-2]", "set", "a", '{"secret": "mqt"}')
    assert (done.status, "demo-[1-2] · error" in done.out) == (1, True)
    assert "there is no secret called 'mqt' for this board; there are mqtt" in done.out
    assert isinstance(fleet["demo-1"].settings()["demo-1"].error, FileNotFoundError)


async def test_both_faces_have_settings_and_secrets(mqtt, server, fleet):
    changes = {"every": 5, "password": {"secret": "mqtt"}}
    async with AsyncFleet(server.url) as other:
        results = await other["demo-[1-2]"].change_settings(changes)
        assert results.to_dict() == {"demo-1": changes, "demo-2": changes}
        assert (await other["demo-1"].settings()).value == changes
        assert [each["name"] for each in await other.secrets()] == ["mqtt"]
        await other["demo-2"].put(b"[", ":settings.json")
        assert (await other["demo-2"].settings()).value == "["
    with pytest.raises(ValueError, match="must be values of JSON"):
        fleet["demo-1"].change_settings({"a": object()})
    with pytest.raises(ValueError, match="Out of range"):
        fleet["demo-1"].change_settings({"a": float("nan")})
