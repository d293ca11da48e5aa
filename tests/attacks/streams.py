"""Defences of streams: a frame leaves whole, or nothing follows it; an interrupt mixes nothing."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, Defence, Override, defence

READING: Final = "cloudmanager/client/test_reading.py::test_"
OUTGOING: Final = "cloudmanager/client/test_outgoing.py::"

STREAMS: Final[list[Defence]] = [
    defence(
        "an interrupt cannot come between a write and the record of its length",
        LIBRARY + "client/outgoing.py",
        "_record_all = lambda counts, written: counts.append(next(written))",
        OUTGOING + "test_interrupts_at_any_instant_mix_no_frames[plain-1_0]",
        OUTGOING + "test_exception_of_a_signal_handler_is_raised_and_mixes_no_frames",
    ),
    defence(
        "a frame is queued behind those that are not sent yet",
        LIBRARY + "client/outgoing.py",
        "Outgoing._must_queue = lambda self: not DO_NOT_WAIT",
        OUTGOING + "test_concurrent_sends_do_not_mix_frames",
    ),
    defence(
        "nothing follows a frame that may be partly sent",
        LIBRARY + "client/outgoing.py",
        "Outgoing._is_torn = lambda self: setattr(self, '_current', None)",
        OUTGOING + "test_memory_error_ends_the_stream",
        behind=Override(
            LIBRARY + "client/outgoing.py", "Outgoing._was_interrupted = lambda self, frame: False"
        ),
    ),
    defence(
        "a frame that is withdrawn when partly sent is never completed",
        LIBRARY + "client/outgoing.py",
        "Outgoing._is_partly_written = lambda self, frame: False",
        OUTGOING + "test_nothing_follows_a_partial_frame",
        behind=Override(
            LIBRARY + "client/outgoing.py",
            "Outgoing._may_complete = lambda self, frame: not self._closed",
        ),
    ),
    defence(
        "an interrupted cell that is not sent completely does not run",
        LIBRARY + "client/exchange.py",
        "Exchange._withdraw = lambda self, ref: None",
        OUTGOING + "test_interrupted_partly_sent_cell_does_not_run[plain-run]",
    ),
    defence(
        "interrupting submit does not leave the cell running",
        LIBRARY + "client/jobs.py",
        "JobGroup.interrupted_on_error = lambda self: contextlib.nullcontext()",
        OUTGOING + "test_interrupted_partly_sent_cell_does_not_run[plain-submit]",
    ),
    defence(
        "a caller notices that the server stopped reading",
        LIBRARY + "client/link.py",
        "ServerLink._has_stopped_reading = lambda self, written_before: False",
        OUTGOING + "test_server_that_stops_reading_is_disconnected[plain]",
    ),
    defence(
        "an interrupted wait does not block other waiting threads",
        LIBRARY + "client/future.py",
        "Future._wait_for_lock = lambda self, seconds: ("
        "self._unset_lock.acquire(timeout=seconds) and self._release())",
        "cloudmanager/client/test_future.py::test_interrupted_wait_does_not_block_other_threads",
    ),
    defence(
        "Ctrl-C is not raised while a message is half handled",
        LIBRARY + "client/interruptible.py",
        "PostponedInterrupt.__enter__ = lambda self: None",
        READING + "ctrl_c_while_a_message_is_handled_is_raised_after_it",
    ),
    defence(
        "no message is handled after one that was handled halfway",
        LIBRARY + "client/link.py",
        "ServerLink._has_unread_bytes = lambda self: False",
        READING + "other_signal_while_a_message_is_handled_ends_the_link",
    ),
    defence(
        "a bridge sends nothing after half a frame",
        LIBRARY + "cable/board_link.py",
        """
BridgedBoardLink._raise_if_torn = lambda self: None
BridgedBoardLink._shut_down = lambda self: None
""",
        "cloudmanager/cable/test_board_link.py::test_nothing_follows_half_a_frame",
    ),
    defence(
        "an interrupt does not mix up answers of the supervisor of virtual boards",
        LIBRARY + "virtual/virtual_boards.py",
        "_run_uninterrupted = lambda function: function()",
        "cloudmanager/virtual/test_virtual_boards.py::test_interrupted_command_does_not_mix_up_answers",
    ),
    defence(
        "a signal does not cut an answer of the supervisor of virtual boards",
        LIBRARY + "virtual/supervisor.py",
        "_write_all = os.write",
        "cloudmanager/virtual/test_supervisor.py::"
        "test_answer_is_written_completely_despite_signals",
    ),
]
