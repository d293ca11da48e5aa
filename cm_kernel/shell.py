"""IPython's shell for this kernel: the stop button interrupts only the code of cells."""

from __future__ import annotations

from types import CodeType
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell

from .interrupts import NEVER


class BoardShell(ZMQInteractiveShell):
    """A shell that marks when the stop button may interrupt it."""

    async def run_code(
        self, code_obj: CodeType, result: Any = None, *, async_: bool = False
    ) -> bool:
        """Run the code of a cell, which the stop button may interrupt."""
        with self.kernel.interrupts.running_cell():
            return bool(await super().run_code(code_obj, result, async_=async_))

    def showtraceback(self, *args: Any, **named: Any) -> None:
        """Show an error; a second press of the stop button does not interrupt that."""
        with self.kernel.interrupts.allow_only(NEVER):
            super().showtraceback(*args, **named)
