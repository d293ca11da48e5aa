"""What a queued job waits for, in words."""

import re
import time

import pytest

from cloudmanager.client.wait import Wait, read_wait

NOW = 100.0


@pytest.mark.parametrize(
    ("wait", "text", "sentence"),
    [
        (Wait(), "", "it is not connected"),
        (
            Wait(1, ("alice",), 88.0),
            "behind 1 job of alice",
            "it has been running a job of alice for 12 s",
        ),
        (Wait(1), "behind 1 job", "it has been running a job"),
        (
            Wait(2, ("local", "anna"), 99.0),
            "behind 2 jobs of the local user and anna",
            "it runs 2 jobs of the local user and anna first; the first has been running for 1 s",
        ),
        (
            Wait(1200, ("a", "b", "c", "d")),
            "behind 1,200 jobs of a, b, c and others",
            "it runs 1,200 jobs of a, b, c and others first",
        ),
        (
            Wait(1, (), None, "app.py"),
            "behind app.py",
            "its own program app.py keeps it busy; `mbm board TARGET stop` ends that",
        ),
        (
            Wait(3, ("anna",), None, "app.py"),
            "behind 3 jobs of anna",
            "its own program app.py keeps it busy; `mbm board TARGET stop` ends that",
        ),
    ],
)
def test_wait_is_described(wait, text, sentence):
    assert (wait.text, wait.sentence(NOW)) == (text, sentence)


def test_sleep_of_the_board_is_described():
    asleep = read_wait(0, {"callers": [], "wakes_at": time.time() + 600})
    assert re.fullmatch(r"it is asleep until .*\d\d:\d\d", asleep.sentence(NOW))
    assert asleep.text.replace("until it wakes at ", "it is asleep until ") == asleep.sentence(NOW)
    behind = read_wait(1, {"callers": ["anna"], "wakes_at": time.time() + 600})
    assert behind.sentence(NOW) == asleep.sentence(NOW)
    late = read_wait(0, {"wakes_at": time.time() - 600})
    assert re.fullmatch(r"it was expected at .*\d\d:\d\d", late.sentence(NOW))


def test_entry_of_an_older_server_has_the_number_only():
    assert read_wait(2) == Wait(2)


def test_elapsed_seconds_become_a_time():
    wait = read_wait(1, {"callers": ["anna"], "elapsed": 5.0, "program": ""})
    assert wait.running_since is not None
    assert wait.sentence(wait.running_since + 7) == "it has been running a job of anna for 7 s"


@pytest.mark.parametrize("entry", [("x",), (1, {"elapsed": "x"}), (1, {"callers": 1})])
def test_malformed_entry_is_an_error(entry):
    with pytest.raises((TypeError, ValueError)):
        read_wait(*entry)
