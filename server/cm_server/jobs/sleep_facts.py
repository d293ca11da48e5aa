"""What is kept among the facts of a board that sleeps: when it wakes, how long it is awake.

So these survive a restart of the server, and other servers know them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from cloudmanager.protocol.facts import MAX_FACT_CHARS, WAKE_CAUSE
from cloudmanager.protocol.wire import SleepRequest

KEPT_WAKES: Final = 64  # of a board: their durations are kept
_AWAKE: Final = "awake_times"  # ms of the last wakes, the oldest first; not published as such
_ENDING: Final = ("wakes_at", "overdue_at")  # what does not hold any more when it has woken
#: What is kept when a board connects and reports its facts again.
_LASTING: Final = (_AWAKE, "awake_ms", "awake_p90_ms")


def facts_asleep(
    facts: Mapping[str, Any], request: SleepRequest, late_seconds: float
) -> dict[str, Any]:
    """Return the facts of a board that has fallen asleep.

    Args:
        facts: those of the board until now.
        request: what the board said.
        late_seconds: how much later than it said it may connect.
    """
    now = time.time()
    times = [*_awake_times(facts), round(request.awake * 1000)][-KEPT_WAKES:]
    return {
        **facts,
        "wakes_at": now + request.seconds,
        "overdue_at": now + request.seconds + late_seconds,
        _AWAKE: times,
        "awake_ms": quantile(times, 0.5),
        "awake_p90_ms": quantile(times, 0.9),
    }


def facts_of_wake(facts: Mapping[str, Any], program: object) -> dict[str, Any] | None:
    """Return the facts of a board that woke and reports none, since the server knows them.

    Args:
        facts: those of the board until now.
        program: the state of its own program, which it reports; None: it did not wake.

    Returns:
        None if the server does not know them, or the board did not wake.
    """
    if not isinstance(program, str) or not isinstance(facts.get("parts"), list):
        return None
    lasting = {name: value for name, value in facts.items() if name not in _ENDING}
    text = program[:MAX_FACT_CHARS]
    return {**lasting, "program": text, "reset": WAKE_CAUSE, "uptime": 0}


def facts_awake(reported: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a board that has connected.

    Args:
        reported: what it reports now.
        before: its facts until now.
    """
    return {**reported, **{name: before[name] for name in _LASTING if name in before}}


def _awake_times(facts: Mapping[str, Any]) -> list[int]:
    times = facts.get(_AWAKE)
    return times if isinstance(times, list) else []


def quantile(values: list[int], part: float) -> int:
    """Return the smallest of the values that at least this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * round(part * 100) // 100) - 1, 0)]
