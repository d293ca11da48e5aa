"""Windows of rollouts: cron expressions, time zones, clocks that change."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.rollouts.steps import BoardProgress, Position, RolloutOptions, Step, next_step
from cm_server.rollouts.windows import Window, read_window

BERLIN = "Europe/Berlin"
HOUR = 3600.0


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    """Return a local time in seconds since 1970."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return moment.timestamp()


def test_window_is_open_from_its_start_for_its_time():
    window = Window("0 3 * * *", 2 * HOUR, BERLIN)
    seen = [
        window.is_open(at(f"2026-06-01 {text}"))
        for text in ("02:59:59", "03:00", "04:59:59", "05:00", "23:00")
    ]
    assert seen == [False, True, True, False, False]
    assert window.is_open(at("2026-06-01 04:00")), "asked again for an earlier time"


def test_window_may_begin_on_the_day_before():
    window = Window("0 23 * * fri", 3 * HOUR, "UTC")
    assert window.is_open(at("2026-06-06 01:59", "UTC"))  # a Saturday
    assert not window.is_open(at("2026-06-07 01:59", "UTC"))


def test_overlapping_windows_are_one():
    window = Window("0 * * * *", 2 * HOUR, "UTC")
    start = at("2026-06-01 00:30", "UTC")
    assert window.is_open(start)
    assert window.open_seconds(start, start + 10 * HOUR) == 10 * HOUR


def test_time_outside_of_windows_does_not_count():
    window = Window("0 3 * * *", 2 * HOUR, "UTC")
    start = at("2026-06-01 04:00", "UTC")
    assert window.open_seconds(start, at("2026-06-01 12:00", "UTC")) == HOUR
    assert window.open_seconds(start, at("2026-06-03 03:30", "UTC")) == 3.5 * HOUR


def test_start_that_clocks_leave_out_comes_after_the_gap():
    window = Window("30 2 * * *", HOUR, BERLIN)  # on 2026-03-29, 02:00 is followed by 03:00
    start = window.next_start(at("2026-03-28 12:00"))
    assert start == at("2026-03-29 03:00")
    assert not window.is_open(start - 1)
    assert window.is_open(start + HOUR - 1)
    assert not window.is_open(start + HOUR)
    assert window.next_start(start) == at("2026-03-30 02:30")


def test_start_that_comes_twice_happens_once():
    window = Window("30 2 * * *", 0.5 * HOUR, BERLIN)  # on 2026-10-25, 03:00 becomes 02:00
    first = at("2026-10-25 02:30")
    assert window.next_start(at("2026-10-24 12:00")) == first
    assert window.is_open(first)
    assert not window.is_open(at("2026-10-25 02:30", fold=1))
    assert window.next_start(first) == at("2026-10-26 02:30")
    in_second_hour = at("2026-10-25 02:10", fold=1)
    assert window.next_start(in_second_hour) == at("2026-10-26 02:30")


def test_window_lasts_as_long_as_it_says_when_clocks_change():
    window = Window("0 1 * * *", 3 * HOUR, BERLIN)
    spring, autumn = at("2026-03-29 01:00"), at("2026-10-25 01:00")
    for start in (spring, autumn):
        assert window.is_open(start + 3 * HOUR - 1)
        assert not window.is_open(start + 3 * HOUR)
        assert window.open_seconds(start - HOUR, start + 12 * HOUR) == 3 * HOUR


def test_description_says_when_it_opens_next():
    window = Window("0 3 * * tue", 2 * HOUR, BERLIN)
    described = window.describe(at("2026-06-01 12:00"))  # a Monday
    assert described["text"] == "Tue 03:00 Europe/Berlin for 2 h"
    assert not described["open"]
    assert read_window(described) is not None
    described = Window("0 3 1 * *", 2 * HOUR, "UTC").describe(at("2026-06-01 04:00", "UTC"))
    assert described["text"] == "2026-07-01 03:00 UTC for 2 h"
    assert described["open"]


@pytest.mark.parametrize(
    ("start", "seconds", "zone", "why"),
    [
        ("0 3 * *", HOUR, "UTC", "is no cron expression: it needs five fields"),
        ("0 0 3 * * *", HOUR, "UTC", "it needs five fields"),
        ("0 25 * * *", HOUR, "UTC", "bad hour"),
        ("nightly at three o clock", HOUR, "UTC", "bad minute"),
        ("0 0 30 2 *", HOUR, "UTC", "bad day-of-month"),
        ("*/15 * * * *", HOUR, "UTC", "opens more often than once an hour"),
        ("0 3 * * *", 10, "UTC", "window.for must be a span"),
        ("0 3 * * *", 8 * 86400, "UTC", "window.for must be a span"),
        ("0 3 * * *", HOUR, "Europe/Berln", "did you mean Europe/Berlin?"),
        ("0 3 * * *", HOUR, "../../etc/passwd", "there is no time zone"),
        ("0 3 * * *", HOUR, "", "there is no time zone"),
    ],
)
def test_wrong_window_is_refused_in_a_sentence(start: str, seconds: float, zone: str, why: str):
    with pytest.raises(ServerError) as caught:
        Window(start, seconds, zone)
    assert why in caught.value.args[0]


@pytest.mark.parametrize("body", [5, {}, {"start": "0 3 * * *"}, {"start": 1, "for": 9, "tz": ""}])
def test_malformed_window_is_refused(body: object):
    with pytest.raises(ServerError, match="window"):
        read_window(body)


NIGHTLY = Window("0 3 * * *", 2 * HOUR, "UTC")
DAY = at("2026-06-01 12:00", "UTC")
NIGHT = at("2026-06-02 03:30", "UTC")


def step(now: float, *boards: BoardProgress, deadline: float = 86400.0) -> Step:
    options = RolloutOptions(deadline=deadline)
    return next_step(boards, options, Position(0, DAY), now, NIGHTLY)


def board(state: str, *, online: bool = True) -> BoardProgress:
    return BoardProgress(f"{state}-board", 0, state, DAY, online)


def test_boards_begin_only_within_the_window():
    assert step(DAY + 60, board("waiting")).begin == ()
    assert step(NIGHT, board("waiting")).begin == ("waiting-board",)


def test_board_that_came_back_unproven_is_tried_again_in_the_window():
    assert step(DAY + 3600, board("unproven")).begin == ()
    assert step(NIGHT, board("unproven")).begin == ("unproven-board",)


def test_rollout_with_a_closed_window_does_not_end():
    assert step(DAY + 60, board("waiting"), board("proven")).outcome == ""


def test_board_that_was_away_waits_for_the_next_window():
    away = board("waiting", online=False)
    seen = step(at("2026-06-03 02:00", "UTC"), away, deadline=2.5 * HOUR)
    assert seen.overdue == {}, "more than a day has passed, of which the window was open 2 hours"
    seen = step(at("2026-06-03 03:31", "UTC"), away, deadline=2.5 * HOUR)
    assert seen.overdue == {away.board_id: ("missed", "it was away until the deadline")}
