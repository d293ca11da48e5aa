"""What a rollout does next, at the boundaries of its arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from cm_server.rollouts import steps
from cm_server.rollouts.steps import BoardProgress, Position, RolloutOptions, Step, next_step

NOW = 10_000.0
BEGUN = frozenset(("switching", "trial", "unproven", "proven", "failed"))


def boards(*described: str) -> list[BoardProgress]:
    """Return boards of ``WAVE STATE[ away][ for SECONDS]``; a wave is counted from 0."""
    found = []
    for number, text in enumerate(described):
        wave, state, *rest = text.split()
        seconds = float(rest[-1]) if "for" in rest else 1000.0
        online = "away" not in rest
        found.append(
            BoardProgress(f"b{number}", int(wave), state, NOW - seconds, online, state in BEGUN)
        )
    return found


def step(*described: str, wave: int = 0, started: float = 100, **options: Any) -> Step:
    """Return the next step; ``started``: seconds since the wave began."""
    options = {"pause": 60.0, "max_failures": 1, **options}
    settled = options.pop("settled", None)
    position = Position(wave, NOW - started, None if settled is None else NOW - settled)
    return next_step(boards(*described), RolloutOptions(**options), position, NOW)


def test_boards_of_the_present_wave_begin():
    made = step("0 waiting", "0 waiting away", "1 waiting")
    assert made.begin == ("b0",)
    assert made.outcome == ""


def test_parallel_bounds_how_many_are_switched_at_a_time():
    assert step(*["0 waiting"] * 5, parallel=2).begin == ("b0", "b1")
    assert step("0 trial", "0 waiting", "0 waiting", parallel=2).begin == ("b1",)
    assert step("0 trial", "0 switching", "0 waiting", parallel=2).begin == ()


def test_board_that_is_sent_what_it_had_counts_as_failed_if_its_generation_has():
    returning = boards("0 returning", "0 waiting")
    step = lambda: next_step(  # noqa: E731 (what differs is the boards)
        returning, RolloutOptions(max_failures=0), Position(0, NOW), NOW
    )
    assert step().begin == ("b1",)
    returning[0] = returning[0]._replace(has_failed=True)
    assert (step().begin, step().outcome) == ((), "")  # it is waited for
    returning[0] = returning[0]._replace(online=False)
    assert step().outcome == "failed"


def test_next_wave_begins_after_the_pause():
    assert step("0 proven", "1 waiting").position == Position(0, NOW - 100, NOW)
    assert step("0 proven", "1 waiting", settled=59).position.wave == 0
    assert step("0 proven", "1 waiting", settled=60).position == Position(1, NOW)
    assert step("0 proven", "1 waiting", pause=0.0).position.wave == 1


def test_board_that_is_away_does_not_hold_up_the_next_wave():
    assert step("0 proven", "0 waiting away", "1 waiting", settled=60).position.wave == 1


def test_board_that_came_back_late_is_switched_before_the_next_wave():
    made = step("0 proven", "0 waiting", "1 waiting", settled=60)
    assert (made.begin, made.position.wave, made.position.settled) == (("b1",), 0, None)


def test_wave_of_boards_that_are_away_proves_nothing():
    assert step("0 waiting away", "1 waiting", settled=10_000).position.wave == 0
    assert step("0 unproven away", "1 waiting", settled=10_000).position.wave == 0


def test_board_in_the_middle_of_its_switch_holds_up_the_next_wave():
    gone = steps.RETURN_SECONDS
    assert step("0 proven", f"0 trial away for {gone - 1}", "1 waiting").position.settled is None
    assert step("0 proven", f"0 trial away for {gone}", "1 waiting").position.settled == NOW
    assert step("0 proven", "0 trial for 99999", "1 waiting").position.settled is None


@pytest.mark.parametrize(("failed", "begins"), [(1, True), (2, False)])
def test_no_board_begins_when_there_are_more_failures_than_allowed(failed: int, begins: bool):
    made = step("0 proven", *["0 failed"] * failed, "0 waiting")
    assert bool(made.begin) is begins
    assert made.outcome == ("" if begins else "failed")


def test_boards_that_are_being_switched_finish_after_too_many_failures():
    assert step("0 failed", "0 failed", "0 trial", "0 waiting").outcome == ""
    assert step("0 failed", "0 failed", "0 trial away for 5", "0 waiting").outcome == ""
    ended = step("0 failed", "0 failed", "0 proven", "0 waiting")
    assert (ended.outcome, ended.why) == ("failed", "2 failed, and max_failures is 1")


def test_unproven_board_is_tried_again_and_is_no_failure():
    early, late = steps.RETRY_SECONDS - 1, steps.RETRY_SECONDS
    assert step(f"0 unproven for {early}").begin == ()
    assert step(f"0 unproven for {late}").begin == ("b0",)
    many = step(*["0 unproven for 5"] * 9, "1 waiting", max_failures=0)
    assert (many.outcome, many.position.wave) == ("", 0)


def test_next_wave_waits_for_a_board_that_is_tried_again():
    made = step("0 proven", "0 unproven for 5", "1 waiting", settled=1000)
    assert (made.position.wave, made.position.settled) == (0, None)


def test_at_the_deadline_a_board_that_never_began_is_missed():
    made = step("0 proven", "0 waiting away", started=999, deadline=1000.0)
    assert made.overdue == {}
    made = step("0 proven", "0 waiting away", started=1000, deadline=1000.0)
    assert made.overdue == {"b1": ("missed", "it was away until the deadline")}
    assert made.outcome == "done"


def test_at_the_deadline_a_board_that_began_has_failed():
    made = step("0 proven", "0 trial away", "0 unproven away", started=1000, deadline=1000.0)
    assert {each[0] for each in made.overdue.values()} == {"failed"}
    assert made.outcome == "failed"


def test_board_on_trial_is_not_overdue():
    assert step("0 trial", started=1000, deadline=1000.0).overdue == {}


def test_missed_boards_are_no_failures():
    described = ["0 proven", *["0 waiting away"] * 9]
    made = step(*described, started=1000, deadline=1000.0, max_failures=0)
    assert (len(made.overdue), made.outcome) == (9, "done")


def test_deadline_of_a_later_wave_begins_with_it():
    made = step("0 proven", "1 waiting away", started=1000, deadline=1000.0)
    assert made.overdue == {}


def test_rollout_is_done_when_all_boards_have_ended():
    assert step("0 proven", "1 proven", wave=1).outcome == "done"
    assert step("0 proven", "1 failed", wave=1).outcome == "done"
    assert step().outcome == "done"
    assert step("0 proven", "1 waiting away", wave=1).outcome == ""


def test_wave_without_a_proven_board_ends_the_rollout():
    made = step("0 failed", "1 waiting")
    assert (made.outcome, made.why) == ("failed", "no board of wave 1 was proven")
    made = step("0 missed", "1 waiting")
    assert made.outcome == "paused"
    assert "away" in made.why
    assert step("0 failed").outcome == "failed"
