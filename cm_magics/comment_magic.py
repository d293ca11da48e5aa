"""Accept `# %%board TARGET` as the first line: type checkers then treat the cell as Python."""

from __future__ import annotations

import re
from typing import Final

_COMMENTED: Final = re.compile(r"#\s*(?=%%board\b)")
_BOARD_MAGIC: Final = re.compile(r"%%board\w*\b")


def uncomment(lines: list[str]) -> list[str]:
    """Turn the comment into the cell magic; one of IPython's ``input_transformers_cleanup``.

    Only the first line that is not blank is changed, so that a later comment stays a comment.
    Comments above a magic such as ``%%board`` are removed, because IPython accepts none there, and
    so is a byte order mark, as pasted text may have one.

    Args:
        lines: the cell's lines, with their line ends.

    Returns:
        The lines from the cell magic on, or all lines if there is none.
    """
    lines = [line.removeprefix("\ufeff") for line in lines[:1]] + lines[1:]
    code = [index for index, line in enumerate(lines) if line.strip()[:1] not in ("", "#")]
    first = next((index for index, line in enumerate(lines) if line.strip()), 0)
    if lines and (found := _COMMENTED.match(lines[first])):
        return [lines[first][found.end() :], *lines[first + 1 :]]
    if code and _BOARD_MAGIC.match(lines[code[0]]):
        return lines[code[0] :]
    return lines
