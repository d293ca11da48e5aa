"""The time at which a cell starts, as callers write it."""

from datetime import UTC, datetime, timedelta

import pytest

from cloudmanager.protocol.start_times import start_to_wire


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("+5s", "+5.000000"),
        ("+0.5", "+0.500000"),
        ("+1m", "+60.000000"),
        (1.8e9, 1.8e9),
        (None, None),
    ],
)
def test_time_from_now_is_left_to_the_server(text, sent):
    assert start_to_wire(text) == sent


@pytest.mark.parametrize("form", ["%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
def test_time_is_local(form):
    soon = (datetime.now() + timedelta(seconds=90)).replace(microsecond=0)
    assert start_to_wire(soon.strftime(form)) == soon.timestamp()
    assert start_to_wire(soon) == soon.timestamp()
    assert start_to_wire(soon.astimezone(UTC)) == soon.timestamp()


def test_time_after_midnight_is_that_of_tomorrow():
    """Twelve hours from now is the latest that a time of day can mean."""
    then = (datetime.now() + timedelta(hours=11)).replace(second=0, microsecond=0)
    assert start_to_wire(f"{then.hour}:{then.minute:02}") == then.timestamp()


@pytest.mark.parametrize(
    "text", ["", "5s", "noon", "25:00", "1:2:3", "+", "+x", "+0", "-5s", True, float("nan"), "+nan"]
)
def test_other_text_is_no_time(text):
    with pytest.raises(ValueError, match="is not a time"):
        start_to_wire(text)
