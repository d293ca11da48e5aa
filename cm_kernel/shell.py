"""IPython's shell, as this kernel has it: only the code of cells is interrupted."""

from __future__ import annotations

from types import CodeType
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell

from .interrupts import NEVER


class BoardShell(ZMQInteractiveShell):
    """Says which part of its work the stop button may interrupt."""

    async def run_code(
        self, code_obj: CodeType, result: Any = None, *, async_: bool = False
    ) -> bool:
        """Run code that the stop button may interrupt."""
        with self.kernel.interrupts.running_cell():
            return bool(await super().run_code(code_obj, result, async_=async_))

    def showtraceback(self, *args: Any, **named: Any) -> None:
        """Show an error; an impatient second press of the button does not spoil it."""
        with self.kernel.interrupts.allow_only(NEVER):
            super().showtraceback(*args, **named)
