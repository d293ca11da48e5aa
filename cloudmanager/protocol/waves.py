"""The waves of a rollout: how many boards it reaches, step by step; pure.

A wave is a number of boards or a percentage, ``[1, "10%", "100%"]``. Waves are cumulative: the
second of these is reached when a tenth of all boards have been. Percentages are rounded up, and
each wave adds at least one board, as long as there are any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_PERCENT: Final = re.compile(r"([1-9][0-9]?|100)%", re.ASCII)
MAX_WAVES: Final = 32
DEFAULT_WAVES: Final = (1, "10%", "100%")

#: A number of boards, or a percentage of them as text.
Wave = int | str


def check_waves(waves: object) -> tuple[Wave, ...]:
    """Return waves, checked.

    Raises:
        ValueError: they are no list of numbers and percentages that grow, up to ``"100%"``.
    """
    if not isinstance(waves, (list, tuple)) or not 0 < len(waves) <= MAX_WAVES:
        raise ValueError(f'must be a list of 1 to {MAX_WAVES} waves, such as [1, "10%", "100%"]')
    for wave in waves:
        if type(wave) is int and wave > 0:
            continue
        if not isinstance(wave, str) or not _PERCENT.fullmatch(wave):
            raise ValueError(
                f"{wave!r} is no wave: a number of boards such as 1, or a percentage such as "
                '"10%", 1% to 100%'
            )
    for kind in (int, str):
        sizes = [_number(wave) for wave in waves if type(wave) is kind]
        if sizes != sorted(set(sizes)):
            raise ValueError("must grow: each wave counts the boards of those before it, too")
    if waves[-1] != "100%":
        raise ValueError('must end with "100%"; hold boards back with `pin`')
    return tuple(waves)


def _number(wave: Wave) -> int:
    return wave if isinstance(wave, int) else int(wave.rstrip("%"))


def wave_sizes(waves: Sequence[Wave], boards: int) -> tuple[int, ...]:
    """Return how many boards have been reached at the end of each wave.

    Waves that no board is left for are missing: the last size is the number of boards.

    Args:
        waves: as ``check_waves`` returns them.
        boards: how many there are.
    """
    sizes: list[int] = []
    reached = 0
    for wave in waves:
        if reached >= boards:
            break
        wanted = wave if isinstance(wave, int) else -(-boards * _number(wave) // 100)  # rounded up
        reached = min(max(wanted, reached + 1), boards)
        sizes.append(reached)
    return tuple(sizes)
