"""Defences of streams: a frame leaves whole, or nothing follows it; an interrupt mixes nothing."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, Defence, Place, text_defence

OUTGOING: Final = "cloudmanager/client/test_outgoing.py::"

STREAMS: Final[list[Defence]] = [
    text_defence(
        "an interrupt cannot come between a write and the note of how much was written",
        LIBRARY + "client/outgoing.py",
        "taken.extend(write)",
        "taken.append(self._write(frame.data, DO_NOT_WAIT))",
        OUTGOING + "test_no_instant_of_an_interrupt_mixes_two_frames[plain-1_0]",
        OUTGOING + "test_what_a_signal_handler_raises_is_raised_and_mixes_no_frames",
    ),
    text_defence(
        "a frame waits for the one before it, which waits for the server",
        LIBRARY + "client/outgoing.py",
        "elif self._left or not DO_NOT_WAIT:",
        "elif not DO_NOT_WAIT:",
        OUTGOING + "test_threads_that_send_at_once_send_whole_frames",
    ),
    text_defence(
        "nothing follows a frame whose bytes may have left in part",
        LIBRARY + "client/outgoing.py",
        "                torn = self._halfway is not None",
        "                torn = self._halfway = None",
        OUTGOING + "test_memory_that_runs_out_ends_the_stream",
        behind=Place(
            LIBRARY + "client/outgoing.py",
            "            if torn or self._halfway is frame:\n",
            "            if torn:\n",
        ),
    ),
    text_defence(
        "a frame that is withdrawn half-way is never completed",
        LIBRARY + "client/outgoing.py",
        "        if torn:\n            self._cut()\n        return True\n",
        "        return True\n",
        OUTGOING + "test_nothing_follows_half_a_frame",
        behind=Place(
            LIBRARY + "client/outgoing.py",
            "                    if self._closed or frame.withdrawn:\n",
            "                    if self._closed:\n",
        ),
    ),
    text_defence(
        "an interrupted cell that the server does not have whole does not run",
        LIBRARY + "client/exchange.py",
        "        if group is None or group.frame is None:\n",
        "        if True:\n",
        OUTGOING + "test_interrupted_cell_that_is_half_sent_does_not_run[plain-run]",
    ),
    text_defence(
        "who is interrupted while it submits a cell does not leave the cell running",
        LIBRARY + "client/fleet.py",
        "        with verbs.interrupting(group):\n            group.accepted.get()\n",
        "        group.accepted.get()\n",
        OUTGOING + "test_interrupted_cell_that_is_half_sent_does_not_run[plain-submit]",
    ),
    text_defence(
        "a server that stops reading in the middle of a frame is left",
        LIBRARY + "client/link.py",
        "                    if self._outgoing.written == written:\n",
        "                    if False:\n",
        OUTGOING + "test_server_that_stops_reading_is_left[plain]",
    ),
    text_defence(
        "an interrupted waiter keeps no other one waiting",
        LIBRARY + "client/future.py",
        "            finally:  # Ctrl-C",
        "            except ZeroDivisionError:\n                pass\n            else:  # Ctrl-C",
        "cloudmanager/client/test_future.py::test_wait_that_is_interrupted_keeps_nobody_else_waiting",
    ),
    text_defence(
        "a bridge sends nothing after half a frame",
        LIBRARY + "cable/board_link.py",
        "        if self._torn:\n            raise ConnectionAbortedError\n",
        "",
        "cloudmanager/cable/test_board_link.py::test_nothing_follows_half_a_frame",
        behind=Place(
            LIBRARY + "cable/board_link.py",
            "                    self._socket.shutdown(socket.SHUT_RDWR)  # receive sees the end\n",
            "                    pass\n",
        ),
    ),
    text_defence(
        "an interrupt mixes up no answers of the process of virtual boards",
        LIBRARY + "virtual/virtual_boards.py",
        "        thread.start()\n        thread.join()\n",
        "        ask()\n",
        "cloudmanager/virtual/test_virtual_boards.py::test_interrupted_order_does_not_mix_up_the_answers",
    ),
    text_defence(
        "a signal cuts no answer of the process of virtual boards",
        LIBRARY + "virtual/supervisor.py",
        "    while data:\n        data = data[os.write(handle, data) :]\n",
        "    os.write(handle, data)\n",
        "cloudmanager/virtual/test_supervisor.py::"
        "test_answer_is_written_whole_though_signals_come_meanwhile",
    ),
]
