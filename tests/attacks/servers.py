"""Defences between servers: letters on a bus that is trusted with nothing, and stale servers."""

from __future__ import annotations

from typing import Final

from .defence import SERVER, defence
from .table import attack

LETTER: Final = "cm_server/cluster/test_peer_messages.py::test_forged_changed_replayed_and_redirected_fragments_are_dropped"
STORE: Final = "cm_server/store/test_shared_store.py::test_"
SUSPENDED: Final = STORE + "suspended_server_is_removed_and_its_jobs_end_or_continue[sqlite]"
CLAIMED_ONCE: Final = STORE + "queued_job_is_claimed_once[sqlite]"
NOT_WITHDRAWN: Final = STORE + "claimed_job_is_not_withdrawn[sqlite]"
ONLY_HOLDER: Final = STORE + "job_is_claimed_for_sending_by_the_holder_of_its_board[sqlite]"
MOVED: Final = STORE + "sent_job_follows_its_board_to_another_server[sqlite]"
PRESENCE: Final = "cm_server/cluster/test_board_directory.py::test_"
CHANGES: Final = (
    "cm_server/cluster/test_membership.py::"
    "test_changes_at_one_server_apply_at_the_other[sqlite, one process]"
)
REBALANCING: Final = "cm_server/cluster/test_rebalancing.py::test_"
CONFORMANCE: Final = (
    "cm_server/cluster/test_conformance.py::"
    "test_what_crosses_the_bus_is_whole_or_known_to_be_missing"
)

SERVER_ATTACKS: Final = [
    attack(
        39,
        "a stranger on the bus; a server that stood still; jobs that two servers have",
        "cm_server/cluster/test_peer_messages.py: forged_changed_replayed_and_redirected_fragments_are_dropped",
        "cm_server/cluster/test_board_directory.py: message_without_the_key_is_dropped "
        "newest_epoch_wins_and_older_messages_are_ignored "
        "revoked_board_is_refused_by_a_server_that_missed_the_message "
        "revoked_board_is_disconnected_soon_while_the_bus_is_down",
        "cm_server/cluster/test_conformance.py: "
        "what_crosses_the_bus_is_whole_or_known_to_be_missing",
        "cm_server/cluster/test_shared_rows.py: "
        "labels_that_two_servers_change_at_a_time_are_merged",
        "cm_server/store/test_shared_store.py: queued_job_is_claimed_once claimed_job_is_not_withdrawn "
        "removed_server_sends_no_jobs result_is_corrected_by_the_holder_of_the_board "
        "last_use_of_a_token_goes_to_one_server",
        "cm_server/cluster/test_small_rights.py: "
        "viewer_of_one_board_is_a_viewer_of_it_at_each_server "
        "operator_of_one_board_reaches_no_other_one_at_any_server",
        "faults/test_several.py: every_job_has_one_outcome_when_servers_bus_and_store_fail",
        not_here="who can read the bus reads cells and outputs, unless it is TLS; who can publish "
        "on it can hold letters up (docs/security.md)",
    ),
]

