"""What was measured on RP2040, and read in the ports' sources, with the tests that hold it.

MicroPython 1.28 for Pico and Pico W ran unmodified in an emulator, and showed defects that the unix
port hides. Each line names the tests that fail without the mending, here on stand-ins for chips,
and the check of the hardware suite that shows it on a chip, if there is one.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = "board/test_recovery.py: test_board_is_back_by_itself_and_runs_the_next_cell"

#: What was found -> where it is tested, as "file: function".
FACTS: dict[str, tuple[str, ...]] = {
    "RP2 stops a timer that nobody refers to: a good program was left out after power cuts": (
        "board/test_timers.py: test_unreferenced_timer_runs_if_its_port_refers_to_it",
        "board/test_timers.py: test_good_program_starts_after_any_number_of_power_cuts",
        "hardware/client_checks.py: program_is_good",
    ),
    "RP2040's WDT waits for 8,388 ms at most: a longer one armed nothing, silently": (
        "board/test_timers.py: test_board_reports_which_watchdog_is_armed",
        "hardware/client_checks.py: watchdog",
    ),
    "mbedTLS without memory is OSError(12): the board was gone for ever": (
        "board/test_boot.py: test_board_whose_heap_is_too_full_for_tls_restarts",
        "hardware/client_checks.py: link_back_without_heap",
    ),
    "the C stack is 8 KB: printing in a deep recursion lost output, link or the stream": (
        "board/test_console.py: test_deep_recursion_loses_no_output_silently",
        "board/test_console.py: test_deep_recursion_sends_nothing_and_asks_nothing",
        "hardware/cell_checks.py: recursion",
    ),
    "os_dupterm.c may leave the scheduler locked": (
        "board/test_console.py: test_locked_scheduler_restarts_the_board_after_the_result",
    ),
    "a heap that is full for over 50 ms lost link and value": (
        "board/test_console.py: test_heap_that_is_full_for_long_loses_neither_link_nor_value",
        "hardware/cell_checks.py: full_heap",
    ),
    "a str or bytes as value took 0.3 ms a character": (
        "board/test_run.py: test_long_text_as_value_is_about_as_fast_as_its_print",
        "hardware/cell_checks.py: long_values",
    ),
    "NTP without DNS delayed each boot by 6.9 s": (
        "board/test_boot.py: test_clock_is_set_by_the_servers_time",
    ),
    "the raw REPL soft-resets on SystemExit: the bridge lost all names, silently": (
        "cloudmanager/cable/test_repl_jobs.py: "
        "test_cell_that_restarts_the_board_ends_with_an_error",
        "hardware/bridge_checks.py: system_exit",
    ),
    "a reset over a port that stays open was not noticed": (
        "cloudmanager/cable/test_bridge.py: test_reset_between_cells_is_noticed",
    ),
    "lwIP's TCP_NODELAY is 64, not 1: small messages waited for an acknowledgement": (
        "board/test_link.py: test_small_writes_are_not_delayed_in_the_handshake",
    ),
    "a frozen client did not start": (
        "board/test_start.py: test_frozen_client_starts_and_reports_its_parts",
    ),
    "a server that refuses the board's address was shown as a number": (
        "board/test_boot.py: test_other_server_is_named_by_its_answer",
    ),
    "ESP32: no Timer(-1) from 1.25 to 1.28; up to 1.24 it is hardware timer 3": (
        "board/test_timers.py: test_client_interrupts_a_cell_and_ends_its_trial_on_one_timer",
    ),
    "ESP8266: an armed timer survives a soft reset, and its memory is freed": (
        "board/test_timers.py: test_unreferenced_timer_crashes_an_esp8266",
        "board/test_timers.py: test_soft_reset_by_the_server_leaves_no_timer_armed",
        "board/test_timers.py: test_soft_reset_from_the_repl_finds_no_timer_armed",
    ),
    "soft timers do not run in native code, nor while the scheduler is locked": (TABLE,),
    "RP2's WDT survives a soft reset; the program's own WDT is its own affair": (TABLE,),
    "a lightsleep ends at the client's next tick on RP2": (TABLE,),
    "a lock of the heap that is left behind ends the board": (
        TABLE,
        "board/test_boot.py: test_ctrl_c_while_the_heap_is_locked_leaves_a_repl_that_can_allocate",
        "hardware/client_checks.py: bad_manners",
    ),
    "threads of RP2 run on the second core without a GIL": (
        "board/test_timers.py: test_second_core_that_prints_never_uses_the_link",
        "board/test_timers.py: test_second_core_that_would_use_the_link_is_refused",
        TABLE,
    ),
    "a dupterm stream is removed by any exception that leaves it": (
        "board/test_console.py: test_interrupt_ends_busy_cells_and_keeps_the_stream",
        "hardware/cell_checks.py: interrupts",
    ),
    "TLS lacks memory in one piece after days: the largest free block is a fact": (
        "board/test_link.py: test_board_reports_its_facts",
    ),
    "output of C code and of threads bypasses print on the unix port": (
        "board/test_output.py: test_output_is_that_of_the_cell",
        "board/test_output.py: test_lines_of_threads_arrive_whole_and_completely",
    ),
}


@pytest.mark.parametrize("fact", FACTS)
def test_fact_names_tests_that_exist(fact):
    for place in FACTS[fact]:
        file, _, name = place.partition(": ")
        tree = ast.parse((TESTS / file).read_text())
        functions = [one.name for one in tree.body if isinstance(one, ast.FunctionDef)]
        assert name in functions, place
