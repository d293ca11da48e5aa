"""What boards report about themselves: the table ``FACTS``, which server and displays share.

To add a fact, report it (mpy_client/cm/about.py) and add a row here. Then the server checks it, the
verb ``boards`` has it, and `%board_info` and a board's page in the dashboard show it. The columns
of the row say whether lists show it, and whether targets can select by it.

A board is not trusted: ``Fact.read`` bounds what it reports, and a display sanitizes the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .spans import format_duration, format_milliseconds, format_moment

MAX_FACT_CHARS: Final = 128  # of a fact that is text
_MAX_NUMBER: Final = 2**40
_GENERATION_DIGITS: Final = 12  # of an id of a generation that is shown; boards report 16
#: What MicroPython's unix port reports as its machine (py/modsys.c): "linux [GCC 14.2.1] version".
_UNIX_MACHINE: Final = re.compile(r"(\w+) \[.*\] version")
#: machine.reset_cause() -> words. On RP2 a watchdog reset looks like machine.reset(),
#: and on ESP32 a brown-out not from power on; a crash there is a hard reset.
RESET_CAUSES: Final = {
    "pwron": "power on",
    "hard": "hard reset",
    "wdt": "watchdog or reset",
    "deepsleep": "deep sleep",
    "soft": "soft reset",
}


WAKE_CAUSE: Final = "deepsleep"  # a wake is no restart


def _read_nothing(_: Any) -> None:
    """Return None: the server knows this itself, and no board may report it."""


def _read_text(value: Any) -> str:
    return "" if value is None else str(value)[:MAX_FACT_CHARS]


def _read_number(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _MAX_NUMBER else None


def _read_rssi(value: Any) -> int | None:
    return value if isinstance(value, int) and -200 <= value <= 100 else None  # dBm


def _same(value: Any) -> Any:
    return value


def _bytecode_version(number: Any) -> str:
    """Return the version of a board's bytecode as MicroPython writes it, such as 6.3."""
    if not isinstance(number, int):
        return ""
    # sys.implementation._mpy: version in bits 0 to 7, sub-version in bits 8 and 9.
    return f"{number & 0xFF}.{number >> 8 & 3}"


def _plain_text(value: Any) -> str:
    return "" if value is None else str(value)


def _machine_text(machine: Any) -> str:
    text = _plain_text(machine)
    unix = _UNIX_MACHINE.fullmatch(text)
    return f"MicroPython's unix port on {unix[1]}" if unix else text


def _size_text(size: Any) -> str:
    return f"{size / 1024:.1f} KB" if isinstance(size, int) else ""


def _slot_text(size: Any) -> str:
    """Return how large new firmware may be, of an ESP32; 0: its flash has no slot for it."""
    return "none" if size == 0 else _size_text(size)


def _rssi_text(rssi: Any) -> str:
    return f"{rssi} dBm" if isinstance(rssi, int) else ""


def reset_text(cause: Any) -> str:
    """Return why a board started, in words, of what its port calls it."""
    return RESET_CAUSES.get(cause, _plain_text(cause))


def _uptime_text(seconds: Any) -> str:
    return format_duration(seconds) if isinstance(seconds, int) else ""


def _clock_text(at: Any) -> str:
    return format_moment(at) if isinstance(at, (int, float)) else ""


def _milliseconds_text(count: Any) -> str:
    if not isinstance(count, int):
        return ""
    return f"{count / 1000:.1f} s" if count >= 1000 else f"{count} ms"


def _microseconds_text(count: Any) -> str:
    return format_milliseconds(count / 1_000_000) if isinstance(count, int) else ""


def _drift_text(count: Any) -> str:
    return f"{count / 1000:+.1f} ppm" if isinstance(count, int) else ""


def _mac_text(digits: Any) -> str:
    text = _plain_text(digits)
    return ":".join(text[at : at + 2] for at in range(0, len(text), 2))


#: States of a generation that are not "proven".
_GENERATION_STATES: Final = {
    "trial": " (not started yet)",
    "trying": " (on trial)",
    "drifted": " (was changed there)",
    "cleared": " (partly removed)",
}


def _generation_text(state: Any) -> str:
    """Return a board's generation in words, of what it reports (mpy_client/cm/trial.py)."""
    first, _, note = _plain_text(state).partition("\n")
    words = first.split()
    text = ""
    if len(words) > 1:
        text = words[1][:_GENERATION_DIGITS] + _GENERATION_STATES.get(words[0], "")
    back = note.split(None, 2)
    if len(back) > 1 and back[0] == "reverted":
        text = f"{text}, back from {back[1][:_GENERATION_DIGITS]}".lstrip(", ")
    return text


