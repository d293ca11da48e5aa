"""Tab and Shift-Tab, with idle, busy and unknown boards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet

from .conftest import Kernel

TRAPS = """\
class Trap:
    calls = 0

    @property
    def prop(self):
        Trap.calls += 1
        return self

    def __getattr__(self, name):
        Trap.calls += 1
        raise AttributeError(name)

    def __repr__(self):
        Trap.calls += 1
        return "trap"

    def __len__(self):
        Trap.calls += 1
        return 1

    def method(self):
        pass


trap = Trap()
trap.own = 5
"""


@pytest.fixture
def patient(kernel: Kernel) -> Iterator[None]:
    """Boards may answer late, as those of a busy machine do."""
    set_seconds = (
        "%%host\nfrom cloudmanager.client import board_names\nboard_names.ANSWER_SECONDS = "
    )
    assert kernel.run(f"{set_seconds}30.0")[0] == "ok"
    yield
    assert kernel.run(f"{set_seconds}0.3")[0] == "ok"


def kinds(reply: dict[str, Any]) -> dict[str, str]:
    return {each["text"]: each["type"] for each in reply["metadata"]["_jupyter_types_experimental"]}


@pytest.mark.usefixtures("patient")
def test_names_of_the_board_are_offered_with_their_kinds(kernel: Kernel):
    kernel.run("import os\ndef tab_function(): pass\ntab_value = 1\nclass TabClass: pass")
    assert kinds(kernel.complete("x = tab_")) == {
        "tab_function": "function",
        "tab_value": "instance",
    }
    reply = kernel.complete("os.listd")
    assert (reply["matches"], reply["cursor_start"], reply["cursor_end"]) == (["listdir"], 3, 8)
    assert kinds(kernel.complete("TabC")) == {"TabClass": "class"}


@pytest.mark.usefixtures("patient")
def test_name_on_some_boards_only_is_marked(kernel: Kernel):
    kernel.run("tab_all = 1")
    kernel.run("%%board demo-2\ntab_few = 1")
    offered = kinds(kernel.complete("tab_"))
    assert offered["tab_all"] == "instance"
    assert offered["tab_few"] == "instance only on demo-2"
    assert list(offered).index("tab_all") < list(offered).index("tab_few")
    assert kernel.inspect("tab_few") == "demo-2: int 1"


@pytest.mark.usefixtures("patient")
def test_completion_executes_no_user_code(kernel: Kernel):
    kernel.run(TRAPS)
    assert {"own", "prop", "method", "calls"} <= set(kernel.complete("trap.")["matches"])
    kernel.complete("trap.prop.")
    kernel.complete("trap.nothing.")
    kernel.complete("tra")
    assert "Trap" in kernel.inspect("trap")
    kernel.inspect("trap.prop")
    kernel.inspect("trap.own")
    kernel.inspect("trap.nothing")
    assert kernel.run("Trap.calls")[1][-1].text.endswith("\n0")


@pytest.mark.usefixtures("patient")
def test_completion_binds_no_names(kernel: Kernel):
    kernel.run("bound_before = sorted(globals())")
    kernel.complete("bound_bef")
    kernel.inspect("bound_before")
    names = kernel.run(
        "sorted(set(globals()) - set(bound_before)), 'cm.look' in __import__('sys').modules"
    )
    assert names[1][-1].text.endswith("\n(['bound_before'], False)")


@pytest.mark.usefixtures("patient")
def test_boards_of_the_cells_target_are_asked(kernel: Kernel):
    kernel.run("%%board demo-3\ntab_third = 1")
    assert kinds(kernel.complete("%%board demo-3\ntab_th")) == {"tab_third": "instance"}
    assert "tab_third" not in kernel.complete("%%board demo-1\ntab_thi")["matches"]
    kernel.run("%board_use demo-1")
    assert kernel.complete("%board_use demo-3\ntab_thi")["cursor_start"] == 18


def test_ipython_completes_and_inspects_magics(kernel: Kernel):
    assert "%board_use" in kernel.complete("%board_u")["matches"]
    assert {"demo-1", "demo-2"} <= set(kernel.complete("%%board de")["matches"])
    assert "Choose the boards" in kernel.inspect("%board_use")
    kernel.run("%%host\nhost_value = 1")
    assert kernel.complete("%%host\nhost_va")["matches"] == ["host_value"]


def test_module_that_no_board_imported_comes_from_stubs(kernel: Kernel):
    assert "Pin" in kernel.complete("import machine\nmachine.Pi")["matches"]
    assert "machine" in kernel.complete("import mach")["matches"]
    assert kernel.inspect("from machine import Pin\nled = Pin(2)\nled.value").startswith("value()")


@pytest.mark.usefixtures("patient")
def test_definitions_in_cells_are_shown(kernel: Kernel):
    kernel.run('def blink(times, *, pause=1):\n    """Blinks."""')
    assert kernel.inspect("blink(") == (
        "blink(times, *, pause=1)\n\nBlinks.\n\ndemo-[1-3]: function"
    )


def test_busy_boards_are_not_asked(kernel: Kernel, fleet: Fleet):
    kernel.run("tab_busy = 1")
    newest = max(job["job"] for job in fleet.jobs("demo-1"))
    group = fleet["all"].submit("import time\ntime.sleep(60)")
    assert "tab_busy" in kernel.complete("tab_bus")["matches"]  # from the cells that ran
    assert "sleep_ms" in kernel.complete("import time\ntime.sle")["matches"]
    assert kernel.inspect("time.sleep_ms").startswith("sleep_ms(")
    assert not group.finished.done
    group.interrupt()
    assert {result.status for result in group.results(60).values()} == {"interrupted"}
    assert len([job for job in fleet.jobs("demo-1") if job["job"] > newest]) == 1


def test_tab_is_answered_while_a_cell_of_this_notebook_runs(kernel: Kernel):
    asked: list[str] = []
    begun = time.monotonic()
    took: list[float] = []

    def tab() -> None:
        asked.append(kernel.client.complete("import time\ntime.sle", 20))
        kernel.reply(asked[0])
        took.append(time.monotonic() - begun)

    kernel.run("%%board demo-1\nimport time\nprint('x')\ntime.sleep(1.5)", watch=lambda _: tab())
    assert took[0] < 1.4


def test_idle_board_answers_within_a_tenth_of_a_second(kernel: Kernel):
    kernel.run("%board_use demo-1")
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        kernel.complete("pri")
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 0.1


def test_unknown_board_does_not_delay_completion(kernel: Kernel):
    begun = time.monotonic()
    assert kernel.complete("%%board nobody-1\nzi")["status"] == "ok"
    assert time.monotonic() - begun < 1
