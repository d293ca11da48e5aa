"""The log: lines for people, or one line of JSON for one event."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudmanager.client.fleet import Fleet
from cm_server.limits import Limits
from cm_server.logs import EXTRA_FIELDS, JsonFormatter, PeerLog, configure_logging
from tests.conftest import running_boards, running_server

HOSTILE = 'x\n{"level": "forged"}\u2028\x1b[31m\udc80'


@contextlib.contextmanager
def logging_to(path: Path, **more: bool) -> Iterator[None]:
    """Log into a file, and restore the loggers afterwards."""
    root, jobs = logging.getLogger(), logging.getLogger("cm_server.jobs")
    level, kept, jobs_level = root.level, root.handlers[:], jobs.level
    root.handlers.clear()
    configure_logging(path, Limits(), **more)
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = kept
    root.setLevel(level)
    jobs.setLevel(jobs_level)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_event_is_one_line_for_any_text_of_a_peer(tmp_path: Path):
    with logging_to(tmp_path / "log", as_json=True):
        log = logging.getLogger("cm_server")
        log.info("%s spoke", HOSTILE, extra={"job": 7, "board": HOSTILE, "secret": "no"})
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.exception("it failed")
    first, second = lines(tmp_path / "log")
    assert first.pop("at").endswith("+00:00")
    assert first == {"level": "info", "message": f"{HOSTILE} spoke", "job": 7, "board": HOSTILE}
    assert second["level"] == "error"
    assert "ValueError: x" in second["traceback"]


def test_text_log_has_no_events_of_jobs(tmp_path: Path):
    with logging_to(tmp_path / "log"):
        logging.getLogger("cm_server.jobs").info("a job ended")
        logging.getLogger("cm_server").info("lab-1 is here")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(" INFO lab-1 is here")


def test_every_field_is_documented():
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    assert not [name for name in EXTRA_FIELDS if f"| `{name}` |" not in text]
    assert JsonFormatter().format(logging.makeLogRecord({"msg": "x"})).count("\n") == 0


def test_log_has_the_job_number_of_caller_and_board(tmp_path: Path):
    with (
        running_server(tmp_path, "--log-json") as server,
        Fleet(server.url, (tmp_path / "token").read_text().strip()) as fleet,
        running_boards(server, fleet, ["lab-1"]),
    ):
        number = fleet["lab-1"].run("1/0")["lab-1"].job
    events = [line for line in lines(tmp_path / "server.log") if number in line.get("jobs", [])]
    events += [line for line in lines(tmp_path / "server.log") if line.get("job") == number]
    assert [line["event"] for line in events] == ["submitted", "started", "ended"]
    assert events[0]["caller"] == events[2]["caller"] == "local"
    assert events[1]["board"] == events[2]["board"] == "lab-1"
    assert events[2]["status"] == "error"
    here = [line["message"] for line in lines(tmp_path / "server.log") if "event" not in line]
    assert any(message.startswith("lab-1 is connected, from ") for message in here)


def test_lines_about_one_peer_are_limited_and_counted(caplog):
    now = [0.0]
    log = PeerLog(Limits(), lambda: now[0])
    for number in range(500):
        log.write("lab-1", logging.WARNING, "%s spoke of job %d", "lab-1", number)
    log.write("lab-2", logging.WARNING, "%s fell silent", "lab-2")
    assert caplog.text.count("lab-1 spoke") == Limits.peer_lines_per_minute
    assert "lab-2 fell silent" in caplog.text
    now[0] = 61.0
    log.write("lab-1", logging.WARNING, "%s spoke of job %d", "lab-1", 500)
    assert "lab-1 spoke of job 500 (490 lines before it were left out)" in caplog.text


def test_unauthenticated_addresses_share_a_limit(caplog):
    log = PeerLog(Limits(), lambda: 0.0)
    for number in range(200):
        log.write_of_stranger(f"192.0.2.{number}", logging.WARNING, "garbage")
    assert caplog.text.count("garbage") == Limits.stranger_rows_total_per_minute
    log.write("lab-1", logging.WARNING, "line of interest")
    assert "line of interest" in caplog.text


def test_lines_of_libraries_are_limited(tmp_path: Path):
    with logging_to(tmp_path / "log"):
        for number in range(500):
            logging.getLogger("tornado.general").info("Malformed HTTP message from %d", number)
        logging.getLogger("asyncio").error("another library")
        for number in range(50):
            logging.getLogger("cm_server").info("line of interest %d", number)
    text = (tmp_path / "log").read_text()
    assert text.count("Malformed") == Limits.library_lines_per_minute
    assert text.count("another library") == 1
    assert text.count("line of interest") == 50


def test_long_lines_of_libraries_are_truncated(tmp_path: Path):
    """A malformed header of 8 KB is 32 KB when it is escaped: enough of them fill the log."""
    with logging_to(tmp_path / "log"):
        for _ in range(Limits.library_lines_per_minute):
            logging.getLogger("tornado.general").info("Malformed: %r", "\x01" * 8000)
    text = (tmp_path / "log").read_text()
    assert text.count("Malformed") == Limits.library_lines_per_minute
    assert len(text) < Limits.library_lines_per_minute * 600
