"""Defences of a board's one timer, against what each port refuses, shares and loses."""

from __future__ import annotations

from typing import Final

from .defence import BOARD, text_defence

_TIMERS: Final = "board/test_timers.py::test_"

TIMERS: Final = [
    text_defence(
        "a board without virtual timers starts the client on a hardware timer",
        BOARD + "console.py",
        "timer = Timer(n if n < 4 else -1)",
        "timer = Timer(-1)",
        _TIMERS + "client_starts_interrupts_a_cell_and_ends_its_timers[esp32-1.28]",
        _TIMERS + "client_starts_interrupts_a_cell_and_ends_its_timers[esp32c3-1.28]",
    ),
    text_defence(
        "the timer of a trial is held",
        "mpy_client/cm_start.py",
        "    global due, timer\n",
        "    global due\n",
        _TIMERS + "client_of_an_earlier_version_is_on_trial_by_a_timer_that_is_held[rp2-1.28]",
    ),
    text_defence(
        "a trial ends although the client shares its timer",
        "mpy_client/cm_start.py",
        "    ticker.add(_check)\n",
        "    pass\n",
        _TIMERS + "client_starts_interrupts_a_cell_and_ends_its_timers[esp32-1.24]",
    ),
    text_defence(
        "a program that runs for a minute has started well",
        BOARD + "app.py",
        "        ticker.add(_minute)\n",
        "        pass\n",
        _TIMERS + "good_program_is_started_after_any_number_of_power_cuts",
    ),
    text_defence(
        "a program that crashed has not started well a minute later",
        BOARD + "app.py",
        '    if link.told == "app.py":\n',
        "    if True:\n",
        _TIMERS + "program_that_crashed_has_not_started_well_a_minute_later",
    ),
    text_defence(
        "cells that follow one another fast do not starve the watchdog",
        BOARD + "ticker.py",
        "    tick(None)\n    if calls:\n",
        "    if calls:\n",
        _TIMERS + "watchdog_is_fed_while_cells_follow_one_another_faster_than_the_timer",
    ),
    text_defence(
        "no timer is armed when the REPL begins",
        BOARD + "link.py",
        "        port.leave()\n",
        "        pass\n",
        _TIMERS + "soft_reset_from_the_repl_finds_no_timer_armed[async]",
    ),
    text_defence(
        "no timer is armed when the interpreter restarts",
        BOARD + "console.py",
        "    timer.deinit()  # see leave\n",
        "    pass\n",
        _TIMERS + "soft_reset_by_the_fleet_leaves_no_timer_armed[watchdog]",
    ),
]
