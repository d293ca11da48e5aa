"""``mbm``: parsing, usage errors, exit statuses; as a process where that matters."""

import os
import signal
import subprocess
import sys
from importlib import metadata

import pytest

from cloudmanager.client.fleet import Fleet
from tests.cloudmanager.conftest import WAIT, background, process
from tests.conftest import RunningServer

# No server, or no token


@pytest.mark.parametrize(
    "arguments",
    [
        ["server-status"],
        ["board-list"],
        ["board-execute", "all", "-c", "1"],
        ["board-execute", "all", "-c", "1", "--json"],
        ["board-label", "all", "a=b"],
        ["job-list"],
        ["job-show", "1"],
        ["job-interrupt", "1"],
        ["token-create", "x"],
        ["token-list"],
        ["token-revoke", "x"],
        ["audit"],
        ["simulate", "1"],
    ],
    ids=" ".join,
)
def test_missing_server_is_reported_with_status_3(nobody, mbm, arguments):
    done = mbm(*arguments)
    assert (done.status, done.out) == (3, "")
    assert done.err == (
        f"mbm: No server at {nobody} (from the default): no program listens there. "
        "Start a server with `mbm server-start`, or name another one in CM_URL.\n"
    )


def test_missing_server_message_names_the_source_of_its_address(own_home):
    done = process("board-list", env={**os.environ, "CM_URL": "http://127.0.0.1:1"})
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("mbm: No server at http://127.0.0.1:1 (from CM_URL)")


def test_wrong_token_is_reported_in_one_line(server: RunningServer, mbm, monkeypatch):
    monkeypatch.setenv("CM_TOKEN", "cm_wrong")
    done = mbm("board-list")
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        "mbm: Not allowed: the server does not know this token. "
        "Ask an administrator for a token that may do this, and set CM_TOKEN to that.\n"
    )


# Usage


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "VERB"),
        (["nonsense"], "nonsense"),
        (["board-execute"], "TARGET"),
        (["board-execute", "all", "-c", "1", "file.py"], "with -c or in FILE, not both"),
        (["board-execute", "all", "file.py", "-c", "1"], "with -c or in FILE, not both"),
        (["board-execute", "a-1", "a-2", "-c", "1"], "several boards are one TARGET: a-1,a-2"),
        (
            ["board-execute", "all", "print(1)"],
            "print(1): No such file or directory. Give code with -c.",
        ),
        (["board-execute", "all", "none.py"], "none.py: No such file or directory.\n"),
        (["board", "all"], "give a macro: echo, identify, reset, "),
        (["board-watch"], "required: TARGET\n"),
        (["board-upgrade"], "required: TARGET\n"),
        (["board"], "give a TARGET and a macro: echo, "),
        (["board-import", "no/file.csv"], "mbm: no/file.csv: No such file or directory.\n"),
        (["flash", "--firmware", "no/file.bin"], "mbm: no/file.bin: No such file or directory.\n"),
        (["server-restore", "no/file.tar"], "mbm: no/file.tar: No such file or directory.\n"),
        (["server-backup", "no/folder/file.tar"], "mbm: no/folder: No such file or directory.\n"),
        (["server-start", "--cert", "no/c.pem"], "no/c.pem: No such file or directory.\n"),
        (["board-enrol", "x", "-o", "no/file.json"], "no/file.json: No such file or directory.\n"),
        (
            ["board-install", "all", "-r", "no/file.txt"],
            "no/file.txt: No such file or directory.\n",
        ),
        (["board-install", "all", "./no"], "./no: No such file or directory.\n"),
        (["board-upload", "all", "no/file.py"], "no/file.py: No such file or directory.\n"),
        (["board-sync", "all", "no/folder"], "no/folder: No such file or directory.\n"),
        (["board-execute", "all", "one.py", "two.py"], "unrecognized arguments: two.py"),
        (["board-execute", "all", "one.py", "--no"], "unrecognized arguments: --no"),
        (["server-stop", "now"], "unrecognized arguments: now"),
        (["board-execute", "all", "--timeout", "0"], "'0' is not a positive number"),
        (
            ["board-execute", "all", "--timeout", "nan"],
            "'nan' is not a positive number",
        ),
        (
            ["board-execute", "all", "--timeout", "soon"],
            "'soon' is not a positive number",
        ),
        (["server-start", "--port", "http"], "give a TCP port from 0 to 65535"),
        (["server-start", "--port", "65536"], "give a TCP port from 0 to 65535"),
        (["server-start", "--port", "-1"], "give a TCP port from 0 to 65535"),
        (["simulate", "0"], "a number from 1 to 1000"),
        (["simulate", "1001"], "a number from 1 to 1000"),
        (["simulate", "many"], "a number from 1 to 1000"),
        (["simulate", "--heap", "big"], "such as 64k or 1M"),
        (["simulate", "--flash", "-1"], "such as 64k or 1M"),
        (
            ["job-show", "x"],
            "argument JOB: 'x' is not the number of a job; `mbm job-list` shows them",
        ),
        (["token-create"], "NAME"),
        (["token-create", "x", "--role", "root"], "invalid choice: 'root'"),
        (["token-create", "x", "--expires", "30"], "such as 90s, 10m, 12h, 30d or 8w"),
        (["token-create", "x", "--expires", "1y"], "such as 90s, 10m, 12h, 30d or 8w"),
        (["token-create", "x", "--expires", "999999w"], "at most ten years"),
        (["audit", "-n", "0"], "a number from 1 to 10000"),
        (["audit", "-n", "10001"], "a number from 1 to 10000"),
        (["audit", "-n", "all"], "a number from 1 to 10000"),
        (["board-label", "all"], "KEY=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2_with_an_explanation(mbm, arguments, expected):
    done = mbm(*arguments)
    assert (done.status, done.out, expected in done.err) == (2, "", True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["board-execute", "all", "one.py", "two.py"],
        ["board-execute", "all", "-c", "1", "one.py"],
        ["board-enrol"],
        ["server-stop", "now"],
        ["board-label", "all"],
    ],
    ids=" ".join,
)
def test_wrong_usage_shows_the_usage_of_the_verb(mbm, arguments):
    assert mbm(*arguments).err.startswith(f"usage: mbm {arguments[0]} ")


