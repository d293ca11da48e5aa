"""Jobs are counted, and recorded in the JSON log."""

from __future__ import annotations

import logging

from cm_server.jobs.counters import DURATION_BOUNDS, END_STATUSES
from tests.cm_server.dispatching import Rig


def test_jobs_are_counted_by_status_and_duration():
    rig = Rig()
    rig.connect()
    counters = rig.dispatch.counters
    (ran,) = rig.run("lab-1")
    assert ran.started is not None
    ran.started -= 5
    rig.end(ran)
    rig.run("lab-2")
    assert counters.jobs_ended == {**dict.fromkeys(END_STATUSES, 0), "ok": 1, "offline": 1}
    assert sum(counters.duration_counts) == 1
    assert counters.duration_counts[DURATION_BOUNDS.index(10.0)] == 1
    assert 5 <= counters.run_seconds < 6


def test_json_log_records_the_life_of_a_job(caplog):
    caplog.set_level(logging.INFO, "cm_server.jobs")
    rig = Rig()
    rig.connect()
    (job,) = rig.run("lab-1")
    rig.end(job)
    logged = [
        {name: vars(record).get(name) for name in ("event", "job", "jobs", "board", "status")}
        for record in caplog.records
    ]
    nothing = {"job": None, "jobs": None, "board": None, "status": None}
    assert logged == [
        {**nothing, "event": "submitted", "jobs": [1, 1]},
        {**nothing, "event": "started", "job": 1, "board": "lab-1"},
        {**nothing, "event": "ended", "job": 1, "board": "lab-1", "status": "ok"},
    ]


def test_log_for_people_does_not_contain_jobs(caplog):
    caplog.set_level(logging.WARNING, "cm_server.jobs")
    rig = Rig()
    rig.connect()
    (job,) = rig.run("lab-1")
    rig.end(job)
    assert not caplog.records
