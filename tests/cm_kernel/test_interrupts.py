"""The stop button in all states of a cell; afterwards the kernel must still work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from .conftest import Kernel, Output

CELLS = {
    "a board": "%%board demo-1\nprint('going')\nwhile True: pass",
    "boards": "print('going')\nwhile True: pass",
    "a board that sleeps": "%%board demo-1\nimport time\nprint('going')\nwhile True: time.sleep(1)",
    "the notebook": "%%host\nprint('going', flush=True)\nwhile True: pass",
    "a waiting notebook": "%%host\nimport asyncio\nprint('going')\nawait asyncio.sleep(9)",
    "a line": "%board demo-1 print('going'); exec('while True: pass')",
}


def press_once(kernel: Kernel) -> Callable[[Output], None]:
    """Press the stop button at the first output "going"; a traceback may repeat that text."""
    pressed: list[Output] = []

    def watch(output: Output) -> None:
        if "going" in output.text and not pressed:
            pressed.append(output)
            kernel.interrupt()

    return watch


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_cell_is_interrupted_and_the_next_one_runs(kernel: Kernel, cell: str):
    status, outputs = kernel.run(cell, person=True, watch=press_once(kernel))
    assert status == "error"
    assert outputs[-1].content["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert kernel.run("6*7")[1][-1].text.endswith("\n42")


def test_boards_keep_their_variables(kernel: Kernel):
    status, outputs = kernel.run("x = 7\nwhile True: pass", begun=kernel.interrupt)
    assert status == "error"
    code = "x = 7\nprint('going')\nwhile True: pass"
    outputs = kernel.run(code, person=True, watch=press_once(kernel))[1]
    assert outputs[-1].text == "KeyboardInterrupt: the cell was stopped on demo-[1-3]."
    assert kernel.run("x")[1][-1].text.endswith("\n7")


@pytest.mark.parametrize("cell", ["%%board demo-1\ninput('x')", "%%host\ninput('x')"])
def test_input_prompt_is_interrupted(kernel: Kernel, cell: str):
    asked = kernel.client.execute(cell, allow_stdin=True, stop_on_error=False)
    kernel.client.get_stdin_msg(timeout=10)
    kernel.interrupt()
    assert kernel.reply(asked)["ename"] == "KeyboardInterrupt"
    assert kernel.run("6*7")[0] == "ok"


def test_shell_command_is_interrupted(kernel: Kernel):
    begun = time.monotonic()
    kernel.run("!echo going; sleep 30", watch=press_once(kernel))
    assert time.monotonic() - begun < 15


def test_interrupts_without_a_running_cell_do_nothing(kernel: Kernel):
    for _ in range(20):
        kernel.interrupt()
    kernel.settle()
    assert kernel.run("6*7")[0] == "ok"


def test_interrupt_during_completion_does_nothing(kernel: Kernel):
    asked = [kernel.client.complete(text) for text in ["zi", "os.", "pri"] * 5]
    for _ in range(5):
        kernel.interrupt()
    assert all(kernel.reply(each)["status"] == "ok" for each in asked)


def test_second_press_changes_nothing(kernel: Kernel):
    def twice() -> None:
        kernel.interrupt()
        kernel.interrupt()

    for cell in ("%%host\nwhile True: pass", "%%board demo-1\nwhile True: pass"):
        status, outputs = kernel.run(cell, begun=twice)
        assert (status, outputs[-1].content["ename"]) == ("error", "KeyboardInterrupt")


@pytest.mark.timeout(120)
def test_kernel_survives_two_hundred_interrupts(kernel: Kernel):
    kernel.run("%board_use demo-1")
    chance = random.Random(1)
    cells = (
        "while True: pass",
        "import time\nwhile True: time.sleep(0.01)",
        "while True: print(1)",
        "%%host\nwhile True: pass",
        "%%host\nimport asyncio\nawait asyncio.sleep(60)",
    )

    def stop() -> None:
        time.sleep(chance.random() * 0.05)  # at any moment from the request until the cell runs
        for _ in range(chance.choice((1, 1, 2, 3))):
            kernel.interrupt()

    ends = [kernel.run(chance.choice(cells), begun=stop)[0] for _ in range(200)]
    assert ends == ["error"] * 200
    kernel.settle()
    assert kernel.manager.is_alive()
    assert kernel.run("6*7")[1][-1].text == "42"
