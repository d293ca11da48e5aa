"""The magics through a real kernel: live displays, the stop button, input, and Run All."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from cloudmanager.virtual.virtual_boards import VirtualBoards

WAIT = 60.0  # seconds that a cell may take on a busy machine
PATHS = os.pathsep.join(str(Path(__file__).parents[2] / name) for name in ("", "server"))


class Output(NamedTuple):
    """One message of a cell: its kind, its text, and the display that it belongs to."""

    kind: str
    text: str
    display: str | None


class Kernel:
    """A running kernel and a frontend that listens to it."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client: Any = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(WAIT)

    def run(
        self,
        code: str,
        *,
        person: bool = True,
        answers: tuple[str, ...] = (),
        watch: Callable[[Output], None] = lambda _: None,
    ) -> tuple[str, list[Output]]:
        """Run a cell; return its status and its outputs.

        Args:
            code: the cell.
            person: whether the frontend accepts input, as JupyterLab does.
            answers: the answers to input prompts.
            watch: called with each output as it arrives.
        """
        self.prompts: list[str] = []
        asked = self.client.execute(code, allow_stdin=person)
        outputs: list[Output] = []
        deadline = time.monotonic() + WAIT
        waiting = list(answers)
        while (message := self._next(asked, waiting)) != "idle":
            assert time.monotonic() < deadline, outputs
            if isinstance(message, Output):
                outputs.append(message)
                watch(message)
        return self._status(asked), outputs

    def _status(self, asked: str) -> str:
        """Return how the cell ended; skip the late reply to an earlier cell."""
        while True:
            reply = self.client.get_shell_msg(timeout=WAIT)
            if reply["parent_header"].get("msg_id") == asked:
                return str(reply["content"]["status"])

    def _next(self, asked: str, answers: list[str]) -> Output | str | None:
        if answers or self.prompts:
            self._answer(answers)
        try:
            message = self.client.get_iopub_msg(timeout=0.05)
        except queue.Empty:
            return None
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != asked or kind == "execute_input":
            return None
        if kind == "status":
            return str(content["execution_state"])
        text = content.get("text") or content.get("data", {}).get("text/plain")
        display = content.get("transient", {}).get("display_id")
        return Output(kind, text or "\n".join(content.get("traceback", ())), display)

    def _answer(self, answers: list[str]) -> None:
        try:
            request = self.client.get_stdin_msg(timeout=0.01)
        except queue.Empty:
            return
        self.prompts.append(request["content"]["prompt"])
        self.client.input(answers.pop(0))


@pytest.fixture(scope="module")
def kernel(
    boards: VirtualBoards, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kernel]:
    folder = str(tmp_path_factory.mktemp("ipython"))
    environment = {**os.environ, "IPYTHONDIR": folder, "PYTHONPATH": PATHS}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment)
    with contextlib.ExitStack() as stack:
        stack.callback(manager.shutdown_kernel, now=True)
        kernel = Kernel(manager)
        stack.callback(kernel.client.stop_channels)
        assert kernel.run("%load_ext cm_magics")[0] == "ok"
        yield kernel


def head(words: str) -> str:
    return f"── {words} ".ljust(48, "─")


SLOW = "import time\nfor n in range(3):\n    print(n)\n    time.sleep(0.2)"


def test_fast_cell_is_one_display(kernel: Kernel):
    """On a busy machine, a cell may be shown before it ends; so one of five is enough."""
    whole = [("display_data", f"{head('demo-[1-3]')}\nhi\nOut: 42")]
    tries = (kernel.run("%%board demo-[1-3]\nprint('hi')\n6*7") for _ in range(5))
    assert ("ok", whole) in (
        (status, [(each.kind, each.text) for each in outputs]) for status, outputs in tries
    )


def test_value_of_a_line_is_shown_once(kernel: Kernel):
    assert [each.text for each in kernel.run("%board demo-1 6*7")[1]] == ["42"]
    assert [each.text for each in kernel.run("r = %board demo-1 6*7")[1]] == ["42"]
    assert [each[:2] for each in kernel.run("r")[1]] == [("execute_result", "42")]


def test_long_transfer_shows_progress_in_the_display_of_its_outcome(kernel: Kernel, tmp_path: Path):
    place = tmp_path / "big.bin"
    place.write_bytes(os.urandom(600_000))
    kernel.run(
        "from cloudmanager.display import progress\n"
        "before = progress.SHOW_AFTER_SECONDS, progress.REFRESH_SECONDS\n"
        "progress.SHOW_AFTER_SECONDS, progress.REFRESH_SECONDS = 0.0, 0.005"
    )
    status, outputs = kernel.run(f"%board_cp demo-[1-3] {place} :big.bin")
    restored = kernel.run("progress.SHOW_AFTER_SECONDS, progress.REFRESH_SECONDS = before")
    assert restored[0] == "ok"
    kernel.run("%board_rm demo-[1-3] :big.bin")
    first, *_, last = outputs
    assert status == "ok"
    assert "% of " in first.text
    assert last.text == f"{head('demo-[1-3]')}\n600,000 bytes written"
    assert {each.display for each in outputs} == {first.display}


