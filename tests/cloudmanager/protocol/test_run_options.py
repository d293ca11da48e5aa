"""The options of cells and installs: declared once, shown in signatures and help texts."""

import argparse
import dataclasses
import inspect
from typing import Any

import pytest

from cloudmanager import AsyncFleet, Boards
from cloudmanager.client.async_fleet import AsyncBoards
from cloudmanager.client.install_options import (
    InstallKeywords,
    InstallOptions,
    add_install_options,
    install_keywords,
)
from cloudmanager.client.keywords import show_keywords
from cloudmanager.client.run_arguments import add_run_options, run_keywords
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.option_info import option_infos
from cloudmanager.protocol.run_options import (
    OptionLimits,
    RunKeywords,
    RunOptions,
    WaitKeywords,
)

DAY = 86400.0
WEEK = 7 * DAY
NOW = 1_800_000_000.0
LIMITS = OptionLimits(WEEK, 30 * DAY, 300.0, NOW)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {}),
        ({"timeout": 0}, {"timeout": 0}),
        ({"timeout": 2.5, "fresh": True}, {"timeout": 2.5, "fresh": True}),
        ({"wait": 3, "answers": True, "idle": True}, {"wait": 3, "answers": True, "idle": True}),
    ],
)
def test_only_other_values_than_the_defaults_are_sent(options, sent):
    assert RunOptions(**options).to_wire() == sent


@pytest.mark.parametrize("options", [{}, {"timeout": 2.5, "fresh": True}, {"wait": 3.0}])
def test_server_reads_what_was_sent(options):
    head = {"target": "all", "awaits": True, **RunOptions(**options).to_wire()}
    assert RunOptions.from_wire(head, LIMITS) == RunOptions(**options)


@pytest.mark.parametrize("name", ["timeout", "wait"])
@pytest.mark.parametrize("value", [0, -1, WEEK + 1, "5", float("nan"), float("inf"), [1]])
def test_number_of_seconds_is_checked(name, value):
    with pytest.raises(ServerError, match=f"{name} is a number of seconds above 0, at most 7 days"):
        RunOptions.from_wire({name: value}, LIMITS)


def test_servers_exchange_all_options():
    options = RunOptions(timeout=1.5, fresh=True, wait=2.0, answers=True, idle=True)
    assert set(options.to_fields()) == {field.name for field in dataclasses.fields(RunOptions)}
    assert RunOptions.from_fields({**options.to_fields(), "later": 1}) == options


def test_every_keyword_is_an_option_with_a_flag():
    flags = [name for name, info in option_infos(RunOptions).items() if info.flag]
    assert flags == list(RunKeywords.__annotations__)


def test_parsed_options_are_keywords():
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    here: dict[str, Any] = {"when_online": False, "expires": None}
    none = {"timeout": None, "fresh": False, "wait": 0.0}
    here |= {"at": None, "late": "skip"}
    assert run_keywords(parser.parse_args([])) == {**none, **here}
    parsed = parser.parse_args(["--timeout", "5", "--fresh", "--wait", "0.5"])
    assert run_keywords(parsed) == {"timeout": 5.0, "fresh": True, "wait": 0.5, **here}
    parsed = parser.parse_args(["--when-online", "--expires", "2h"])
    assert run_keywords(parsed) == {**none, **here, "when_online": True, "expires": 7200.0}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"expires": 60.0}, "expires is for work that waits"),
        ({"when_online": True, "wait": 1.0}, "wait keeps the caller waiting"),
        ({"when_online": True, "idle": True}, "idle for those that are free"),
        ({"when_online": True, "at": "+5"}, "at is for boards that are there"),
        ({"late": "run"}, "late is about cells that start at a time"),
        ({"late": "maybe", "at": "+5"}, "late is one of: skip, run"),
        ({"at": "+300.001"}, "at is 5 minutes ahead at most"),
        ({"at": NOW + 301}, "at is 5 minutes ahead at most"),
        ({"at": NOW - 1.5}, "at was 1.5 s ago, by the server's clock; nothing ran"),
        ({"at": NOW - 31_000}, "at was 8 h ago, by the server's clock; nothing ran"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, why):
    with pytest.raises(ServerError, match=why):
        RunOptions.from_wire(options, LIMITS)


