"""Defences of those who are in: at most once, floods, and boards that were taken over."""

from __future__ import annotations

from typing import Final

from .defence import BOARD, LIBRARY, SERVER, Override, defence

HISTORY: Final = "cm_server/test_sample_history.py::test_"
STANDSTILL: Final = "cm_server/test_standstill.py::test_"

BOUNDS: Final = [
    # At most once
    defence(
        "a board runs a cell that it receives twice once",
        BOARD + "run.py",
        "def receive_job(n, receive=receive_job):\n    job[:] = bytes(4)\n    receive(n)",
        "board/test_link.py::test_cell_that_is_sent_twice_runs_once",
    ),
    defence(
        "a cell that the server receives twice runs once",
        SERVER + "net/caller_socket.py",
        "CallerConnection._was_submitted_before = lambda self, ref: False",
        "cm_server/net/test_caller_socket.py::test_cell_sent_twice_runs_once",
    ),
    defence(
        "of the cells of a link, few are remembered",
        SERVER + "net/caller_socket.py",
        "REMEMBERED_HEADS = 10**9",
        "cm_server/net/test_caller_socket.py::test_few_of_a_links_cells_are_remembered",
    ),
    defence(
        "one token cannot let more work wait than its share, nor all of them more than there is",
        SERVER + "jobs/waiting_jobs.py",
        "WaitingJobs._refusal_reason = lambda self, token, jobs, size, use: ''",
        "cm_server/jobs/test_waiting_jobs.py::test_one_token_cannot_let_more_than_its_share_wait",
        "cm_server/jobs/test_waiting_jobs.py::"
        "test_all_tokens_together_cannot_let_more_wait_than_there_is_room_for",
        "cm_server/jobs/test_waiting_jobs.py::"
        "test_bytes_of_one_token_are_bounded_and_a_submission_counts_once",
        "cm_server/jobs/test_waiting_jobs.py::test_bytes_of_all_tokens_are_bounded",
    ),
    defence(
        "of a long text of a cell, only the SHA-256 is kept",
        SERVER + "jobs/job_texts.py",
        "JobTexts._is_too_long = lambda self, text: False",
        "cm_server/jobs/test_job_texts.py::test_of_a_long_text_only_the_hash_is_kept",
    ),
    defence(
        "what is kept of a cell's notebook and inputs is bounded",
        SERVER + "jobs/job_texts.py",
        "_MAX_NAME_CHARS = _MAX_INPUTS = 1 << 30",
        "cm_server/jobs/test_job_texts.py::test_hostile_origin_is_shortened",
    ),
    defence(
        "the texts of cells that are kept are bounded for each token",
        SERVER + "jobs/job_texts.py",
        "JobTexts._has_share = lambda self, token, text: True",
        "cm_server/jobs/test_job_texts.py::test_texts_of_one_token_do_not_use_the_share_of_others",
        "cm_server/jobs/test_job_texts.py::test_full_store_of_texts_asks_for_room",
    ),
    defence(
        "all texts of cells together are bounded",
        SERVER + "text_expiry.py",
        "TextExpiry._before_limit = lambda self: None",
        "cm_server/test_text_expiry.py::test_too_many_texts_are_reduced_to_the_last_days",
    ),
    defence(
        "alarms that wait for a receiver are bounded",
        SERVER + "net/webhook.py",
        "MessageQueue._trim = lambda self: None",
        "cm_server/net/test_webhook.py::test_messages_that_wait_are_bounded",
    ),
    defence(
        "a receiver of alarms cannot fill the memory with its answer",
        SERVER + "net/webhook.py",
        "_ANSWER_BYTES = 1 << 30",
        "cm_server/net/test_webhook.py::test_long_answer_is_not_kept",
    ),
    defence(
        "a message of alarms names a bounded number of boards",
        SERVER + "alarms.py",
        "_LISTED_NAMES = 10_000",
        "cm_server/test_alarms.py::test_outage_of_a_site_is_one_message",
    ),
    defence(
        "a board that comes and goes does not flood the receiver of alarms",
        SERVER + "alarms.py",
        "QUIET_SECONDS = 0.0",
        "cm_server/test_alarms.py::"
        "test_board_that_flaps_is_one_message_with_a_number_every_ten_minutes",
    ),
    defence(
        "a receiver of alarms does not choose where else the server connects to",
        SERVER + "net/webhook.py",
        "FOLLOWS_REDIRECTS = True",
        "cm_server/net/test_webhook.py::test_redirect_is_not_followed[307]",
    ),
    defence(
        "an alarm cannot be repeated later: its time is signed",
        SERVER + "net/webhook.py",
        "sign = lambda secret, at, body: "
        "f't={at},v1={hmac.new(secret, body, hashlib.sha256).hexdigest()}'",
        "cm_server/net/test_webhook.py::test_message_is_signed_with_its_time",
        "cm_server/net/test_webhook.py::"
        "test_receiver_of_the_documentation_accepts_genuine_messages",
    ),
    defence(
        "alarms leave the machine over TLS only",
        SERVER + "net/webhook.py",
        "_is_loopback = lambda host: True",
        "cm_server/net/test_webhook.py::test_wrong_settings_are_refused_without_their_secrets"
        "[http://10.0.0.1/x-0123456789abcdef-must be https]",
    ),
    defence(
        "work that waits has a bounded size",
        SERVER + "api/waiting_work.py",
        "_check_size = lambda size, limits: None",
        "cm_server/api/test_waiting_work.py::test_work_that_is_too_large_is_refused",
    ),
    defence(
        "what jobs printed that have waited is bounded in all",
        SERVER + "store/waiting_rows.py",
        "WaitingRows._trim_outputs = lambda self, max_chars: None",
        "cm_server/jobs/test_waiting_jobs.py::test_outputs_are_bounded_in_all",
    ),
    # Samples
    defence(
        "a sample has a bounded number of bytes",
        SERVER + "sample_collector.py",
        "SampleCollector._is_too_long = lambda self, message: False",
        "cm_server/test_sample_collector.py::test_sample_of_too_many_bytes_is_dropped",
    ),
    defence(
        "the name of a value is bounded",
        LIBRARY + "protocol/wire.py",
        "_SAMPLE_NAME_CHARS = 1 << 30",
        "cloudmanager/protocol/test_wire.py::test_name_of_a_value_is_bounded",
    ),
    defence(
        "a board that floods samples loses the excess",
        SERVER + "sample_buffer.py",
        "SampleBuffer.allow = lambda self, now, rate: True",
        "cm_server/test_sample_collector.py::"
        "test_samples_beyond_the_rate_limit_are_dropped_and_counted",
    ),
    defence(
        "the samples of all boards in memory are bounded",
        SERVER + "sample_collector.py",
        "SampleCollector._trim = lambda self, buffer: None",
        "cm_server/test_sample_collector.py::test_newest_samples_of_a_board_are_kept",
        "cm_server/test_sample_collector.py::test_boards_share_the_total_of_samples",
    ),
    # Samples that last
    defence(
        "values that wait for a slow disk are bounded",
        SERVER + "sample_history.py",
        "SampleHistory._is_full = lambda self: False",
        HISTORY + "values_that_wait_for_the_disk_are_bounded",
    ),
    defence(
        "all samples on the disk are bounded",
        SERVER + "store/sample_files.py",
        "SampleFiles._size = lambda self: 0",
        "cm_server/store/test_sample_files.py::test_oldest_is_deleted_where_there_is_too_much",
    ),
    defence(
        "a board that floods names of values keeps a few",
        SERVER + "sample_history.py",
        "_BoardNames._exceeds_names = lambda self: False",
        HISTORY + "board_with_too_many_names_keeps_the_first",
    ),
    defence(
        "a board keeps a bounded number of values a day",
        SERVER + "sample_history.py",
        "_BoardNames._exceeds_values = lambda self: False",
        HISTORY + "board_with_too_many_values_keeps_the_first",
    ),
    defence(
        "the boards of one token keep a bounded number of values a day",
        SERVER + "sample_history.py",
        "_DayNames.count_value = lambda self, token: True",
        HISTORY + "boards_of_one_token_do_not_displace_those_of_others",
    ),
    defence(
        "the boards of one token keep a bounded number of names",
        SERVER + "sample_history.py",
        "_DayNames.count_name = lambda self, token: True",
        HISTORY + "boards_of_one_token_do_not_displace_those_of_others",
    ),
    defence(
        "samples do not fill the disk",
        SERVER + "store/sample_files.py",
        "SampleFiles._check_free_space = lambda self: None",
        HISTORY + "full_disk_stops_keeping_and_nothing_else",
    ),
    defence(
        "a query for samples ends in time",
        SERVER + "sample_history.py",
        "_interrupting = lambda interrupt, seconds: contextlib.nullcontext()",
        HISTORY + "long_query_is_ended",
    ),
    defence(
        "one token has a bounded number of queries for samples",
        SERVER + "sample_history.py",
        "SampleHistory._has_too_many = lambda self, waiting: False",
        HISTORY + "token_waits_for_a_few_queries_at_a_time",
    ),
    defence(
        "names of values are no formulas of spreadsheets",
        LIBRARY + "protocol/sample_text.py",
        "_plain = lambda name: name",
        "cm_server/net/test_samples_page.py::test_samples_as_csv_and_json",
        "cloudmanager/client/test_samples.py::test_values_as_text",
    ),
    defence(
        "a backup writes nothing outside of the folder of samples",
        SERVER + "store/sample_folder.py",
        "is_file_name = lambda name: True",
        "cm_server/store/test_backup.py::test_members_outside_of_the_folder_of_samples_are_ignored",
    ),
    defence(
        "a reset ends the board's own program",
        BOARD + "run.py",
        """
def poll(at, poll=poll):
    poll(at)
    if state.stop == 0x14:  # RESET
        state.stop = state.deadline = 0
    return state.stop
""",
        "board/test_boot.py::test_reset_ends_a_program_that_keeps_the_board_busy[computes]",
    ),
    defence(
        "a program that catches its interrupt is ended by a hard reset",
        BOARD + "run.py",
        "def restart(hard, stop, restart=restart):\n    if not hard:\n        restart(hard, stop)",
        "board/test_boot.py::test_reset_ends_a_program_that_keeps_the_board_busy[swallows]",
    ),
    defence(
        "a reset does not wait for the board's own program",
        SERVER + "jobs/scheduler.py",
        "_first_resetting_job = lambda board: None",
        "cm_server/jobs/test_scheduler.py::test_reset_does_not_wait_for_the_boards_own_program",
        "cm_server/jobs/test_scheduler.py::test_reset_overtakes_cells_that_wait_for_the_program",
    ),
    defence(
        "a cell that a board skipped because its own program started first is sent again",
        SERVER + "jobs/board_messages.py",
        "_overtaken_job = lambda board: None",
        "cm_server/jobs/test_scheduler.py::"
        "test_cell_overtaken_by_the_program_is_requeued_and_sent_again",
    ),
    defence(
        "a cell that was put back into the queue is lost if the board restarts",
        SERVER + "jobs/job_recovery.py",
        "_may_have_run = lambda reported, same_boot: reported",
        "cm_server/jobs/test_scheduler.py::test_requeued_cell_is_lost_if_the_board_restarts",
    ),
    defence(
        "the link of a board that does not report a result in time is closed",
        SERVER + "jobs/scheduler.py",
        "Scheduler._close_unresponsive_link = lambda self, job: None",
        "cm_server/jobs/test_scheduler.py::test_link_of_a_board_that_reports_no_result_is_closed",
    ),
    defence(
        "a caller notices that the server stopped answering",
        LIBRARY + "client/link.py",
        "ServerLink._has_stopped_answering = lambda self, ping_sent: False",
        "cloudmanager/client/test_link.py::test_silent_server_gets_a_ping_and_is_disconnected",
    ),
    defence(
        "a board's messages about jobs of other boards are ignored",
        SERVER + "jobs/board_messages.py",
        "_is_job_number = lambda job, number: True",
        "cm_server/jobs/test_dispatch.py::test_message_about_another_boards_job_is_ignored",
    ),
    defence(
        "a board corrects the result of its own jobs only",
        SERVER + "store/store.py",
        "_is_job_of = lambda row, board_id: True",
        "cm_server/jobs/test_job_results.py::test_board_cannot_change_another_boards_result",
    ),
    defence(
        "a board corrects an assumed result only",
        SERVER + "jobs/job_results.py",
        "_is_uncertain = lambda row: True",
        "cm_server/jobs/test_job_results.py::test_board_cannot_change_a_certain_result",
    ),
    defence(
        "a job is committed before its cell is sent",
        SERVER + "jobs/dispatch.py",
        "from cm_server.store.store_queue import completed\n"
        "Dispatch._commit = lambda self, submission, epochs: completed(\n"
        "    range(len(self.jobs) + 1, len(self.jobs) + 1 + len(submission.boards)))",
        "cm_server/jobs/test_dispatch.py::test_result_ends_the_job_for_caller_store_and_board",
        STANDSTILL + "only_new_cells_wait_for_a_database_that_stands_still[sqlite]",
    ),
    defence(
        "a result is written before the same board's next job starts",
        SERVER + "jobs/scheduler.py",
        "Scheduler._is_marked_sent = lambda self, job: True",
        STANDSTILL + "next_job_of_a_board_waits_until_the_result_before_it_is_written[sqlite]",
    ),
    defence(
        "another program's lock on the database stops new cells only",
        SERVER + "store/databases.py",
        "Sqlite.is_retryable = lambda self, error: False",
        STANDSTILL + "only_new_cells_wait_for_a_database_that_stands_still[sqlite]",
    ),
    defence(
        "what waits for a database that does not answer is limited",
        SERVER + "store/store_queue.py",
        'StoreQueue._refusal_reason = lambda self, size: ""',
        STANDSTILL + "cells_beyond_the_limit_are_refused_with_a_sentence",
    ),
    # Transport abuse
    defence(
        "a client that does not mask is refused",
        LIBRARY + "protocol/frames.py",
        "FrameReader._check_mask_bit = lambda self, second: None",
        "cloudmanager/protocol/test_frames.py::test_unmasked_frame_is_refused",
    ),
    defence(
        "reserved bits are refused",
        LIBRARY + "protocol/frames.py",
        "_check_reserved_bits = lambda first: None",
        "cloudmanager/protocol/test_frames.py::test_forbidden_frame_is_refused_with_its_close_code",
    ),
    defence(
        "a control frame that is long or fragmented is refused",
        LIBRARY + "protocol/frames.py",
        "_check_control_frame = lambda opcode, first, size: None",
        "cloudmanager/protocol/test_frames.py::test_forbidden_frame_is_refused_with_its_close_code",
    ),
    defence(
        "fragmented messages are refused",
        LIBRARY + "protocol/frames.py",
        "_check_not_fragmented = lambda first: None",
        "cloudmanager/protocol/test_frames.py::test_forbidden_frame_is_refused_with_its_close_code",
    ),
    defence(
        "a message that is too long is refused before it is received",
        LIBRARY + "protocol/frames.py",
        "FrameReader._check_size = lambda self, size: None",
        "cloudmanager/protocol/test_frames.py::"
        "test_too_long_frame_is_refused_before_its_payload_is_received",
        "cm_server/net/test_board_socket.py::test_oversize_message_is_refused_before_it_is_read",
    ),
    defence(
        "the link of a peer that does not read is closed",
        SERVER + "net/websocket.py",
        "WebSocketLink._has_stalled = lambda self, read_before: False",
        "cm_server/net/test_websocket.py::test_peer_that_does_not_read_is_closed",
    ),
    defence(
        "output for a caller that does not read is dropped",
        SERVER + "net/caller_outbox.py",
        "CallerOutbox._is_full = lambda self: False",
        "cm_server/net/test_caller_socket.py::"
        "test_slow_caller_gets_truncated_output_and_its_result",
        "cm_server/net/test_caller_outbox.py::"
        "test_output_beyond_the_limit_is_replaced_by_one_truncated",
    ),
    defence(
        "unauthenticated connections are bounded per address",
        SERVER + "rate_limits.py",
        "UnauthenticatedConnections._is_over_address_limit = lambda self, count: False",
        "cm_server/test_rate_limits.py::test_oldest_connection_of_an_address_is_closed",
    ),
    defence(
        "unauthenticated connections are bounded in total",
        SERVER + "rate_limits.py",
        "UnauthenticatedConnections._is_over_total_limit = lambda self: False",
        "cm_server/test_rate_limits.py::test_total_limit_closes_a_connection_of_the_largest_group",
    ),
    defence(
        "a connection whose request has a slow head is closed",
        SERVER + "net/listener.py",
        "_head_timeout = lambda limits: 999",
        "cm_server/test_app.py::test_request_with_a_slow_head_is_closed",
    ),
    defence(
        "a connection whose request has a slow body is closed",
        SERVER + "net/listener.py",
        "_body_timeout = lambda limits: 999",
        "cm_server/test_app.py::test_request_with_a_slow_body_is_closed",
    ),
    defence(
        "callers are bounded per token",
        SERVER + "auth/caller_links.py",
        "CallerLinks.count_of = lambda self, token: 0",
        "cm_server/net/test_caller_socket.py::test_callers_are_bounded_in_total_and_per_token",
    ),
    defence(
        "a board's queue is bounded",
        SERVER + "jobs/scheduler.py",
        'Scheduler._queue_full_reason = lambda self, queue, job: ""',
        "cm_server/jobs/test_dispatch.py::test_job_for_a_full_queue_is_refused",
    ),
    defence(
        "the input of a link is handled in slices",
        SERVER + "net/websocket.py",
        "_is_over = lambda end: False",
        "cm_server/net/test_websocket.py::"
        "test_flood_is_handled_in_slices_and_other_links_in_between[pings]",
    ),
    defence(
        "one link with a backlog is served in each iteration of the event loop",
        SERVER + "net/fair_queue.py",
        """FairQueue._serve_next = lambda self: [
    setattr(self, "_scheduled", False),
    *(self._waiting.popleft()() for _ in range(len(self._waiting))),
]""",
        "cm_server/net/test_fair_queue.py::test_one_function_is_called_in_each_iteration",
    ),
    defence(
        "messages of a link are handled at a bounded rate",
        SERVER + "net/websocket.py",
        "WebSocketLink._count_message = lambda self: 0.0",
        "cm_server/net/test_websocket.py::test_messages_are_handled_at_a_bounded_rate",
    ),
    defence(
        "an unauthenticated peer may not send pings",
        SERVER + "net/websocket.py",
        "WebSocketLink._refuse_ping = lambda self, frame: None",
        "cm_server/net/test_websocket.py::"
        "test_unauthenticated_ping_closes_the_link_after_a_delay[ping]",
    ),
    defence(
        "log lines about one peer are limited",
        SERVER + "logs.py",
        "PeerLog._is_over_limit = staticmethod(lambda left_out: False)",
        "cm_server/test_logs.py::test_lines_about_one_peer_are_limited_and_counted",
        "cm_server/net/test_websocket.py::test_log_lines_about_unauthenticated_peers_are_limited",
    ),
    defence(
        "log lines of libraries are short",
        SERVER + "logs.py",
        "LibraryFilter._shorten = lambda self, text: text",
        "cm_server/test_logs.py::test_long_lines_of_libraries_are_truncated",
    ),
    defence(
        "log lines of libraries are limited",
        SERVER + "logs.py",
        "LibraryFilter.filter = lambda self, record: True",
        "cm_server/test_logs.py::test_lines_of_libraries_are_limited",
    ),
    defence(
        "the link of a board that sends many messages about others' jobs is closed",
        SERVER + "jobs/strays.py",
        "StrayMessages._has_too_many = lambda self, board: False",
        "cm_server/net/test_board_socket.py::test_board_with_many_messages_about_foreign_jobs_is_closed",
    ),
    defence(
        "a connection whose request has very many pieces is closed",
        SERVER + "net/listener.py",
        "_LimitedReadsStream._has_too_many_reads = lambda self: False",
        "cm_server/net/test_listener.py::test_request_in_too_many_pieces_is_closed[head]",
    ),
    defence(
        "reads from unauthenticated connections share a rate",
        SERVER + "rate_limits.py",
        "UnauthenticatedConnections.read_pause = lambda self, reads: 0.0",
        "cm_server/net/test_listener.py::test_reads_from_many_connections_share_a_rate",
    ),
    defence(
        "connections are accepted at a bounded rate",
        SERVER + "net/listener.py",
        "_IncomingConnection._request_delay = lambda self: 0.0",
        "cm_server/net/test_listener.py::test_connections_are_accepted_at_a_bounded_rate",
    ),
    defence(
        "a socket that TLS cannot wrap is not counted any more",
        SERVER + "net/listener.py",
        """_IncomingConnection._stop_waiting = lambda self: self._stopped or (
    setattr(self, "_stopped", True),
    self._loop.remove_reader(self._sock.fileno()),
    self._parts.unauthenticated.remove(self._entry),
    self._timer.cancel(),
)""",
        "cm_server/net/test_listener.py::test_socket_that_tls_cannot_wrap_is_not_counted",
    ),
    defence(
        "a connection that cannot be closed does not affect the next one",
        SERVER + "rate_limits.py",
        "UnauthenticatedConnections._close_safely = lambda self, close: close()",
        "cm_server/test_rate_limits.py::"
        "test_connection_that_cannot_be_closed_does_not_affect_the_next",
    ),
    defence(
        "a clean-up continues after a failed step",
        SERVER + "cleanup.py",
        "run_all = lambda what, *steps: [step() for step in steps]",
        "cm_server/test_cleanup.py::test_every_step_runs_although_one_fails",
        "cm_server/net/test_websocket.py::test_failed_clean_up_releases_the_rest",
    ),
    defence(
        "the kept end of a job's output is bounded",
        SERVER + "jobs/model.py",
        "Tail._trim = lambda self: None",
        "cm_server/jobs/test_dispatch.py::test_tails_of_output_and_value_are_bounded",
    ),
    # Hostile boards
    defence(
        "control characters from boards are shown as escapes",
        LIBRARY + "protocol/text.py",
        "sanitize_text = lambda text: text",
        "cloudmanager/protocol/test_text.py::test_sanitize_escapes_control_characters_only",
        "cloudmanager/display/test_terminal.py::test_escape_codes_of_boards_are_escaped",
        "attacks/test_hostile_output.py::test_hostile_output_is_plain_text_in_the_shell",
    ),
    defence(
        "facts that a board reports are bounded",
        LIBRARY + "protocol/facts.py",
        "MAX_FACT_CHARS = 1 << 30",
        "cm_server/net/test_board_socket.py::test_nonsense_in_a_valid_proof_is_bounded_and_harmless",
    ),
    defence(
        "JSON that is nested too deeply is refused",
        LIBRARY + "protocol/wire.py",
        "_JSON_ERRORS = (ValueError,)",
        "cloudmanager/protocol/test_wire.py::test_payload_that_is_not_a_json_object_is_refused",
    ),
    defence(
        "keys of one hash do not stall the caller",
        LIBRARY + "results/board_values.py",
        "_check_keys = lambda keys: None",
        "cloudmanager/results/test_board_values.py::test_flood_of_one_hash_is_a_repr_that_says_why",
    ),
    defence(
        "what a board prints is displayed as text, not as HTML",
        "cm_magics/cell_display.py",
        '_mime_bundle = lambda text, html=None: {"text/plain": text, "text/html": text}',
        "attacks/test_hostile_output.py::test_hostile_text_is_plain_text_in_the_notebook",
    ),
    # What boards report about themselves
    defence(
        "the errors that are kept of one board are bounded",
        SERVER + "board_health.py",
        "_are_too_many = lambda crashes: False",
        "cm_server/test_board_health.py::test_number_of_different_errors_of_a_board_is_bounded",
    ),
    defence(
        "the causes of restarts are those of MicroPython",
        SERVER + "board_health.py",
        "_known_cause = lambda cause: cause or ''",
        "cm_server/test_board_health.py::test_unknown_causes_are_one",
    ),
    # Generations
    defence(
        "a board's record of its generation cannot name files of the client",
        SERVER + "rollouts/board_switch.py",
        "_may_remove = lambda path: True",
        "cm_server/rollouts/test_board_switch.py::test_record_cannot_name_files_of_the_client",
    ),
    defence(
        "a client in a generation has plain names of files, and no marks of its trial",
        SERVER + "rollouts/desired.py",
        '_CLIENT_FILE = re.compile(".*")',
        "cm_server/rollouts/test_rollouts.py::test_client_with_other_files_is_refused",
    ),
    defence(
        "the files of all generations are bounded",
        SERVER + "store/rollout_rows.py",
        "RolloutRows._make_room = lambda self, size, max_bytes: None",
        "cm_server/rollouts/test_rollouts.py::test_files_of_generations_are_bounded",
    ),
    # Time
    defence(
        "a board's time puts no sample into the future",
        SERVER + "sample_collector.py",
        "_moment = lambda emitted, now: emitted.ticks / 1000",
        "cm_server/test_sample_collector.py::"
        "test_boards_time_is_not_in_the_future_and_not_older_than_samples_can_be[86400.0]",
    ),
    defence(
        "boards wait for a cell's time for a bounded time",
        LIBRARY + "protocol/run_options.py",
        "RunOptions.unsuitable_start = lambda self, limits: ''",
        "cloudmanager/protocol/test_run_options.py::"
        "test_options_that_exclude_each_other_are_refused",
        "cloudmanager/client/test_at.py::test_unsuitable_time_is_refused",
    ),
    defence(
        "the time of a hostile caller is a number",
        LIBRARY + "protocol/start_times.py",
        "parse_wire_start = lambda value, now: value",
        "cloudmanager/protocol/test_run_options.py::test_time_of_a_hostile_caller_is_checked",
    ),
    defence(
        "a busy board does not run a cell after its time",
        SERVER + "jobs/scheduler.py",
        "Scheduler._watch_start = lambda self, job: None\n_late_reason = lambda job: ''",
        "cloudmanager/client/test_at.py::test_busy_board_says_that_it_does_not_run_the_cell",
    ),
    defence(
        "a board cannot say that it sleeps for longer than 30 days, or for no time",
        LIBRARY + "protocol/wire.py",
        "_is_sleep_time = lambda milliseconds: True",
        "cm_server/jobs/test_sleepers.py::test_time_that_no_board_may_sleep_closes_the_link",
    ),
    defence(
        "what a board sends after it has said that it sleeps is ignored",
        SERVER + "jobs/sleepers.py",
        "Sleepers._end_link = lambda self, board, link: self._recovery.on_link_closed(board, link)",
        "cm_server/jobs/test_sleepers.py::test_what_a_board_sends_after_it_may_sleep_is_ignored",
    ),
    defence(
        "what a board sends behind its proof waits until the board is accepted",
        SERVER + "net/websocket.py",
        "WebSocketLink.hold = lambda self: None",
        "cm_server/jobs/test_sleepers.py::"
        "test_what_follows_the_proof_is_handled_when_the_board_is_accepted[late-False]",
    ),
    defence(
        "boards that flood the server with SLEEP or TIME are slowed down",
        SERVER + "net/board_socket.py",
        "_RARE_OPS = ()",
        "cm_server/jobs/test_sleepers.py::test_flood_of_sleep_is_answered_at_a_bounded_rate",
        "cm_server/net/test_board_socket.py::test_flood_of_time_is_answered_at_a_bounded_rate",
    ),
    defence(
        "boards cannot report what the server knows: names, states, when they wake",
        LIBRARY + "protocol/facts.py",
        "published_facts = dict",
        "cm_server/jobs/test_sleepers.py::test_board_cannot_take_the_name_or_the_state_of_another",
        behind=Override(LIBRARY + "protocol/facts.py", "read_facts = dict"),
    ),
    defence(
        "a board that sleeps is kept awake for a bounded time",
        SERVER + "api/sleep_verbs.py",
        "_read_seconds = lambda context: context.body['seconds']",
        "cm_server/jobs/test_sleepers.py::test_time_to_stay_is_checked",
    ),
]
