"""What our widgets share: their files, and a thread that follows boards while somebody looks.

Updates come in that thread, also while a cell runs, and leave by the widget's comm; what a person
does in the page comes in by it. Whatever takes time is done in a thread of its own.

JupyterLab has ipykernel hear widgets in a thread beside the one that runs cells (a subshell). But
ipykernel takes what a page says to where the comm last spoke from, and a thread of ours speaks, to
it, for the cell that runs: a page would not be heard before that cell ends. So all that we send
leaves in the context of what the page itself said last.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.watch import Update, Watch
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import sanitize_text

_live_widgets: weakref.WeakSet[LiveWidget] = weakref.WeakSet()
_FOLDER = Path(__file__).parent
CSS = (_FOLDER / "dashboard.css").read_text(encoding="utf-8")


def javascript_module(class_name: str, *files: str) -> str:
    """Return the JavaScript module that shows the class ``class_name`` of these files."""
    parts = [(_FOLDER / name).read_text(encoding="utf-8") for name in files]
    return "\n".join([*parts, f"export default show({class_name});\n"])


class LiveWidget(anywidget.AnyWidget):
    """A widget that follows boards for as long as a page shows it."""

    _css = CSS

    def __init__(self, fleet: Fleet, target: str, **traits: Any) -> None:
        super().__init__(**traits)
        self._fleet = fleet
        self._target = target
        self._watch: Watch | None = None
        self._open_views: set[str] = set()
        self._page_context: contextvars.Context | None = None
        self._lock = threading.RLock()  # what is sent leaves in the order in which it became so
        self.on_msg(self._on_message)
        _live_widgets.add(self)
        self.start_watching()

    def send(self, content: Any, buffers: Any = None) -> None:
        """Send the page a message, from any thread."""
        if self._page_context is None:
            super().send(content, buffers)
        else:
            self._page_context.copy().run(super().send, content, buffers)

    def on_update(self, update: Update) -> None:
        """Show an update; called with the lock held."""
        raise NotImplementedError

    def send_everything(self) -> None:
        """Tell a page that has just opened all that there is; called with the lock held."""
        raise NotImplementedError

    def on_page_message(self, message: dict[str, Any]) -> None:
        """Do what somebody did in the page."""

    def start_watching(self) -> None:
        """Follow the boards, unless that is done already."""
        with self._lock:
            if self._watch is None:
                self._watch = self._fleet.watch(self._target)
                run_in_thread(self._watch_boards, self._watch)

    def stop_watching(self) -> None:
        """Follow them no more."""
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """End it for good, as every widget can."""
        self.stop_watching()
        super().close()

    def _watch_boards(self, watch: Watch) -> None:
        try:
            for update in watch:
                with self._lock:
                    self.on_update(update)
        except CloudmanagerError as error:
            self.send({"kind": "lost", "why": sanitize_text(str(error))})

    def _on_message(self, _: object, message: dict[str, Any], __: object) -> None:
        self._page_context = contextvars.copy_context()
        if message.get("do") == "open":
            self._open_views.add(str(message.get("view")))
            self.start_watching()
            with self._lock:
                self.send_everything()
        elif message.get("do") == "close":
            self._open_views.discard(str(message.get("view")))
            if not self._open_views:
                self.stop_watching()
        elif message.get("do") == "here":
            self.send({"kind": "here"})  # from now on we speak from where the page is heard
        else:
            self.on_page_message(message)


def stop_all_watching() -> None:
    """Have no widget follow boards any more; one that is looked at again begins anew."""
    for live in list(_live_widgets):
        live.stop_watching()


def run_in_thread(callback: Callable[..., object], *args: object) -> None:
    """Do something that takes time; a kernel that ends does not wait for it."""
    threading.Thread(
        target=_call_unless_exiting, args=(callback, *args), daemon=True, name="cm_magics"
    ).start()


def _call_unless_exiting(callback: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the interpreter ends meanwhile
        callback(*args)
