"""Defences of authentication and authorization: boards, callers, browsers, the audit log."""

from __future__ import annotations

from typing import Final

from .defence import BOARD, LIBRARY, ROUTES, SERVER, VERBS, defence

_PAGE: Final = "cm_magics/web_page.py"

ACCESS_CONTROL: Final = [
    # The dashboard's page
    defence(
        "the link of the dashboard's page works once",
        _PAGE,
        "Access.use_link = lambda self, link: True",
        "cm_magics/test_web_page.py::test_link_works_once",
        "cm_magics/test_web_page.py::test_link_is_valid_once_and_for_five_minutes",
    ),
    defence(
        "the dashboard's page and its WebSocket need the cookie",
        _PAGE,
        "Access.is_known = lambda self, cookie: True",
        "cm_magics/test_web_page.py::test_page_needs_its_cookie",
        "cm_magics/test_web_page.py::test_websocket_is_for_this_page_alone",
    ),
    defence(
        "no other name leads to the dashboard's page",
        _PAGE,
        "Site.is_own_name = lambda self, host: True",
        "cm_magics/test_web_page.py::test_other_host_names_are_refused",
    ),
    defence(
        "no other page opens the WebSocket of the dashboard's page",
        _PAGE,
        "PageSocket.check_origin = lambda self, origin: True",
        "cm_magics/test_web_page.py::test_websocket_of_another_origin_is_refused",
    ),
    # Rollouts
    defence(
        "a rollout has the rights that its token has now",
        SERVER + "rollouts/rollouts.py",
        'Rollouts._refusals = lambda self, rollout: lambda board_id: ""',
        "cm_server/rollouts/test_rollouts.py::test_rollout_of_a_revoked_token_pauses",
    ),
    defence(
        "a rollout is changed only by a token that covers all of its boards",
        SERVER + "api/rollout_verbs.py",
        "_check_covers = lambda context, row: None",
        "cm_server/rollouts/test_rollouts.py::"
        "test_token_changes_only_rollouts_whose_boards_it_all_covers",
    ),
    defence(
        "a caller sees only rollouts of boards that its token covers",
        SERVER + "api/rollout_verbs.py",
        "_is_visible = lambda context, row: True",
        "cm_server/rollouts/test_rollouts.py::"
        "test_token_changes_only_rollouts_whose_boards_it_all_covers",
    ),
    # Firmware
    defence(
        "only administrators write firmware, also by a rollout",
        SERVER + "rollouts/firmware_ops.py",
        'FIRMWARE_ROLE = "operator"',
        "cm_server/rollouts/test_firmware.py::test_only_administrators_write_firmware[operator]",
        "cm_server/rollouts/test_firmware.py::test_operator_begins_no_rollout_with_firmware",
    ),
    defence(
        "an image is whole, and one for a slot, before it is sent",
        LIBRARY + "protocol/firmware_images.py",
        'read_app_image = lambda data: AppImage("ESP32", "1.29.0", data)',
        "cm_server/rollouts/test_firmware.py::test_hostile_image_is_not_sent",
    ),
    defence(
        "an image for another chip, variant or bytecode is not sent",
        LIBRARY + "protocol/firmware_images.py",
        'AppImage.refusal_reason = lambda self, machine, mpy: ""',
        "cm_server/rollouts/test_firmware.py::test_each_kind_of_board_gets_a_sentence",
    ),
    # Identity and handshake
    defence(
        "a board must prove that it has its key",
        LIBRARY + "protocol/proofs.py",
        "_is_same_proof = lambda expected, proof: True",
        "cm_server/net/test_board_socket.py::test_recorded_proof_is_refused",
        "cm_server/net/test_board_socket.py::test_flipped_bit_in_the_facts_is_refused",
    ),
    defence(
        "each challenge is random",
        SERVER + "auth/credentials.py",
        "new_nonce = lambda: bytes(16)",
        "cm_server/net/test_board_socket.py::test_each_challenge_is_different",
        "cm_server/net/test_board_socket.py::test_recorded_proof_is_refused",
    ),
    defence(
        "an unauthenticated peer learns no ids of boards",
        SERVER + "net/board_socket.py",
        """BoardConnection._key_or_random = lambda self, hello: (
    self._find_key(hello) or self._refuse(CLOSE_NOT_AUTHENTICATED, "unknown") or b""
)""",
        "cm_server/net/test_board_socket.py::test_wrong_key_and_unknown_id_get_the_same_answer",
    ),
    defence(
        "the server authenticates itself to the board first",
        BOARD + "dial.py",
        """
def _authenticate(link, run, job, config, authenticate=_authenticate):
    equal = mac.equal
    mac.equal = lambda a, b: True
    try:
        return authenticate(link, run, job, config)
    finally:
        mac.equal = equal
""",
        "board/test_link.py::test_board_refuses_a_server_without_its_key",
    ),
    defence(
        "a board may send only what the state of its link allows",
        LIBRARY + "protocol/wire.py",
        "check_op = lambda state, message: None",
        "cm_server/jobs/test_dispatch.py::test_message_that_boards_may_not_send_is_refused",
        "cm_server/test_matrix.py::test_authenticated_board_cannot_send_callers_messages",
    ),
    defence(
        "the authentication of a board has a deadline",
        SERVER + "net/board_socket.py",
        "BoardConnection._start_deadline = lambda self: None",
        "cm_server/net/test_board_socket.py::test_slow_authentication_is_refused",
    ),
    defence(
        "the older link of a board that connects again is closed",
        SERVER + "net/board_socket.py",
        "_close_replaced_link = lambda link: None",
        "cm_server/net/test_board_socket.py::test_newer_link_of_a_board_replaces_the_older_one",
    ),
    defence(
        "two boards with one key do not close each other's links all day",
        SERVER + "net/board_socket.py",
        "BoardConnection._reconnect_spread = lambda self, board: self._services.reconnects.spread",
        "cm_server/net/test_board_socket.py::"
        "test_two_boards_with_one_key_replace_each_other_more_and_more_slowly",
    ),
    defence(
        "tokens are compared in constant time",
        SERVER + "auth/credentials.py",
        "_find_by_hash = lambda wanted, tokens: tokens.get(wanted)",
        "cm_server/auth/test_credentials.py::test_every_token_is_compared",
    ),
    defence(
        "a token that is empty or too long is not hashed",
        SERVER + "auth/credentials.py",
        "_has_valid_length = lambda token, max_chars: True",
        "cm_server/auth/test_credentials.py::test_empty_token_is_refused_although_its_hash_is_stored",
    ),
    defence(
        "an expired token is refused",
        SERVER + "auth/tokens.py",
        'Tokens._expired_reason = lambda self, row: ""',
        "cm_server/auth/test_tokens.py::test_expired_token_is_refused_by_name",
        ROUTES + "[/caller-CallerSocket-expired]",
    ),
    defence(
        "a revoked token is refused",
        SERVER + "auth/tokens.py",
        'Tokens._revoked_reason = lambda self, row: ""',
        "cm_server/auth/test_tokens.py::test_revoked_token_is_refused_by_name",
        ROUTES + "[/caller-CallerSocket-revoked]",
    ),
    defence(
        "the links of a revoked token are closed",
        SERVER + "auth/caller_links.py",
        "CallerLinks._close_invalid = lambda self, link: None",
        "cm_server/net/test_caller_socket.py::"
        "test_links_of_a_revoked_token_are_closed_within_two_seconds",
    ),
    defence(
        "a job starts only if its token still permits it",
        SERVER + "jobs/scheduler.py",
        'Scheduler._not_permitted_reason = lambda self, job: ""',
        "cm_server/auth/test_permission.py::test_expiry_is_checked_at_each_start",
    ),
    defence(
        "waiting jobs end when their token is revoked or no longer reaches their board",
        SERVER + "auth/permission.py",
        "Permission._withdraw = lambda self, job, reason: None",
        "cm_server/auth/test_permission.py::"
        "test_waiting_jobs_of_a_revoked_token_never_start[False]",
        "cm_server/auth/test_permission.py::"
        "test_job_for_a_board_that_became_unreachable_does_not_start[renamed]",
        "cm_server/auth/test_permission.py::"
        "test_job_queued_at_another_server_does_not_start_after_a_revocation",
    ),
    defence(
        "a caller gets no messages of a cell on a board that its token no longer reaches",
        SERVER + "auth/permission.py",
        "Permission._detach_caller = lambda self, job, reason: None",
        "cm_server/auth/test_permission.py::"
        "test_caller_is_detached_from_a_cell_on_an_unreachable_board",
    ),
    defence(
        "a token is checked at each message of its link, not only by timers",
        SERVER + "net/caller_socket.py",
        "CallerConnection._is_valid_now = lambda self: True",
        "cm_server/auth/test_permission.py::test_expiry_is_checked_at_each_request",
    ),
    defence(
        "an address that sends many wrong tokens is rate-limited",
        SERVER + "net/caller_socket.py",
        "CallerHandler._sent_too_many_wrong_tokens = lambda self, address: False",
        "cm_server/net/test_caller_socket.py::"
        "test_wrong_tokens_are_rate_limited_but_a_valid_one_is_accepted",
    ),
    # Browsers
    defence(
        "a page that uses DNS rebinding is refused",
        SERVER + "net/handlers.py",
        "BaseHandler._has_foreign_host = lambda self: False",
        "cm_server/net/test_handlers.py::test_foreign_host_name_on_loopback_is_refused",
    ),
    defence(
        "a web page of a foreign origin cannot open a link",
        SERVER + "net/handlers.py",
        "BaseHandler._has_foreign_origin = lambda self: False",
        "cm_server/net/test_handlers.py::test_foreign_origin_is_refused",
    ),
    defence(
        "no page may be framed",
        SERVER + "net/handlers.py",
        '_HEADERS = {name: value for name, value in _HEADERS.items() if name != "X-Frame-Options"}',
        "cm_server/net/test_handlers.py::test_every_answer_has_the_security_headers",
    ),
    defence(
        "each verb requires its role",
        SERVER + "auth/access.py",
        "has_role = lambda token, role: True",
        VERBS + "[label-viewer]",
    ),
    defence(
        "server-wide verbs require a token for all boards",
        SERVER + "api/verbs.py",
        "_covers_all_boards = lambda token: True",
        "cm_server/test_matrix.py::test_admin_of_some_boards_may_not_use_verbs_for_all",
    ),
    defence(
        "a token reaches only the boards of its target",
        SERVER + "auth/access.py",
        "ReachableBoards.__getitem__ = lambda self, name: self._boards[name]",
        "cm_server/test_matrix.py::test_unreachable_board_is_treated_as_not_enrolled",
    ),
    defence(
        "private files are readable by their owner only",
        LIBRARY + "config.py",
        "_PRIVATE_MODE = 0o644",
        "cloudmanager/test_config.py::test_private_file_is_readable_by_its_owner_only",
    ),
    # Operations
    defence(
        "a refusal is recorded in the audit log",
        SERVER + "auth/audit.py",
        "AuditLog.log_refusal = lambda self, audit_entry, error: None",
        VERBS + "[label-viewer]",
    ),
    defence(
        "no token is written to the audit log",
        SERVER + "auth/audit.py",
        "_mask_tokens = lambda text: text",
        "cm_server/auth/test_audit.py::test_token_in_another_field_is_masked",
        "cm_server/test_matrix.py::test_audit_log_contains_no_secret_and_no_cell",
    ),
    defence(
        "no row of the audit log can be changed",
        SERVER + "store/tables.py",
        "_audit_guards = lambda dialect: []",
        "cm_server/store/test_store.py::test_audit_rows_cannot_be_changed_or_deleted",
    ),
    defence(
        "a board's key is in no repr",
        SERVER + "store/rows.py",
        "BoardRow.__repr__ = tuple.__repr__",
        "cm_server/store/test_rows.py::test_key_of_a_board_is_in_no_repr",
    ),
    defence(
        "a range of names is limited before it is expanded",
        LIBRARY + "protocol/names.py",
        "_is_over_limit = lambda count, max_names: count > 2 * max_names",
        "cloudmanager/protocol/test_names.py::test_expand_limits_the_number_of_names",
    ),
    defence(
        "the local user's token is sent to this machine only",
        LIBRARY + "config.py",
        "_may_receive_local_token = lambda url: True",
        "cloudmanager/test_config.py::test_local_token_is_sent_to_this_machine_only",
    ),
    defence(
        "who knows the hash of an uploaded content does not have it",
        SERVER + "installs/content_store.py",
        "_may_use = lambda content, owner: True",
        "cm_server/installs/test_content_store.py::"
        "test_content_is_the_tokens_own_until_another_sends_it",
        "cm_server/api/test_job_requests.py::test_content_of_another_token_is_not_sent",
    ),
    defence(
        "who knows the hash of a cached content does not have it",
        SERVER + "packages/cache.py",
        "TokenCache.get = lambda self, digest: self.shared.get(digest)",
        "cm_server/packages/test_planner.py::test_lock_gives_no_content_that_the_token_did_not_have",
    ),
    defence(
        "jobs of others wait at a reserved board",
        SERVER + "jobs/model.py",
        "Board.reservation_against = lambda self, job: None",
        "cm_server/jobs/test_reservations.py::"
        "test_jobs_of_others_wait_and_say_why_and_own_ones_start",
        "cm_server/api/test_reservation_verbs.py::"
        "test_reservation_holds_at_all_servers[sqlite, one process]",
    ),
    defence(
        "rights are looked at when a job starts that has waited",
        SERVER + "jobs/waiting_jobs.py",
        "WaitingJobs._not_permitted_reason = lambda self, job: ''",
        "cm_server/jobs/test_waiting_jobs.py::test_rights_are_looked_at_when_it_starts",
    ),
    defence(
        "a job that has waited too long does not run",
        SERVER + "jobs/waiting_jobs.py",
        "_is_expired = lambda row: False",
        "cm_server/jobs/test_waiting_jobs.py::"
        "test_expired_job_does_not_run_if_the_board_is_faster_than_the_look",
    ),
    defence(
        "a job that waited is sent once, whenever the server is killed",
        SERVER + "store/waiting_rows.py",
        "WaitingRows._remove_taken = lambda self, job: True",
        "cm_server/jobs/test_waiting_jobs.py::test_job_is_taken_once",
        "cm_server/jobs/test_waiting_jobs.py::"
        "test_job_that_was_taken_and_not_sent_is_lost_and_never_sent",
    ),
    defence(
        "a job that waited when a backup was made does not run after its restore",
        SERVER + "store/backup.py",
        "_end_waiting_jobs = lambda store: None",
        "cm_server/store/test_backup.py::test_jobs_that_waited_are_lost_after_a_restore",
    ),
    defence(
        "only administrators release what others have reserved",
        SERVER + "api/reservation_verbs.py",
        "_is_reserved_by = lambda board, caller: True",
        "cm_server/api/test_reservation_verbs.py::"
        "test_only_administrators_release_what_others_have_reserved",
    ),
    defence(
        "viewers do not read logs through the tracebacks of fleet-health",
        SERVER + "api/health_verbs.py",
        "_may_read_logs = lambda context: True",
        "cm_server/api/test_health_verbs.py::test_viewers_get_no_text_of_logs",
    ),
    defence(
        "viewers and other operators do not read code in lists of jobs",
        SERVER + "api/job_verbs.py",
        "_without_code = lambda context, job: job",
        "cm_server/api/test_job_verbs.py::test_code_is_seen_by_its_author_and_by_administrators",
    ),
    defence(
        "viewers and other operators do not read the texts of cells in histories",
        SERVER + "api/history_verbs.py",
        "_may_read = lambda token, row, kind: True",
        "cm_server/api/test_history_verbs.py::test_text_is_for_its_author_and_for_administrators",
    ),
    defence(
        "another token of an author's name does not read what the author ran",
        SERVER + "api/history_verbs.py",
        "_is_author = lambda token, row: token.name == row.caller",
        "cm_server/api/test_history_verbs.py::test_text_is_for_its_author_and_for_administrators",
    ),
    defence(
        "an administrator of some boards forgets nothing of others",
        SERVER + "api/history_verbs.py",
        "_forgotten_boards = lambda context: None",
        "cm_server/api/test_history_verbs.py::"
        "test_administrator_of_some_boards_forgets_only_of_these",
    ),
    defence(
        "a text is not stored where inputs may be in it",
        SERVER + "jobs/job_texts.py",
        "find_text = lambda origin: origin.code.decode()",
        "cm_server/jobs/test_job_texts.py::test_inputs_are_not_in_the_text[print(1)]",
        "cm_server/api/test_history_verbs.py::"
        "test_text_of_a_client_that_does_not_say_its_inputs_is_not_stored",
    ),
    defence(
        "a deleted text is overwritten",
        SERVER + "store/databases.py",
        "Sqlite.erasing = lambda self: "
        "(contextlib.nullcontext(), self.driver.execute('PRAGMA secure_delete=OFF'))[0]",
        "cm_server/store/test_text_rows.py::test_deleted_text_is_in_no_file_of_sqlite",
    ),
    defence(
        "SQLite's log does not keep a deleted text",
        SERVER + "store/databases.py",
        "Sqlite.erase_log = lambda self: True",
        "cm_server/store/test_text_rows.py::test_deleted_text_is_in_no_file_of_sqlite",
    ),
    defence(
        "an import changes boards within the token's reach only",
        SERVER + "api/inventory_verbs.py",
        """
def _find_board(context, row):
    boards = context.services.registry
    return boards.by_id.get(row.get("id")) or boards.by_name.get(row.get("board"))
""",
        "cm_server/api/test_inventory_verbs.py::"
        "test_administrator_of_some_boards_imports_only_these",
    ),
    defence(
        "a spreadsheet does not execute what somebody wrote as a note",
        LIBRARY + "client/inventory.py",
        "_quote_formula = lambda cell: cell",
        "cloudmanager/client/test_inventory.py::"
        "test_no_cell_of_the_file_begins_like_a_formula_and_the_note_comes_back",
    ),
    defence(
        "a board gets only secrets that are for it",
        SERVER + "installs/board_settings.py",
        "_is_for = lambda row, board: True",
        "cm_server/installs/test_board_settings.py::"
        "test_secret_that_a_board_may_not_get_is_not_written",
        "cm_server/installs/test_board_settings.py::"
        "test_board_that_lost_its_right_to_a_secret_keeps_the_old_value",
        "cm_server/installs/test_board_settings.py::test_secret_of_other_boards_cannot_be_guessed",
    ),
    defence(
        "whoever reads settings gets references instead of secrets",
        SERVER + "installs/board_settings.py",
        "_mask = lambda value, stored, path=(): value",
        "cm_server/installs/test_board_settings.py::"
        "test_secret_is_written_to_the_board_and_its_caller_gets_the_reference",
        "attacks/test_secrets.py::test_secrets_are_only_in_their_own_files",
    ),
    defence(
        "the contents of settings are not kept on the server's disk",
        SERVER + "installs/content_store.py",
        "ContentStore.make_unshared = ContentStore.add_bytes",
        "cm_server/installs/test_board_settings.py::"
        "test_secret_is_written_to_the_board_and_its_caller_gets_the_reference",
    ),
]
