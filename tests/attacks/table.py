"""All known attacks by number, with the tests that try each of them.

The groups are those of the project's list of attacks: identity and handshake 1 to 10, transport 11
to 15, browsers 16 to 19, hostile boards 20 to 24, operations 35 to 38, input that is almost right
40, boards' logs 41, histories 42,
alarms 43. (Packages, 25 to 34, are in packages.py; several servers, 39, in servers.py.)
For parts that do not apply, a row states why.
test_table.py checks that all tests exist and that no number is missing.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Attack(NamedTuple):
    """One group of attacks.

    Attributes:
        number: its number in the list.
        what: a short description.
        tests: the tests that try it, as ``file::name`` below tests/.
        not_here: which part does not apply, and why.
    """

    number: int
    what: str
    tests: tuple[str, ...]
    not_here: str = ""


def attack(number: int, what: str, *tests: str, not_here: str = "") -> Attack:
    """Return a row; "file.py: one two" means file.py::test_one and file.py::test_two."""
    names = []
    for line in tests:
        file, _, words = line.partition(": ")
        names += [f"{file}::test_{word}" for word in words.split()]
    return Attack(number, what, tuple(names), not_here)


ATTACKS: Final = [
    attack(
        1,
        "invalid tokens: empty, truncated, wrong, very long, in other header formats",
        "cm_server/auth/test_credentials.py: other_headers_are_refused "
        "empty_token_is_refused_although_its_hash_is_stored "
        "every_token_is_compared",
        "cm_server/net/test_caller_socket.py: every_wrong_token_gets_the_same_answer "
        "token_of_a_megabyte_closes_the_connection",
        "cm_server/test_matrix.py: every_route_with_every_credential",
        "cloudmanager/client/test_exchange.py: token_cannot_inject_a_header",
    ),
    attack(
        2,
        "enrolment tokens: expired, used up, for another name, used by two boards at the same time",
        "cm_server/auth/test_enrolment.py: "
        "expired_and_revoked_enrolment_tokens_are_refused "
        "used_enrolment_token_is_refused "
        "name_outside_of_the_tokens_target_is_refused "
        "one_of_two_simultaneous_enrolments_succeeds "
        "malformed_enrolment_tokens_get_the_same_answer "
        "tokens_of_callers_and_boards_are_not_interchangeable "
        "enrolment_without_tls_is_refused",
        "system/test_trust.py: a_board_enrols_itself_by_a_token_and_is_known_from_then_on",
    ),
    attack(
        3,
        "replay: of a handshake, of a frame, in another session, direction, or to another board",
        "cm_server/net/test_board_socket.py: recorded_proof_is_refused "
        "each_challenge_is_different "
        "reflected_server_proof_is_refused",
        "board/test_link.py: cell_that_is_sent_twice_runs_once",
        "cm_server/net/test_caller_socket.py: cell_sent_twice_runs_once",
        "cm_server/auth/test_enrolment.py: tampered_message_closes_the_link_and_has_no_effect",
        "attacks/test_replay.py: replayed_link_is_refused",
    ),
    attack(
        4,
        "a man in the middle flips bits, drops, reorders, repeats and truncates",
        "faults/test_board_link.py: fault_in_a_job fault_while_connecting",
        "faults/test_caller_link.py: fault_between_caller_and_server",
        "faults/test_board_link.py: fault_in_the_tls_handshake",
        "faults/test_caller_link.py: fault_between_caller_and_server_over_tls",
        "cm_server/net/test_board_socket.py: flipped_bit_in_the_facts_is_refused",
        "cm_server/auth/test_enrolment.py: tampered_message_closes_the_link_and_has_no_effect",
        not_here="links without TLS, which exist only on loopback: changed bytes are not detected there",
    ),
    attack(
        5,
        "a fake server: it gets no secrets and cannot run code",
        "board/test_link.py: board_refuses_a_server_without_its_key "
        "board_with_a_wrong_key_refuses_the_server",
        "system/test_trust.py: a_fake_server_is_refused_by_its_certificate "
        "a_caller_verifies_the_server_by_the_tokens_fingerprint "
        "a_caller_without_a_fingerprint_asks_this_machines_authorities",
        "cloudmanager/client/test_tls.py: wrong_name_or_authority_is_refused "
        "wrong_fingerprint_is_refused malformed_authority_is_refused",
        "cm_server/net/test_certificates.py: server_is_verified_by_its_authority_for_one_name "
        "each_server_has_its_own_authority",
    ),
    attack(
        6,
        "downgrade: another protocol version, TLS or MACs removed",
        "cm_server/net/test_board_socket.py: other_protocol_version_is_refused_with_a_reason",
        "cm_server/net/test_caller_socket.py: other_protocol_version_gets_the_supported_one "
        "protocol_version_is_not_revealed_without_a_token",
        "cloudmanager/client/test_link.py: server_of_another_version",
        "cm_server/auth/test_enrolment.py: stripped_tls_is_refused_and_logged "
        "stripped_macs_are_refused enrolment_without_tls_is_refused",
        "cm_server/net/test_certificates.py: old_tls_versions_are_refused",
        "system/test_trust.py: a_board_in_the_clear_is_refused_by_both_sides "
        "a_token_never_crosses_the_network_in_the_clear "
        "caller_without_tls_gets_the_https_address",
    ),
    attack(
        7,
        "a board that pretends to be another, or connects twice",
        "cm_server/net/test_board_socket.py: board_cannot_end_the_job_of_another_board "
        "newer_link_of_a_board_replaces_the_older_one "
        "two_boards_with_one_key_replace_each_other_more_and_more_slowly "
        "link_without_the_key_does_not_replace_a_board",
        "cm_server/jobs/test_dispatch.py: message_about_another_boards_job_is_ignored",
        "cm_server/jobs/test_job_results.py: board_cannot_change_another_boards_result",
        "cm_server/api/test_replacement_verbs.py: board_that_was_replaced_is_refused_with_a_sentence "
        "only_the_key_of_a_replaced_board_gets_the_sentence "
        "other_server_refuses_the_replaced_board_too "
        "generation_that_the_dead_board_only_claimed_is_not_given "
        "token_that_covers_one_of_the_two_replaces_nothing",
        not_here="files and names: a board never names the board that a message is about; the server "
        "knows it from the link",
    ),
    attack(
        8,
        "a stolen key: revoked, rotated, with the acknowledgement lost",
        "cm_server/net/test_board_socket.py: old_key_is_refused_after_a_new_enrolment",
        "cm_server/auth/test_enrolment.py: "
        "revocation_closes_the_link_and_ends_waiting_jobs "
        "idle_board_gets_a_new_key_and_proves_it "
        "both_keys_are_valid_until_the_new_one_is_used rotation_continues_after_a_restart "
        "new_key_without_proof_is_not_accepted unknown_key_number_gets_a_random_challenge "
        "enrolling_again_gives_a_key_newer_than_a_pending_one",
        "cm_server/api/test_verbs.py: revoke_removes_boards_and_ends_their_jobs",
        "system/test_trust.py: a_revoked_board_is_out_within_two_seconds "
        "a_key_is_changed_on_the_board_and_on_the_server "
        "power_cut_at_every_write_of_a_rotation_locks_no_board_out",
    ),
    attack(
        9,
        "a board with a reused name gets nothing of its predecessor",
        "cm_server/api/test_verbs.py: reused_name_inherits_nothing",
        "cm_server/test_matrix.py: jobs_of_a_removed_board_are_not_those_of_its_namesake",
        "cm_server/auth/test_enrolment.py: board_with_a_reused_name_inherits_nothing "
        "renamed_board_keeps_its_labels_and_jobs rename_to_the_name_of_another_board_is_refused",
    ),
    attack(
        10,
        "brute force, which must not lock out others with the same address",
        "cm_server/net/test_caller_socket.py: "
        "wrong_tokens_are_rate_limited_but_a_valid_one_is_accepted "
        "flood_of_wrong_tokens_writes_a_bounded_number_of_rows_and_lines",
        "load/test_attacks.py: wrong_tokens_neither_block_valid_ones_nor_fill_the_disk",
        "cm_server/net/test_board_socket.py: failed_authentications_write_a_bounded_number_of_rows_and_lines",
    ),
    attack(
        11,
        "slowloris: heads, bodies and frames byte by byte, on 2,000 connections",
        "load/test_attacks.py: cells_take_less_than_twice_their_time_during_a_slowloris_attack",
        "cm_server/test_app.py: request_with_a_slow_head_is_closed "
        "request_with_a_slow_body_is_closed half_open_requests_do_not_delay_others",
        "cm_server/net/test_board_socket.py: slow_authentication_is_refused",
        "cm_server/net/test_listener.py: stalled_connection_is_closed_in_time "
        "new_connection_counts_as_unauthenticated_and_the_oldest_is_closed "
        "invalid_handshake_closes_only_its_connection",
    ),
    attack(
        12,
        "frames of any length, fragments, control frames, floods of pings, peers that do not read",
        "cloudmanager/protocol/test_frames.py: forbidden_frame_is_refused_with_its_close_code "
        "unmasked_frame_is_refused "
        "too_long_frame_is_refused_before_its_payload_is_received "
        "random_bytes_give_frames_or_a_frame_error",
        "cm_server/net/test_websocket.py: protocol_violation_closes_with_the_code_of_the_rfc "
        "incomplete_frame_is_dropped_with_its_link garbage_closes_only_its_link "
        "peer_that_does_not_read_is_closed",
        "cm_server/net/test_board_socket.py: oversize_message_is_refused_before_it_is_read",
        "attacks/test_transport.py: flood_of_pings_does_not_delay_others",
        "cloudmanager/client/test_outgoing.py: nothing_follows_a_partial_frame "
        "interrupts_at_any_instant_mix_no_frames "
        "cells_run_at_most_once_whenever_they_are_interrupted",
        "cm_server/net/test_websocket.py: "
        "flood_is_handled_in_slices_and_other_links_in_between "
        "messages_are_handled_at_a_bounded_rate "
        "unauthenticated_ping_closes_the_link_after_a_delay "
        "log_lines_about_unauthenticated_peers_are_limited",
        "cm_server/net/test_board_socket.py: board_with_many_messages_about_foreign_jobs_is_closed",
        "cm_server/net/test_listener.py: request_in_too_many_pieces_is_closed "
        "reads_from_many_connections_share_a_rate",
        "board/test_link.py: board_refuses_protocol_violations",
    ),
    attack(
        13,
        "very many unauthenticated connections",
        "cm_server/test_app.py: flood_of_connections_is_bounded_and_others_can_connect "
        "aborted_connections_leave_no_state",
        "cm_server/test_rate_limits.py: oldest_connection_of_an_address_is_closed "
        "flood_from_one_address_does_not_affect_another "
        "total_limit_closes_a_connection_of_the_largest_group "
        "connection_that_cannot_be_closed_does_not_affect_the_next",
        "cm_server/net/test_listener.py: reset_connections_are_not_counted "
        "socket_that_tls_cannot_wrap_is_not_counted "
        "connections_are_accepted_at_a_bounded_rate",
        "cm_server/net/test_websocket.py: failed_clean_up_releases_the_rest",
    ),
    attack(
        14,
        "many boards that reconnect at the same time",
        "board/test_link.py: boards_reconnect_when_the_server_is_back",
        "cm_server/test_app.py: lost_after_is_not_below_the_reconnect_spread "
        "lost_after_grows_with_the_fleet",
        "system/test_restart.py: "
        "a_server_killed_in_mid_cell_finds_its_boards_and_the_true_outcomes",
    ),
    attack(
        15,
        "compression that is offered",
        "cm_server/net/test_websocket.py: offered_compression_is_not_used",
    ),
    attack(
        16,
        "links from foreign pages, with any Origin and any Host",
        "cm_server/net/test_handlers.py: foreign_origin_is_refused "
        "foreign_host_name_on_loopback_is_refused "
        "two_origin_headers_are_refused request_without_host_is_refused "
        "loopback_host_names_are_accepted",
    ),
    attack(
        17,
        "forged requests, cookies, tokens in addresses",
        "cm_server/net/test_handlers.py: form_posted_by_a_foreign_page_changes_nothing "
        "cookie_is_not_accepted_as_a_token every_answer_has_the_security_headers",
        "cm_server/net/test_caller_socket.py: token_in_the_address_is_refused_and_not_logged",
        not_here="no REST call changes anything: all changes are requested on a WebSocket",
    ),
    attack(
        18,
        "a board's key for a caller's link, and the reverse; every route with every role",
        "cm_server/test_matrix.py: every_route_with_every_credential "
        "every_route_has_a_required_credential_and_other_paths_are_404 "
        "callers_token_is_no_boards_key authenticated_board_cannot_send_callers_messages "
        "every_verb_with_every_role_writes_one_audit_row "
        "unreachable_board_is_treated_as_not_enrolled "
        "lists_contain_only_reachable_boards_and_jobs "
        "cell_for_unreachable_boards_is_refused_as_for_unknown_ones",
        "cm_server/net/test_caller_socket.py: boards_key_does_not_authenticate_a_caller",
        "cm_server/net/test_board_socket.py: callers_token_does_not_authenticate_a_board",
    ),
    attack(
        19,
        "a public address without TLS; files that others can read",
        "cm_server/test_app.py: server_reachable_from_other_machines_requires_tls "
        "secrets_and_state_are_private "
        "all_files_are_private_with_any_umask",
        "cm_server/store/test_store.py: only_the_owner_can_read_the_file",
        "cloudmanager/test_config.py: "
        "private_file_is_readable_by_its_owner_only "
        "private_file_does_not_follow_a_symlink",
        "cloudmanager/virtual/test_virtual_boards.py: flash_and_log_are_readable_by_their_owner_only",
    ),
    attack(
        20,
        "HTML, script, Markdown and MIME from a board",
        "attacks/test_hostile_output.py: hostile_text_is_plain_text_in_the_notebook "
        "results_have_tables_and_no_other_rich_representation html_is_produced_in_few_modules "
        "table_of_values_contains_no_hostile_tags",
        "cm_magics/test_kernel.py: board_output_is_never_html",
        "cm_magics/test_dashboard_widget.py: text_from_boards_is_sanitized",
        "browser/test_dashboard.py: text_from_hostile_boards_has_no_effect_in_the_page",
    ),
    attack(
        21,
        "escape sequences, overwriting, bidi and NUL from a board",
        "attacks/test_hostile_output.py: hostile_facts_are_plain_text_in_the_shell "
        "hostile_output_is_plain_text_in_the_shell "
        "hostile_text_cannot_add_log_lines",
        "cloudmanager/protocol/test_text.py: sanitize_escapes_control_characters_only",
        "cloudmanager/display/test_terminal.py: escape_codes_of_boards_are_escaped",
        "cloudmanager/display/test_interleaved_log.py: control_characters_in_the_log_are_escaped",
    ),
    attack(
        22,
        "floods of output, endless lines, output after the end, results of another board's job",
        "load/test_fleet_of_many.py: output_flood_neither_grows_the_server_nor_delays_another_board",
        "system/test_faults.py: a_flood_neither_fills_the_server_nor_stalls_the_others",
        "cloudmanager/display/test_interleaved_log.py: line_without_newline_is_split",
        "cm_server/jobs/test_jobs.py: tail_truncated_within_a_character_is_text "
        "single_write_may_be_longer_than_the_tail",
        "cm_server/jobs/test_dispatch.py: second_result_is_ignored "
        "malformed_result_is_refused_and_the_job_stays_open "
        "tails_of_output_and_value_are_bounded",
        "cm_server/net/test_caller_socket.py: slow_caller_does_not_delay_boards_or_other_callers",
    ),
    attack(
        23,
        "file names that leave their folder; formulas in tables",
        "cloudmanager/client/test_downloads.py: hostile_names_write_nothing "
        "names_that_are_one_here_do_not_overwrite_each_other "
        "unrequested_file_is_refused size_of_a_file_read_into_memory_is_limited",
        "cloudmanager/client/test_board_paths.py: hostile_names_are_refused "
        "windows_device_names_are_refused_only_as_whole_names",
        "cloudmanager/client/test_files.py: answer_that_makes_no_sense_fails_that_board_alone",
        "cloudmanager/display/test_file_report.py: control_characters_in_file_names_are_escaped",
        "cloudmanager/cli/test_edit_files.py: only_this_user_can_read_the_local_file "
        "change_of_somebody_else_is_not_overwritten",
        "cloudmanager/cli/test_board_commands.py: no_macro_works_for_viewers",
        not_here="a table of results is the caller's own (`to_pandas`); no CSV is written",
    ),
    attack(
        24,
        "forged log lines, deep JSON, repeated keys, NaN, numbers of any size",
        "attacks/test_json.py: hostile_json_closes_only_its_link invalid_numbers_are_refused",
        "cm_server/net/test_board_socket.py: board_cannot_forge_a_log_line "
        "nonsense_in_a_valid_proof_is_bounded_and_harmless",
        "cm_server/jobs/test_dispatch.py: invalid_report_of_a_last_job_is_ignored",
        "cloudmanager/protocol/test_wire.py: payload_that_is_not_a_json_object_is_refused",
        "cm_server/test_metrics.py: peers_choose_no_labels",
    ),
    attack(
        35,
        "quotes and newlines in a Wi-Fi password, a name, a path",
        "cloudmanager/protocol/test_names.py: check_name_points_at_the_invalid_character",
        "cloudmanager/client/test_input_values.py: boards_evaluate_literals_to_equal_values",
        "cloudmanager/client/test_file_verbs.py: names_in_any_language_survive_a_round_trip",
        "cloudmanager/client/test_board_paths.py: invalid_board_path_is_refused",
        "cloudmanager/cable/test_flash.py: blank_esp8266_joins_and_runs_a_cell",
        "cloudmanager/cli/test_cable_commands.py: wifi_password_is_asked_for_and_never_shown",
    ),
    attack(
        36,
        "secrets in process lists, logs, errors, notebooks, audit rows",
        "attacks/test_secrets.py: secrets_are_only_in_their_own_files",
        "board/test_link.py: key_is_not_in_a_command_line_or_a_log",
        "cm_server/test_matrix.py: audit_log_contains_no_secret_and_no_cell",
        "cloudmanager/cable/test_fleet_network.py: "
        "wifi_changes_in_a_rollout_and_its_password_is_nowhere "
        "what_is_shown_of_a_change_has_no_password",
        "cm_server/store/test_rows.py: key_of_a_board_is_in_no_repr",
        "cm_server/test_app.py: refused_request_is_logged_in_one_line_without_secrets",
        "cm_server/jobs/test_registry.py: describe_is_json_without_the_key",
        "cloudmanager/test_config.py: address_does_not_show_its_token",
        "cloudmanager/virtual/test_virtual_boards.py: identity_does_not_show_its_key",
    ),
    attack(
        40,
        "input that is almost right, from strangers, boards and callers at the same time",
        "attacks/test_fuzz.py: hostile_input_causes_no_failure_and_leaves_nothing",
        "attacks/test_long_fuzz.py: minute_of_hostile_input_delays_no_other_board",
        "cm_server/test_hostile_values.py: error_of_a_cell_that_cannot_be_stored_stops_no_other_write "
        "reported_values_that_cannot_be_stored_stop_no_other_write "
        "impossible_place_in_a_log_is_refused",
        "cm_server/net/test_caller_socket.py: few_of_a_links_cells_are_remembered "
        "request_whose_caller_leaves_before_its_turn_is_not_begun",
    ),
    attack(
        41,
        "boards' logs: who reads them, floods, texts of no length; samples: the same, SQL in names; "
        "floods of questions for the time",
        "cm_server/test_sample_history.py: samples_are_returned_to_those_who_reach_the_boards "
        "board_with_too_many_names_keeps_the_first board_with_too_many_values_keeps_the_first "
        "boards_of_one_token_do_not_displace_those_of_others "
        "successor_of_the_same_name_has_no_samples_of_before "
        "full_disk_stops_keeping_and_nothing_else long_query_is_ended wrong_requests_are_refused "
        "values_that_wait_for_the_disk_are_bounded",
        "cm_server/test_sample_collector.py: sample_of_too_many_bytes_is_dropped "
        "samples_beyond_the_rate_limit_are_dropped_and_counted boards_share_the_total_of_samples",
        "cm_server/net/test_board_socket.py: flood_of_time_is_answered_at_a_bounded_rate",
        "cm_server/store/test_sample_files.py: oldest_is_deleted_where_there_is_too_much",
        "cm_server/store/test_sample_stores.py: names_are_data",
        "cm_server/net/test_samples_page.py: samples_need_a_token_that_reaches_the_boards "
        "wrong_arguments_are_refused samples_as_csv_and_json",
        "cm_server/net/test_watch_logs.py: viewer_may_not_follow_logs "
        "operator_follows_only_logs_of_its_boards logs_that_wait_for_a_slow_reader_are_bounded "
        "board_that_floods_its_log_loses_the_excess_and_delays_nobody",
        "cm_server/test_board_logs.py: all_boards_together_keep_a_bounded_amount "
        "empty_and_short_texts_count_too empty_texts_that_wait_for_the_store_are_bounded",
    ),
    attack(
        42,
        "what ran where: who reads and forgets it, what is left then, inputs in it, texts that fill it",
        "cm_server/api/test_history_verbs.py: text_is_for_its_author_and_for_administrators "
        "successor_of_a_board_has_no_history forgotten_text_is_in_no_reply_and_in_no_file "
        "operator_forgets_only_what_its_token_ran "
        "administrator_of_some_boards_forgets_only_of_these "
        "text_of_a_client_that_does_not_say_its_inputs_is_not_stored",
        "cm_server/jobs/test_job_texts.py: inputs_are_not_in_the_text "
        "hostile_origin_is_shortened texts_of_one_token_do_not_use_the_share_of_others "
        "of_a_long_text_only_the_hash_is_kept",
        "cm_server/store/test_text_rows.py: deleted_text_is_in_no_file_of_sqlite",
        not_here="backups, PostgreSQL's files and the disk keep deleted texts: docs/security.md",
    ),
    attack(
        43,
        "alarms: a receiver that redirects, hangs, answers for ever or is gone; forged messages; secrets "
        "in them; floods of events",
        "cm_server/net/test_webhook.py: redirect_is_not_followed receiver_that_hangs_delays_nobody "
        "long_answer_is_not_kept messages_that_wait_are_bounded message_is_signed_with_its_time "
        "receiver_of_the_documentation_accepts_genuine_messages "
        "wrong_settings_are_refused_without_their_secrets",
        "cm_server/test_alarms.py: outage_of_a_site_is_one_message "
        "safe_mode_is_reported_once_until_the_program_runs_again "
        "many_boards_are_examined_in_turns_and_forgotten",
    ),
    attack(
        37,
        "a privileged request without an audit row, changed audit rows",
        "cm_server/test_matrix.py: every_verb_with_every_role_writes_one_audit_row "
        "audit_rows_describe_each_verb",
        "cm_server/store/test_store.py: audit_rows_cannot_be_changed_or_deleted "
        "privileged_operation_and_its_audit_row_are_one_fsynced_transaction "
        "cell_that_cannot_be_audited_does_not_run kill_9_loses_no_audit_row",
        "cm_server/test_housekeeping.py: wrong_clock_deletes_nothing "
        "wrong_clock_at_the_start_deletes_nothing "
        "clock_that_stays_wrong_deletes_a_week_of_rows_a_day",
    ),
    attack(
        38,
        "targets that try to read files or resolve names, or select very many boards",
        "cloudmanager/protocol/test_targets.py: huge_range_is_refused_before_it_is_expanded "
        "hostile_text_is_refused_fast parse_raises_nothing_but_target_error "
        "documented_example_has_seven_names malformed_target_points_at_the_place",
        "cloudmanager/protocol/test_names.py: expand_points_at_the_error",
    ),
]
