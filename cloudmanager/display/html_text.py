"""The text of a cell's jobs as HTML, with the colours of a terminal; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.html_table import BLOCK_STYLE, FAILURE_COLOUR, WARNING_COLOUR

from .folding import StyledLine

#: Role of a piece of text (``folding.ROLES``) -> its style. Other roles are shown as they are.
_ROLE_STYLES: Final = {
    "name": "font-weight: bold",
    "bad": f"color: {FAILURE_COLOUR}",
    "bad name": f"color: {FAILURE_COLOUR}; font-weight: bold",
    "warn": f"color: {WARNING_COLOUR}",
    "warn name": f"color: {WARNING_COLOUR}; font-weight: bold",
}
_COLOURED_ROLES: Final = frozenset(role for role in _ROLE_STYLES if role != "name")


def lines_html(lines: Sequence[StyledLine]) -> str | None:
    """Return styled lines as HTML; None if none of them is coloured. All text is escaped."""
    roles = {role for line in lines for _, role in line}
    if not roles & _COLOURED_ROLES:
        return None
    text = "\n".join("".join(_piece_html(*piece) for piece in line) for line in lines)
    return f'<pre style="{BLOCK_STYLE}">{text}</pre>'


def _piece_html(text: str, role: str) -> str:
    content = escape(sanitize_text(text))
    style = _ROLE_STYLES.get(role)
    return f'<span style="{style}">{content}</span>' if style else content
