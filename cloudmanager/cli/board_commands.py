"""``mbm board TARGET MACRO``: short commands for frequent tasks on boards."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.client.files import empty_result, failed_result
from cloudmanager.client.fleet import Boards
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import nearest_name
from cloudmanager.results.results import Result, Results

PROGRAM: Final = "app.py"  # the fact `program` of a board while its own program runs
_POLL_SECONDS: Final = 0.12  # between two looks at programs that are being stopped
SETTINGS: Final = ":settings.json"  # a file on boards for the settings of the user's programs


class Macro(NamedTuple):
    """One macro.

    Attributes:
        arguments: the names of its arguments; those in brackets may be left out.
        description: what it does, for ``--help``.
        action: called with the boards and the arguments.
    """

    arguments: tuple[str, ...]
    description: str
    action: Callable[..., Results]


def run_macro(boards: Boards, name: str, arguments: Sequence[str]) -> Results:
    """Run a macro on boards.

    Raises:
        ValueError: no macro has this name, or the number of arguments is wrong.
    """
    macro = MACROS.get(name)
    if macro is None:
        nearest = nearest_name(name, MACROS)
        guess = f" Did you mean {nearest}?" if nearest else ""
        raise ValueError(f"No macro is called {name}.{guess} The macros are {', '.join(MACROS)}.")
    required = sum(not argument.startswith("[") for argument in macro.arguments)
    if not required <= len(arguments) <= len(macro.arguments):
        usage = f"mbm board TARGET {name} {' '.join(macro.arguments)}".rstrip()
        raise ValueError(f"Wrong number of arguments. Usage: {usage}")
    return macro.action(boards, *arguments)


def _board_path(text: str) -> str:
    """Return a path on boards; the user may leave out its colon."""
    return text if text.startswith(":") else f":{text}"


def _echo(boards: Boards, text: str) -> Results:
    return boards.run(f"print({text!r})")


def _stop_programs(boards: Boards) -> Results:
    """Stop the boards' own programs and wait until they have ended.

    Boards whose program still runs after the grace period have a failed result.
    """
    names = boards.stop()
    deadline = time.monotonic() + INTERRUPT_GRACE_SECONDS
    running = _running_programs(boards, names)
    while running and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        running = _running_programs(boards, names)
    results = {
        name: _still_running(name) if name in running else empty_result(name) for name in names
    }
    return Results(results, ())


def _running_programs(boards: Boards, names: Sequence[str]) -> set[str]:
    """Return the names of the boards whose own program runs."""
    running = {board["name"] for board in boards.info() if board["program"] == PROGRAM}
    return running & set(names)


def _still_running(name: str) -> Result:
    """Return the failed result of a board whose program ignored the interrupt."""
    error = CloudmanagerError(
        f"its program still runs {INTERRUPT_GRACE_SECONDS:g} s after it was interrupted"
    )
    error.hint = f"Restart the board with `mbm board {name} reset`."
    return failed_result(name, error)


def _show_settings(boards: Boards) -> Results:
    return boards.read(SETTINGS)


def _change_setting(boards: Boards, key: str, value: str) -> Results:
    """Change one setting on each board; the other settings of each board are kept."""
    current = boards.read(SETTINGS)
    contents = {}
    for name, result in current.items():
        if result.ok or isinstance(result.error, FileNotFoundError):
            settings = _parse_settings(result.value) if result.ok else {}
            settings[key] = _parse_value(value)
            contents[name] = json.dumps(settings, indent=1).encode()
    written = boards.put_each(contents, SETTINGS)
    return Results({**current, **written}, current.left_out)


def _parse_settings(raw: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(raw)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(
            f"{SETTINGS} on a board is not a JSON object. Remove the file or correct it."
        )
    return settings


def _parse_value(text: str) -> Any:
    """Return the value that a text means as JSON or as a Python literal, else the text itself."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


MACROS: Final[dict[str, Macro]] = {
    "echo": Macro(("TEXT",), "print TEXT on the boards", _echo),
    "reset": Macro((), "soft-reset the boards", lambda boards: boards.reset()),
    "ls": Macro(
        ("[PATH]",), "list a folder", lambda boards, path=":/": boards.ls(_board_path(path))
    ),
    "cat": Macro(("PATH",), "show a file", lambda boards, path: boards.read(_board_path(path))),
    "stat": Macro(
        ("PATH",),
        "show the type and size of a path",
        lambda boards, path: boards.stat(_board_path(path)),
    ),
    "mkdir": Macro(
        ("PATH",), "create a folder", lambda boards, path: boards.mkdir(_board_path(path))
    ),
    "rmdir": Macro(
        ("PATH",), "remove an empty folder", lambda boards, path: boards.rmdir(_board_path(path))
    ),
    "rm": Macro(("PATH",), "remove a file", lambda boards, path: boards.rm(_board_path(path))),
    "mv": Macro(
        ("PATH", "PATH"),
        "rename a file or folder",
        lambda boards, path, to: boards.mv(_board_path(path), _board_path(to)),
    ),
    "df": Macro((), "show the free space of the file system", lambda boards: boards.df()),
    "mem_free": Macro(
        (),
        "show the free heap in bytes",
        lambda boards: boards.run("(__import__('gc').collect(), __import__('gc').mem_free())[1]"),
    ),
    "uname": Macro(
        (),
        "show platform and version",
        lambda boards: boards.run("__import__('sys').platform, __import__('sys').version"),
    ),
    "stop": Macro((), "stop the boards' own program (app.py)", _stop_programs),
    "settings": Macro((), f"show {SETTINGS[1:]}", _show_settings),
    "set": Macro(("KEY", "VALUE"), f"change one setting in {SETTINGS[1:]}", _change_setting),
}
