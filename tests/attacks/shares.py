"""Defences against small rights: shares of the server, and limits of requests."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, SERVER, Defence, Override, defence

RIGHTS: Final = "cm_server/net/test_small_rights.py::test_"
SHARED_WORK: Final = "cm_server/net/test_work_shares.py::test_"
TRANSFERS: Final = "cm_server/installs/test_transfers.py::test_"
CLUSTER: Final = "cm_server/cluster/test_small_rights.py::test_"
CONTENTS: Final = "cm_server/installs/test_content_store.py::test_"

SHARES: Final[list[Defence]] = [
    # Requests
    defence(
        "small rights: a long request is refused before it is read",
        SERVER + "api/request_limits.py",
        "check_size = lambda size, limits: None",
        RIGHTS + "long_request_is_refused_and_the_link_stays_open[request]",
        RIGHTS + "long_head_of_a_cell_is_refused_but_not_a_long_cell",
    ),
    defence(
        "small rights: lists, objects and texts of a request are bounded",
        SERVER + "api/request_limits.py",
        "check_fields = lambda body, limits: None",
        "cm_server/api/test_request_limits.py::test_deeply_nested_request_is_refused_without_recursion",
    ),
    defence(
        "small rights: a job that is named often is interrupted once",
        SERVER + "api/job_verbs.py",
        "_without_duplicates = lambda numbers: numbers",
        RIGHTS + "job_is_interrupted_once_however_often_it_is_named",
    ),
    defence(
        "small rights: true is no number",
        SERVER + "api/request_limits.py",
        "is_whole_number = lambda value: isinstance(value, int)",
        RIGHTS + "field_of_a_wrong_type_is_refused",
    ),
    defence(
        "small rights: labels of a board are bounded",
        SERVER + "api/verbs.py",
        "_check_label_count = lambda labels, max_count, name: None",
        "cm_server/api/test_verbs.py::test_labels_of_a_board_are_bounded",
    ),
    defence(
        "small rights: a content that a plan names often counts each time",
        SERVER + "installs/planning.py",
        "_check_total = lambda sizes, limits: None",
        RIGHTS + "content_that_a_plan_names_often_counts_each_time",
    ),
    defence(
        "small rights: few plans are made at the same time",
        SERVER + "installs/plan_turns.py",
        "PlanTurns.of = lambda self, owner: contextlib.nullcontext()",
        "cm_server/installs/test_plan_turns.py::test_plans_wait_for_their_turn",
    ),
    defence(
        "small rights: a cell that the database refuses does not end others of its transaction",
        SERVER + "store/databases.py",
        "Sqlite.is_data_error = lambda self, error: False",
        "cm_server/store/test_shared_store.py::"
        "test_cell_that_the_database_refuses_does_not_affect_those_that_share_its_transaction[sqlite]",
    ),
    defence(
        "several servers: the same, in PostgreSQL",
        SERVER + "store/postgres_database.py",
        "Postgres.is_data_error = lambda self, error: False",
        "cm_server/store/test_shared_store.py::"
        "test_cell_that_the_database_refuses_does_not_affect_those_that_share_its_transaction[postgresql]",
    ),
    # Shares
    defence(
        "small rights: a token has a share of links, subscriptions, uploads and the disk",
        SERVER + "quotas.py",
        "Quota.exceeds_share = lambda self, amount: False",
        RIGHTS + "subscriptions_are_bounded_per_token_with_a_reserve",
        CONTENTS + "uploads_are_bounded_per_token_with_a_reserve",
        CONTENTS + "unfinished_uploads_count_for_the_bytes_on_disk",
    ),
    defence(
        "small rights: a part is reserved for administrators",
        SERVER + "quotas.py",
        "Quota._reserved_from = lambda self, token: 0",
        RIGHTS + "links_are_bounded_per_token_with_a_reserve",
        RIGHTS + "subscriptions_are_bounded_per_token_with_a_reserve",
        CONTENTS + "uploads_are_bounded_per_token_with_a_reserve",
    ),
    defence(
        "small rights: contents that jobs and plans use count for the bytes on disk",
        SERVER + "installs/content_store.py",
        "ContentStore._space_refusal_reason = lambda self, size, owner: ''",
        CONTENTS + "contents_in_use_count_for_the_bytes_on_disk",
    ),
    defence(
        "small rights: an upload without progress is discarded",
        SERVER + "installs/content_store.py",
        "ContentStore.discard_idle_uploads = lambda self: None",
        CONTENTS + "upload_without_progress_is_discarded",
    ),
    defence(
        "small rights: jobs that have not ended are bounded per token",
        SERVER + "jobs/open_jobs.py",
        "OpenJobs.refusal_reason = lambda self, token, jobs, size: ''",
        RIGHTS + "jobs_that_have_not_ended_are_bounded_per_token",
        "cm_server/jobs/test_open_jobs.py::test_code_of_a_cell_counts_once",
    ),
    defence(
        "small rights: a token has a share of a board's queue",
        SERVER + "jobs/scheduler.py",
        "_jobs_of_token = lambda queue, token_hash: queue",
        RIGHTS + "queue_of_a_board_is_shared_among_tokens",
    ),
    # Fairness
    defence(
        "small rights: a long message is followed by a pause, in which others are served",
        SERVER + "net/work_shares.py",
        "WorkShare.record = lambda self, seconds: None",
        SHARED_WORK + "long_work_is_followed_by_a_pause_of_its_length[1.0-1.0]",
        RIGHTS + "long_request_leaves_time_for_others",
        behind=Override(
            SERVER + "net/fair_queue.py", "FairQueue._iterations_to_skip = lambda self, seconds: 0"
        ),
    ),
    defence(
        "small rights: after a long call, iterations of the event loop are left to others",
        SERVER + "net/fair_queue.py",
        "FairQueue._iterations_to_skip = lambda self, seconds: 0",
        "cm_server/net/test_fair_queue.py::test_long_call_leaves_iterations_to_others",
    ),
    defence(
        "small rights: messages of a caller that does not read wait",
        SERVER + "net/websocket.py",
        "WebSocketLink._must_wait_for_reader = lambda self: False",
        "cm_server/net/test_websocket.py::test_requests_of_a_caller_that_does_not_read_wait",
    ),
    defence(
        "small rights: a long reply is sent in parts, as they are read",
        SERVER + "net/caller_socket.py",
        "CallerConnection._wait_until_read = lambda self: asyncio.sleep(0)",
        RIGHTS + "caller_that_does_not_read_a_long_reply_costs_one_part",
    ),
    defence(
        "small rights: others have their turn while a long reply is made",
        SERVER + "api/replies.py",
        "_TURN_SECONDS = 1e9",
        "cm_server/api/test_replies.py::test_others_have_their_turn_between_items",
    ),
    defence(
        "small rights: a link is not closed while its peer reads slowly",
        SERVER + "net/websocket.py",
        "WebSocketLink._has_stalled = lambda self, read_before: True",
        "cm_server/net/test_websocket.py::test_peer_that_reads_slowly_is_not_closed",
    ),
    defence(
        "small rights: a message has to be completed in time",
        SERVER + "net/caller_socket.py",
        "CallerConnection._on_message_too_slow = lambda self: None",
        RIGHTS + "message_that_is_not_completed_in_time_closes_the_link",
    ),
    defence(
        "small rights: unfinished messages of a token are bounded",
        SERVER + "net/unfinished_messages.py",
        "UnfinishedMessages._may_continue = lambda self, link: True",
        "cm_server/net/test_unfinished_messages.py::"
        "test_first_message_of_a_token_is_completed_and_others_wait",
        RIGHTS + "unfinished_messages_of_a_token_are_bounded_and_completed",
    ),
    defence(
        "small rights: an unfinished message without progress does not stop others",
        SERVER + "net/unfinished_messages.py",
        "UnfinishedMessages._close_stalled = lambda self: None",
        "cm_server/net/test_unfinished_messages.py::"
        "test_link_without_progress_is_closed_while_others_wait",
    ),
    # Hostile boards
    defence(
        "small rights: a board's list of packages is bounded",
        SERVER + "installs/job_steps.py",
        "SteppedJob._check_read_size = lambda self, op, size: None",
        "cm_server/installs/test_job_steps.py::test_file_that_is_too_long_to_be_read_ends_the_job",
    ),
    defence(
        "small rights: a board that ignores the window of a download is refused",
        SERVER + "installs/transfers.py",
        "FileTransfer._check_window = lambda self: None",
        TRANSFERS + "board_that_ignores_the_window_is_refused",
        CLUSTER + "board_at_another_server_that_ignores_the_window_is_refused",
    ),
    defence(
        "small rights: a board cannot acknowledge what it was not sent",
        SERVER + "installs/transfers.py",
        "FileTransfer._check_acknowledgement = lambda self, count: None",
        TRANSFERS + "false_acknowledgement_is_refused",
    ),
    defence(
        "small rights: a board that asks for input without end does not fill the memory",
        SERVER + "jobs/board_messages.py",
        "_asks_again = lambda job: False",
        "cm_server/jobs/test_dispatch.py::"
        "test_input_that_is_repeated_without_an_answer_may_be_dropped",
    ),
    defence(
        "small rights: what waits for a board that does not read is bounded",
        SERVER + "net/websocket.py",
        "WebSocketLink._has_too_much_unsent = lambda self: False",
        "cm_server/net/test_websocket.py::test_board_that_does_not_read_is_closed",
    ),
    defence(
        "small rights: events that a caller's program does not read are bounded",
        LIBRARY + "client/unread_events.py",
        "UnreadEvents._drop_oldest_output = lambda self: None",
        "cloudmanager/client/test_unread_events.py::"
        "test_oldest_output_is_dropped_and_reported_once_for_each_job",
    ),
    # Names
    defence(
        "small rights: boards enrol under valid names only",
        SERVER + "auth/enrolment.py",
        "_is_legal_name = lambda name: True",
        "cm_server/auth/test_enrolment.py::test_name_outside_of_the_tokens_target_is_refused",
    ),
    defence(
        "small rights: tokens of other names do not block enrolment",
        SERVER + "auth/tokens.py",
        "Tokens.unused_name = lambda self, prefix: f'{prefix}-{len(self._rows) + 1}'",
        "cm_server/auth/test_tokens.py::test_unused_name_is_beyond_all_names_of_the_prefix",
    ),
    defence(
        "small rights: characters that are not seen are shown as escapes",
        LIBRARY + "protocol/text.py",
        """UNSAFE_CHARS = re.compile(f"[{_CONTROL_CHARS}]")""",
        "cloudmanager/protocol/test_text.py::test_sanitize_escapes_all_format_characters",
    ),
]
