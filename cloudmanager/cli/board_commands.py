"""``mbm board TARGET MACRO``: small things that people do with boards, each in one word."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.client.board_paths import parse_board_path
from cloudmanager.client.files import empty_result, failed_result
from cloudmanager.client.fleet import Boards
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS
from cloudmanager.client.sources import source_from_bytes
from cloudmanager.client.uploads import UploadItem, upload_per_board
from cloudmanager.client.verbs import TICK_SECONDS, run_blocking
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import nearest_name
from cloudmanager.results.results import Result, Results

PROGRAM: Final = "app.py"  # what a board says while its own program runs
SETTINGS: Final = ":settings.json"  # what the user's own programs read on a board


class Macro(NamedTuple):
    """One macro: what it takes, and what it does."""

    arguments: tuple[str, ...]
    description: str
    action: Callable[..., Results]


def run_macro(boards: Boards, name: str, arguments: Sequence[str]) -> Results:
    """Run a macro.

    Raises:
        ValueError: there is no such macro, or it takes other words.
    """
    macro = MACROS.get(name)
    if macro is None:
        meant = nearest_name(name, MACROS)
        guess = f" Did you mean {meant}?" if meant else ""
        raise ValueError(f"There is no macro {name}.{guess} There are {', '.join(MACROS)}.")
    least = sum(not word.startswith("[") for word in macro.arguments)
    if not least <= len(arguments) <= len(macro.arguments):
        raise ValueError(
            f"It is used so: mbm board TARGET {name} {' '.join(macro.arguments)}".rstrip()
        )
    return macro.action(boards, *arguments)


def _board_path(text: str) -> str:
    """Return a path on boards; here, the colon may be left out."""
    return text if text.startswith(":") else f":{text}"


def _echo(boards: Boards, text: str) -> Results:
    return boards.run(f"print({text!r})")


def _stop_programs(boards: Boards) -> Results:
    """End the boards' own programs; one that goes on is an error, though its board was asked."""
    asked = boards.stop()
    deadline = time.monotonic() + INTERRUPT_GRACE_SECONDS
    while (going := _programs(boards, asked)) and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)
    return Results(
        {name: _goes_on(name) if name in going else empty_result(name) for name in asked}, ()
    )


def _programs(boards: Boards, names: Sequence[str]) -> set[str]:
    """Return those of the boards whose own program runs."""
    there = {board["name"] for board in boards.info() if board["program"] == PROGRAM}
    return there & set(names)


def _goes_on(name: str) -> Result:
    error = CloudmanagerError(
        f"its program still runs {INTERRUPT_GRACE_SECONDS:g} s after it was interrupted"
    )
    error.hint = f"`mbm board {name} reset` ends it, whatever it does."
    return failed_result(name, error)


def _show_settings(boards: Boards) -> Results:
    return boards.read(SETTINGS)


def _change_setting(boards: Boards, key: str, value: str) -> Results:
    """Change one setting on each board, and leave its others alone."""
    known = boards.read(SETTINGS)
    plans = {}
    for name, result in known.items():
        if result.ok or isinstance(result.error, FileNotFoundError):
            settings = {
                **(_parse_settings(result.value) if result.ok else {}),
                key: _parse_value(value),
            }
            source = source_from_bytes(json.dumps(settings, indent=1).encode())
            plans[name] = [UploadItem(source, parse_board_path(SETTINGS))]
    done = run_blocking(upload_per_board(boards, plans, None))
    return Results({**known, **done}, known.left_out)


def _parse_settings(raw: bytes) -> dict[str, Any]:
    try:
        told = json.loads(raw)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"{SETTINGS} is no JSON object; remove it, or mend it by hand.")
    return told


def _parse_value(text: str) -> Any:
    """Return what a word means: a number, true, a list …, else the word itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


MACROS: Final[dict[str, Macro]] = {
    "echo": Macro(("TEXT",), "print it", _echo),
    "reset": Macro((), "a soft reset", lambda boards: boards.reset()),
    "ls": Macro(
        ("[PATH]",), "list a folder", lambda boards, path=":/": boards.ls(_board_path(path))
    ),
    "cat": Macro(("PATH",), "show a file", lambda boards, path: boards.read(_board_path(path))),
    "stat": Macro(("PATH",), "look at a path", lambda boards, path: boards.stat(_board_path(path))),
    "mkdir": Macro(
        ("PATH",), "make a folder", lambda boards, path: boards.mkdir(_board_path(path))
    ),
    "rmdir": Macro(
        ("PATH",), "remove a folder", lambda boards, path: boards.rmdir(_board_path(path))
    ),
    "rm": Macro(("PATH",), "remove a file", lambda boards, path: boards.rm(_board_path(path))),
    "mv": Macro(
        ("PATH", "PATH"),
        "rename",
        lambda boards, path, to: boards.mv(_board_path(path), _board_path(to)),
    ),
    "df": Macro((), "the room on the flash", lambda boards: boards.df()),
    "mem_free": Macro(
        (),
        "bytes of free heap",
        lambda boards: boards.run("(__import__('gc').collect(), __import__('gc').mem_free())[1]"),
    ),
    "uname": Macro(
        (),
        "what it is",
        lambda boards: boards.run("__import__('sys').platform, __import__('sys').version"),
    ),
    "stop": Macro((), "end their own programs (app.py)", _stop_programs),
    "settings": Macro((), f"show {SETTINGS[1:]}", _show_settings),
    "set": Macro(("KEY", "VALUE"), f"change a setting in {SETTINGS[1:]}", _change_setting),
}
