"""The command-line options of the server."""

from __future__ import annotations

import sys

import pytest

from cm_server import options
from cm_server.limits import Limits


def read(monkeypatch: pytest.MonkeyPatch, *given: str) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["cm_server", *given])
    return options.server_settings(options.parse_args(Limits()))


def test_store_and_bus_are_set_by_options_or_environment(monkeypatch):
    for name in ("CM_STORE", "CM_BUS"):
        monkeypatch.delenv(name, raising=False)
    alone = read(monkeypatch)
    assert (alone["store"], alone["bus"]) == (None, None)
    given = read(monkeypatch, "--store", "postgresql://x", "--bus", "nats://y")
    assert (given["store"], given["bus"]) == ("postgresql://x", "nats://y")
    monkeypatch.setenv("CM_STORE", "postgresql://z")
    assert read(monkeypatch)["store"] == "postgresql://z"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--bus", "nats://y"], "--bus needs a shared store"),
        (["--port", "70000"], "--port must be a number from 0 to 65535"),
        (["--samples", "0"], "--samples must be a number from 1 to 100000"),
        (["--behind-proxy", "x"], "expected a network such as 10.0.0.0/8"),
        (["--keep-jobs", "0"], "--keep-jobs must be at least 1 day"),
    ],
)
def test_invalid_options_are_refused(monkeypatch, capsys, given, message):
    monkeypatch.delenv("CM_STORE", raising=False)
    with pytest.raises(SystemExit):
        read(monkeypatch, *given)
    assert message in capsys.readouterr().err
