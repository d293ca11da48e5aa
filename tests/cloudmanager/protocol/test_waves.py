"""The arithmetic of waves."""

from typing import Any

import pytest

from cloudmanager.protocol.waves import check_waves, wave_sizes


@pytest.mark.parametrize(
    ("waves", "boards", "sizes"),
    [
        ([1, "10%", "100%"], 200, (1, 20, 200)),
        ([1, "10%", "100%"], 201, (1, 21, 201)),  # rounded up
        ([1, "10%", "100%"], 10, (1, 2, 10)),  # a tenth is the canary itself: one more
        ([1, "10%", "100%"], 2, (1, 2)),
        ([1, "10%", "100%"], 1, (1,)),
        ([1, "10%", "100%"], 0, ()),
        ([5, "100%"], 3, (3,)),
        (["1%", "100%"], 1, (1,)),
        (["100%"], 7, (7,)),
        ([1, 2, 3, "50%", "100%"], 4, (1, 2, 3, 4)),
    ],
)
def test_waves_are_cumulative_rounded_up_and_add_a_board_each(
    waves: list[Any], boards: int, sizes: tuple[int, ...]
):
    assert wave_sizes(check_waves(waves), boards) == sizes


@pytest.mark.parametrize(
    ("waves", "why"),
    [
        ([], "1 to 32 waves"),
        ("100%", "1 to 32 waves"),
        ([1, "10%"], 'must end with "100%"'),
        ([0, "100%"], "0 is no wave"),
        ([True, "100%"], "True is no wave"),
        ([1.5, "100%"], "1.5 is no wave"),
        (["0%", "100%"], "'0%' is no wave"),
        (["101%", "100%"], "'101%' is no wave"),
        (["10 %", "100%"], "'10 %' is no wave"),
        ([3, 2, "100%"], "must grow"),
        ([2, 2, "100%"], "must grow"),
        (["50%", "20%", "100%"], "must grow"),
        ([1] * 40, "1 to 32 waves"),
    ],
)
def test_wrong_waves_are_refused(waves: Any, why: str):
    with pytest.raises(ValueError, match=why):
        check_waves(waves)
