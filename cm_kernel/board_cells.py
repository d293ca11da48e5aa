"""The part of the kernel that runs cells on boards, by means of the magics."""

from __future__ import annotations

import re
import sys
from collections import deque
from contextvars import ContextVar
from typing import Any, Final

from IPython.core.error import UsageError

from cloudmanager.client import cell_verbs
from cloudmanager.client.cell_syntax import name_use
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.runner import run_blocking, run_in_loop
from cloudmanager.display.cell_view import results_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results
from cm_magics import BoardMagics, fleet, register_target_magics, rich_values
from cm_magics.cell_display import hide_traceback

from . import cell_routing, code_completion
from .cell_routing import BOARD_MAGIC, HOST_MAGIC, CellPart
from .cell_runner import OutputMaker
from .host import KernelHost
from .interrupts import WHILE_WAITING
from .shell import code_is_running
from .timing import TimingMagics

_MAGICS: Final = "cm_magics"
_HISTORY_CACHE_CELLS: Final = 25  # cells of the history that are kept in memory before a write
_MAX_CELLS: Final = 500  # cells that are searched for definitions on Shift-Tab


#: The names of IPython's last values, as in `__ + _3`.
_LAST_VALUE: Final = re.compile(r"\b(?:_{1,3}|_[0-9]+)\b")

#: Whether the cell began with ``%%host``: then code that its magics run stays on the host.
_in_host_cell: Final[ContextVar[bool]] = ContextVar("in_host_cell", default=False)


