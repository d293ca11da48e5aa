"""Defences of trust: TLS, MACs, who is enrolled and by what, keys; and files of boards."""

from __future__ import annotations

from typing import Final

from .defence import BOARD, LIBRARY, SERVER, Override, defence

ENROLMENT: Final = "cm_server/auth/test_enrolment.py::test_"
TAMPERED: Final = ENROLMENT + "tampered_message_closes_the_link_and_has_no_effect"
#: The store refuses a token without uses left, too: of several servers, one gets the last use.
USES: Final = Override(SERVER + "store/board_store.py", "_HAS_USES_LEFT = sa.true()")
SITE: Final = "system/test_trust.py::test_"

REPLACED: Final = "cm_server/api/test_replacement_verbs.py::test_"

TRUST: Final = [
    # A board that another one has replaced
    defence(
        "a board that was replaced is recognised and refused",
        SERVER + "auth/enrolment.py",
        "Enrolment.find_replaced = lambda self, board_id: None",
        REPLACED + "board_that_was_replaced_is_refused_with_a_sentence",
        REPLACED + "replaced_board_is_refused_after_a_restart_of_the_server",
        REPLACED + "other_server_refuses_the_replaced_board_too",
    ),
    defence(
        "the samples of a board that was replaced are erased with its successor",
        SERVER + "store/replaced_rows.py",
        "ReplacedRows.predecessors = lambda self, board_ids: []",
        REPLACED + "other_server_refuses_the_replaced_board_too",
        "cm_server/test_sample_history.py::test_samples_of_a_dead_board_stay_when_it_is_replaced",
    ),
    defence(
        "a board that is connected is not replaced",
        SERVER + "api/replacement_verbs.py",
        "_check_dead = lambda old: None",
        REPLACED + "board_that_is_connected_is_not_replaced",
    ),
    defence(
        "a board that is reserved by somebody else replaces none",
        SERVER + "api/reservation_verbs.py",
        "check_not_reserved = lambda boards, caller: None",
        REPLACED + "board_that_somebody_else_has_reserved_replaces_none",
    ),
    # Links that others can reach
    defence(
        "a board without TLS is refused by a server that other machines can reach",
        SERVER + "net/board_socket.py",
        "BoardConnection._is_protected = lambda self, hello, board: True",
        ENROLMENT + "stripped_tls_is_refused_and_logged",
        ENROLMENT + "stripped_macs_are_refused",
    ),
    defence(
        "MACs instead of TLS are accepted only from boards enrolled for them",
        SERVER + "net/board_socket.py",
        "BoardConnection._is_protected = lambda self, hello, board: self._secure or hello.mac",
        ENROLMENT + "stripped_tls_is_refused_and_logged",
    ),
    defence(
        "a caller without TLS is refused by a server that other machines can reach",
        SERVER + "net/handlers.py",
        "BaseHandler._lacks_tls = lambda self: False",
        "cm_server/test_app.py::test_server_reachable_from_other_machines_requires_tls[0.0.0.0]",
    ),
    defence(
        "a caller sends its token to other machines over TLS only",
        LIBRARY + "client/link.py",
        "_check_unencrypted = lambda url: None",
        SITE + "a_token_never_crosses_the_network_in_the_clear",
    ),
    defence(
        "a TLS handshake has a deadline",
        SERVER + "net/listener.py",
        "_IncomingConnection._start_deadline = lambda self: self._loop.call_later(999, self._close)",
        "cm_server/net/test_listener.py::test_stalled_connection_is_closed_in_time",
    ),
    defence(
        "a slow TLS handshake does not block the event loop",
        SERVER + "net/listener.py",
        "_set_non_blocking = lambda sock: sock.setblocking(True)",
        "cm_server/net/test_listener.py::test_stalled_connection_is_closed_in_time[11]",
    ),
    defence(
        "a connection in its TLS handshake counts as unauthenticated",
        SERVER + "net/listener.py",
        """_IncomingConnection._count_as_unauthenticated = lambda self, address: (
    self._parts.unauthenticated.add(address, lambda: None)
)""",
        "cm_server/net/test_listener.py::test_new_connection_counts_as_unauthenticated_and_the_oldest_is_closed",
    ),
    # MACs
    defence(
        "a message's MAC is verified",
        LIBRARY + "protocol/proofs.py",
        "LinkMac._is_authentic = lambda self, message, tag: True",
        TAMPERED + "[flip]",
        TAMPERED + "[other session]",
    ),
    defence(
        "a replayed message is refused",
        LIBRARY + "protocol/proofs.py",
        "_authenticated_bytes = lambda direction, number, message: direction + message",
        TAMPERED + "[replay]",
    ),
    defence(
        "a server's message that is sent back is refused",
        LIBRARY + "protocol/proofs.py",
        "_authenticated_bytes = lambda direction, number, message: _U64.pack(number) + message",
        TAMPERED + "[other direction]",
    ),
    defence(
        "the board verifies the MAC of a message",
        BOARD + "mac.py",
        "def verify(mv, n):\n    return n - _TAG",
        "faults/test_board_link.py::test_fault_in_a_job[mac-flip-bit-115-of-EXEC]",
    ),
    # Certificates
    defence(
        "the board verifies the server's certificate",
        BOARD + "dial.py",
        """
def _start_tls(config, start_tls=_start_tls):
    if "ca" not in config:
        return start_tls(config)
    import tls

    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    context.verify_mode = tls.CERT_NONE
    state.io = context.wrap_socket(state.socket, server_hostname="cloudmanager")
""",
        SITE + "a_fake_server_is_refused_by_its_certificate",
    ),
    defence(
        "the certificate authority must have the token's fingerprint",
        LIBRARY + "client/tls.py",
        "_has_fingerprint = lambda digest, pin: True",
        "cloudmanager/client/test_tls.py::test_wrong_fingerprint_is_refused",
    ),
    defence(
        "a caller verifies the server's certificate",
        LIBRARY + "client/tls.py",
        "_context_for_ca = lambda pem: ssl._create_unverified_context(cadata=pem)",
        "cloudmanager/client/test_tls.py::test_trust_is_by_fingerprint_then_file_then_system",
    ),
    # Who is enrolled
    defence(
        "an enrolment token has a limited number of uses",
        SERVER + "auth/enrolment.py",
        "_is_used_up = lambda token: False",
        ENROLMENT + "used_enrolment_token_is_refused",
        ENROLMENT + "one_of_two_simultaneous_enrolments_succeeds",
        behind=USES,
    ),
    defence(
        "an enrolment token is only for the names of its target",
        SERVER + "auth/enrolment.py",
        "_is_name_allowed = lambda name, target: True",
        ENROLMENT + "name_outside_of_the_tokens_target_is_refused",
    ),
    defence(
        "a board that repeats its enrolment gets the same identity",
        SERVER + "auth/enrolment.py",
        "Enrolment._find_enrolled = lambda self, token, key: None",
        ENROLMENT + "repeated_enrolment_gets_the_same_identity",
    ),
    defence(
        "a board can enrol itself over TLS only",
        SERVER + "net/board_socket.py",
        "BoardConnection._require_tls_to_enrol = lambda self: None",
        ENROLMENT + "enrolment_without_tls_is_refused",
    ),
    defence(
        "a caller cannot log in with an enrolment token",
        SERVER + "auth/tokens.py",
        """Tokens.find_caller_token = lambda self, header: (
    credentials.find_bearer_token(header, self._rows)
)""",
        ENROLMENT + "tokens_of_callers_and_boards_are_not_interchangeable",
        behind=USES,
    ),
    defence(
        "a caller's token cannot enrol a board",
        SERVER + "auth/tokens.py",
        """Tokens.find_enrolment_token = lambda self, token: (
    (row := credentials.match_token(token, self._rows)) and row._replace(uses=1)
)""",
        ENROLMENT + "tokens_of_callers_and_boards_are_not_interchangeable",
        behind=USES,
    ),
    defence(
        "the link of a revoked board is closed",
        SERVER + "auth/enrolment.py",
        "_close_link = lambda board: None",
        ENROLMENT + "revocation_closes_the_link_and_ends_waiting_jobs",
    ),
    defence(
        "a board with a reused name inherits nothing",
        SERVER + "auth/enrolment.py",
        """_new_identity = lambda name, *, plain: (
    new_board_row(name, name, credentials.new_key())._replace(plain=plain)
)""",
        ENROLMENT + "board_with_a_reused_name_inherits_nothing",
    ),
    defence(
        "a board cannot be renamed to the name of another board",
        SERVER + "auth/enrolment.py",
        "Enrolment._require_free_name = lambda self, name: None",
        ENROLMENT + "rename_to_the_name_of_another_board_is_refused",
    ),
    # Keys
    defence(
        "an unknown key number is refused",
        SERVER + "jobs/model.py",
        "Board.key_for = lambda self, gen: "
        "self.key if gen == self.gen else self.next_key or self.key",
        ENROLMENT + "unknown_key_number_gets_a_random_challenge",
    ),
    defence(
        "the old key is not valid after the new one was used",
        SERVER + "auth/enrolment.py",
        "Enrolment.on_key_used = lambda self, board, gen: None",
        ENROLMENT + "both_keys_are_valid_until_the_new_one_is_used",
        ENROLMENT + "idle_board_gets_a_new_key_and_proves_it",
    ),
    defence(
        "a new key replaces the old one only with a proof",
        SERVER + "auth/enrolment.py",
        "_proves_key = lambda key, gen, nonce, proof: True",
        ENROLMENT + "new_key_without_proof_is_not_accepted",
    ),
    defence(
        "a board keeps its old key until the new one is written",
        BOARD + "identity.py",
        """
def save(config, save=save):
    os.remove("/cm.json")
    save(config)
""",
        SITE + "power_cut_at_every_write_of_a_rotation_locks_no_board_out",
    ),
    # Files of boards
    defence(
        "a board's file name cannot lead out of the folder",
        LIBRARY + "client/board_paths.py",
        "check_local_name = lambda name: None",
        "cloudmanager/client/test_board_paths.py::test_hostile_names_are_refused",
        "cloudmanager/client/test_downloads.py::test_hostile_names_write_nothing",
    ),
    defence(
        "two files that have one name here do not overwrite each other",
        LIBRARY + "client/downloads.py",
        "DownloadSink._find_same = lambda self, board, new: None",
        "cloudmanager/client/test_downloads.py::"
        "test_names_that_are_one_here_do_not_overwrite_each_other",
    ),
    defence(
        "a board's file that is edited here can be read by this user only",
        LIBRARY + "cli/edit_files.py",
        "_write_private = lambda path, content: path.write_bytes(content)",
        "cloudmanager/cli/test_edit_files.py::test_only_this_user_can_read_the_local_file",
    ),
    defence(
        "an edited file does not overwrite what somebody else has written meanwhile",
        LIBRARY + "cli/edit_files.py",
        "_is_as_read = lambda digest, before: True",
        "cloudmanager/cli/test_edit_files.py::test_change_of_somebody_else_is_not_overwritten",
    ),
    defence(
        "a file that is read into memory is limited",
        LIBRARY + "client/downloads.py",
        "_MemorySink._is_too_long = lambda self, size: False",
        "cloudmanager/client/test_downloads.py::test_size_of_a_file_read_into_memory_is_limited",
    ),
]
