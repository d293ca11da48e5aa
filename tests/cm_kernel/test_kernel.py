"""Cells in the kernel: where they run, what the frontend receives, and failures."""

from __future__ import annotations

import base64
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer, running_boards

from .conftest import Kernel, Output, running_kernel


def head(words: str) -> str:
    return f"── {words} ".ljust(48, "─")


def kinds_and_texts(outputs: list[Output]) -> list[tuple[str, str]]:
    return [(each.kind, each.text) for each in outputs]


def test_cell_runs_on_the_chosen_board_below_its_name(kernel: Kernel):
    kernel.run("%board_use demo-2")
    status, outputs = kernel.run("print('hello, world')\n6*7")
    assert status == "ok"
    assert kinds_and_texts(outputs) == [
        ("stream", f"{head('demo-2')}\nhello, world\n"),
        ("execute_result", "42"),
    ]


def test_cell_runs_on_several_boards_in_one_display(kernel: Kernel):
    outputs = kernel.run("import sys\nprint('hi')\nsys.implementation.name")[1]
    assert kinds_and_texts(outputs) == [
        ("display_data", f"{head('demo-[1-3]')}\nhi\nOut: 'micropython'")
    ]


def test_cell_with_a_target_runs_on_its_boards(kernel: Kernel):
    assert kinds_and_texts(kernel.run("%%board demo-1\nprint('hi')")[1]) == [("stream", "hi\n")]
    assert kinds_and_texts(kernel.run("# %%board demo-1\n6*7")[1]) == [("execute_result", "42")]


def test_cell_without_output_shows_nothing(kernel: Kernel):
    assert kernel.run("x = 1") == ("ok", [])
    assert kernel.run("") == ("ok", [])


def test_host_cell_runs_in_the_notebook(kernel: Kernel):
    code = "%%host\nimport sys, asyncio\nawait asyncio.sleep(0)\nsys.implementation.name"
    assert kinds_and_texts(kernel.run(code)[1]) == [("execute_result", "'cpython'")]


def test_leading_host_lines_run_in_the_notebook(kernel: Kernel):
    outputs = kernel.run("%board_use demo-3\nfiles = !echo here\n\n6*7")[1]
    assert kinds_and_texts(outputs)[1:] == [
        ("stream", head("demo-3") + "\n"),
        ("execute_result", "42"),
    ]
    assert kinds_and_texts(kernel.run("%%host\nfiles")[1]) == [("execute_result", "['here']")]


def test_values_are_sent_to_boards_and_back(kernel: Kernel):
    kernel.run("%%host\nrates = [1, 2]")
    assert kernel.run("%%board demo-1 -i rates -o r\nsum(rates)")[1][0].text == "3"
    assert kernel.run("%%host\nr.value + 1")[1][0].text == "4"


def test_loading_the_magics_again_changes_nothing(kernel: Kernel):
    assert kernel.run("%load_ext cm_magics")[0] == "ok"
    assert kernel.run("6*7")[1][0].text.startswith(head("demo-[1-3]"))


def test_failure_shows_only_the_boards_traceback(kernel: Kernel):
    kernel.run("%board_use demo-1")
    status, outputs = kernel.run("x = 1\n1/0")
    assert status == "error"
    assert [each.kind for each in outputs] == ["error"]
    assert outputs[0].content["ename"] == "BoardError"
    assert outputs[0].text == (
        "BoardError: demo-1\nTraceback (most recent call last):\n"
        '  File "<cell>", line 2, in <module>\n    1/0\nZeroDivisionError: divide by zero'
    )


def test_error_stops_run_all(kernel: Kernel):
    first = kernel.client.execute("1/0", allow_stdin=False)
    second = kernel.client.execute("6*7", allow_stdin=False)
    assert kernel.reply(first)["status"] == "error"
    assert kernel.reply(second)["status"] == "aborted"


def test_cell_with_a_syntax_error_is_not_sent(kernel: Kernel):
    status, (error,) = kernel.run("def f(:")
    assert status == "error"
    assert error.content["ename"] == "CellSyntaxError"


