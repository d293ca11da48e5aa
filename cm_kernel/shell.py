"""IPython's shell for this kernel: what interrupts the code of cells, and what runs inside it."""

from __future__ import annotations

from contextvars import ContextVar
from types import CodeType
from typing import Any, Final

from ipykernel.zmqshell import ZMQInteractiveShell

from .interrupts import NEVER

#: Whether a cell's code is running. Code that is run then is run by a magic, such as ``%%time``.
#: Tab and Shift-Tab run in other tasks, which do not see it.
code_is_running: Final[ContextVar[bool]] = ContextVar("code_is_running", default=False)


class BoardShell(ZMQInteractiveShell):
    """A shell that marks when the stop button may interrupt it."""

    async def run_code(
        self, code_obj: CodeType, result: Any = None, *, async_: bool = False
    ) -> bool:
        """Run the code of a cell, which the stop button may interrupt."""
        token = code_is_running.set(True)
        try:
            with self.kernel.interrupts.running_cell():
                return bool(await super().run_code(code_obj, result, async_=async_))
        finally:
            code_is_running.reset(token)

    def showtraceback(self, *args: Any, **named: Any) -> None:
        """Show an error; a second press of the stop button does not interrupt that."""
        with self.kernel.interrupts.allow_only(NEVER):
            super().showtraceback(*args, **named)
