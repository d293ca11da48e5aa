"""Defences against faults of the server's and the caller's own machine."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, SERVER, Defence, defence

_FORKS: Final = "cloudmanager/client/test_forks.py::test_"
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
]
