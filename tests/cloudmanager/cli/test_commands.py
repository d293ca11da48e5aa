"""The verbs of ``mbm`` for the server, boards, jobs and virtual boards."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Fleet
from tests.cloudmanager.conftest import MBM, WAIT, background, process
from tests.conftest import RunningServer, running_boards

RESULT = {"status": "ok", "stdout": "", "value": None, "error": None}


def without_times(results):
    """Return the JSON of board-execute without ``elapsed``, which differs from run to run."""
    assert all(result.pop("elapsed") > 0 for result in results.values())
    return results


# The server


def test_server_is_started_found_and_stopped(own_home, mbm):
    started = mbm("server-start", "--port", "0")
    url = started.out.removeprefix("The server is listening on ").strip()
    assert (started.status, started.err, url.startswith("http://127.0.0.1:")) == (0, "", True)
    again = mbm("server-start")
    assert (again.status, again.out) == (0, f"The server is already running at {url}\n")
    shown = mbm("server-status")
    assert shown.status == 0
    assert [line.split()[0] for line in shown.out.splitlines()] == [
        "address",
        "version",
        "uptime",
        "boards",
        "process",
    ]
    ended = mbm("server-stop")
    assert (ended.status, ended.out) == (0, f"The server at {url} has stopped.\n")
    ended = mbm("server-stop")
    assert (ended.status, ended.out) == (3, "No local server is running.\n")


def test_running_server_is_backed_up_and_stopped_server_is_restored(own_home, mbm, tmp_path):
    file = str(tmp_path / "backup.tar")
    names = ["token", "ca.pem", "server.pem", "server.db"]
    assert mbm("server-start", "--port", "0", "--log-json", "--keep-jobs", "7").status == 0
    assert mbm("board-enrol", "lab-1").status == 0
    assert mbm("server-backup", file, "--json").json == names
    assert mbm("board-revoke", "lab-1").status == 0
    refused = mbm("server-restore", file)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.endswith("`mbm server-stop` ends it.\n")
    mbm("server-stop")
    restored = mbm("server-restore", file)
    assert restored.out.startswith(f"Restored token, ca.pem, server.pem, server.db from {file}.")
    mbm("server-start", "--port", "0")
    assert [board["name"] for board in mbm("board-list", "--json").json] == ["lab-1"]
    mbm("server-stop")


def test_server_verbs_print_json(own_home, mbm):
    started = mbm("server-start", "--port", "0", "--json").json
    assert started == {"url": started["url"], "already": False, "listens": started["url"]}
    assert mbm("server-start", "--json").json == {
        "url": started["url"],
        "already": True,
        "listens": "",
    }
    shown = mbm("server-status", "--json").json
    assert (shown["address"], shown["boards"], shown["online"]) == (started["url"], 0, 0)
    assert mbm("server-stop", "--json").json == {"url": started["url"]}
    assert mbm("server-stop", "--json").json == {"url": None}


def test_server_keeps_running_after_mbm_exits(own_home):
    url = process("server-start", "--port", "0", "--json").json["url"]
    assert process("server-status", "--json").json["address"] == url
    assert process("server-stop").status == 0


def test_occupied_tcp_port_is_reported(own_home, mbm):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tcp_port = taken.getsockname()[1]
        done = mbm("server-start", "--port", str(tcp_port))
    assert done.status == 1
    assert done.out == ""
    assert done.err.startswith(f"mbm: TCP port {tcp_port} of 127.0.0.1 is taken")
    assert done.err.count("\n") == 1


def test_option_of_the_server_is_checked(own_home, mbm):
    done = mbm("server-start", "--port", "0", "--samples", "0")
    assert (done.status, done.out) == (2, "")
    assert "argument --samples: give a number from 1 to 100000" in done.err


# Boards


def test_board_list_shows_a_table(boards, mbm):
    done = mbm("board-list", "demo-[1-3]")
    assert done.status == 0
    assert [line.split()[:3] for line in done.out.splitlines()[2:]] == [
        [f"demo-{number}", "idle", "linux"] for number in (1, 2, 3)
    ]


def test_board_list_prints_json(boards, mbm):
    found = mbm("board-list", "--json").json
    assert {board["name"] for board in found} >= {"demo-1", "demo-2", "demo-3"}
    assert all({"name", "state", "platform", "version"} <= set(board) for board in found)
    assert not any("key" in board for board in found)


def test_board_execute_shows_output_and_value(boards, mbm):
    done = mbm("board-execute", "demo-[1-3]", "-c", "print('hi'); 42")
    assert (done.status, done.err) == (0, "")
    assert "demo-[1-3]" in done.out
    assert done.out.count("hi\n") == 1
    assert "42" in done.out


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        (["FILE"], ["FILE"]),
        (["FILE", "--", "-v", "a b", "--timeout"], ["FILE", "-v", "a b", "--timeout"]),
        (["FILE", "--timeout", "9", "--", "x"], ["FILE", "x"]),
        (["--timeout", "9", "FILE", "--", "--", "é'\\n"], ["FILE", "--", "é'\\n"]),
        (["-c", "CODE", "--", "-c"], ["-c", "-c"]),
        (["FILE", "--"], ["FILE"]),
    ],
)
def test_board_execute_passes_arguments(boards, mbm, tmp_path: Path, arguments, argv):
    code = "if True:\n    import sys\nsys.argv"
    (tmp_path / "main.py").write_text(code)
    names = {"FILE": str(tmp_path / "main.py"), "CODE": code}
    words = [names.get(word, word) for word in arguments]
    at = words.index("--") if "--" in words else len(words)
    done = mbm("board-execute", "demo-1", "--json", *words[:at], *words[at:])
    assert done.json["demo-1"]["value"] == [names.get(word, word) for word in argv]


def test_arguments_do_not_move_the_lines_of_a_traceback(boards, mbm, tmp_path: Path):
    (tmp_path / "main.py").write_text("for n in range(1):\n    pass\n1 / 0\n")
    done = mbm("board-execute", "demo-1", str(tmp_path / "main.py"), "--", "a")
    assert "line 3" in done.out + done.err
    assert "1 / 0" in done.out + done.err


def test_program_of_a_pipe_has_arguments_too(boards, monkeypatch, mbm):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"import sys; sys.argv")))
    done = mbm("board-execute", "demo-1", "--json", "--", "a")
    assert done.json["demo-1"]["value"] == ["-", "a"]


def test_cell_without_arguments_leaves_them_alone(boards, fleet, mbm):
    fleet["demo-1"].run("import sys; sys.argv[:] = ['mine']").raise_for_error()
    done = mbm("board-execute", "demo-1", "--json", "-c", "sys.argv")
    assert done.json["demo-1"]["value"] == ["mine"]
    names = ["demo-1", "demo-2"]
    given = {name: {"n": name} for name in names}
    results = fleet["demo-[1-2]"].run(
        "import sys; (sys.argv, n)", argv=["x"], inputs_by_board=given
    )
    assert results.to_dict() == {name: (["x"], name) for name in names}


def test_board_execute_prints_json(boards, mbm):
    done = mbm("board-execute", "demo-[1-2]", "-c", "print('hi'); {'a': [1, None]}", "--json")
    one = {**RESULT, "stdout": "hi\n", "value": {"a": [1, None]}}
    assert (done.status, without_times(done.json)) == (0, {"demo-1": one, "demo-2": one})


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("None", None),
        ("float('nan')", "nan"),
        ("(1, 2)", "(1, 2)"),
        ("b'x'", "b'x'"),
        ("object", "<class 'object'>"),
        ("1 << 64", 1 << 64),
    ],
)
def test_values_are_converted_to_json(boards, mbm, cell, value):
    done = mbm("board-execute", "demo-1", "-c", cell, "--json")
    assert without_times(done.json) == {"demo-1": {**RESULT, "value": value}}


def test_failing_cell_is_status_1(boards, mbm):
    fleet_cell = "import sys\nif True:\n    1 / 0"
    done = mbm("board-execute", "demo-[1-2]", "-c", fleet_cell)
    assert done.status == 1
    assert 'File "<cell>", line 3, in <module>\n    1 / 0\nZeroDivisionError' in done.out
    done = mbm("board-execute", "demo-1", "-c", fleet_cell, "--json")
    (result,) = without_times(done.json).values()
    assert (done.status, result["status"], result["value"]) == (1, "error", None)
    assert result["error"].endswith("ZeroDivisionError: divide by zero\n")


def test_offline_board_is_status_1(boards, fleet: Fleet, mbm):
    fleet.enrol(["away-1"])
    try:
        done = mbm("board-execute", "away-1,demo-1", "-c", "1", "--json")
    finally:
        fleet.revoke("away-1")
    results = done.json
    assert done.status == 1
    assert (results["away-1"]["status"], results["demo-1"]["value"]) == ("offline", 1)
    assert "never connected" in results["away-1"]["error"]


def test_timeout_interrupts_the_cell(boards, mbm):
    done = mbm("board-execute", "demo-1", "-c", "while True: pass", "--timeout", "0.2", "--json")
    assert (done.status, done.json["demo-1"]["status"]) == (1, "timeout")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("demmo-1", "mbm: No board is called demmo-1. Did you mean demo-1?"),
        ("demo-[3-1]", "\n    demo-[3-1]\n"),
        ("nothing-*", "nothing-*"),
        ("", "mbm: "),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_target_without_boards_is_status_2(boards, mbm, target, expected, more):
    done = mbm("board-execute", target, "-c", "1", *more)
    assert (done.status, done.out, expected in done.err) == (2, "", True)


def test_cell_is_read_from_a_file(boards, mbm, tmp_path):
    path = tmp_path / "cell.py"
    path.write_text("x = 'é'\nx * 2\n", encoding="utf-8")
    for arguments in ([str(path), "--json"], ["--json", "--timeout", "9", str(path)]):
        done = mbm("board-execute", "demo-1", *arguments)
        assert (done.status, done.json["demo-1"]["value"]) == (0, "éé")


@pytest.mark.parametrize("more", [[], ["-"]], ids=["nothing", "-"])
def test_cell_is_read_from_standard_input(boards, more):
    done = process("board-execute", "demo-1", *more, "--json", input="x = 20\nx + 1\n")
    assert (done.status, done.json["demo-1"]["value"]) == (0, 21)


def test_syntax_error_is_shown_with_its_line(nobody, mbm):
    """The cell is checked before the server is contacted; here there is no server."""
    done = mbm("board-execute", "demo-1", "-c", "x = 1\ny = = 2")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "mbm: invalid syntax (line 2)\n    y = = 2\n        ^\n"
        "Nothing was sent to a board. Correct the line and run the cell again.\n"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.py", ": No such file or directory"),
        (".", ": Is a directory"),
        ("binary.py", " is not UTF-8 text"),
    ],
)
def test_unreadable_file_is_status_2(nobody, mbm, tmp_path, name, why):
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe")
    path = tmp_path / name
    done = mbm("board-execute", "demo-1", str(path))
    assert (done.status, done.err) == (2, f"mbm: {path}{why}.\n")


def test_unreadable_standard_input_is_status_2(server):
    command = [MBM, "board-execute", "demo-1"]
    done = subprocess.run(command, input=b"\xff", capture_output=True, timeout=WAIT)
    assert (done.returncode, done.stderr) == (
        2,
        b"mbm: standard input is not UTF-8 text.\n",
    )


def test_labels_are_set_and_removed(boards, mbm):
    done = mbm("board-label", "demo-[1-2]", "room=lab", "row=3")
    assert (done.status, done.out) == (0, "demo-[1-2]: room=lab, row=3\n")
    found = {board["name"]: board["labels"] for board in mbm("board-list", "--json").json}
    assert (found["demo-1"], found["demo-3"]) == ({"room": "lab", "row": "3"}, {})
    assert mbm("board-label", "row=3", "room=", "row=", "--json").json == ["demo-1", "demo-2"]
    assert mbm("board-execute", "room=lab", "-c", "1").status == 2


@pytest.mark.parametrize("label", ["room", "platform=x", "=x", "room=[1]"])
def test_invalid_label_is_status_2(boards, mbm, label):
    done = mbm("board-label", "demo-1", label)
    assert (done.status, done.out, done.err.startswith("mbm: ")) == (2, "", True)


# Jobs


def test_jobs_are_listed_shown_and_interrupted(boards, fleet: Fleet, mbm):
    group = fleet["demo-1"].submit("print('begun')\nwhile True: pass")
    number = group.jobs["demo-1"].number
    deadline = time.monotonic() + WAIT
    while mbm("job-show", str(number), "--json").json["stdout"] != "begun\n":
        assert time.monotonic() < deadline
    assert mbm("job-list", "demo-1").out.splitlines()[2].split()[:3] == [
        str(number),
        "demo-1",
        "running",
    ]
    listed = mbm("job-list", "--json").json[0]
    assert [listed[name] for name in ("job", "kind", "what")] == [number, "cell", "print('begun')"]
    assert mbm("job-list").out.splitlines()[2].endswith("  print('begun')")
    assert mbm("job-show", str(number)).out.startswith(f"job {number} on demo-1: running")
    done = mbm("job-interrupt", str(number), "999999999")
    assert done.status == 1
    assert done.out == "Interrupted 1 of 2 jobs; 1 does not exist.\n"
    assert group.results(WAIT)["demo-1"].status == "interrupted"
    done = mbm("job-interrupt", str(number), "--json")
    assert (done.status, done.json) == (0, {"interrupted": 0}), "it had already ended"


def test_job_is_called_by_its_file_or_by_what_it_does(boards, fleet: Fleet, mbm, tmp_path: Path):
    program = tmp_path / "blink.py"
    program.write_text("import gc\n")
    assert mbm("board-execute", "demo-1", str(program)).status == 0
    fleet["demo-1"].run("x", inputs={"x": "a password"})
    fleet["demo-1"].reset()
    fleet["demo-1"].put(b"1", ":/a.txt")
    newest = [(job["kind"], job["what"]) for job in fleet.jobs("demo-1")[:4]]
    assert newest[0][0] == "files"
    assert newest[0][1].startswith("put /a.txt")
    assert newest[1:] == [("reset", ""), ("cell", "x"), ("cell", str(program))]
    fleet["demo-1"].rm(":/a.txt")


def test_unknown_job_is_status_1(server, mbm):
    done = mbm("job-show", "999999999")
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert mbm("job-interrupt", "999999999").status == 1


# Virtual boards


def test_simulate_runs_until_ctrl_c(server, fleet: Fleet):
    with background("simulate", "2", "--name", "cli", "--heap", "96k", "--flash", "512k") as run:
        assert run.stdout.readline() == f"cli-[1-2] joined {server.url}\n"
        assert run.stderr.readline() == "Press Ctrl-C to stop them.\n"
        assert fleet["cli-[1-2]"].run("1").ok
        run.send_signal(signal.SIGINT)
        run.wait(WAIT)
        assert run.returncode == 130
        assert run.stderr.read() == (
            "\nStopped cli-[1-2]. They stay in the fleet as offline; "
            "`mbm board-revoke 'cli-[1-2]'` removes them.\n"
        )
    deadline = time.monotonic() + WAIT
    while any(board["connected_since"] for board in fleet.boards("cli-[1-2]")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_detached_boards_run_until_simulate_stop(server, fleet: Fleet):
    try:
        done = process("simulate", "--name", "kept", "--detach", "--json")
        assert (done.status, list(done.json)) == (0, ["kept-1"])
        assert done.err == "Stop them with `mbm simulate --stop --name kept`.\n"
        assert fleet["kept-1"].run("6 * 7").value == 42
        other = process("simulate", "--stop", "--name", "other")
    finally:
        ended = process("simulate", "--stop")
    text = "No detached virtual board is called other-1; kept-1 is running.\n"
    assert (other.status, other.out) == (1, text)
    text = (
        "Stopped kept-1. It stays in the fleet as offline; `mbm board-revoke kept-1` removes it.\n"
    )
    assert (ended.status, ended.out) == (0, text)
    with pytest.raises(ProcessLookupError):
        os.kill(done.json["kept-1"], 0)
    assert process("simulate", "--stop").out == "No detached virtual boards are running.\n"
    assert process("simulate", "--stop", "--json").json == {"stopped": []}


def test_simulate_of_boards_that_run_names_the_option_for_others(boards, mbm):
    done = mbm("simulate", "2", "--name", "demo")
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        "mbm: demo-[1-2] are running already. `mbm board-list` shows them. "
        "`--name PREFIX` starts boards of other names.\n"
    )


def test_simulate_refuses_a_remote_server_without_allow_remote(own_home, mbm):
    try:
        assert mbm("server-start", "--listen", "0.0.0.0", "--port", "0").status == 0
        listens = mbm("server-status", "--json").json["address"]
        done = mbm("simulate", "1", "--name", "far")
    finally:
        mbm("server-stop")
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        f"mbm: Others can reach the server at {listens}, and virtual boards are not a sandbox. "
        "With --allow-remote, everybody who may run cells there can act as you on this machine.\n"
    )


def test_verbs_say_what_they_wait_for(fleet: Fleet):
    group = fleet["demo-[1-2]"].submit("import time; time.sleep(30)")
    with (
        background("board", "demo-1", "ls", ":/lib") as files,
        background("board-execute", "demo-2", "-c", "6 * 7") as cell,
    ):
        notices = [files.stderr.readline(), cell.stderr.readline()]
        group.interrupt()
        outcomes = [each.communicate(timeout=WAIT) for each in (files, cell)]
    for number, notice in enumerate(notices, 1):
        assert notice.startswith(
            f"mbm: waiting for demo-{number}: it has been running a job of the local user for "
        )
    assert outcomes[1] == ("42\n", "")
    assert outcomes[0][1] == ""


def test_board_stop_ends_a_program_that_keeps_the_board_busy(
    mbm, fleet: Fleet, server: RunningServer
):
    with running_boards(server, fleet, ["busy-1"]) as boards:
        fleet["busy-1"].run("with open('/app.py', 'w') as f:\n    f.write('while True: pass')")
        boards.restart("busy-1")
        state = until(lambda: mbm("board-list", "busy-1").out, "busy: app.py")
        group = fleet["busy-1"].submit("6 * 7", listen=True)
        waits = next(event for event in group.events() if event.kind == "queued")
        assert waits.text == "behind app.py"
        assert mbm("board", "busy-1", "stop").status == 0
        assert group.results(10)["busy-1"].value == 42
        assert "idle: app.py ended" in until(lambda: mbm("board-list", "busy-1").out, "ended")
        assert state
    fleet.revoke("busy-1")


def until(get_text, expected):
    """Return the text once it contains what is expected."""
    deadline = time.monotonic() + 10
    while expected not in (text := get_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    return text
