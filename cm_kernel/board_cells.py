"""The part of the kernel that runs cells on boards, by means of the magics."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Final

from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.runner import run_in_loop
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cm_magics import BoardMagics, fleet, register_target_magics
from cm_magics.cell_display import hide_traceback
from cm_magics.comment_magic import uncomment

from . import cell_routing, code_completion
from .cell_routing import CellPart
from .cell_runner import OutputMaker
from .host import KernelHost
from .interrupts import WHILE_WAITING

_MAGICS: Final = "cm_magics"
_HISTORY_CACHE_CELLS: Final = 25  # cells of the history that are kept in memory before a write
_MAX_CELLS: Final = 500  # cells that are searched for definitions on Shift-Tab


class BoardCells:
    """Runs cells on boards, and answers questions about names.

    ``cell_routing.transform_cell`` makes IPython call ``run`` and ``help``.
    """

    def __init__(self, kernel: KernelHost) -> None:
        self._kernel = kernel
        self.cells: deque[str] = deque(maxlen=_MAX_CELLS)  # code that ran on boards
        shell: Any = kernel.shell
        self.magics = BoardMagics(shell)
        self.magics.chosen_text = "Cells run on"
        shell.register_magics(self.magics)
        self.magics.register_hooks()
        register_target_magics(shell, self.magics)
        shell.input_transformers_cleanup.append(cell_routing.transform_cell)
        # IPython writes the history in a thread; a write delays a cell that is sent by 1 to 3 ms.
        shell.history_manager.db_cache_size = _HISTORY_CACHE_CELLS
        shell.extension_manager.loaded.add(_MAGICS)  # makes %load_ext do nothing

    async def run(
        self, code: str, line: str | None, *, after_host_lines: bool = False
    ) -> JobGroup | None:
        """Run a cell on the boards that its line names, or on those of ``%board_use``.

        Args:
            code: the cell.
            line: the text after ``%%board``; None if the cell does not begin with it.
            after_host_lines: whether lines above it ran in the notebook's own Python.

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
        make_output = OutputMaker(self._kernel, with_head=not line)
        # An interrupt between two steps could leave a message half sent.
        with self._kernel.interrupts.allow_only(WHILE_WAITING):
            return await run_in_loop(self.magics.board_cell(line or "", code, make_output))

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
        return cell_routing.split_cell("".join(uncomment(code.splitlines(keepends=True))))

    def target_at(self, code: str, cursor: int) -> str | None:
        """Return the target of the code at a cursor; None if it runs in the notebook's own Python.

        The target is "" if no boards are chosen.
        """
        line_to_cursor = code[:cursor].rpartition("\n")[2]
        _host_lines, part = self.split_cell(code)
        if line_to_cursor.startswith(("%", "!", "?")) or (part is not None and part.kind == "host"):
            return None
        return self._line_target(part.line if part else None)

    def _line_target(self, line: str | None) -> str:
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
