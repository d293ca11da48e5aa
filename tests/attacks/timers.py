"""Defences of a board's only timer: what machine.Timer refuses, shares or drops on each port."""

from __future__ import annotations

from typing import Final

from .defence import BOARD, defence

_START: Final = "mpy_client/cm_start.py"
_TIMERS: Final = "board/test_timers.py::test_"

TIMERS: Final = [
    defence(
        "a board without virtual timers starts the client on a hardware timer",
        BOARD + "console.py",
        "timer = machine.Timer(-1)",
        _TIMERS + "client_interrupts_a_cell_and_ends_its_trial_on_one_timer[esp32-1.28]",
        _TIMERS + "client_interrupts_a_cell_and_ends_its_trial_on_one_timer[esp32c3-1.28]",
    ),
    defence(
        "a global refers to the timer of a trial",
        _START,
        """
def _start_trial(start_trial=_start_trial):
    global timer
    start_trial()
    timer = None
""",
        _TIMERS + "earlier_client_is_on_trial_with_a_referenced_timer[rp2-1.28]",
    ),
    defence(
        "a trial ends although the client shares its timer",
        _START,
        """
def _start_trial(start_trial=_start_trial):
    start_trial()
    from cm import state

    state.calls.remove(_check_trial)
""",
        _TIMERS + "client_interrupts_a_cell_and_ends_its_trial_on_one_timer[esp32-1.24]",
    ),
    defence(
        "a program that has run for a minute counts as a good start",
        BOARD + "app.py",
        "_check = lambda: True",
        _TIMERS + "good_program_starts_after_any_number_of_power_cuts",
    ),
    defence(
        "a program that crashed is no good start a minute later",
        BOARD + "app.py",
        """
def _check():
    if ticks_diff(ticks_ms(), started) < _GOOD_MS:
        return False
    _good()
    return True
""",
        _TIMERS + "crashed_program_is_no_good_start_a_minute_later",
    ),
    defence(
        "cells in quick succession do not starve the watchdog",
        BOARD + "console.py",
        """
def idle():
    link.run_calls = lambda: None  # a second line: the client calls it, too, when it waits
    if dogs or state.calls:
        timer.init(period=_IDLE_MS, callback=tick)
    else:
        timer.deinit()
""",
        _TIMERS + "watchdog_is_fed_during_cells_in_quick_succession",
    ),
    defence(
        "no timer is armed when the REPL begins",
        BOARD + "console.py",
        "close = lambda: os.dupterm(saved)",
        _TIMERS + "soft_reset_from_the_repl_finds_no_timer_armed[async]",
    ),
    defence(
        "no timer is armed when the interpreter restarts",
        BOARD + "console.py",
        """
def reset():
    state.leaving = True
    os.dupterm(saved)
    machine.soft_reset()
""",
        _TIMERS + "soft_reset_by_the_server_leaves_no_timer_armed[watchdog]",
    ),
]
