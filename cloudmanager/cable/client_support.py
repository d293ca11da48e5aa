"""Which versions of MicroPython the client runs on, by chip; docs/boards.md has the table.

The client needs a timer (ports/*/machine_timer.c of each version) and, from 1.23 on, what the
other ports share.
"""

from __future__ import annotations

from typing import Final

_OLDEST: Final = (1, 23)
#: Chips on which earlier versions assume four hardware timers, which they do not have.
_OLDEST_BY_CHIP: Final = {"ESP32-C3": (1, 24), "ESP32-C6": (1, 25)}


def explain_refusal(version: str, chip: str) -> str:
    """Return why the client does not run on this version on this chip; "" if it does.

    Args:
        version: of MicroPython.
        chip: as esptool calls it, or "RP2"; "" if it is not known.
    """
    oldest = _OLDEST_BY_CHIP.get(chip, _OLDEST)
    if _number(version) >= oldest:
        return ""
    wanted = ".".join(map(str, oldest))
    on_chip = f" on {chip}" if chip in _OLDEST_BY_CHIP else ""
    return f"MicroPython {version} is too old for the client, which needs {wanted}{on_chip}"


def explain_limits(version: str, chip: str) -> str:
    """Return what the client lacks on this version on this chip; "" if it lacks nothing."""
    if refusal := explain_refusal(version, chip):
        return f"{refusal}: the board will not join the fleet"
    if chip == "RP2" and _number(version) < (1, 26):
        return f"MicroPython {version} has no watchdog on this chip by default; 1.26 has one"
    if chip.startswith("ESP32") and _number(version) < (1, 29):
        return f"with MicroPython {version} the client needs a hardware timer (docs/boards.md)"
    return ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
