"""Defences of boards' logs, and of the store against what peers let it write."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, SERVER, Defence, defence

LOGS: Final = "cm_server/test_board_logs.py::test_"
WATCH: Final = "cm_server/net/test_watch_logs.py::test_"
VALUES: Final = "cm_server/test_hostile_values.py::test_"
QUEUE: Final = "cm_server/store/test_store_queue.py::test_"

BOARD_LOGS: Final[list[Defence]] = [
    # What is kept
    defence(
        "logs: a board keeps a bounded amount",
        SERVER + "store/log_rows.py",
        "LogRows._trim_board = lambda self, board_id, max_chars: None",
        LOGS + "board_keeps_its_newest_text",
    ),
    defence(
        "logs: all boards together keep a bounded amount",
        SERVER + "store/log_rows.py",
        "LogRows._trim_all = lambda self, max_chars: None",
        LOGS + "all_boards_together_keep_a_bounded_amount",
    ),
    defence(
        "logs: an empty text counts, too",
        SERVER + "store/log_rows.py",
        "LogRow.cost = lambda self, min_chars: len(self.text)",
        LOGS + "empty_and_short_texts_count_too",
        LOGS + "empty_texts_that_wait_for_the_store_are_bounded",
    ),
    defence(
        "logs: a board that prints too much loses the excess",
        SERVER + "board_logs.py",
        "BoardLogs._spend = lambda self, log, now, size: size",
        LOGS + "excess_is_lost_and_counted_also_when_nothing_follows",
        WATCH + "board_that_floods_its_log_loses_the_excess_and_delays_nobody",
    ),
    defence(
        "logs: the number of lost bytes fits in the store",
        SERVER + "board_logs.py",
        "_MAX_LOST = 2**80",
        LOGS + "huge_losses_are_stored_as_the_largest_number",
    ),
    # Who reads it
    defence(
        "logs: only operators follow them, unless the server lets viewers",
        SERVER + "net/caller_socket.py",
        "CallerConnection._check_may_read_logs = lambda self: None",
        WATCH + "viewer_may_not_follow_logs",
    ),
    defence(
        "logs: a follower gets those of its boards only",
        SERVER + "api/subscriptions.py",
        "Subscription._covers = lambda self, board: True",
        WATCH + "operator_follows_only_logs_of_its_boards",
        WATCH + "viewer_follows_logs_where_the_server_lets_viewers_read_them",
    ),
    defence(
        "logs: what waits for a slow follower is bounded",
        SERVER + "api/subscriptions.py",
        "Subscription._log_cost = lambda self, text: 0",
        WATCH + "logs_that_wait_for_a_slow_reader_are_bounded",
    ),
    defence(
        "logs: what waits for a program that does not read is bounded",
        LIBRARY + "client/watch.py",
        "_log_cost = lambda piece: 0",
        "cloudmanager/client/test_watch.py::test_pending_logs_are_limited_by_their_length",
    ),
    defence(
        "logs: a line without an end ends",
        LIBRARY + "client/log_lines.py",
        "_MAX_LINE_CHARS = 10**9",
        "cloudmanager/client/test_log_lines.py::test_line_without_an_end_ends_after_16_kb",
    ),
    # What the store is given
    defence(
        "store: an error that cannot be stored stops no other write",
        SERVER + "jobs/job_results.py",
        '_last_line = lambda error: error.strip().rpartition("\\n")[2]',
        VALUES + "error_of_a_cell_that_cannot_be_stored_stops_no_other_write[postgresql]",
    ),
    defence(
        "store: a place in a log is a number that the store knows",
        SERVER + "api/verbs.py",
        "_MAX_LOG_ID = 10**40",
        VALUES + "impossible_place_in_a_log_is_refused[sqlite-after0]",
    ),
    defence(
        "store: a transaction that PostgreSQL ends is tried again",
        SERVER + "store/postgres_database.py",
        "Postgres.is_retryable = lambda self, error: False",
        QUEUE + "cell_survives_that_postgresql_ends_its_transaction",
        QUEUE + "transaction_survives_that_postgresql_stands_still[before a statement]",
        QUEUE + "transaction_survives_that_postgresql_stands_still[at the commit]",
        QUEUE + "first_cell_after_a_restart_of_postgresql_is_not_refused",
    ),
    defence(
        "store: a commit whose outcome is unknown is not repeated",
        SERVER + "store/postgres_database.py",
        "Postgres._note_commit = lambda self: None",
        QUEUE + "commit_whose_outcome_is_unknown_is_not_repeated",
    ),
    defence(
        "store: an operation that always ends its connection is refused",
        SERVER + "store/postgres_database.py",
        "Postgres.max_retries = 10",
        QUEUE + "operation_that_always_ends_its_connection_is_refused",
    ),
    defence(
        "log: what is wrong around the server is logged once a minute",
        SERVER + "cleanup.py",
        "ProblemLog.write = lambda self, level, kind, text, *args: log.log(level, text, *args)",
        QUEUE + "store_that_cannot_be_written_is_logged_once",
    ),
    # Tokens
    defence(
        "tokens: the name of an expired token is free",
        SERVER + "auth/tokens.py",
        "Tokens._has_valid = lambda self, name: bool(self.find_unrevoked(name))",
        "cm_server/auth/test_tokens.py::test_name_of_an_expired_token_is_free_and_the_token_stays_invalid",
    ),
]
