"""`# %%board TARGET` as first line: type checkers and formatters take the cell for Python."""

from __future__ import annotations

import re
from typing import Final

_COMMENTED: Final = re.compile(r"#\s*(?=%%board\b)")


def uncomment(lines: list[str]) -> list[str]:
    """Make the cell magic of its comment: one of IPython's ``input_transformers_cleanup``.

    It must stand in the first line that is not blank, so that a line of a longer comment stays
    one.
    """
    first = next((at for at, line in enumerate(lines) if line.strip()), 0)
    if not lines or not (found := _COMMENTED.match(lines[first])):
        return lines
    return [lines[first][found.end() :], *lines[first + 1 :]]
