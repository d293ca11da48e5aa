"""``mbm completion`` in real shells, which read the words from a file."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeAlias

import pexpect
import pytest

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer

WORDS = "demo-1\ndemo-2\nfar.1\nroom=dark\nroom=lab\nall\n"
PROMPT = "READY> "
Bash: TypeAlias = "pexpect.spawn[str]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CM_HOME whose path needs quotes, with the words that a server writes."""
    folder = tmp_path_factory.mktemp("home") / "a $(b) 'c' \"d\""
    folder.mkdir()
    config.completion_file(folder).write_text(WORDS)
    (folder / "cell.py").write_text("1")
    return folder


@pytest.fixture(scope="module")
def script(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM_HOME", str(home))
        path = tmp_path_factory.mktemp("completion") / "mbm.bash"
        made = subprocess.run(
            [sys.executable, "-m", "cloudmanager", "completion", "bash"],
            capture_output=True,
            check=True,
        )
    path.write_bytes(made.stdout)
    return path


@pytest.fixture(scope="module")
def bash(home: Path, script: Path):
    """An interactive bash without CM_HOME: the script knows the folder."""
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], cwd=home, encoding="utf-8", dimensions=(50, 200)
    )
    shell.sendline(f"PS1='{PROMPT}'; unset CM_HOME; bind 'set bell-style none'")
    shell.sendline("bind 'set enable-bracketed-paste off'; bind 'set show-all-if-ambiguous on'")
    shell.sendline(r"""bind -x '"\C-t": printf "<%s>" "$READLINE_LINE"'""")
    shell.sendline(f"source '{script}'; echo sour''ced")
    shell.expect("\nsourced")
    shell.expect_exact(PROMPT)
    yield shell
    shell.terminate(force=True)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("board-li", "board-list "),
        ("board-list demo-", "board-list demo-"),
        ("board-list de", "board-list demo-"),
        ("board-list f", "board-list far.1 "),
        ("board-list room=l", "board-list room=lab "),
        ("board-list room=", "board-list room="),
        ("board-list far.1,room=d", "board-list far.1,room=dark "),
        ("token-create --role v", "token-create --role viewer "),
        ("token-create --role=v", "token-create --role=viewer "),
        ("board-execute f", "board-execute far.1 "),
        ("board-execute far.1 ce", "board-execute far.1 cell.py "),
        ("board far.1 ident", "board far.1 identify "),
        ("board-rename f", "board-rename far.1 "),
        ("token-create --target room=l", "token-create --target room=lab "),
        ("completion f", "completion fish "),
    ],
)
def test_tab_completes_a_word_in_bash(bash: Bash, typed: str, completed: str):
    bash.send(f"mbm {typed}\t\x14\x15")
    assert read_match(bash, "<mbm ([^>]*)>") == completed


def test_completion_lists_boards_and_labels(bash: Bash):
    bash.send("mbm board-list \t")
    offered = read_match(bash, rf"board-list \r\n(.*)\r\n{PROMPT}")
    bash.send("\x15")
    assert sorted(offered.split()) == sorted(WORDS.split())


def test_words_are_not_executed(home: Path, bash: Bash):
    """The server leaves such words out; if the file has one, it is still only text."""
    config.completion_file(home).write_text("x$(touch made)\n")
    bash.send("mbm board-list x\t\x15\r")
    bash.expect_exact(PROMPT)
    config.completion_file(home).write_text(WORDS)
    assert not (home / "made").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_function_for_boards(shell: str):
    made = subprocess.run(
        [sys.executable, "-m", "cloudmanager", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "completion.txt" in made.stdout
    assert "board-execute" in made.stdout


def test_server_writes_names_and_labels(server: RunningServer, fleet: Fleet, boards):
    fleet["demo-1"].label({"completed": "yes"})
    assert wait_for_word(server, "completed=yes")
    assert {"demo-1", "demo-2", "all"} <= set(read_words(server))
    fleet["demo-1"].label({"completed": ""})
    assert wait_for_word(server, "completed=yes", there=False)


def test_words_that_a_shell_expands_are_left_out(server: RunningServer, fleet: Fleet, boards):
    fleet["demo-1"].label({"note": "bay 7", "last": "1"})
    assert wait_for_word(server, "last=1")
    assert not any("bay" in word for word in read_words(server))
    fleet["demo-1"].label({"note": "", "last": ""})


def read_match(bash: Bash, pattern: str) -> str:
    """Wait for output that matches the pattern; return its first group."""
    bash.expect(pattern)
    assert isinstance(bash.match, re.Match)
    return str(bash.match[1])


def read_words(server: RunningServer) -> list[str]:
    return config.completion_file(server.home).read_text().splitlines()


def wait_for_word(server: RunningServer, word: str, *, there: bool = True) -> bool:
    deadline = time.monotonic() + 10
    while (word in read_words(server)) is not there and time.monotonic() < deadline:
        time.sleep(0.1)
    return (word in read_words(server)) is there
