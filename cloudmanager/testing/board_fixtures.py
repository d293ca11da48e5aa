"""Boards for tests: create them, use them, remove them (docs/testing.md).

The pytest plugin, plugin.py, provides them as fixtures.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.client.text_files import read_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.results import Result, Results
from cloudmanager.virtual.virtual_boards import POWER_CUT, VirtualBoards

JOIN_SECONDS = 30.0  # until boards must have joined, even on a busy machine
JOIN_SECONDS_EACH = 0.3  # in addition, for each board
#: Seconds between two requests for the boards' states; they increase.
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.005, 0.1


def wait_online(fleet: Fleet, names: Iterable[str], *, since: float = 0.0) -> None:
    """Wait until all of the boards are connected, by links that are newer than ``since``.

    Args:
        fleet: their fleet.
        names: the boards.
        since: seconds since 1970.

    Raises:
        TimeoutError: they are not connected in time.
    """
    _wait_until(
        fleet, names, lambda board: (board["connected_since"] or 0) > since, "not connected"
    )


def _wait_offline(fleet: Fleet, names: Iterable[str]) -> None:
    _wait_until(fleet, names, lambda board: not board["connected_since"], "still connected")


def _wait_until(
    fleet: Fleet, names: Iterable[str], condition: Callable[[dict[str, Any]], bool], problem: str
) -> None:
    """Poll the server until a condition holds for all of the boards."""
    wanted = set(names)
    deadline = time.monotonic() + JOIN_SECONDS + JOIN_SECONDS_EACH * len(wanted)
    pause = _MIN_POLL_SECONDS
    while missing := wanted - {board["name"] for board in fleet.boards() if condition(board)}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{problem}: {fold_names(sorted(missing))}")
        time.sleep(pause)
        pause = min(2 * pause, _MAX_POLL_SECONDS)


class _BoardsUnderTestBase:
    """Methods for one or several boards of a test, in addition to those of ``Fleet[target]``.

    Attributes:
        names: the boards' names.
        target: the target expression that matches exactly these boards.
        timeout: the default timeout of cells in seconds.
    """

    def __init__(
        self, fleet: Fleet, virtual_boards: VirtualBoards, names: tuple[str, ...], timeout: float
    ) -> None:
        self.names = names
        self.target = fold_names(names)
        self.timeout = timeout
        self._fleet = fleet
        self._boards: Boards = fleet[self.target]
        self._virtual_boards = virtual_boards

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of ``Fleet[target]``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._boards, name)

    def _run(
        self, code: str | Path, timeout: float | None, check: bool, options: dict[str, Any]
    ) -> Results:
        """Run a cell; an exception has only the test's own line in its traceback."""
        __tracebackhide__ = True
        failure: CloudmanagerError
        text = read_text(code) if isinstance(code, Path) else textwrap.dedent(code)
        try:
            results = self._boards.run(text, timeout=timeout or self.timeout, **options)
            _print_output(results)
            return results.raise_for_error() if check else results
        except CloudmanagerError as error:
            failure = error
        raise failure.with_traceback(None)

    def put(self, source: str | Path | bytes, dest: str = "") -> None:
        """Copy a file or a folder onto each board; parent folders are made.

        Args:
            source: a file or folder of this machine, or the bytes of a file.
            dest: its path on the boards, such as ``:lib/blink.py``; by default its name.
        """
        path = dest.removeprefix(":")
        if not isinstance(source, bytes) and (not path or path.endswith("/")):
            path += Path(source).name
        self._boards.put(source, f":{path}").raise_for_error()

    def kill(self, number: int = POWER_CUT) -> None:
        """Cut the power; ``restart`` switches it on again.

        Args:
            number: another signal: with SIGSTOP the boards hang, with SIGCONT they continue.
        """
        for name in self.names:
            self._virtual_boards.kill(name, number)
        if number == POWER_CUT:
            _wait_offline(self._fleet, self.names)

    def cut_power(self, writes: int, act: Callable[[], object]) -> bool:
        """Perform an action, and cut the power of each board in the middle of a write to flash.

        Args:
            writes: the number of complete writes to flash before that.
            act: the action; called in a thread, where it may still run at the power cut.

        Returns:
            Whether there was a power cut; the boards have been restarted and are connected then.
        """
        boards, flash = self._virtual_boards, "__import__('cm').unix.flash"
        before = boards.crashes
        self._run(f"{flash}.cut_power_after({int(writes)})", None, True, {})
        worker = threading.Thread(target=act, daemon=True)
        worker.start()
        cut: set[str] = set()
        since = time.time()
        while worker.is_alive():
            worker.join(_MIN_POLL_SECONDS)
            crashes = boards.crashes
            cut = {name for name in self.names if crashes.get(name) != before.get(name)}
            for name in cut.difference(boards.pids):  # at once: it would start again after a pause
                boards.restart(name)
        wait_online(self._fleet, cut, since=since)
        self._run(f"{flash}.cut_power_after(1 << 30)", None, True, {})
        return bool(cut)

    def restart(self) -> None:
        """Cut the power and switch it on again: variables are lost, files are kept."""
        since = time.time()
        for name in self.names:
            self._virtual_boards.restart(name)
        wait_online(self._fleet, self.names, since=since)


