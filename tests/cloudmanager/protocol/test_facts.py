"""The table of boards' facts: what boards report is bounded, and targets and displays use it."""

import time
from pathlib import Path

import pytest

from cloudmanager.display.text_tables import board_facts, fleet_table
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.facts import (
    FACT_NAMES,
    FACTS,
    MAX_FACT_CHARS,
    published_facts,
    read_facts,
    target_facts,
)
from cloudmanager.protocol.names import check_label

REPORTED = {
    "platform": "esp32",
    "version": "1.28.0",
    "mpy": 774,  # 6 + (3 << 8)
    "machine": "ESP32 module",
    "client": "0.2",
    "heap": 112_640,
    "rssi": -61,
    "program": "app.py",
    "block": 65_536,
    "flash": 800_000,
    "watchdog": "timer, 60 s",
    "reset": "wdt",
    "generation": "proven 8001",
    "slots": 1_572_864,
    "uptime": 12,
    "address": "192.168.4.7",
    "mac": "28cdc1000001",
    "unknown": "x",
}
#: What the server knows itself; a board cannot report it when it connects.
OWN = {
    "wakes_at": 1_796_040_000.0,
    "awake_ms": 1500,
    "awake_p90_ms": 2500,
    "clock_offset": -120,
    "clock_error": 400,
    "clock_drift": 21_000,
}


def board(**fields):
    return {
        "name": "lab-1",
        "id": "aa",
        "state": "idle",
        "labels": {},
        "connected_since": time.time(),
        "last_seen": time.time(),
        "queued": 0,
        **published_facts({**read_facts(REPORTED), **OWN}),
        **fields,
    }


def test_known_facts_are_kept_and_published():
    kept = read_facts({**REPORTED, **OWN})
    own = {name: value for name, value in REPORTED.items() if name != "unknown"}
    assert kept == {**own, **dict.fromkeys(OWN)}
    assert published_facts(kept) == {**kept, "mpy": "6.3"}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("platform", None, ""),
        ("platform", 5, "5"),
        ("machine", "x" * 999, "x" * MAX_FACT_CHARS),
        ("mpy", "6", None),
        ("heap", -1, None),
        ("heap", 2**40, None),
        ("heap", "1", None),
        ("rssi", -201, None),
        ("rssi", 101, None),
        ("rssi", [1], None),
        ("program", {}, "{}"),
    ],
)
def test_invalid_facts_are_bounded(name, value, kept):
    assert read_facts({**REPORTED, name: value})[name] == kept


@pytest.mark.parametrize("reported", [None, [], "x", 5])
def test_malformed_facts_are_empty(reported):
    assert read_facts(reported) == {}


def test_board_that_reported_nothing_has_every_fact():
    facts = published_facts({})
    assert list(facts) == [fact.name for fact in FACTS]
    assert {fact.text(facts[fact.name]) for fact in FACTS} == {""}


def test_targets_select_by_some_facts_and_labels_may_not_have_their_names():
    assert tuple(target_facts(REPORTED, "busy")) == FACT_NAMES
    assert target_facts(REPORTED, "busy")["state"] == "busy"
    for name in FACT_NAMES:
        with pytest.raises(TargetError):
            check_label(name, "x")


def test_page_of_a_board_shows_every_fact():
    shown = dict(board_facts(board()))
    assert {name: shown[name] for name in ("free heap", "RSSI", "bytecode", "MicroPython")} == {
        "free heap": "110.0 KB",
        "RSSI": "-61 dBm",
        "bytecode": "6.3",
        "MicroPython": "1.28.0",
    }
    assert set(shown) >= {fact.heading for fact in FACTS}


def test_facts_of_the_moment_are_not_shown_of_an_offline_board():
    shown = dict(board_facts(board(connected_since=None)))
    assert not set(shown) & {fact.heading for fact in FACTS if fact.volatile}
    assert shown["platform"] == "esp32"


def test_list_has_a_column_for_each_listed_fact():
    head = fleet_table([board()]).splitlines()[0]
    assert all((fact.heading in head) == (fact.in_lists == "all") for fact in FACTS)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("generation", "proven 0123456789abcdef", "0123456789ab"),
        (
            "generation",
            "trying 0123456789abcdef\nreverted fedcba9876543210 it failed",
            "0123456789ab (on trial), back from fedcba987654",
        ),
        ("machine", "linux [GCC 14.2.1] version", "MicroPython's unix port on linux"),
        ("machine", "Raspberry Pi Pico W with RP2040", "Raspberry Pi Pico W with RP2040"),
        ("awake_ms", 1500, "1.5 s"),
        ("awake_ms", 28, "28 ms"),
        ("awake_p90_ms", 0, "0 ms"),
    ],
)
def test_fact_is_shown_as_text(name, value, text):
    (fact,) = (fact for fact in FACTS if fact.name == name)
    assert fact.text(value) == text


def test_uptime_is_a_duration_in_words():
    (uptime,) = (fact for fact in FACTS if fact.name == "uptime")
    assert uptime.text(12) == "12 s"
    assert uptime.text(4552) == "1 h"


def test_every_fact_is_in_protocol_md():
    """What boards report is described at PROOF; what callers get, in the row of the verb."""
    text = (Path(__file__).parents[3] / "docs/protocol.md").read_text(encoding="utf-8")
    proof = text[text.index("PROOF's JSON is") : text.index("Close codes of the server")]
    row = next(line for line in text.splitlines() if line.startswith("| `boards` |"))
    assert [name for name in REPORTED if name not in proof and name != "unknown"] == []
    assert [fact.name for fact in FACTS if fact.name not in row] == []
