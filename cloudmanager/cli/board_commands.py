"""``mbm board TARGET MACRO``: short commands for frequent tasks on boards."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Unpack

from cloudmanager.client.copy_words import copy_words
from cloudmanager.client.file_jobs import as_file_results
from cloudmanager.client.files import empty_result, failed_result
from cloudmanager.client.fleet import Boards
from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS
from cloudmanager.client.progress import ProgressCallback
from cloudmanager.protocol.errors import BoardError, BoardOffline, CloudmanagerError
from cloudmanager.protocol.run_options import WaitKeywords
from cloudmanager.protocol.text import nearest_name
from cloudmanager.results.results import Result, Results

from .edit_files import OpenFleet, edit_files

PROGRAM: Final = "app.py"  # the fact `program` of a board while its own program runs
_POLL_SECONDS: Final = 0.12  # between two looks at programs that are being stopped
_MAX_DEPTH: Final = 20  # levels of lists and dicts in a setting; a chip's stack ends at about 50
_SURROGATES: Final = re.compile("[\ud800-\udfff]")  # they have no UTF-8
EDIT: Final = "edit"  # the macro
SETTINGS: Final = ":settings.json"  # a file on boards for the settings of the user's programs


class Macro(NamedTuple):
    """One macro.

    Attributes:
        arguments: the names of its arguments; those in brackets may be left out, and one that ends
            in "…" may be repeated.
        description: what it does, for ``--help``.
        action: called with the boards, the arguments, and True for each of its options; None for
            `edit`, which ``run_edit`` runs.
        options: its options, as mpremote and shells have them -> the names of the arguments.
        words: returns the result of a board as text for people; None: as it is.
        progress_unit: what its progress counts, "boards" or "bytes"; "" if the action does not take
            ``progress=``.
        can_wait: whether the action takes ``when_online=`` and ``expires=``.
    """

    arguments: tuple[str, ...]
    description: str
    action: Callable[..., Results] | None = None
    options: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    words: Callable[[Result], str] | None = None
    progress_unit: str = ""
    can_wait: bool = False

    def usage(self, name: str) -> str:
        """Return its name, its options and its arguments."""
        options: dict[tuple[str, ...], str] = {}  # what an option sets -> its first spelling
        for option, names in self.options.items():
            if len(names) == 1:
                options.setdefault(names, option)
        return " ".join((name, *(f"[{each}]" for each in options.values()), *self.arguments))

    def check_words(self, name: str, words: Sequence[str]) -> None:
        """Check the arguments.

        Raises:
            ValueError: there are too few or too many, or one is an option that the macro lacks.
        """
        required = sum(not argument.startswith("[") for argument in self.arguments)
        is_repeated = any("…" in argument for argument in self.arguments)
        if len(words) < required or not (is_repeated or len(words) <= len(self.arguments)):
            raise ValueError(f"Wrong number of arguments. Usage: {self._line(name)}")
        takes_paths = any("PATH" in argument for argument in self.arguments)
        unknown = [word for word in words if word.startswith("-") and takes_paths]
        if unknown:
            raise ValueError(
                f"{name} has no option {unknown[0]}. Usage: {self._line(name)} "
                "(a path that begins with a dash is written with a colon, :-x)"
            )

    def _line(self, name: str) -> str:
        return f"mbm board TARGET {self.usage(name)}"


def find_macro(name: str) -> Macro:
    """Return a macro.

    Raises:
        ValueError: none has this name.
    """
    macro = MACROS.get(name)
    if macro is None:
        nearest = nearest_name(name, MACROS)
        guess = f" Did you mean {nearest}?" if nearest else ""
        raise ValueError(f"No macro is called {name}.{guess} The macros are {', '.join(MACROS)}.")
    return macro


def cannot_wait_reason(name: str) -> str:
    """Return why a macro cannot wait for its boards on the server; "" if it can.

    Raises:
        ValueError: no macro has this name.
    """
    if find_macro(name).can_wait:
        return ""
    usable = " and ".join(f"`{each}`" for each, macro in MACROS.items() if macro.can_wait)
    return (
        f"of the macros, only {usable} can wait for boards; "
        "`mbm board-execute TARGET --when-online` runs any cell."
    )


def run_edit(open_fleet: OpenFleet, target: str, arguments: Sequence[str]) -> Results:
    """Run the macro `edit`, which has the terminal for itself, and connects when it has to."""
    MACROS[EDIT].check_words(EDIT, arguments)
    return edit_files(open_fleet, target, *_board_paths(arguments))


def run_macro(
    boards: Boards,
    name: str,
    arguments: Sequence[str],
    progress: ProgressCallback | None = None,
    **waits: Unpack[WaitKeywords],
) -> Results:
    """Run a macro on boards.

    Args:
        boards: the boards.
        name: the macro.
        arguments: its options and arguments.
        progress: see ``Macro.progress_unit``.
        waits: whether the server keeps it until each board is there: see ``RunOptions``.

    Raises:
        ValueError: no macro has this name, or the number of arguments is wrong.
    """
    macro = find_macro(name)
    assert macro.action is not None
    given = [each for each in arguments if each in macro.options]
    words = [each for each in arguments if each not in macro.options]
    macro.check_words(name, words)
    options: dict[str, Any] = {}
    for each in given:
        options |= dict.fromkeys(macro.options[each], True)
    if macro.progress_unit:
        options["progress"] = progress
    if macro.can_wait:
        options |= waits
    return macro.action(boards, *words, **options)


def in_words(results: Results, name: str) -> Results:
    """Return the results of a macro with its values as text for people."""
    words = MACROS[name].words
    described: dict[str, Result] = {}
    for board, result in results.items():
        described[board] = result
        if words is not None and (text := words(result)):
            described[board] = Result(board, result.job, "ok", stdout=text)
        elif isinstance(result.error, BoardError) and result.traceback:
            # The lines of a traceback are those of the macro, which nobody has written here.
            error = ": ".join(filter(None, (result.error.ename, result.error.evalue)))
            last = error.removeprefix("OSError: ")
            described[board] = Result(board, result.job, result.status, traceback=last)
    return Results(described, results.left_out)


def _board_path(text: str) -> str:
    """Return a path on boards; the user may leave out its colon. An empty text is not the root."""
    return text if text.startswith(":") or not text else f":{text}"


def _board_paths(texts: Sequence[str]) -> list[str]:
    return [_board_path(text) for text in texts]


def _echo(boards: Boards, text: str) -> Results:
    return boards.run(f"print({text!r})")


def _stop_programs(boards: Boards) -> Results:
    """Stop the boards' own programs and wait until they have ended.

    Boards whose program still runs after the grace period have a failed result.
    """
    names = boards.names()  # first: it raises, or names boards that are not connected
    connected = boards.stop()
    deadline = time.monotonic() + INTERRUPT_GRACE_SECONDS
    running = _running_programs(boards, connected)
    while running and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        running = _running_programs(boards, connected)
    results = {}
    for name in names:
        if name in running:
            results[name] = _still_running(name)
        else:
            results[name] = empty_result(name) if name in connected else _offline(boards, name)
    return Results(results, ())


def _offline(boards: Boards, name: str) -> Result:
    """Return the failed result of a board that is not connected."""
    last_seen = next((each["last_seen"] for each in boards.info() if each["name"] == name), None)
    return failed_result(name, BoardOffline(name, last_seen))


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


def _stay_awake(boards: Boards, span: str) -> Results:
    """Keep boards awake that sleep.

    Raises:
        ValueError: it is no span of time.
    """
    names = boards.stay(0 if span == "0" else span)
    text = (
        "sleeps again\n" if span == "0" else f"stays awake for {span} from its next cm.sleep on\n"
    )
    return Results({name: Result(name, 0, "ok", stdout=text) for name in names}, ())


def _draw_trees(
    boards: Boards, *paths: str, in_bytes: bool = False, in_units: bool = False
) -> Results:
    """Return folders as trees, with the sizes of files in bytes or in units."""
    found = boards.tree(_board_paths(paths) or ":/")
    sizes = "units" if in_units else "bytes" if in_bytes else ""
    trees = {
        name: result.with_value([tree._replace(sizes=sizes) for tree in result.value])
        if result.ok
        else result
        for name, result in as_file_results(found).items()
    }
    return Results(trees, found.left_out)


#: The value: year, month, day, hour, minute, second.
_READ_CLOCK_CODE: Final = "__import__('time').localtime()[:6]"
#: DATETIME is that of `machine.RTC`: year, month, day, weekday, hour, minute, second, subseconds.
_SET_CLOCK_CODE: Final = """\
try:
    from machine import RTC