class BoardUnderTest(_BoardsUnderTestBase):
    """One board of a test."""

    @property
    def name(self) -> str:
        """The board's name."""
        return self.names[0]

    def run(
        self,
        code: str | Path,
        *,
        timeout: float | None = None,
        check: bool = True,
        **options: Any,
    ) -> Result:
        """Run a cell and return its result; its output is printed on standard output.

        Args:
            code: Python code, which may be indented as a whole; or the path of a file.
            timeout: seconds that it may run; the default is the ini option ``cm_timeout``.
            check: raise an exception if the cell fails.
            options: options of ``Boards.run``.

        Raises:
            BoardError: the cell raised an exception; contains the board's traceback.
            CloudmanagerError: the cell did not run, or the board was lost.
        """
        __tracebackhide__ = True
        return self._run(code, timeout, check, options)[self.name]


class BoardsUnderTest(_BoardsUnderTestBase):
    """Several boards of a test; ``boards[0]`` and ``boards["board-1"]`` return one of them."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[BoardUnderTest]:
        return (self[name] for name in self.names)

    def __getitem__(self, which: int | str) -> BoardUnderTest:
        name = self.names[which] if isinstance(which, int) else which
        if name not in self.names:
            raise KeyError(name)
        return BoardUnderTest(self._fleet, self._virtual_boards, (name,), self.timeout)

    def run(
        self,
        code: str | Path,
        *,
        timeout: float | None = None,
        check: bool = True,
        **options: Any,
    ) -> Results:
        """Run a cell on all of them in parallel: see ``BoardUnderTest.run``.

        Raises:
            FleetError: it failed on several boards.
            BoardError: it failed on exactly one board.
        """
        __tracebackhide__ = True
        return self._run(code, timeout, check, options)


def _print_output(results: Results) -> None:
    """Print the boards' output: pytest shows it with a failure."""
    for name, result in results.items():
        prefix = f"{name} | " if len(results) > 1 else ""
        for line in sanitize_text(result.stdout).splitlines():
            sys.stdout.write(f"{prefix}{line}\n")


class BoardsFactory:
    """Makes boards for several tests: ``with cm_boards_factory(3) as boards``."""

    def __init__(
        self, fleet: Fleet, virtual_boards: VirtualBoards, count: int, timeout: float
    ) -> None:
        self._fleet = fleet
        self._virtual_boards = virtual_boards
        self._count = count
        self._timeout = timeout
        self._used_names: set[str] = set()

    @contextlib.contextmanager
    def __call__(
        self, count: int | None = None, *, name: str = "board", heap: str = "", flash: str = ""
    ) -> Iterator[BoardsUnderTest]:
        """Start new boards and yield them connected; at the end they and their flash are removed.

        Args:
            count: how many; the default is the ini option ``cm_boards``.
            name: the prefix of their names, which end with a number.
            heap: size of each MicroPython heap in bytes, such as "64k"; the default is the ini
                option ``cm_heap``.
            flash: size of each flash in bytes; the default is the ini option ``cm_flash``.
        """
        names = self._free_names(name, self._count if count is None else count)
        self._used_names.update(names)
        try:
            self._start_boards(names, heap, flash)
            yield BoardsUnderTest(self._fleet, self._virtual_boards, names, self._timeout)
        finally:
            self._remove_boards(names)
            self._used_names.difference_update(names)

    def _free_names(self, prefix: str, count: int) -> tuple[str, ...]:
        """Return the first free names."""
        if count < 1:
            raise ValueError("at least one board")
        numbers = range(1, count + len(self._used_names) + 1)
        free = [name for n in numbers if (name := f"{prefix}-{n}") not in self._used_names]
        return tuple(free[:count])

    def _start_boards(self, names: tuple[str, ...], heap: str, flash: str) -> None:
        for row in self._fleet.enrol(names):
            identity = BoardIdentity.from_enrolment(row, self._fleet.address.url)
            self._virtual_boards.add_board(identity, heap=heap, flash=flash)
        wait_online(self._fleet, names)

    def _remove_boards(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._virtual_boards.kill(name)
            shutil.rmtree(self._virtual_boards.folder / name, ignore_errors=True)
        known = {board["name"] for board in self._fleet.boards()}
        left = [name for name in names if name in known]  # a test may have revoked one
        if left:
            _wait_offline(self._fleet, left)
            self._fleet.revoke(",".join(left))
