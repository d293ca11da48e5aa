"""The options of the server: parsed, checked, and passed on by ``mbm server-start``."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path

import pytest

from cloudmanager.server_options import ServerOptions, add_options, read_options
from cm_server.limits import Limits


def read(*given: str, environment: dict[str, str] | None = None) -> ServerOptions:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_options(parser.parse_args(given), environment or {})


def test_defaults_need_no_arguments():
    assert read() == ServerOptions()
    assert ServerOptions().arguments() == []


ALL = ServerOptions(
    listen="0.0.0.0",
    port=0,
    cert=Path("/c.pem"),
    key=Path("/k.pem"),
    behind_proxy=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
    allow_origin=("https://lab.example", "https://b.example"),
    index=(("", "https://i.example"), ("own", "https://o.example")),
    beat=0.5,
    lost_after=60.0,
    samples=5,
    keep_samples=0,
    keep_minutes=1,
    sample_disk=1,
    keep_jobs=1,
    keep_texts=0,
    keep_audit=31,
    log_json=True,
    viewers_read_logs=True,
    store="postgresql://x",
    bus="nats://y",
)


def test_arguments_give_the_same_options():
    assert read(*ALL.arguments()) == ALL


def test_example_differs_from_every_default():
    defaults = ServerOptions()
    assert [name for name, value in vars(ALL).items() if value == getattr(defaults, name)] == []


def test_store_and_bus_are_set_by_options_or_environment():
    environment = {"CM_STORE": "postgresql://z", "CM_BUS": ""}
    assert (read(environment=environment).store, read(environment=environment).bus) == (
        "postgresql://z",
        None,
    )
    assert read("--store", "postgresql://x", environment=environment).store == "postgresql://x"


def test_password_of_the_environment_is_no_argument():
    """Other users see the arguments of a process."""
    assert read(environment={}).arguments() == []


def test_files_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("--cert", "c.pem").cert == tmp_path / "c.pem"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--port", "70000"], "argument --port: give a TCP port from 0 to 65535"),
        (["--port", "-1"], "argument --port: give a TCP port from 0 to 65535"),
        (["--port", "http"], "argument --port: give a TCP port from 0 to 65535"),
        (["--samples", "0"], "argument --samples: give a number from 1 to 100000"),
        (["--samples", "100001"], "argument --samples: give a number from 1 to 100000"),
        (["--behind-proxy", "x"], "expected a network such as 10.0.0.0/8"),
        (["--keep-jobs", "0"], "argument --keep-jobs: give a number of days, at least 1"),
        (["--keep-audit", "30"], "argument --keep-audit: give a number of days, at least 31"),
        (["--beat", "0"], "argument --beat: give a number of seconds above 0"),
        (["--beat", "nan"], "argument --beat: give a number of seconds above 0"),
        (["--lost-after", "inf"], "argument --lost-after: give a number of seconds above 0"),
    ],
)
def test_invalid_options_are_refused(capsys, given, message):
    with pytest.raises(SystemExit):
        read(*given)
    assert message in capsys.readouterr().err


def test_one_board_may_have_all_samples():
    assert read("--samples", str(Limits().total_samples)).samples == Limits().total_samples
