"""What a notebook keeps of a widget: an image or a table of its last state, as HTML and as text.

A saved notebook does not contain a widget, only its number, and once the kernel has ended,
JupyterLab shows "model not found" in its place. So each widget is displayed as two outputs: the
last state, and below it the widget. A style sheet in the first one hides whichever of them is of no
use; it finds them by the classes of JupyterLab's outputs. Other frontends show what they can.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from IPython.core.getipython import get_ipython
from IPython.display import display

from cloudmanager.results.html_table import BLOCK_STYLE

_WIDGET_TYPE: Final = "application/vnd.jupyter.widget-view+json"
_OUTPUT: Final = ".jp-OutputArea-child"
# plot.js marks a widget that gets messages as `cm-live`. JupyterLab marks the output of a widget
# that it does not find as `jupyter-widgets` (@jupyter-widgets/jupyterlab-manager, WidgetRenderer).
_STYLE: Final = (
    f"<style>{_OUTPUT}:has(.cm-saved):has(+ {_OUTPUT} .cm-live) {{ display: none; }}\n"
    f"{_OUTPUT}:has(.cm-saved) + {_OUTPUT} > .jp-OutputArea-output.jupyter-widgets"
    f" {{ display: none; }}</style>"
)

#: MIME type -> data.
Bundle = Mapping[str, Any]


class SavedOutput:
    """The output above a widget, which a saved notebook contains."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: Bundle = {}

    def show(self, widget: Bundle, state: Bundle) -> None:
        """Display the state and the widget below it; without a notebook, the state as text."""
        if _has_kernel():
            self._handle = display(dict(state), raw=True, display_id=True)
            display({_WIDGET_TYPE: widget[_WIDGET_TYPE], "text/plain": ""}, raw=True)
        else:
            display({"text/plain": state["text/plain"]}, raw=True)
        self._shown = state

    def update(self, state: Bundle) -> None:
        """Replace the state that the notebook keeps, if it was displayed and has changed."""
        if self._handle is not None and state != self._shown:
            self._handle.update(dict(state), raw=True)
            self._shown = state


def _has_kernel() -> bool:
    return getattr(get_ipython(), "kernel", None) is not None


def saved_html(content: str) -> str:
    """Return the HTML of a saved state; ``content`` is HTML, too."""
    return f'<div class="cm-saved">{_STYLE}{content}</div>'


def saved_text(text: str) -> Bundle:
    """Return a state that is only text."""
    block = f'<pre style="{BLOCK_STYLE}">{escape(text)}</pre>'
    return {"text/plain": text, "text/html": saved_html(block)}


def image_html(svg: str, text: str) -> str:
    """Return an SVG image as HTML that is also shown in notebooks that the user does not trust."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}">'


def table_html(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table as HTML; all cells are escaped."""
    style = 'style="text-align: left; white-space: nowrap"'
    head = "".join(f"<th {style}>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td {style}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
