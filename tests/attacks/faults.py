"""Defences against faults of the server's and the caller's own machine."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, SERVER, Defence, defence

_FORKS: Final = "cloudmanager/client/test_forks.py::test_"
_OWN: Final = "cm_server/test_own_failures.py::test_"
_CLOCK: Final = "cm_server/test_loop_clock.py::test_"

FAULTS: Final[list[Defence]] = [
    defence(
        "a server that stood still does not close the links of idle boards",
        SERVER + "net/board_socket.py",
        "BoardConnection._is_silent = lambda self: not self._board.current_job and not self._heard",
        _CLOCK + "idle_boards_stay_connected_when_the_server_stood_still",
    ),
    defence(
        "deadlines of peers do not pass while the server stands still",
        SERVER + "loop_clock.py",
        "_counted_seconds = lambda elapsed: elapsed",
        _CLOCK + "time_in_which_the_loop_stands_still_does_not_count[0.1]",
        _CLOCK + "job_is_not_given_up_because_the_server_stood_still",
        _CLOCK + "requests_are_complete_in_time_although_the_server_stood_still",
        _CLOCK + "tls_handshake_is_complete_in_time_although_the_server_stood_still",
        _CLOCK + "message_of_a_caller_is_complete_in_time_although_the_server_stood_still",
    ),
    defence(
        "a caller that stands still is not disconnected",
        SERVER + "net/websocket.py",
        "CALLER_TCP_OPTIONS = BOARD_TCP_OPTIONS",
        "cm_server/net/test_websocket.py::"
        "test_dead_board_is_noticed_soon_and_a_caller_may_stand_still",
    ),
    defence(
        "a forked child does not use its parent's link",
        LIBRARY + "client/forks.py",
        "notify_in_child = lambda each: None",
        _FORKS + "forked_child_gets_a_clear_error_and_the_parents_cells_are_unharmed",
    ),
    defence(
        "a deleted Fleet gives back its link",
        LIBRARY + "client/link.py",
        "ServerLink._is_unused = lambda self: False",
        _FORKS + "deleted_fleet_gives_back_its_link",
    ),
    defence(
        "a deleted Fleet ends no cell that somebody waits for",
        LIBRARY + "client/link.py",
        "ServerLink._is_unused = lambda self: self._closes_when_unused",
        _FORKS + "deleted_fleet_ends_no_cell_that_somebody_waits_for",
    ),
    defence(
        "a deleted watch ends its subscription",
        LIBRARY + "client/watch.py",
        "Watch._unwatch_if_deleted = lambda self, exchange, ref: None",
        _FORKS + "deleted_watch_ends_its_subscription",
    ),
    defence(
        "a folder that others can write is refused",
        LIBRARY + "config.py",
        "_unsafe_reason = lambda status, owners: ''",
        "cloudmanager/test_config.py::test_token_that_others_can_have_written_is_not_used[438-None]",
        "cloudmanager/test_local_server.py::"
        "test_server_does_not_start_in_a_folder_that_others_can_write",
        "cloudmanager/test_local_server.py::"
        "test_server_replaces_a_token_that_others_can_have_written",
    ),
    defence(
        "files of the server are private with any umask",
        LIBRARY + "config.py",
        "_PRIVATE_MODE = 0o666",
        "cloudmanager/test_config.py::test_umask_does_not_widen_what_is_private",
        "cloudmanager/test_local_server.py::test_server_files_are_private_with_any_umask",
    ),
    defence(
        "a failure of the server at a board's message leaves its link open",
        SERVER + "net/board_socket.py",
        "BoardConnection._handle = lambda self, board, data: "
        "self._services.dispatch.board_messages.on_message(board, data)",
        _OWN + "failure_at_a_boards_message_leaves_its_link_open[sample-plain]",
        _OWN + "failure_at_a_boards_message_leaves_its_link_open[file-tls]",
        _OWN + "failure_at_a_boards_message_leaves_its_link_open[output-mac]",
    ),
    defence(
        "a failure of the server at a caller's message is the reply",
        SERVER + "net/caller_socket.py",
        "CallerConnection._report_failure = lambda self, message, error: (_ for _ in ()).throw(error)",
        _OWN + "failure_at_a_callers_message_is_the_reply",
    ),
    defence(
        "a job that the server cannot send ends",
        SERVER + "jobs/scheduler.py",
        "Scheduler._on_send_failed = lambda self, job, link, error: (_ for _ in ()).throw(error)",
        _OWN + "job_that_the_server_cannot_send_ends_and_the_others_run",
    ),
    defence(
        "errors of the server's disk are distinguished from those of boards",
        SERVER + "installs/content_store.py",
        """
def _storage_error(error):
    raise error
""",
        _OWN + "disk_that_is_full_in_the_middle_of_a_write_is_an_error",
        _OWN + "content_without_a_folder_is_an_error_of_the_server",
    ),
    defence(
        "connections leave file descriptors to the server itself",
        SERVER + "net/listener.py",
        "_DescriptorLimit.allows = lambda self, sock: True",
        _OWN + "connections_leave_descriptors_to_the_server_itself",
    ),
]