@pytest.mark.parametrize(
    ("at", "seconds"),
    [("+5s", 5), ("+0.25", 0.25), ("+2m", 120), (NOW + 7.5, 7.5)],
)
def test_time_of_a_cell_is_resolved_by_the_servers_clock(at, seconds):
    options = RunOptions.from_wire(RunOptions(at=at).to_wire(), LIMITS)
    assert options.start == NOW + seconds
    assert RunOptions.from_fields(options.to_fields()) == options


def test_time_in_the_past_is_accepted_for_cells_that_may_be_late():
    assert RunOptions.from_wire({"at": NOW - 3, "late": "run"}, LIMITS).start == NOW - 3


@pytest.mark.parametrize(
    "value", ["5s", "+", "+-5", "+inf", "+1e999", "", True, [1], float("nan"), 0, -5, 10**400]
)
def test_time_of_a_hostile_caller_is_checked(value):
    with pytest.raises(ServerError, match="at is seconds since 1970, or"):
        RunOptions.from_wire({"at": value}, LIMITS)


@pytest.mark.parametrize("value", [0, -1, 31 * DAY, "7d", True, float("nan")])
def test_time_to_wait_is_checked(value):
    with pytest.raises(
        ServerError, match="expires is a number of seconds above 0, at most 30 days"
    ):
        RunOptions.from_wire({"when_online": True, "expires": value}, LIMITS)


@pytest.mark.parametrize(
    ("function", "keywords", "options"),
    [
        (Boards.run, RunKeywords, RunOptions),
        (Boards.submit, RunKeywords, RunOptions),
        (AsyncBoards.run, RunKeywords, RunOptions),
        (AsyncBoards.submit, RunKeywords, RunOptions),
        (Boards.put, WaitKeywords, RunOptions),
        (AsyncBoards.sync, WaitKeywords, RunOptions),
        (Boards.reset, WaitKeywords, RunOptions),
        (Boards.install, InstallKeywords, InstallOptions),
        (AsyncBoards.install, InstallKeywords, InstallOptions),
    ],
)
def test_signature_and_docstring_show_the_options(function, keywords, options):
    parameters = inspect.signature(function).parameters
    for name in keywords.__annotations__:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == getattr(options, name)
        assert f"            {name}: " in function.__doc__


def test_every_keyword_of_an_install_is_an_option():
    assert list(InstallKeywords.__annotations__) == list(option_infos(InstallOptions))
    parser = argparse.ArgumentParser()
    add_install_options(parser)
    given = install_keywords(parser.parse_args(["--index", "acme=https://a.example", "--no-mpy"]))
    assert InstallOptions(**given) == InstallOptions(
        no_mpy=True, indexes={"acme": "https://a.example"}
    )


async def test_unknown_keyword_is_a_type_error():
    options: dict[str, Any] = {"tmeout": 1}
    with pytest.raises(TypeError, match="tmeout"):
        await AsyncFleet("http://127.0.0.1:1")["all"].submit("1", **options)


@pytest.mark.parametrize("clean", [False, True])
def test_docstring_with_and_without_indentation_shows_the_options(clean):
    """Python removes the indentation from 3.13 on, and docstrings with -OO."""

    def run(**options):
        """Run.

        Args:
            code: to run.
            options: see ``RunOptions``.

        Raises:
            TypeError: never.
        """

    if clean:
        run.__doc__ = inspect.cleandoc(run.__doc__ or "")
    shown = inspect.cleandoc(show_keywords(RunKeywords, RunOptions)(run).__doc__ or "")
    args = shown.partition("Args:\n")[2].partition("\n\nRaises:")[0].splitlines()
    assert args[0] == "    code: to run."
    names = [line.strip().partition(":")[0] for line in args[1:] if line[4] != " "]
    assert names == list(RunKeywords.__annotations__)
    assert all(line.startswith("    ") and len(line) <= 76 for line in args)


def test_function_without_a_docstring_shows_the_options_in_its_signature():
    def run(**options): ...

    shown = show_keywords(RunKeywords, RunOptions)(run)
    assert shown.__doc__ is None
    assert list(inspect.signature(shown).parameters) == list(RunKeywords.__annotations__)
