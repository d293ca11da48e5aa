"""A prompt on boards: reads inputs, runs each as a cell, and shows its output and its value."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloudmanager import config
from cloudmanager.client import cell_verbs
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.log_lines import LogFollower
from cloudmanager.client.runner import run_blocking
from cloudmanager.client.text_files import read_text
from cloudmanager.display.log_view import log_rows
from cloudmanager.display.terminal import follow_cell, print_error
from cloudmanager.display.wait_notice import WaitNotice
from cloudmanager.protocol.errors import (
    CellSyntaxError,
    CloudmanagerError,
    NotAllowed,
    notebook_hint,
)
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.text import fold_names, os_error_text, sanitize_text

from .command_words import split_words
from .repl_prompt import Prompt

_MAX_LABEL_CHARS: Final = 30  # of the boards' names in the prompt; else the target is shown
_CHECK_SECONDS: Final = 2.0  # maximum wait for the check whether cells are allowed
_MAX_LOG_ROWS: Final = 1000  # that are kept while a cell runs
_COMMANDS: Final = "The prompt has one command, `%run FILE`; Ctrl-D leaves."
_LEAVE: Final = frozenset(f"{name}{end}" for name in ("exit", "quit") for end in ("", "()"))
_NOT_SENT: Final = "Nothing was sent to a board."


class Repl:
    """A prompt on boards.

    Args:
        fleet: of the boards.
        target: the boards; it is resolved again for each input.
        with_logs: whether to show what they print outside of cells.
    """

    def __init__(self, fleet: Fleet, target: str, *, with_logs: bool = False) -> None:
        self._fleet = fleet
        self._target = target
        self._boards = fleet[target]
        self._log_printer = _LogPrinter(fleet, target) if with_logs else None

    def run(self) -> None:
        """Read inputs until Ctrl-D, `exit` or `quit`.

        Raises:
            CloudmanagerError: the target selects no boards, or the token may not run cells.
        """
        names = self._boards.names()
        self._check_access()
        label = fold_names(names)
        prompt = Prompt(
            label if len(label) <= _MAX_LABEL_CHARS else self._target,
            config.repl_history_file(config.make_home_folder()),
            self._fleet.exchange,
            self._target,
        )
        print(self._greeting(names))
        with contextlib.ExitStack() as stack:
            if self._log_printer:
                stack.enter_context(self._log_printer)
            while True:
                with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C discards the input
                    text = self._read(prompt)
                    if text is None or text.strip() in _LEAVE:
                        return
                    self._run_input(text)

    def _read(self, prompt: Prompt) -> str | None:
        """Return the next input; None at the end."""
        printing = self._log_printer.printing() if self._log_printer else contextlib.nullcontext()
        with contextlib.suppress(EOFError), prompt.above(), printing:
            return prompt.read()
        return None

    def _check_access(self) -> None:
        """Run nothing on the boards that are idle.

        Raises:
            NotAllowed: the token may not run cells.
        """
        group = JobGroup(cell_verbs.prepare_cached("None"), RunOptions(idle=True, timeout=1.0))
        self._fleet.exchange().submit(group, self._target)

        async def check() -> None:
            if await group.finished.done_within(_CHECK_SECONDS):
                group.finished.result()

        try:
            run_blocking(check())
        except NotAllowed:
            raise
        except CloudmanagerError:  # such as that all are busy: an input may wait for them
            pass

    def _greeting(self, names: list[str]) -> str:
        versions = {
            f"MicroPython {board['version']} on {board['platform']}"
            for board in self._fleet.boards(self._target)
            if board["name"] in names
        }
        what = versions.pop() if len(versions) == 1 else "different versions of MicroPython"
        return (
            f"{fold_names(names)}: {sanitize_text(what)}. Tab completes, Ctrl-C interrupts, "
            "Ctrl-D leaves, %run FILE runs a file."
        )

    def _run_input(self, text: str) -> None:
        """Run an input; show its outcome, or why it did not run."""
        code = textwrap.dedent(text).strip()
        try:
            if code.startswith("%"):
                code = _read_command(code)
            if code:
                self._run_cell(code)
        except CellSyntaxError as error:
            # Its own hint is about the cells of a notebook.
            error.hint = f"{_NOT_SENT} {_COMMANDS}" if notebook_hint(error.text) else _NOT_SENT
            print_error(str(error))
        except (CloudmanagerError, ValueError) as error:
            print_error(str(error))
        except OSError as error:
            print_error(os_error_text(error))

    def _run_cell(self, code: str) -> None:
        group = self._boards.submit(code, listen=True, answers=True)
        shows_waits = len(group.jobs) > 1  # in its live display
        try:
            with WaitNotice(self._fleet.queued_jobs, quiet=shows_waits):
                follow_cell(group)
        except KeyboardInterrupt:
            if running := [job.board for job in group.jobs.values() if job.result is None]:
                print_error(
                    f"{fold_names(running)}: the input still runs; the board is restarted if it "
                    "does not let itself be interrupted"
                )
            raise


def _read_command(line: str) -> str:
    """Return the code that `%run FILE` runs.

    Raises:
        ValueError: it is another command, or the file is no text.
        OSError: the file cannot be read.
    """
    try:
        command, *arguments = split_words(line)
    except ValueError as error:
        raise ValueError(f"{error}. {_COMMANDS}") from None
    if command != "%run" or len(arguments) != 1:
        raise ValueError(_COMMANDS)
    return read_text(Path(arguments[0]).expanduser())


class _LogPrinter:
    """Prints what boards print outside of cells, above the prompt and never while a cell runs."""

    def __init__(self, fleet: Fleet, target: str) -> None:
        self._follower = LogFollower(fleet.exchange, target)
        self._rows: deque[str] = deque(maxlen=_MAX_LOG_ROWS)
        self._may_print = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="board-repl", daemon=True)

    def __enter__(self) -> _LogPrinter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """Print during a `with` block, first what was received before it."""
        with self._lock:
            self._may_print = True
            self._print()
        try:
            yield
        finally:
            with self._lock:
                self._may_print = False

    def _follow(self) -> None:
        try:
            for lines in self._follower.batches():
                self._add(log_rows(lines))
        except CloudmanagerError as error:
            self._add([sanitize_text(str(error))])

    def _add(self, rows: list[str]) -> None:
        with self._lock:
            self._rows += rows
            if self._may_print:
                self._print()

    def _print(self) -> None:
        if self._rows:
            print("\n".join(self._rows), file=sys.stdout, flush=True)
            self._rows.clear()