class BoardCells:
    """Runs cells on boards, and answers questions about names.

    ``transform`` makes IPython call ``run``, ``run_in_magic`` and ``help``.
    """

    def __init__(self, kernel: KernelHost) -> None:
        self._kernel = kernel
        self.cells: deque[str] = deque(maxlen=_MAX_CELLS)  # code that ran on boards
        self._users_names: set[str] = set()  # names such as `_` that a cell bound on boards
        shell: Any = kernel.shell
        self.magics = BoardMagics(shell)
        self.magics.chosen_text = "Cells run on"
        self.magics.own_cell = "a cell with `%%host`"
        shell.register_magics(self.magics)
        self.magics.register_hooks()
        register_target_magics(shell, self.magics)
        shell.register_magics(TimingMagics(shell, self))
        shell.register_magic_function(self._parameters, "cell", "parameters")
        shell.input_transformers_cleanup.append(self.transform)
        # IPython writes the history in a thread; a write delays a cell that is sent by 1 to 3 ms.
        shell.history_manager.db_cache_size = _HISTORY_CACHE_CELLS
        shell.extension_manager.loaded.add(_MAGICS)  # makes %load_ext do nothing

    def transform(self, lines: list[str]) -> list[str]:
        """Rewrite code so that IPython runs it; one of its ``input_transformers_cleanup``.

        The lines for boards become one call of ``run``. Code of a magic, such as the cell below
        ``%%time``, cannot await: it becomes a call of ``run_in_magic``, which blocks.
        """
        in_magic = code_is_running.get()
        if in_magic and self._stays_on_host(lines):
            return lines
        text = "".join(lines)
        if not in_magic:
            _in_host_cell.set(cell_routing.is_host_cell(text))
        host_lines, part = self.split_cell(text)
        if part is None:
            return lines
        if part.kind == "host":
            return [*host_lines, *part.text.splitlines(keepends=True)]
        if part.kind == "question":
            call = f"help({part.text!r})"
        elif in_magic:
            call = f"run_in_magic({part.text!r}, {part.line!r})"
        else:
            after = ", after_host_lines=True" if host_lines else ""
            call = f"run({part.text!r}, {part.line!r}{after})"
        is_async = part.kind == "question" or not in_magic
        return [*host_lines, f"{'await ' if is_async else ''}get_ipython().kernel.boards.{call}\n"]

    #: IPython then skips the transformer when it checks whether a cell is complete, since the code
    #: in quotes would always be.
    transform.has_side_effects = True  # type: ignore[attr-defined]

    def _stays_on_host(self, lines: list[str]) -> bool:
        """Return whether code of a magic runs in the notebook's own Python.

        It does in a cell that began with ``%%host``, and while no boards are chosen.
        """
        return not lines[:1] or (
            not lines[0].startswith((HOST_MAGIC, BOARD_MAGIC))
            and (_in_host_cell.get() or not self.magics.target)
        )

    def board_part(self, code: str) -> CellPart | None:
        """Return the part for boards of a magic's code; None if the code stays on the host."""
        if self._stays_on_host(code.splitlines()):
            return None
        host_lines, part = self.split_cell(code)
        return part if part is not None and part.kind == "board" and not host_lines else None

    def run_in_magic(self, code: str, line: str | None) -> Any:
        """Run the code of a magic on boards by blocking.

        Args:
            code: the code.
            line: the text after ``%%board``; None if the code does not begin with it.

        Returns:
            The value on a single board, which the magic shows or keeps; else None.

        Raises:
            CloudmanagerError: there is no target, or a board failed.
        """
        sys.stdout.flush()
        if not (line or self.magics.target):
            self._raise_no_target()
        self.cells.append(code)
        make_output = OutputMaker(self._kernel, with_head=not line, for_magic=True)
        board_line = self._add_last_values(code, self.magics.expand(line or ""))
        group = run_blocking(self.magics.board_cell(board_line, code, make_output))
        return make_output.value_for_magic() if group is None else group

    async def run(
        self, code: str, line: str | None, *, after_host_lines: bool = False, silent: bool = False
    ) -> JobGroup | None:
        """Run a cell on the boards that its line names, or on those of ``%board_use``.

        Args:
            code: the cell.
            line: the text after ``%%board``; None if the cell does not begin with it.
            after_host_lines: whether lines above it ran in the notebook's own Python.
            silent: whether to show no values.

        Returns:
            The running cell with ``--noblock``; else None.

        Raises:
            CloudmanagerError: there is no target, or a board failed.
        """
        if after_host_lines:
            sys.stdout.flush()  # their output must come first
        if not (line or self.magics.target):
            self._raise_no_target()
        self.cells.append(code)
        make_output = OutputMaker(self._kernel, with_head=not line, silent=silent)
        board_line = self._add_last_values(code, self.magics.expand(line or ""))
        # An interrupt between two steps could leave a message half sent.
        with self._kernel.interrupts.allow_only(WHILE_WAITING):
            group = await run_in_loop(self.magics.board_cell(board_line, code, make_output))
        if group is None:
            make_output.remember_value()
        return group

    def last_values(self, code: str) -> dict[str, Any]:
        """Return the values of `_`, `__` and `_3` that code for boards reads, by name.

        As in IPython, a name that the user has bound, such as in `for _ in …`, is the user's until
        it is deleted.

        Raises:
            UsageError: the value is the results of several boards.
        """
        if not _LAST_VALUE.search(code):
            return {}
        shell: Any = self._kernel.shell
        values = {
            name: shell.user_ns[name]
            for name in sorted(name_use(code).free - self._users_names)
            if _LAST_VALUE.fullmatch(name) and name in shell.user_ns
        }
        for name, value in values.items():
            if isinstance(value, Results):
                raise UsageError(
                    f"{name} is the results of several boards, which cannot be sent. Use them in a "
                    f"cell with %%host: {name}[{next(iter(value))!r}].value."
                )
        return values

    def _add_last_values(self, code: str, line: str) -> str:
        """Return the `%%board` line with `-i _,_3` if the code reads `_` and `_3`."""
        names = self.last_values(code)
        if _LAST_VALUE.search(code):
            used = name_use(code)
            self._users_names = (self._users_names | used.bound) - used.deleted
        return f"-i {','.join(names)} {line}" if names else line

    def _parameters(self, _line: str, cell: str) -> None:
        """Run the cell in the notebook's own Python, and on the chosen boards, if there are any.

        papermill injects a cell that begins with `%%parameters`.
        """
        shell: Any = self._kernel.shell
        shell.ex(cell)
        if self.magics.target:
            self.run_in_magic(cell, "")

    async def evaluate(
        self, expressions: dict[str, str], line: str | None
    ) -> dict[str, dict[str, Any]]:
        """Evaluate a request's ``user_expressions`` where its cell ran; return their MIME bundles.

        Args:
            expressions: name -> expression.
            line: the text after ``%%board`` of the cell.
        """
        target = self.line_target(line)
        return {name: await _evaluate(target, code) for name, code in expressions.items()}

    async def help(self, name: str) -> None:
        """Show the description of a name in the pager, as `name?` does in IPython."""
        description = await self.describe_name(name, "", self.magics.target, detail=1)
        shell: Any = self._kernel.shell
        page = {"text/plain": description or f"There is no information about {name}."}
        shell.payload_manager.write_payload({"source": "page", "data": page, "start": 0})

    async def completion_reply(self, code: str, cursor: int, target: str) -> dict[str, Any]:
        """Return the reply to Tab in a cell for boards."""
        prefix, matches = await code_completion.find_matches(code, cursor, target, self.cells)
        return code_completion.completion_reply(cursor, prefix, matches)

    async def describe_name(self, name: str, code: str, target: str, detail: int) -> str:
        """Return the description of a name; "" if nothing is known about it."""
        return await code_completion.describe_name(name, code, target, self.cells, detail)

    def split_cell(self, code: str) -> tuple[list[str], CellPart | None]:
        """Return the leading lines of a cell that run on the host, and the rest."""
        return cell_routing.split_cell(code)

    def target_at(self, code: str, cursor: int) -> str | None:
        """Return the target of the code at a cursor; None if it runs in the notebook's own Python.

        The target is "" if no boards are chosen.
        """
        line_to_cursor = code[:cursor].rpartition("\n")[2]
        _host_lines, part = self.split_cell(code)
        if line_to_cursor.startswith(("%", "!", "?")) or (part is not None and part.kind == "host"):
            return None
        return self.line_target(part.line if part else None)

    def line_target(self, line: str | None) -> str:
        """Return the boards that a `%%board` line means; "" if none are chosen."""
        return (self.magics.read_target(line) if line else "") or self.magics.target

    def _raise_no_target(self) -> None:
        """Raise an error that says how to choose boards.

        Raises:
            CloudmanagerError: always.
        """
        try:
            boards = fleet().boards()
        except CloudmanagerError as error:
            hide_traceback(error)
            raise
        online = fold_names(board["name"] for board in boards if board["connected_since"])
        no_target = _no_target_error(online)
        hide_traceback(no_target)
        raise no_target


def _no_target_error(names: str) -> CloudmanagerError:
    """Return the error of a cell without a target; ``names`` are the boards that are online."""
    if names:
        state = f"Online: {names}."
        hint = f"Choose with `%board_use {names}`, or write `%%board TARGET` above the cell."
    else:
        state = "No board is online."
        hint = "`!mbm simulate 3 --detach` starts three virtual boards."
    error = CloudmanagerError(detail=f"No boards are chosen for this cell. {state}")
    error.hint = hint
    return error


async def _evaluate(target: str, expression: str) -> dict[str, Any]:
    try:
        group = JobGroup(cell_verbs.prepare_cached(expression))
        fleet().exchange().submit(group, target)
        results = (await run_in_loop(group.completed())).raise_for_error()
    except (CloudmanagerError, OSError) as error:
        ename, evalue = type(error).__name__, str(error)
        return {"status": "error", "ename": ename, "evalue": evalue, "traceback": [evalue]}
    data = {"text/plain": results_text(results)}
    if len(results) == 1:
        data = rich_values.mime_bundle(next(iter(results.values())))
    return {"status": "ok", "data": data, "metadata": {}}