def test_help_lists_the_verbs(mbm):
    shown = mbm("--help")
    assert shown.status == 0
    for name in (
        "server-start",
        "board-list",
        "board-execute",
        "job-list",
        "token-create",
        "simulate",
        "demo",
    ):
        assert f"\n    {name}" in shown.out


def test_module_runs_like_mbm():
    command = [sys.executable, "-m", "cloudmanager", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout.startswith("usage: mbm ")) == (0, True)


def test_demo_runs_with_or_without_jupyterlab(mbm, monkeypatch):
    calls = []

    def demo(show_text, *, lab):
        calls.append(lab)
        show_text("x")
        return 1

    monkeypatch.setattr("cloudmanager.cli.demo.demo", demo)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert [mbm("demo").status, mbm("demo", "--no-lab").out] == [1, "x\n\n"]
    assert calls == [True, False]


# Interrupts and pipes


def test_ctrl_c_interrupts_the_boards_and_is_status_130(boards, fleet: Fleet):
    with background("board-execute", "demo-1", "-c", "print('begun')\nwhile True: pass") as run:
        assert run.stdout.readline() == "begun\n"
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=WAIT)
        assert (run.returncode, err) == (130, "")
        assert "KeyboardInterrupt" in out
    assert fleet["demo-1"].run("1", timeout=WAIT).value == 1


@pytest.mark.parametrize("arguments", [["board-list", "--json"], ["board-list"]], ids=" ".join)
def test_closed_pipe_ends_mbm_without_a_traceback(boards, arguments):
    """As in `mbm board-list | head -0`."""
    with background(*arguments) as run:
        run.stdout.close()
        assert run.wait(WAIT) == 1
        assert run.stderr.read() == ""


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("board-lst", "There is no verb board-lst. Did you mean board-list?"),
        ("list", "Did you mean board-list?"),
        ("boards", "Did you mean board-list?"),
        ("zzz", "There is no verb zzz. `mbm --help` lists all verbs."),
    ],
)
def test_unknown_verb_suggests_the_most_similar(mbm, verb, message):
    done = mbm(verb)
    assert (done.status, message in done.err) == (2, True)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_that_of_the_package(mbm, option):
    done = mbm(option)
    assert (done.status, done.out) == (0, f"mbm {metadata.version('cloudmanager')}\n")


def test_mbm_alone_shows_a_short_guide(mbm):
    done = mbm()
    assert "mbm server-start" in done.err
    assert "`mbm --help` lists all verbs" in done.err