def test_output_is_live(kernel: Kernel):
    kernel.run("%board_use demo-1")
    code = "import time\nfor n in range(3):\n    print(n)\n    time.sleep(0.2)"
    outputs = kernel.run(code)[1]
    assert len(outputs) >= 3
    assert "".join(each.text for each in outputs) == f"{head('demo-1')}\n0\n1\n2\n"


def test_long_output_is_cut_and_its_end_is_shown(kernel: Kernel):
    kernel.run("%board_use demo-1")
    outputs = kernel.run("for n in range(40000): print('line', n)")[1]
    text = "".join(each.text for each in outputs)
    assert len(text) < 80_000
    assert "more characters" in text
    assert text.endswith("line 39999\n")


def test_input_prompt_names_the_board(kernel: Kernel):
    outputs = kernel.run("input('name? ')", person=True, answers=("Ada", "Ada", "Ada"))[1]
    assert sorted(kernel.prompts) == ["demo-1: name? ", "demo-2: name? ", "demo-3: name? "]
    assert outputs[-1].text == f"{head('demo-[1-3]')}\n'Ada'"


def test_input_works_on_one_board_and_in_the_notebook(kernel: Kernel):
    kernel.run("%board_use demo-1")
    outputs = kernel.run("input('name? ')", person=True, answers=("Ada",))[1]
    assert kernel.prompts == ["demo-1: name? "]
    assert outputs[-1].text == "'Ada'"
    assert kernel.run("%%host\ninput('x')", person=True, answers=("Bob",))[1][-1].text == "'Bob'"


def test_input_without_stdin_raises_on_the_board(kernel: Kernel):
    status, outputs = kernel.run("input('name? ')")
    assert status == "error"
    assert "EOFError" in outputs[-1].text


def test_cell_on_a_busy_board_shows_its_place_in_the_queue(kernel: Kernel, fleet: Fleet):
    kernel.run("%board_use demo-1")
    fleet["demo-1"].submit("import time\ntime.sleep(0.5)")
    outputs = kernel.run("print('mine')")[1]
    queued = head("demo-1 · queued behind 1 job of the local user")
    assert "".join(each.text for each in outputs) == f"{queued}\nmine\n"


def test_picture_and_table_are_shown(kernel: Kernel):
    kernel.run("%board_use demo-1")
    code = "{'framebuf': bytearray(b'\\x80'), 'width': 8, 'height': 1, 'format': 3}"
    data = kernel.run(code)[1][-1].content["data"]
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert set(data) == {"text/plain", "image/png"}
    rows = kernel.run("[{'pin': 2, 'volt': 3.1}, {'pin': 4, 'volt': 1.2}]")[1][-1]
    assert rows.text == "pin  volt\n───  ────\n2    3.1\n4    1.2"


def test_board_output_is_never_html(kernel: Kernel):
    kernel.run("%board_use demo-1")
    outputs = kernel.run("print('<script>')\n'<b>'")[1]
    assert [sorted(each.content.get("data", ["text"])) for each in outputs] == [
        ["text"],
        ["text/plain"],
    ]


def test_question_mark_describes_a_name(kernel: Kernel):
    kernel.run('def blink(times, *, pause=1):\n    "Blinks."')
    asked = kernel.client.execute("blink?", allow_stdin=False)
    (page,) = kernel.reply(asked)["payload"]
    assert page["data"]["text/plain"].startswith("blink(times, *, pause=1)\n\nBlinks.")


def test_completeness_of_cells_is_reported(kernel: Kernel):
    def status(code: str) -> Any:
        return kernel.reply(kernel.client.is_complete(code))["status"]

    assert status("6*7") == "complete"
    assert status("for n in range(3):") == "incomplete"
    assert status("x = = 1") == "invalid"


def test_history_contains_cells_as_typed(kernel: Kernel):
    kernel.run("6 * 7  # of history")
    reply = kernel.reply(kernel.client.history(hist_access_type="tail", n=1, raw=True))
    assert reply["history"][0][2] == "6 * 7  # of history"


