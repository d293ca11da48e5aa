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
from cloudmanager.protocol.text import clean

_living: weakref.WeakSet[Live] = weakref.WeakSet()
_HERE = Path(__file__).parent
CSS = (_HERE / "dashboard.css").read_text(encoding="utf-8")


def module(view: str, *files: str) -> str:
    """Return the JavaScript module that shows the class ``view`` of these files."""
    parts = [(_HERE / name).read_text(encoding="utf-8") for name in files]
    return "\n".join([*parts, f"export default show({view});\n"])


class Live(anywidget.AnyWidget):
    """A widget that follows boards for as long as a page shows it."""

    _css = CSS

    def __init__(self, fleet: Fleet, target: str, **traits: Any) -> None:
        super().__init__(**traits)
        self._fleet = fleet
        self._target = target
        self._watch: Watch | None = None
        self._views: set[str] = set()
        self._heard: contextvars.Context | None = None
        self._lock = threading.RLock()  # what is sent leaves in the order in which it became so
        self.on_msg(self._on_message)
        _living.add(self)
        self.look()

    def send(self, content: Any, buffers: Any = None) -> None:
        """Send the page a message, from any thread."""
        if self._heard is None:
            super().send(content, buffers)
        else:
            self._heard.copy().run(super().send, content, buffers)

    def take(self, update: Update) -> None:
        """Show an update; called with the lock held."""
        raise NotImplementedError

    def greet(self) -> None:
        """Tell a page that has just opened all that there is; called with the lock held."""
        raise NotImplementedError

    def hear(self, message: dict[str, Any]) -> None:
        """Do what somebody did in the page."""

    def look(self) -> None:
        """Follow the boards, unless that is done already."""
        with self._lock:
            if self._watch is None:
                self._watch = self._fleet.watch(self._target)
                in_thread(self._follow, self._watch)

    def end(self) -> None:
        """Follow them no more."""
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """End it for good, as every widget can."""
        self.end()
        super().close()

    def _follow(self, watch: Watch) -> None:
        try:
            for update in watch:
                with self._lock:
                    self.take(update)
        except CloudmanagerError as error:
            self.send({"kind": "lost", "why": clean(str(error))})

    def _on_message(self, _: object, message: dict[str, Any], __: object) -> None:
        self._heard = contextvars.copy_context()
        if message.get("do") == "open":
            self._views.add(str(message.get("view")))
            self.look()
            with self._lock:
                self.greet()
        elif message.get("do") == "close":
            self._views.discard(str(message.get("view")))
            if not self._views:
                self.end()
        elif message.get("do") == "here":
            self.send({"kind": "here"})  # from now on we speak from where the page is heard
        else:
            self.hear(message)


def end_all() -> None:
    """Have no widget follow boards any more; one that is looked at again begins anew."""
    for live in list(_living):
        live.end()


def in_thread(act: Callable[..., object], *args: object) -> None:
    """Do something that takes time; a kernel that ends does not wait for it."""
    threading.Thread(target=_quietly, args=(act, *args), daemon=True, name="cm_magics").start()


def _quietly(act: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the interpreter ends meanwhile
        act(*args)
