"""What people wait for when they start the server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloudmanager import local_server
from cloudmanager.cli import command_line, server_start
from cloudmanager.server_options import ServerOptions

#: Prints the modules of this product that are imported when the process of the server starts.
_IMPORTED = """
import os, sys
from cloudmanager import local_server
from cloudmanager.cli import main

def launch(options):
    print(*(name for name in sys.modules if name.startswith("cloudmanager.")))
    sys.stdout.flush()
    os._exit(0)

local_server.launch = launch
main(["server-start", "--port", "0"])
"""


def test_server_starts_before_the_rest_of_mbm_is_imported():
    done = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True)
    imported = done.stdout.split()
    assert "cloudmanager.cli.server_start" in imported, done.stderr
    heavy = ("cloudmanager.client", "cloudmanager.display", "cloudmanager.results")
    assert [name for name in imported if name.startswith(heavy)] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--port", "x"], ["--nonsense"], ["--beat", "0"], ["extra"]]
)
def test_its_parser_says_what_the_parser_of_all_verbs_says(arguments, capsys):
    said = []
    for parse in (
        lambda: server_start.parse_arguments(arguments),
        lambda: command_line.parse_arguments([server_start.VERB, *arguments]),
    ):
        with pytest.raises(SystemExit) as ended:
            parse()
        said.append((ended.value.code, *capsys.readouterr()))
    assert said[0] == said[1]


def test_options_are_those_of_the_parser_of_all_verbs():
    arguments = ["--port", "0", "--beat", "3", "--index", "https://a.example", "--json"]
    own = vars(server_start.parse_arguments(arguments))
    others = vars(command_line.parse_arguments([server_start.VERB, *arguments]))
    of_all_verbs = ("verb_parser", "version")
    assert own == {name: value for name, value in others.items() if name not in of_all_verbs}


def test_launched_server_can_be_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    try:
        first = local_server.launch(ServerOptions(port=0)).wait()
        second = local_server.launch(ServerOptions(port=0)).wait()
        assert (first.already, second.already, second.url) == (False, True, first.url)
    finally:
        local_server.stop()
