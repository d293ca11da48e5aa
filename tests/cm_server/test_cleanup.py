"""A clean-up runs all its steps and logs failures."""

from __future__ import annotations

import pytest

from cm_server import cleanup
from cm_server.rate_limits import RateLimiter


def fail() -> None:
    raise ValueError("a detached socket")


def test_every_step_runs_although_one_fails(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1))
    ran: list[str] = []
    cleanup.run_all("a link", lambda: ran.append("first"), fail, lambda: ran.append("last"))
    assert ran == ["first", "last"]
    assert "the clean-up of a link failed" in caplog.text
    assert "ValueError: a detached socket" in caplog.text


def test_repeated_failure_is_logged_once_a_minute_and_counted(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1, lambda: now[0]))
    for _ in range(50):
        cleanup.run_all("a link", fail)
    assert caplog.text.count("Traceback") == 1
    now[0] = 61.0
    cleanup.run_all("a link", fail)
    assert "(49 more times since the last such line)" in caplog.text
