"""Defences of stored data: against wrong clocks, and against crashes at any step."""

from __future__ import annotations

from typing import Final

from .defence import SERVER, Defence, defence

CLOCK: Final = "cm_server/test_clock.py::test_"
HOUSE: Final = "cm_server/test_housekeeping.py::test_"
CALLER: Final = "cm_server/net/test_caller_socket.py::test_"
REPLACED: Final = "cm_server/store/test_file_replacement.py::test_"
STORE: Final = "cm_server/store/test_shared_store.py::test_"

KEEPING: Final[list[Defence]] = [
    # Passwords of networks
    defence(
        "the password of a network is deleted when its rollout has ended",
        SERVER + "store/rollout_rows.py",
        "RolloutRows._delete_network_changes = lambda self: None",
        "cloudmanager/cable/test_fleet_network.py::"
        "test_wifi_changes_in_a_rollout_and_its_password_is_nowhere",
    ),
    # Clocks
    defence(
        "clock: a step is noticed by a clock that cannot be set",
        SERVER + "clock.py",
        "CheckedClock._agrees_with_steady_clock = lambda self, now: True",
        CLOCK + "clock_that_was_set_is_unconfirmed_for_a_day",
        HOUSE + "wrong_clock_deletes_nothing",
    ),
    defence(
        "clock: it is compared with the stored time at the start",
        SERVER + "clock.py",
        "CheckedClock._agrees_with_stored_time = lambda self, now: True",
        CLOCK + "repeated_starts_do_not_confirm_a_wrong_clock",
        HOUSE + "wrong_clock_at_the_start_deletes_nothing",
    ),
    defence(
        "clock: it is checked before its time is stored",
        SERVER + "clock.py",
        "CheckedClock.save = CheckedClock._store_time",
        CLOCK + "step_just_before_the_stop_is_not_stored_as_confirmed",
    ),
    defence(
        "clock: a jump of both clocks does not count as a day of even running",
        SERVER + "clock.py",
        "COUNTED_SECONDS = LONGEST_GAP",
        CLOCK + "jump_of_both_clocks_is_not_confirmed",
    ),
    defence(
        "clock: no rows are deleted while it is unconfirmed",
        SERVER + "housekeeping.py",
        "Housekeeper._is_clock_confirmed = lambda self: True",
        HOUSE + "wrong_clock_at_the_start_deletes_nothing",
        HOUSE + "wrong_clock_deletes_nothing[450]",
    ),
    defence(
        "clock: no rows are deleted while the database has another time",
        SERVER + "housekeeping.py",
        "Housekeeper._agrees_with_database = lambda self, database: True",
        HOUSE + "database_with_another_time_deletes_nothing",
    ),
    defence(
        "clock: a round deletes at most a few days' rows",
        SERVER + "housekeeping.py",
        "Housekeeper._horizon = lambda self, before, oldest: before",
        HOUSE + "clock_that_stays_wrong_deletes_a_week_of_rows_a_day",
        HOUSE + "old_audit_rows_are_deleted_oldest_first",
    ),
    defence(
        "clock: a day has one round of deletions, in spite of restarts",
        SERVER + "store/pruning_store.py",
        "_is_round_due = lambda state, now: True",
        HOUSE + "restarts_do_not_cause_more_rounds_a_day",
    ),
    defence(
        "clock: deletions are recorded in the audit log",
        SERVER + "store/pruning_store.py",
        "PruningStore._audit_deletions = lambda self, rows: None",
        HOUSE + "old_audit_rows_are_deleted_oldest_first",
        HOUSE + "interrupted_round_is_audited_by_the_next_server",
    ),
    defence(
        "clock: jobs are deleted in the order of their numbers",
        SERVER + "store/pruning_store.py",
        "PruningStore._select_old = lambda self, rows, before: "
        "[row for row in rows if row.created < before]",
        HOUSE + "job_of_a_slow_clock_is_kept_as_long_as_its_neighbours",
    ),
    defence(
        "clock: a row of 1970 counts as old as the next row",
        SERVER + "store/pruning_store.py",
        "_plausible_times = list",
        HOUSE + "audit_rows_of_1970_are_kept_as_long_as_the_next_ones",
    ),
    defence(
        "clock: an expired token stays expired when the clock is set back",
        SERVER + "clock.py",
        "CheckedClock.latest = lambda self: self.wall()",
        CALLER + "clock_set_back_does_not_revive_an_expired_token",
    ),
    defence(
        "clock: a link is closed when its token expires because the clock was set",
        SERVER + "net/caller_socket.py",
        "_seconds_to_next_check = lambda left: left",
        CALLER + "token_expires_by_the_wall_clock",
    ),
    defence(
        "clock: no server is removed when the database's clock is set",
        SERVER + "store/shared_store.py",
        "_is_clock_step = lambda difference, dead_after: False",
        STORE + "step_of_the_databases_clock_removes_no_server[sqlite-3600.0]",
    ),
    # Crashes
    defence(
        "replacement: the next start finishes an interrupted replacement",
        SERVER + "process.py",
        "_finish_replacement = lambda home: []",
        REPLACED + "start_finishes_a_killed_restore_and_reports_it",
    ),
    defence(
        "replacement: the journal is committed before the first file is moved",
        SERVER + "store/file_replacement.py",
        "_commit_journal = lambda draft, home: None",
        REPLACED + "restore_killed_at_any_step_is_finished_or_undone",
    ),
    defence(
        "replacement: new files are on the disk before the commit",
        SERVER + "store/file_replacement.py",
        "_sync_files = lambda paths: None",
        REPLACED + "files_are_synced_before_the_commit_and_moved_before_the_journal_is_removed",
    ),
    defence(
        "replacement: the journal is removed last",
        SERVER + "store/file_replacement.py",
        "def _carry_out(home, journal):\n"
        "    _remove_journal(home)\n"
        "    folder = home / journal['folder']\n"
        "    _move_files(home, folder, journal)\n"
        "    shutil.rmtree(folder, ignore_errors=True)",
        REPLACED + "finish_killed_at_any_step_continues_at_the_next_start",
    ),
    defence(
        "replacement: a failure after the commit keeps the new files",
        SERVER + "store/file_replacement.py",
        "_remove_staging = lambda home, folder: shutil.rmtree(folder)",
        REPLACED + "restore_that_fails_after_the_commit_is_finished_later",
    ),
    defence(
        "replacement: kept files are never overwritten",
        SERVER + "store/file_replacement.py",
        "_unused_suffix = lambda home, names: '.before'",
        REPLACED + "restore_does_not_overwrite_kept_files",
    ),
    defence(
        "replacement: the old database's write-ahead log is moved with it",
        SERVER + "store/file_replacement.py",
        "_SIDE_FILES = ()",
        "cm_server/store/test_backup.py::test_restore_keeps_old_database_with_its_write_ahead_log",
    ),
    defence(
        "replacement: no backup is saved during a restore",
        SERVER + "store/lockfile.py",
        "_lock_folder = lambda handle, *, exclusive: None",
        REPLACED + "backup_and_restore_exclude_each_other",
    ),
    defence(
        "replacement: one missing certificate does not create a new authority",
        SERVER + "net/certificates.py",
        "_check_both_or_none = lambda ca, own: None",
        REPLACED + "missing_certificate_stops_the_start_if_boards_are_enrolled",
    ),
    defence(
        "replacement: both first certificates are written or none",
        SERVER + "net/certificates.py",
        """_replace_files = lambda home, folder, names: [
    (folder / name).replace(home / name) for name in names
]""",
        REPLACED + "first_start_killed_at_any_step_leaves_both_certificates_or_none",
    ),
    defence(
        "replacement: a migration overwrites no earlier copy",
        SERVER + "store/schema.py",
        "def _unused_copy_path(path, version):\n"
        "    return path.with_stem(f'{path.stem}-schema-{version}')",
        REPLACED + "migration_killed_at_any_step_keeps_all_rows_and_copies",
    ),
]