SERVERS: Final = [
    # The bus
    defence(
        "a server takes a waiting job only for a board that it has",
        SERVER + "store/shared_store.py",
        "SharedStore._own_taken_job = lambda self, taken: True",
        "cm_server/cluster/test_waiting_jobs.py::"
        "test_server_that_does_not_have_the_board_cannot_take_its_job[sqlite, one process]",
    ),
    defence(
        "bus: a message's MAC is verified",
        SERVER + "cluster/peer_messages.py",
        "PeerMessages._is_authentic = lambda self, mac, expected: True",
        LETTER,
        PRESENCE + "message_without_the_key_is_dropped",
    ),
    defence(
        "bus: the key of messages is a secret in the store",
        SERVER + "cluster/membership.py",
        "_peer_message_key = lambda store: bytes(32)",
        PRESENCE + "message_without_the_key_is_dropped",
    ),
    *(
        defence(
            f"bus: a message's MAC covers its {what}",
            SERVER + "cluster/peer_messages.py",
            f"_mac_input = lambda sender, recipient, number, flags, fragment: {covered}",
            LETTER,
        )
        for what, covered in (
            ("sender", "f'{recipient} {number} {flags} '.encode() + fragment"),
            ("recipient", "f'{sender} {number} {flags} '.encode() + fragment"),
            ("number", "f'{sender} {recipient} {flags} '.encode() + fragment"),
            ("flags", "f'{sender} {recipient} {number} '.encode() + fragment"),
            ("content", "f'{sender} {recipient} {number} {flags} '.encode()"),
        )
    ),
    defence(
        "bus: a replayed message is dropped",
        SERVER + "cluster/peer_messages.py",
        "_is_replay = lambda number, last: False",
        LETTER,
    ),
    defence(
        "bus: messages of an older epoch are ignored",
        SERVER + "cluster/board_directory.py",
        "_is_outdated = lambda board, epoch: False",
        PRESENCE + "newest_epoch_wins_and_older_messages_are_ignored",
    ),
    defence(
        "bus: a token that was revoked at another server is refused",
        SERVER + "cluster/board_directory.py",
        "BoardDirectory._on_tokens_changed = lambda self: None",
        CHANGES,
    ),
    defence(
        "bus: a board that was revoked at another server is refused",
        SERVER + "cluster/board_directory.py",
        "BoardDirectory._on_enrolment_changed = lambda self, ids: None",
        CHANGES,
    ),
    defence(
        "bus: while it is down, a revoked board is refused within seconds",
        SERVER + "cluster/membership.py",
        "Cluster._reload_interval = lambda self: RELOAD_SECONDS",
        PRESENCE + "revoked_board_is_disconnected_soon_while_the_bus_is_down",
    ),
    defence(
        "bus: a lost message about a job is noticed",
        SERVER + "cluster/remote_jobs.py",
        "RemoteJobs._note_sent = lambda self, job, sent, arrived=None: None",
        CONFORMANCE + "[output-dropped]",
        CONFORMANCE + "[value-dropped]",
        CONFORMANCE + "[put_progress-dropped]",
    ),
    defence(
        "bus: a lost message about changed boards or tokens is noticed",
        SERVER + "cluster/membership.py",
        "Cluster._on_gap = lambda self: None",
        CONFORMANCE + "[tokens-dropped]",
    ),
    defence(
        "rebalancing: boards that somebody uses keep their links",
        SERVER + "cluster/rebalancing.py",
        "Rebalancer._is_candidate = lambda self, board, now: True",
        REBALANCING + "boards_that_are_used_are_not_asked",
    ),
    defence(
        "rebalancing: it ends if it is of no use",
        SERVER + "cluster/rebalancing.py",
        "Rebalancer._judge = lambda self, board: board.notify_changed()",
        REBALANCING + "it_ends_where_there_is_no_load_balancer",
        REBALANCING + "board_that_does_not_come_back_is_offline_and_ends_it",
    ),
    defence(
        "store: the labels that another server set are kept",
        SERVER + "store/board_store.py",
        "_merge_labels = lambda labels, changes: dict(changes)",
        "cm_server/cluster/test_shared_rows.py::"
        "test_labels_that_two_servers_change_at_a_time_are_merged",
    ),
    # The fence
    defence(
        "fence: each connection of a board gets a new epoch",
        SERVER + "store/shared_store.py",
        "_NEXT_EPOCH = sa.func.coalesce(_boards.c.epoch, 1)",
        MOVED,
        STORE + "board_that_reconnects_is_held_in_a_newer_epoch[sqlite]",
    ),
    defence(
        "fence: a result is written by the job's owner only",
        SERVER + "store/shared_store.py",
        "_is_owner = lambda values: "
        "sa.or_(_jobs.c.server == values['me'], _jobs.c.id.is_not(None))",
        SUSPENDED,
    ),
    defence(
        "fence: a result is written in the epoch of the sending only",
        SERVER + "store/shared_store.py",
        "_is_same_epoch = lambda values: "
        "sa.or_(_jobs.c.id.is_not(None), _jobs.c.epoch == values['in_epoch'])",
        STORE + "jobs_of_unconfirmed_updates_end[sqlite]",
    ),
    defence(
        "fence: a removed server sends no jobs",
        SERVER + "store/shared_store.py",
        "SharedStore._require_membership = lambda self: None",
        STORE + "removed_server_sends_no_jobs[sqlite]",
    ),
    defence(
        "fence: an unsent job is claimed or withdrawn once",
        SERVER + "store/shared_store.py",
        "_unsent_jobs_of = lambda server_id: (_OPEN,)",
        CLAIMED_ONCE,
        NOT_WITHDRAWN,
    ),
    defence(
        "fence: a job is claimed, sent and corrected by its board's holder only",
        SERVER + "store/shared_store.py",
        "SharedStore._is_holder = lambda self, board_id, server_id: (_boards.c.id == board_id,)",
        ONLY_HOLDER,
        STORE + "queued_job_is_sent_by_the_holder_of_its_board[sqlite]",
        STORE + "result_is_corrected_by_the_holder_of_the_board[sqlite]",
    ),
    defence(
        "fence: closing an older link of a board does not release the newer one",
        SERVER + "store/shared_store.py",
        "_IS_HELD_EPOCH = _boards.c.epoch >= sa.bindparam('in_epoch')",
        STORE + "board_that_reconnects_is_held_in_a_newer_epoch[sqlite]",
    ),
    defence(
        "fence: a revoked board gets no lease",
        SERVER + "cluster/board_directory.py",
        "BoardDirectory._refuse_revoked = lambda self, board: None",
        PRESENCE + "revoked_board_is_refused_by_a_server_that_missed_the_message",
    ),
]