except ImportError:
    raise OSError("this board has no clock of its own")
RTC().datetime(DATETIME)
"""


def _clock(boards: Boards, *, set_clock: bool = False) -> Results:
    """Read the boards' clocks, after setting them to this computer's time if ``set_clock``.

    Boards keep UTC, as the server sets it.
    """
    if not set_clock:
        return boards.run(_READ_CLOCK_CODE)
    now = time.gmtime()
    fields = (*now[:3], now.tm_wday, *now[3:6], 0)
    code = _SET_CLOCK_CODE.replace("DATETIME", repr(fields))
    return boards.run(f"exec({code!r}, {{}})\n{_READ_CLOCK_CODE}")


def _clock_words(result: Result) -> str:
    """Return the date and the time of a clock; "" for a failure."""
    if not result.ok:
        return ""
    return "{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*result.value)


#: The value: platform, the text of sys.version, numbers of the version, and name of the hardware.
_UNAME_CODE: Final = """\
import sys
_i = sys.implementation
sys.platform, sys.version, tuple(_i[1][:3]), getattr(_i, "_machine", "")
"""


def _uname_words(result: Result) -> str:
    """Return the value of the macro `uname` as a sentence; "" for a failure."""
    if not result.ok:
        return ""
    platform, version, numbers, machine = result.value
    build = version.rpartition("MicroPython ")[2]
    hardware = f"{machine} ({platform})" if " with " in machine else platform
    return f"MicroPython {'.'.join(map(str, numbers))} on {hardware}; build {build}"


def _show_settings(boards: Boards) -> Results:
    results = boards.settings()
    texts = {
        name: as_file_results(results)[name].with_value(_settings_file(result.value))
        if result.ok
        else result
        for name, result in results.items()
    }
    return Results(texts, results.left_out)


def _settings_file(settings: dict[str, Any] | str) -> bytes:
    """Return settings as their file has them."""
    if isinstance(settings, str):
        return settings.encode()
    return json.dumps(settings, indent=1, ensure_ascii=False).encode()


def _settings_words(result: Result) -> str:
    """Return settings as lines; "" for a failure, or for a file that is no JSON object."""
    if isinstance(result.error, FileNotFoundError):
        return "no settings yet: `mbm board TARGET set KEY VALUE` writes the first"
    if not result.ok:
        return ""
    try:
        settings = json.loads(result.value)
    except ValueError:
        return ""
    if not isinstance(settings, dict):
        return ""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join(lines) or "no settings"


def _change_setting(boards: Boards, key: str, value: str, **waits: Unpack[WaitKeywords]) -> Results:
    """Change one setting on each board; the other settings of each board are kept."""
    results = boards.change_settings({key: _parse_value(value)}, **waits)
    done = {
        name: as_file_results(results)[name].with_value(None) if result.ok else result
        for name, result in results.items()
    }
    return Results(done, results.left_out)


def _parse_value(text: str) -> Any:
    """Return the value that a text means as JSON, as a Python literal or as a table of TOML.

    A value that boards cannot read from JSON, such as Infinity, is the text itself.
    """
    for parse in (json.loads, ast.literal_eval, _parse_toml_table):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text)
            if _is_readable(value):
                return value
    return text


def _parse_toml_table(text: str) -> Any:
    """Return an inline table, such as ``{ secret = "mqtt" }``, as in ``fleet.toml``."""
    if not text.lstrip().startswith("{") or "\n" in text.strip():
        raise ValueError("this is no inline table")
    return tomllib.loads(f"value = {text}")["value"]


def _is_readable(value: object, depth: int = 0) -> bool:
    """Return whether MicroPython's json can read a value."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        has_names = all(isinstance(key, str) for key in value)
        return has_names and _is_readable([*value, *value.values()], depth)
    if isinstance(value, (list, tuple)):
        return all(_is_readable(each, depth + 1) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not _SURROGATES.search(value)
    return value is None or isinstance(value, int)


#: Blinks the LED that the port names "LED" (RP2), and leaves it as it was.
_IDENTIFY_CODE: Final = """
def blink():
    import time
    try:
        from machine import Pin
        led = Pin("LED", Pin.OUT)
    except (ImportError, TypeError, ValueError):
        raise OSError("this board's MicroPython names no LED")
    before = led.value()
    for n in range(50):
        led.value(n & 1)
        time.sleep_ms(100)
    led.value(before)
blink()
"""

MACROS: Final[dict[str, Macro]] = {
    "echo": Macro(("TEXT",), "print TEXT on the boards", _echo),
    "identify": Macro(
        (),
        "blink the boards' LED for five seconds",
        lambda boards, progress: boards.run(_IDENTIFY_CODE, progress=progress),
        progress_unit="boards",
    ),
    "reset": Macro(
        (),
        "soft-reset the boards; with --hard, reset their chips",
        lambda boards, progress, **options: boards.reset(progress=progress, **options),
        {"--hard": ("hard",)},
        progress_unit="boards",
        can_wait=True,
    ),
    "stay": Macro(
        ("SPAN",),
        "keep boards awake that sleep, such as for 10m, when they wake; 0 ends that",
        _stay_awake,
    ),
    "bootloader": Macro(
        (),
        "start the boot loader, for firmware over a cable; the board is away then",
        lambda boards: boards.bootloader(),
    ),
    "ls": Macro(
        ("[PATH…]",),
        "list folders, or what matches a pattern; with -r, subfolders too",
        lambda boards, *paths, **options: boards.ls(
            _board_paths(paths) or ":/", glob=True, **options
        ),
        dict.fromkeys(("-r", "-R", "--recursive"), ("recursive",)),
    ),
    "tree": Macro(
        ("[PATH…]",),
        "show folders as a tree; with -s, sizes, with --human in units",
        _draw_trees,
        {"-s": ("in_bytes",), "--size": ("in_bytes",), "--human": ("in_units",)},
    ),
    "cat": Macro(
        ("PATH…",),
        "show files",
        lambda boards, *paths, progress: boards.read(
            _board_paths(paths), glob=True, progress=progress
        ),
        progress_unit="bytes",
    ),
    EDIT: Macro(("PATH…",), "edit files of one board with $EDITOR, and write what has changed"),
    "cp": Macro(
        ("FROM…", "TO"),
        "copy files and folders; a colon marks those on boards",
        copy_words,
        dict.fromkeys(("-r", "-R", "--recursive", "-f", "--force"), ()),
        progress_unit="bytes",
    ),
    "stat": Macro(
        ("PATH",),
        "show the type and size of a path",
        lambda boards, path: boards.stat(_board_path(path)),
    ),
    "sha256sum": Macro(
        ("PATH…",),
        "show the SHA-256 of files, which boards compute themselves",
        lambda boards, *paths: boards.sha256sum(_board_paths(paths), glob=True),
    ),
    "touch": Macro(
        ("PATH…",),
        "create empty files; those that exist stay as they are",
        lambda boards, *paths: boards.touch(_board_paths(paths)),
    ),
    "mkdir": Macro(
        ("PATH…",),
        "create folders; with -p, also those above them",
        lambda boards, *paths, **options: boards.mkdir(_board_paths(paths), **options),
        dict.fromkeys(("-p", "--parents"), ("parents",)),
    ),
    "rmdir": Macro(
        ("PATH…",),
        "remove empty folders",
        lambda boards, *paths: boards.rmdir(_board_paths(paths)),
    ),
    "rm": Macro(
        ("PATH…",),
        "remove files; with -r, folders, too; with -f, if they exist",
        lambda boards, *paths, **options: boards.rm(_board_paths(paths), glob=True, **options),
        {
            **dict.fromkeys(("-r", "-R", "--recursive"), ("recursive",)),
            **dict.fromkeys(("-f", "--force"), ("missing_ok",)),
            **dict.fromkeys(("-rf", "-fr", "-Rf", "-fR"), ("recursive", "missing_ok")),
        },
    ),
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
    "rtc": Macro(
        (),
        "show the boards' clocks; with --set, set them to this computer's first",
        _clock,
        dict.fromkeys(("--set", "-s"), ("set_clock",)),
        words=_clock_words,
    ),
    "uname": Macro(
        (),
        "show the hardware and the version of MicroPython",
        lambda boards: boards.run(_UNAME_CODE),
        words=_uname_words,
    ),
    "stop": Macro((), "stop the boards' own program (app.py)", _stop_programs),
    "settings": Macro((), f"show {SETTINGS[1:]}", _show_settings, words=_settings_words),
    "set": Macro(
        ("KEY", "VALUE"),
        f"change one setting in {SETTINGS[1:]}",
        _change_setting,
        can_wait=True,
    ),
}
