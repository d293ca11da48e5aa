"""The notice of a verb that has to wait for boards."""

import io
import time

import pytest

from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import Job
from cloudmanager.client.wait import Wait
from cloudmanager.display.wait_notice import WaitNotice, new_waits, wait_sentences


def queued_job(number, board, wait):
    job = Job(number, board, prepare_cell("1"), 0.0)
    job.mark_queued(wait)
    return job


def test_boards_that_wait_for_the_same_reason_share_a_sentence():
    jobs = [
        queued_job(1, "lab-1", Wait(1, ("anna",))),
        queued_job(2, "lab-2", Wait()),
        queued_job(3, "lab-3", Wait(1, ("anna",))),
    ]
    assert wait_sentences(jobs) == [
        "waiting for lab-[1,3]: it has been running a job of anna",
        "waiting for lab-2: it is not connected",
    ]


def test_names_of_callers_and_programs_are_safe_to_show():
    (sentence,) = wait_sentences([queued_job(1, "lab-1", Wait(1, (), None, "a\x1b[2J\nb"))])
    assert "\x1b" not in sentence
    assert "\n" not in sentence


def test_only_jobs_that_are_queued_later_count():
    jobs = [queued_job(1, "lab-1", Wait())]
    waits = new_waits(lambda: jobs)
    assert waits() == []
    jobs.append(queued_job(2, "lab-2", Wait()))
    assert waits() == ["waiting for lab-2: it is not connected"]


@pytest.mark.parametrize(
    ("quiet", "text"),
    [(False, "mbm: waiting for lab-1: it is not connected\n"), (True, "")],
    ids=["text", "quiet"],
)
def test_notice_is_written_once(quiet, text):
    out = io.StringIO()
    looks = []

    def queued_jobs():
        looks.append(1)
        return [queued_job(1, "lab-1", Wait())]

    with WaitNotice(queued_jobs, quiet=quiet, out=out, after=0.0):
        until = time.monotonic() + (0 if quiet else 10)
        while len(looks) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert out.getvalue() == text


def test_short_wait_is_not_mentioned():
    out = io.StringIO()
    with WaitNotice(lambda: [queued_job(1, "lab-1", Wait())], out=out, after=30.0):
        pass
    assert out.getvalue() == ""
