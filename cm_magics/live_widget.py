"""Base class of the widgets: subscribes to updates of boards while a page shows the widget.

Updates arrive in a background thread, also while a cell runs, and are sent to the page through the
widget's comm. The page's messages arrive through the comm too. Whatever takes time runs in a thread
of its own.

JupyterLab makes ipykernel handle the messages of widgets in a thread beside the one that runs cells
(a subshell). But ipykernel routes a page's messages to the thread from whose context the comm last
sent something (`ipykernel/comm/comm.py`), and a message sent by a background thread counts as sent
by the running cell: the page's messages would wait until that cell ends. Therefore every message is
sent in the context of the last message that came from the page.
"""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.watch import Update, Watch
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import sanitize_text

from .saved_output import Bundle, SavedOutput

#: Seconds between two signs of life; a page without any for 7 s (LOST_CHECKS in plot.js) shows
#: "not connected".
HEARTBEAT_SECONDS: Final = 2.0
EXIT_SECONDS: Final = 10.0  # by then, an exiting interpreter has ended its daemon threads
SAVE_SECONDS: Final = 30.0  # between two updates of the state that the notebook keeps
_live_widgets: weakref.WeakSet[LiveWidget] = weakref.WeakSet()
_FOLDER = Path(__file__).parent
CSS = (_FOLDER / "dashboard.css").read_text(encoding="utf-8")


def javascript_module(class_name: str, *files: str) -> str:
    """Join ``files`` to one JavaScript module whose widget view is the class ``class_name``."""
    parts = [(_FOLDER / name).read_text(encoding="utf-8") for name in files]
    return "\n".join([*parts, f"export default show({class_name});\n"])


class LiveWidget(anywidget.AnyWidget):
    """A widget that subscribes to updates of boards for as long as a page shows it."""

    _css = CSS
    #: What a page says that hears nothing any more.
    lost_text = traitlets.Unicode(
        "Not connected: the notebook's kernel has ended or does not answer. Run the cell again."
    ).tag(sync=True)
    #: What a page says whose messages are not confirmed.
    waiting_text = traitlets.Unicode(
        "The notebook's kernel is busy or does not answer: what you did last waits for it."
    ).tag(sync=True)

    def __init__(self, fleet: Fleet, target: str, **traits: Any) -> None:
        super().__init__(**traits)
        self._fleet = fleet
        self._target = target
        self._watch: Watch | None = None
        #: The sequence number of the message that each open view of the widget sends next.
        self._next_seqs: dict[str, int] = {}
        self._seq_lock = threading.Lock()
        self._saved_output = SavedOutput()
        self._page_context: contextvars.Context | None = None
        self._lock = threading.RLock()  # held while a change is stored and sent: keeps the order
        self.on_msg(self._on_message)
        _live_widgets.add(self)
        self.start_watching()

    def send(self, content: Any, buffers: Any = None) -> None:
        """Send a message to the page; may be called from any thread."""
        if self._page_context is None:
            super().send(content, buffers)
        else:
            self._page_context.copy().run(super().send, content, buffers)

    def on_update(self, update: Update) -> None:
        """Handle an update; called with the lock held."""
        raise NotImplementedError

    def on_watch_failed(self, error: CloudmanagerError) -> None:
        """Show why there are no updates any more: the target's boards were removed, say."""
        self.send({"kind": "lost", "reason": sanitize_text(str(error))})

    def send_everything(self) -> None:
        """Send the whole state to a page that has just opened; called with the lock held."""
        raise NotImplementedError

    def on_page_message(self, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Handle a message from the page; ``buffers`` are the bytes that came with it."""

    def make_saved_state(self) -> Bundle:
        """Return the state that the notebook keeps, as ``text/plain`` and others by MIME type."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        bundle = super()._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        self._saved_output.show(data or {}, self.make_saved_state())

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """Add the state of this moment, for whatever does not display widgets."""
        bundle = super()._repr_mimebundle_(**arguments)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), **self.make_saved_state()}, metadata

    def start_watching(self) -> None:
        """Subscribe to the boards, unless already subscribed."""
        with self._lock:
            if self._watch is None:
                self._watch = self._fleet.watch(self._target)
                run_in_thread(self._watch_boards, self._watch)
                run_in_thread(self._send_heartbeats, self._watch)

    def stop_watching(self) -> None:
        """End the subscription."""
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """End the subscription and close the widget."""
        self.stop_watching()
        super().close()

    def _watch_boards(self, watch: Watch) -> None:
        try:
            for update in watch:
                with self._lock:
                    self.on_update(update)
        except CloudmanagerError as error:
            self.on_watch_failed(error)

    def _send_heartbeats(self, watch: Watch) -> None:
        """Send signs of life to the page, and update what the notebook keeps, until watch ends."""
        next_save = time.monotonic() + SAVE_SECONDS
        while self._watch is watch:
            self.send({"kind": "alive"})
            if time.monotonic() >= next_save:
                next_save = time.monotonic() + SAVE_SECONDS
                self._saved_output.update(self.make_saved_state())
            time.sleep(HEARTBEAT_SECONDS)

    def _on_message(self, _: object, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        self._page_context = contextvars.copy_context()
        self.receive(message, buffers)

    def receive(self, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Handle any message from the page; those of a notebook arrive through the comm."""
        view, kind = str(message.get("view")), message.get("do")
        if not self._is_next(view, message.get("seq")):
            return
        if kind == "open":
            self.start_watching()
            with self._lock:
                self.send_everything()
        elif kind == "close":
            with self._seq_lock:
                self._next_seqs.pop(view, None)
                is_last = not self._next_seqs
            if is_last:
                self.stop_watching()
        elif kind != "ping":  # its confirmation is all that a ping is for, see above
            self.on_page_message(message, buffers)

    def _is_next(self, view: str, seq: object) -> bool:
        """Confirm a message; return False if it was handled before, or comes before its turn.

        A page sends messages again that are not confirmed (Outbox in plot.js): either they or
        their confirmations got lost. From a confirmation on, ipykernel routes the page's messages
        as this one (see above).
        """
        with self._seq_lock:
            expected = self._next_seqs.get(view, 0)
            is_next = seq == expected
            if is_next:
                self._next_seqs[view] = expected = expected + 1
        self.send({"kind": "received", "view": view, "next": expected})
        return is_next


def stop_all_watching() -> None:
    """End the subscriptions of all widgets; a page that opens again starts a new one."""
    for widget in list(_live_widgets):
        widget.stop_watching()


def run_in_thread(callback: Callable[..., object], *args: object) -> None:
    """Call a function in a daemon thread, for which an exiting kernel does not wait."""
    threading.Thread(
        target=_call_unless_exiting, args=(callback, *args), daemon=True, name="cm_magics"
    ).start()


def _call_unless_exiting(callback: Callable[..., object], *args: object) -> None:
    try:
        callback(*args)
    except RuntimeError:
        # An exiting interpreter starts no threads and closes loops, which raises this, and then
        # ends this daemon thread during the pause. Otherwise it is an error that must be seen.
        time.sleep(EXIT_SECONDS)
        raise
