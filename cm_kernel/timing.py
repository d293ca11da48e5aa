"""``%timeit`` and ``%%timeit`` in the kernel: the loop runs on the boards, not over the network.

IPython's own magic would time a round trip for each loop.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Protocol

from IPython.core.error import UsageError
from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)
from IPython.core.magics.execution import ExecutionMagics, TimeitResult

from cloudmanager.client.cells import indent_cell, prepare_cell
from cm_magics import cell_display, fleet
from cm_magics.base import without_traceback

from .cell_routing import CellPart

_OPTIONS: Final = "n:r:tcp:qov:"  # those of IPython's %timeit
_DEFAULT_REPEATS: Final = 7  # as in IPython
_MICROSECONDS: Final = 1e6  # in a second
_MAX_SPREAD: Final = 4  # slowest run / fastest run without a warning, as in IPython
#: A function that runs the code in loops. Without a number of loops, it finds one for which they
#: take 0.2 s, as IPython does. Its value is the number, and for each repeat the time in us.
_PROGRAM: Final = """\
def __cm_timeit__(__cm_number, __cm_repeats):
\timport time as __cm_time
\tdef __cm_run(__cm_count):
{setup}
\t\t__cm_begin = __cm_time.ticks_us()
\t\tfor __cm_loop in range(__cm_count):
{code}
\t\treturn __cm_time.ticks_diff(__cm_time.ticks_us(), __cm_begin)
\tif not __cm_number:
\t\t__cm_number = 1
\t\twhile __cm_run(__cm_number) < 200000 and __cm_number < 1000000000:
\t\t\t__cm_number *= 10
\treturn __cm_number, [__cm_run(__cm_number) for __cm_loop in range(__cm_repeats)]
globals().pop("__cm_timeit__")({number}, {repeats})
"""


class Boards(Protocol):
    """The methods of ``BoardCells`` that the magics use."""

    def board_part(self, code: str) -> CellPart | None:
        """Return the part for boards of a magic's code; None if the code stays on the host."""

    def line_target(self, line: str | None) -> str:
        """Return the boards that a `%%board` line means; "" if none are chosen."""

    def last_values(self, code: str) -> dict[str, Any]:
        """Return the values of `_`, `__` and `_3` that code for boards reads, by name."""


@magics_class
class TimingMagics(Magics):
    """``%timeit`` for the code of boards; for that of the notebook's own Python, IPython's."""

    def __init__(self, shell: Any, boards: Boards) -> None:
        super().__init__(shell)
        self._boards = boards

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def timeit(
        self, line: str = "", cell: str | None = None, local_ns: dict[str, Any] | None = None
    ) -> object:
        """Time code; IPython's help replaces this docstring."""
        shell: Any = self.shell
        options, code = self.parse_options(
            line, _OPTIONS, posix=False, strict=False, preserve_non_opts=True
        )
        part = self._boards.board_part(code if cell is None else cell)
        if part is None:
            return ExecutionMagics(shell).timeit(line, cell, local_ns=local_ns)
        with without_traceback():
            result = self._time(part.text, "" if cell is None else code, part.line, options)
        if "v" in options:
            shell.user_ns[options.v] = result
        return result if "o" in options else None

    timeit.__doc__ = ExecutionMagics.timeit.__doc__

    def _time(self, code: str, setup: str, line: str | None, options: Any) -> Any:
        """Time code on boards and print the times; return the result, or {board: result}.

        Raises:
            UsageError: the code awaits, which it cannot do in the function that is timed.
        """
        if any(prepare_cell(text).awaits for text in (setup, code)):
            raise UsageError("%timeit cannot time code that awaits: use %time or %%time.")
        program = _PROGRAM.format(
            setup=indent_cell(setup, 2),
            code=indent_cell(code, 3),
            number=int(getattr(options, "n", 0)),
            repeats=int(getattr(options, "r", _DEFAULT_REPEATS)),
        )
        boards = fleet()[self._boards.line_target(line)]
        try:
            outcome = boards.run(program, inputs=self._boards.last_values(f"{setup}\n{code}"))
        except TypeError as error:  # of values that cannot be sent
            raise UsageError(str(error)) from None
        cell_display.raise_failures(outcome)
        results = {}
        for board, (number, times) in outcome.to_dict().items():
            seconds = [time / _MICROSECONDS for time in times]
            precision = int(getattr(options, "p", 3))
            best, worst = min(seconds) / number, max(seconds) / number
            results[board] = TimeitResult(
                number, len(seconds), best, worst, seconds, 0.0, precision
            )
        if "q" not in options:
            for board, result in results.items():
                sys.stdout.write(f"{_spread_text(result)}{board}: {result}\n")
        return results if len(results) > 1 else next(iter(results.values()))


def _spread_text(result: TimeitResult) -> str:
    """Return IPython's warning about runs that differ much; "" if they do not."""
    best, worst = result.best, result.worst
    if not (worst > _MAX_SPREAD * best > 0 and worst > 1 / _MICROSECONDS):
        return ""
    return (
        f"The slowest run took {worst / best:.2f} times longer than the fastest. This could mean "
        "that an intermediate result is being cached, or that memory was collected.\n"
    )