def test_cell_without_output_shows_nothing(kernel: Kernel):
    assert kernel.run("%%board demo-[1-3]\nx = 1") == ("ok", [])


def test_output_is_live_in_one_display(kernel: Kernel):
    outputs = kernel.run(f"%%board demo-[1-3]\n{SLOW}")[1]
    first, *later, last = outputs
    assert first.text.startswith(head("demo-[1-3] · running"))
    assert (first.kind, first.display is None) == ("display_data", False)
    assert {(each.kind, each.display) for each in [*later, last]} == {
        ("update_display_data", first.display)
    }
    assert last.text == f"{head('demo-[1-3]')}\n0\n1\n2"


@pytest.mark.parametrize("sign", ["no person", "CM_PLAIN"])
def test_plain_mode_shows_only_the_final_state(kernel: Kernel, sign: str):
    if sign == "CM_PLAIN":
        kernel.run("import os\nos.environ['CM_PLAIN'] = '1'")
    outputs = kernel.run(f"%%board demo-[1-3]\n{SLOW}", person=sign == "CM_PLAIN")[1]
    kernel.run("import os\nos.environ.pop('CM_PLAIN', None)")
    assert [each[:2] for each in outputs] == [("display_data", f"{head('demo-[1-3]')}\n0\n1\n2")]


def test_display_of_endless_output_is_limited(kernel: Kernel):
    code = "%%board demo-1 --timeout 1 --on-error show\nwhile True: print('flood')"
    outputs = kernel.run(code)[1]
    assert len(outputs) < 15
    assert max(len(each.text) for each in outputs) < 100_000


def test_stop_button_interrupts_every_board(kernel: Kernel):
    pressed: list[Output] = []  # a second press would end the wait for the outcomes

    def stop(output: Output) -> None:
        if "going" in output.text and not pressed:
            pressed.append(output)
            kernel.manager.interrupt_kernel()

    code = "%%board demo-[1-3]\nx = 7\nprint('going')\nwhile True: pass"
    status, outputs = kernel.run(code, watch=stop)
    assert status == "error"
    assert outputs[-2].text.startswith(f"{head('demo-[1-3] · interrupted')}\ngoing\nTraceback")
    assert outputs[-1] == Output(
        "error", "KeyboardInterrupt: the cell was stopped on demo-[1-3].", None
    )
    assert kernel.run("%board demo-[1-3] x")[1][-1].text.endswith("\n7")


def test_stop_button_shows_the_traceback_of_one_board(kernel: Kernel):
    def stop(output: Output) -> None:
        if output.text == "going":
            kernel.manager.interrupt_kernel()

    outputs = kernel.run("%%board demo-2\nprint('going')\nwhile True: pass", watch=stop)[1]
    assert outputs[-2].text.startswith(f"{head('demo-2 · interrupted')}\ngoing\nTraceback")
    assert outputs[-1].text == "KeyboardInterrupt: the cell was stopped on demo-2."


def test_input_prompt_names_the_board(kernel: Kernel):
    code = "%%board demo-[1-2]\ninput('name? ')"
    outputs = kernel.run(code, answers=("Ada", "Ada"))[1]
    assert sorted(kernel.prompts) == ["demo-1: name? ", "demo-2: name? "]
    assert outputs[-1].text == f"{head('demo-[1-2]')}\n'Ada'"


def test_input_without_stdin_raises_on_the_board(kernel: Kernel):
    status, outputs = kernel.run("%%board demo-1\ninput('name? ')", person=False)
    assert status == "error"
    assert outputs[-1].text.endswith("\nEOFError")


def test_errors_show_only_the_boards_traceback(kernel: Kernel):
    status, outputs = kernel.run("%%board demo-1\nprint('hi')\n1/0")
    assert status == "error"
    assert [each.text for each in outputs] == [
        "hi",
        "BoardError: demo-1\nTraceback (most recent call last):\n"
        '  File "<cell>", line 2, in <module>\n    1/0\nZeroDivisionError: divide by zero',
    ]


def test_board_output_is_never_html(kernel: Kernel):
    outputs = kernel.run("%%board demo-1\nprint('<script>')\n'<b>'")[1]
    assert [each.text for each in outputs] == ["<script>\nOut: '<b>'"]


def test_progress_is_shown_while_it_runs(kernel: Kernel):
    outputs = kernel.run(f"%%board demo-[1-3] --progress-after 0\n{SLOW}")[1]
    assert any("0 of 3 boards are done · 0 s" in each.text for each in outputs[:-1])
    assert outputs[-1].text == f"{head('demo-[1-3]')}\n0\n1\n2"


