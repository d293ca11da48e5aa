"""IPython's shell, as this kernel has it: cells go to boards, and only code is interrupted."""

from __future__ import annotations

from types import CodeType
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell

from .cells import transform
from .interrupts import NEVER


class BoardShell(ZMQInteractiveShell):
    """Runs what ``cells.transform`` makes of a cell."""

    def init_instance_attrs(self) -> None:
        """Add the transformer; IPython's own come after it."""
        super().init_instance_attrs()
        self.input_transformers_cleanup.append(transform)

    async def run_code(
        self, code_obj: CodeType, result: Any = None, *, async_: bool = False
    ) -> bool:
        """Run code that the stop button may interrupt."""
        with self.kernel.interrupts.running():
            return bool(await super().run_code(code_obj, result, async_=async_))

    def showtraceback(self, *args: Any, **named: Any) -> None:
        """Show an error; an impatient second press of the button does not spoil it."""
        with self.kernel.interrupts.only(NEVER):
            super().showtraceback(*args, **named)