class Fact(NamedTuple):
    """One fact.

    Attributes:
        name: its key in what a board reports, in the verb ``boards`` and in targets.
        heading: its heading in tables, and its name on a board's page.
        read: returns the value to keep of what a board reported: bounded, None or "" if invalid.
        publish: returns the value that callers get of the one that is kept.
        text: returns the text of the value that callers get; "" if it is not known.
        in_targets: whether targets can select by it; no label may have this key then.
        in_lists: whether lists of boards show it: "all", "dashboard", or "" for none.
        volatile: whether it holds only while the board is connected.
    """

    name: str
    heading: str
    read: Callable[[Any], Any] = _read_text
    publish: Callable[[Any], Any] = _plain_text
    text: Callable[[Any], str] = _plain_text
    in_targets: bool = False
    in_lists: str = ""
    volatile: bool = False

    @property
    def is_number(self) -> bool:
        """Whether callers get a number, which the text shows with its unit."""
        return self.publish is _same


FACTS: Final = (
    Fact("platform", "platform", in_targets=True, in_lists="all"),
    Fact("version", "MicroPython", in_targets=True, in_lists="all"),
    Fact("mpy", "bytecode", _read_number, _bytecode_version, in_targets=True),
    Fact("machine", "machine", text=_machine_text, in_targets=True),
    Fact("client", "client", in_targets=True),
    Fact("heap", "free heap", _read_number, _same, _size_text, in_lists="all", volatile=True),
    Fact("rssi", "RSSI", _read_rssi, _same, _rssi_text, in_lists="dashboard", volatile=True),
    Fact("program", "program", volatile=True),
    Fact("block", "largest block", _read_number, _same, _size_text, volatile=True),
    Fact("flash", "free flash", _read_number, _same, _size_text),
    Fact("slots", "slot for new firmware", _read_number, _same, _slot_text),
    Fact("watchdog", "watchdog"),
    Fact("reset", "started by", text=reset_text),
    Fact("generation", "generation", text=_generation_text),
    Fact("uptime", "uptime at connection", _read_number, _same, _uptime_text),
    Fact("address", "address"),
    Fact("mac", "MAC address", text=_mac_text),
    Fact("wakes_at", "wakes at", _read_nothing, _same, _clock_text),
    Fact("awake_ms", "awake, median", _read_nothing, _same, _milliseconds_text),
    Fact("awake_p90_ms", "awake, 90 %", _read_nothing, _same, _milliseconds_text),
    # From FACTS: in µs and in parts in 10**9.
    Fact("clock_offset", "clock ahead by", _read_nothing, _same, _microseconds_text, volatile=True),
    Fact("clock_error", "clock error", _read_nothing, _same, _microseconds_text, volatile=True),
    Fact("clock_drift", "clock drift", _read_nothing, _same, _drift_text, volatile=True),
)

#: What targets can select by, in addition to names and labels. The server knows the state itself.
FACT_NAMES: Final = ("state", *(fact.name for fact in FACTS if fact.in_targets))
_TARGET_FACTS: Final = tuple(fact for fact in FACTS if fact.in_targets)


def read_facts(reported: object) -> dict[str, Any]:
    """Return the facts that a board reports, bounded; {} if they are malformed."""
    if not isinstance(reported, Mapping):
        return {}
    return {fact.name: fact.read(reported.get(fact.name)) for fact in FACTS}


def published_facts(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a board that callers get, of those that the server keeps."""
    return {fact.name: fact.publish(kept.get(fact.name)) for fact in FACTS}


def target_facts(kept: Mapping[str, Any], state: str) -> dict[str, str]:
    """Return what targets can select a board by: its state, and the facts that the server keeps."""
    facts = {fact.name: str(fact.publish(kept.get(fact.name))) for fact in _TARGET_FACTS}
    return {"state": state, **facts}


def fact_text(fact: Fact, board: Mapping[str, Any]) -> str:
    """Return a fact as text; "" if it is not known, or not now. The text is not sanitized.

    Args:
        fact: the fact.
        board: as the verb ``boards`` describes it.
    """
    if fact.volatile and not board.get("connected_since"):
        return ""
    return fact.text(board.get(fact.name))
