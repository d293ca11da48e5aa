"""The boards' half of the kernel: cells on the magics' boards, with the kernel's own messages."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Final

from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cm_magics import BoardMagics, fleet, register_target_magics
from cm_magics.cell_display import hide_traceback
from cm_magics.comment_magic import uncomment

from . import cell_routing, code_completion
from .cell_routing import CellPart
from .cell_runner import LoopRunner
from .host import KernelHost
from .interrupts import WHILE_WAITING

_MAGICS: Final = "cm_magics"
_HISTORY_CACHE_CELLS: Final = 25  # cells of the history that may wait in memory
_MAX_CELLS: Final = 500  # cells, whose definitions Shift-Tab knows


class BoardCells:
    """Runs cells on boards; what ``cells.transform`` calls."""

    def __init__(self, kernel: KernelHost) -> None:
        self._kernel = kernel
        self.cells: deque[str] = deque(maxlen=_MAX_CELLS)  # that ran
        shell: Any = kernel.shell
        self.magics = BoardMagics(shell)
        self.magics.chosen_text = "Cells run on"
        shell.register_magics(self.magics)
        self.magics.register_hooks()
        register_target_magics(shell, self.magics)
        shell.input_transformers_cleanup.append(cell_routing.transform_cell)
        # A thread that writes to disk just when the cell is sent costs it 1 ms, or 3.
        shell.history_manager.db_cache_size = _HISTORY_CACHE_CELLS
        shell.extension_manager.loaded.add(_MAGICS)  # %load_ext in a tutorial changes nothing

    async def run(
        self, code: str, line: str | None, *, after_host_lines: bool = False
    ) -> JobGroup | None:
        """Run a cell on the boards that its line names, or on those of ``%board_use``.

        Args:
            code: the cell.
            line: what stands behind its ``%%board``; None where it is not marked.
            after_host_lines: whether lines of the notebook's own stand above it.
        """
        if after_host_lines:
            sys.stdout.flush()  # what they printed comes first
        if not (line or self.magics.target):
            self._raise_no_target()
        self.cells.append(code)
        way = LoopRunner(self._kernel, with_head=not line)
        with self._kernel.interrupts.allow_only(WHILE_WAITING):  # nothing is half sent
            return await self.magics.board_cell(line or "", code, way)

    async def help(self, name: str) -> None:
        """Show what a name is, as `name?` does everywhere."""
        told = await self.describe_name(name, "", self.magics.target, detail=1)
        shell: Any = self._kernel.shell
        page = {"text/plain": told or f"Nothing is known of {name}."}
        shell.payload_manager.write_payload({"source": "page", "data": page, "start": 0})

    async def completion_reply(self, code: str, cursor: int, target: str) -> dict[str, Any]:
        """Return the reply to Tab in a cell for boards."""
        start, offered = await code_completion.find_matches(code, cursor, target, self.cells)
        return code_completion.completion_reply(cursor, start, offered)

    async def describe_name(self, name: str, code: str, target: str, detail: int) -> str:
        """Return all that is known of a name; "" for nothing."""
        return await code_completion.describe_name(name, code, target, self.cells, detail)

    def split_cell(self, code: str) -> tuple[list[str], CellPart | None]:
        """Return the notebook's own lines at the top of a cell, and what comes after them."""
        return cell_routing.split_cell("".join(uncomment(code.splitlines(keepends=True))))

    def target_at(self, code: str, cursor: int) -> str | None:
        """Return the boards that the text at a cursor is for; None where it is the notebook's."""
        typed = code[:cursor].rpartition("\n")[2]
        _own, part = self.split_cell(code)
        if typed.startswith(("%", "!", "?")) or (part is not None and part.kind == "host"):
            return None
        return self._line_target(part.line if part else None)

    def _line_target(self, line: str | None) -> str:
        return (self.magics.read_target(line) if line else "") or self.magics.target

    def _raise_no_target(self) -> None:
        """Say what is missing.

        Raises:
            CloudmanagerError: always.
        """
        try:
            there = fleet().boards()
        except CloudmanagerError as error:
            hide_traceback(error)
            raise
        missing = _no_target_error(
            fold_names(board["name"] for board in there if board["connected_since"])
        )
        hide_traceback(missing)
        raise missing


def _no_target_error(names: str) -> CloudmanagerError:
    """Make the error of a cell that means no boards; ``names`` are those that are there."""
    told = f"{names} are there." if names else "There are none: no board has dialled in."
    error = CloudmanagerError(detail=f"No boards are chosen for this cell. {told}")
    choose = f"Choose with `%board_use {names}`, or write `%%board TARGET` above the cell."
    error.hint = choose if names else "`!mbm simulate 3 --detach` makes three virtual ones."
    return error