BROKEN = """%%host
shell = get_ipython()
def broken(*args, **named):
    del shell.run_cell_async
    raise RuntimeError("broken")
shell.run_cell_async = broken
"""


def test_exception_that_ipython_does_not_catch_is_replied(kernel: Kernel):
    kernel.run(BROKEN)
    status, (error,) = kernel.run("%%host\nimport asyncio\nawait asyncio.sleep(0)")
    assert (status, error.text) == ("error", "RuntimeError: broken")
    assert kernel.run("6*7")[0] == "ok"


def test_unreachable_server_is_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = {"CM_HOME": str(tmp_path / "nobody"), "CM_URL": url}
    with running_kernel(tmp_path, None, **environment) as kernel:
        for code in ("6*7", "%%board demo-1\n6*7", "%boards"):
            status, outputs = kernel.run(code)
            assert status == "error"
            assert len(outputs) == 1
            assert outputs[0].text.startswith("ServerUnreachable: No server at ")
            assert "mbm server-start" in outputs[0].text
        assert kernel.run("%%host\n6*7")[1][0].text == "42"
        assert kernel.complete("zi")["status"] == "ok"


def test_missing_target_is_one_line_and_kernel_survives_a_server_restart(
    tmp_path: Path, start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    with running_kernel(tmp_path, CM_HOME=str(tmp_path)) as kernel:
        with start_server(tmp_path) as server:
            (error,) = kernel.run("6*7")[1]
            assert error.text.startswith("CloudmanagerError: No boards are chosen for this cell.")
            assert "mbm simulate" in error.text
            _run_on_new_board(kernel, server)
        # The second, if the developer's own server listens on the default port.
        errors = ("ServerUnreachable: ", "NotAllowed: ")
        assert kernel.run("6*7")[1][0].text.startswith(errors)
        with start_server(tmp_path) as server:
            _run_on_new_board(kernel, server)


def _run_on_new_board(kernel: Kernel, server: RunningServer) -> None:
    with Fleet() as fleet, running_boards(server, fleet, ["new-1"]):
        assert "Online: new-1." in kernel.run("6*7")[1][0].text
        assert kernel.run("%%board new-1\n6*7")[1][0].text == "42"


def test_board_lost_during_a_cell_is_one_line(kernel: Kernel, server: RunningServer, fleet: Fleet):
    with running_boards(server, fleet, ["gone-1"]) as boards:

        def kill(output: Output) -> None:
            if "going" in output.text:
                boards.kill("gone-1", signal.SIGKILL)

        code = "%%board gone-1 --timeout 3\nprint('going')\nwhile True: pass"
        status, outputs = kernel.run(code, watch=kill)
        assert status == "error"
        assert outputs[-1].text.startswith("LinkLost: ")
        assert "\n" not in outputs[-1].text
    assert kernel.run("6*7")[0] == "ok"


@pytest.mark.parametrize("target", ["nobody-1", "demo-["])
def test_unknown_and_malformed_targets_are_errors(kernel: Kernel, target: str):
    status, outputs = kernel.run(f"%%board {target}\n6*7")
    assert status == "error"
    assert [each.kind for each in outputs] == ["error"]


def test_packages_are_installed_in_a_cell_of_the_kernel(kernel: Kernel, tmp_path: Path):
    (tmp_path / "kkk.py").write_text("K = 41")
    status, outputs = kernel.run(f"%board_install demo-1 {tmp_path}/kkk.py")
    assert (status, "/lib/kkk.mpy" in outputs[0].text) == ("ok", True), outputs
    assert kinds_and_texts(kernel.run("%%board demo-1\nimport kkk\nkkk.K")[1]) == [
        ("execute_result", "41")
    ]
    assert kernel.run("%board_ls demo-1 :lib")[0] == "ok"
    assert "kkk" in kernel.run("%board_packages demo-1")[1][0].text
    assert kernel.run("%board_uninstall demo-1 kkk")[0] == "ok"
