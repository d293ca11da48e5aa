"""Defences of what is kept: against clocks that are wrong, and against death in the middle."""

from __future__ import annotations

from typing import Final

from .defence import SERVER, Defence, Place, defence, text_defence

CLOCK: Final = "cm_server/test_clock.py::test_"
HOUSE: Final = "cm_server/test_housekeeping.py::test_"
CALLER: Final = "cm_server/net/test_caller_socket.py::test_"
REPLACED: Final = "cm_server/store/test_file_replacement.py::test_"
STORE: Final = "cm_server/store/test_shared_store.py::test_"

KEEPING: Final[list[Defence]] = [
    # Clocks
    text_defence(
        "clock: a step is compared with a clock that nobody sets",
        SERVER + "clock.py",
        "if abs(now - expected) <= TOLERANCE and now >= EARLIEST:",
        "if True:",
        CLOCK + "clock_that_was_set_is_not_believed_for_a_day",
        HOUSE + "wrong_clock_deletes_nothing",
    ),
    text_defence(
        "clock: a start is compared with the stored time",
        SERVER + "clock.py",
        "if now >= EARLIEST and (-TOLERANCE <= gap <= LONGEST_GAP or self._known < EARLIEST):",
        "if True:",
        CLOCK + "starts_again_and_again_do_not_confirm_a_wrong_clock",
        HOUSE + "wrong_clock_at_the_start_deletes_nothing",
    ),
    text_defence(
        "clock: a step is seen before the time is stored",
        SERVER + "clock.py",
        "        self.check()  # a step since the last look must not be stored as confirmed\n",
        "",
        CLOCK + "step_just_before_the_end_is_not_stored_as_the_right_time",
    ),
    text_defence(
        "clock: a leap of both clocks is no day that went by",
        SERVER + "clock.py",
        "self._agreed += min(passed, COUNTED_SECONDS)",
        "self._agreed += passed",
        CLOCK + "both_clocks_leaping_years_is_not_believed",
    ),
    text_defence(
        "clock: nothing is deleted while it is in doubt",
        SERVER + "housekeeping.py",
        "        if not self._clock.check():\n            return False\n",
        "        self._clock.check()\n",
        HOUSE + "wrong_clock_at_the_start_deletes_nothing",
        HOUSE + "wrong_clock_deletes_nothing[450]",
        behind=Place(
            SERVER + "housekeeping.py",
            "            if self._clock.check():\n",
            "            if True:\n",
        ),
    ),
    text_defence(
        "clock: nothing is deleted while the database has another time",
        SERVER + "housekeeping.py",
        "return not problem",
        "return True",
        HOUSE + "database_with_another_time_deletes_nothing",
    ),
    text_defence(
        "clock: a day takes a few days' worth of rows",
        SERVER + "housekeeping.py",
        "return before if oldest is None else min(before, oldest + limits.PRUNE_DAYS * DAY)",
        "return before",
        HOUSE + "clock_that_stays_wrong_takes_a_week_of_rows_a_day_and_says_so",
        HOUSE + "audit_rows_go_later_the_oldest_first",
    ),
    text_defence(
        "clock: a day has one round, whoever starts again",
        SERVER + "store/store.py",
        'due = not 0 <= now - state.get("at", 0.0) < DAY',
        "due = True",
        HOUSE + "restarts_do_not_make_more_rounds_of_one_day",
    ),
    text_defence(
        "clock: what was deleted is a row in the audit log",
        SERVER + "store/store.py",
        "self.database.many(self._insert_audit, notes)",
        "pass",
        HOUSE + "audit_rows_go_later_the_oldest_first",
        HOUSE + "round_that_was_cut_off_is_told_by_the_next_server",
    ),
    text_defence(
        "clock: a job's line goes in the order of numbers",
        SERVER + "store/store.py",
        "        return list(rows[:count])\n",
        "        return [row for row in rows if row.created < before]\n",
        HOUSE + "job_of_a_clock_that_was_behind_stays_as_long_as_its_neighbours",
    ),
    text_defence(
        "clock: a row of 1970 is as old as the next one",
        SERVER + "store/store.py",
        "following = at if at >= EARLIEST else following",
        "following = at",
        HOUSE + "audit_rows_of_a_clock_that_began_in_1970_stay_as_long_as_the_next_ones",
    ),
    text_defence(
        "clock: an expired token stays expired when it is set back",
        SERVER + "clock.py",
        "return max(self.wall(), self._known + uptime - self._known_at)",
        "return self.wall()",
        CALLER + "clock_set_back_does_not_revive_an_expired_token",
    ),
    defence(
        "clock: a link is closed when its token expires because the clock was set",
        SERVER + "net/caller_socket.py",
        "_seconds_to_next_check = lambda left: left",
        CALLER + "token_expires_by_the_wall_clock",
    ),
    text_defence(
        "clock: the database's, set, makes no server dead",
        SERVER + "store/shared_store.py",
        "                self._clock_set_at = steady\n",
        "",
        STORE + "step_of_the_databases_clock_takes_no_server_for_dead[sqlite-3600.0]",
    ),
    # Death in the middle
    text_defence(
        "replacement: what was decided is finished at the next start",
        SERVER + "app.py",
        "    notes = [told] if (told := file_replacement.finish(home)) else []\n",
        "    notes: list[str] = []\n",
        REPLACED + "server_that_starts_after_a_killed_restore_finishes_it_and_says_so",
    ),
    text_defence(
        "replacement: the journal comes before the first file",
        SERVER + "store/file_replacement.py",
        "    draft.replace(home / JOURNAL)\n    sync_folder(home)\n    _carry_out(home, journal)\n",
        "    _carry_out(home, journal)\n",
        REPLACED + "restore_that_is_killed_at_any_step_is_finished_or_undone",
    ),
    text_defence(
        "replacement: new files are on the disk before the decision",
        SERVER + "store/file_replacement.py",
        "    for name in names:\n        _sync(folder / name)\n",
        "",
        REPLACED + "files_are_on_the_disk_before_the_decision_and_in_their_places_before_its_end",
    ),
    text_defence(
        "replacement: the journal goes last",
        SERVER + "store/file_replacement.py",
        '    folder, kept = home / journal["folder"], journal["kept"]\n',
        '    folder, kept = home / journal["folder"], journal["kept"]\n'
        "    (home / JOURNAL).unlink()\n",
        REPLACED + "finish_that_is_killed_at_any_step_goes_on_where_it_was",
    ),
    text_defence(
        "replacement: a failure after the decision keeps the new files",
        SERVER + "store/file_replacement.py",
        "if not is_pending(home):  # else the journal wants the files that are left in it",
        "if True:",
        REPLACED + "restore_that_fails_after_its_decision_is_finished_later",
    ),
    text_defence(
        "replacement: what was kept is never overwritten",
        SERVER + "store/file_replacement.py",
        'end = ".before" if number == 1 else f".before-{number}"',
        'return ".before"',
        REPLACED + "no_restore_overwrites_what_one_before_had_kept",
    ),
    text_defence(
        "replacement: the old database's log goes with it",
        SERVER + "store/file_replacement.py",
        '_SIDE_FILES = ("-wal", "-shm", "-journal")',
        "_SIDE_FILES: tuple[str, ...] = ()",
        "cm_server/store/test_backup.py::test_what_was_there_stays_beside_it_with_its_write_ahead_log",
    ),
    text_defence(
        "replacement: a backup is of one moment",
        SERVER + "store/lockfile.py",
        "fcntl.flock(handle, (fcntl.LOCK_EX if loading else fcntl.LOCK_SH) | fcntl.LOCK_NB)",
        "pass",
        REPLACED + "backup_and_restore_do_not_go_on_at_once",
    ),
    defence(
        "replacement: one missing certificate does not create a new authority",
        SERVER + "net/certificates.py",
        "_check_both_or_none = lambda ca, own: None",
        REPLACED + "one_certificate_without_the_other_stops_a_start_where_boards_know_it",
    ),
    defence(
        "replacement: both first certificates are written or none",
        SERVER + "net/certificates.py",
        """_replace_files = lambda home, folder, names: [
    (folder / name).replace(home / name) for name in names
]""",
        REPLACED + "first_start_that_is_killed_leaves_both_certificates_or_none",
    ),
    text_defence(
        "replacement: a migration overwrites no earlier copy",
        SERVER + "store/schema.py",
        "        if not copy.exists():\n",
        "        if True:\n",
        REPLACED + "migration_that_is_killed_keeps_every_row_and_every_copy",
    ),
]