def test_board_result_shows_a_noblock_cell_live(kernel: Kernel):
    (first,) = kernel.run(f"%%board demo-[1-3] --noblock -o long\n{SLOW}")[1]
    assert first.kind == "execute_result"
    assert first.text.startswith("<JobGroup: jobs ")
    outputs = kernel.run("r = %board_result long")[1]
    assert outputs[0].text.startswith(head("demo-[1-3] · running"))
    assert outputs[-1].text == f"{head('demo-[1-3]')}\n0\n1\n2"


def test_stop_button_ends_only_the_waiting_for_a_noblock_cell(kernel: Kernel):
    def stop(output: Output) -> None:
        if "running" in output.text:
            kernel.manager.interrupt_kernel()

    code = "%%board demo-[1-2] --noblock -o long\nimport time\ntime.sleep(1.5)\n6*7"
    kernel.run(code)
    status, outputs = kernel.run("%board_result", watch=stop)
    assert status == "error"
    assert outputs[-1].text == "KeyboardInterrupt: the cell continues on demo-[1-2]."
    assert kernel.run("r = %board_result")[1][-1].text == f"{head('demo-[1-2]')}\n42"


def test_local_also_runs_the_cell_in_the_notebook(kernel: Kernel):
    status, outputs = kernel.run("%%board demo-1 --local\nprint('done')\n1")
    assert status == "ok"
    assert [each.text.strip() for each in outputs] == [head("here"), "done", "1", "done\nOut: 1"]


def test_local_refuses_cells_that_await(kernel: Kernel):
    code = "%%board demo-1 --local\nimport asyncio\nran = 1\nawait asyncio.sleep(0)"
    status, outputs = kernel.run(code)
    assert status == "error"
    assert outputs[-1].text.startswith("UsageError: --local cannot run a cell that awaits")
    assert kernel.run("%board demo-1 'ran' in globals()")[1][-1].text == "False"


def test_tab_completes_boards(kernel: Kernel):
    kernel.client.complete("%%board demo-[1", 12)
    kernel.client.get_shell_msg(timeout=WAIT)
    kernel.client.complete("%%board de", 10)
    reply = kernel.client.get_shell_msg(timeout=WAIT)["content"]
    assert {"demo-1", "demo-2", "demo-3"} <= set(reply["matches"])


def notebook(*cells: str) -> Any:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return made


def test_run_all_stops_at_a_failure(boards: VirtualBoards, home: Path):
    made = notebook("%load_ext cm_magics", "%%board demo-[1-2]\n1/0", "print('not reached')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(made, timeout=WAIT, kernel_name="python3").execute()
    assert made.cells[2].outputs == []


def test_saved_notebook_contains_the_final_state(boards: VirtualBoards, home: Path):
    made = notebook("%load_ext cm_magics", f"%%board demo-[1-3]\n{SLOW}")
    NotebookClient(made, timeout=WAIT, kernel_name="python3").execute()
    (output,) = made.cells[1].outputs
    assert output.data == {"text/plain": f"{head('demo-[1-3]')}\n0\n1\n2"}


def test_different_values_are_a_table_in_notebook_and_html(boards: VirtualBoards, home: Path):
    made = notebook(
        "%load_ext cm_magics",
        "%board demo-[1,3] here = 'a<b>'",
        "%board demo-2 here = '<script>1</script>'",
        "%%board demo-[1-3] -o r\nhere",
        "r",
        "%%board demo-[1-3] --on-error raise\nassert here == 'a<b>'",
    )
    made.cells[5].metadata["tags"] = ["raises-exception"]
    NotebookClient(made, timeout=WAIT, kernel_name="python3").execute()
    (shown,), (kept,) = made.cells[3].outputs, made.cells[4].outputs
    assert shown.data["text/html"] == kept.data["text/html"]
    assert "demo-[1,3]" in shown.data["text/plain"]
    html = HTMLExporter().from_notebook_node(made)[0]
    assert "&lt;script&gt;1&lt;/script&gt;" in html
    assert "<script>1" not in html
    assert "BoardError: demo-2 failed (1 of 3 boards)" in html


def test_library_errors_show_no_internal_traceback(kernel: Kernel):
    code = "import cm_magics\ncm_magics.fleet()['demo-[1-3]'].run('1/0').raise_for_error()"
    status, outputs = kernel.run(code)
    assert status == "error"
    assert outputs[-1].text.startswith("FleetError: 3 boards failed.\ndemo-[1-3]:\n  Traceback")
    assert "fleet.py" not in outputs[-1].text


def test_widgets_have_a_text_fallback(boards: VirtualBoards, home: Path):
    emits = "%board demo-1 import cm; cm.emit(t=5)"
    made = notebook("%load_ext cm_magics", "%fleet", emits, "%board_plot demo-1 t")
    NotebookClient(made, timeout=WAIT, kernel_name="python3").execute()
    table, chart = made.cells[1].outputs[0].data, made.cells[3].outputs[0].data
    assert "demo-1" in table["text/plain"]
    assert chart["text/plain"].startswith("demo-1 t  ")
    assert chart["image/svg+xml"].startswith("<svg ")
