"""Replacements of several files are atomic, at whichever step the process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.net import certificates
from cm_server.store import backup, file_replacement
from cm_server.store.lockfile import hold_lock, while_backups
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from tests.cm_server.killed import steps_of

from .test_schema import old_database

NAMES = ("token", "ca.pem", "server.pem", "server.db")
FILES = NAMES[:3]


def make(home: Path, what: str) -> Path:
    """Create a server's folder in which each file contains its owner's name."""
    home.mkdir()
    for name in FILES:
        (home / name).write_text(f"{what} {name}")
    store = Store(home / "server.db")
    store.enrol_boards([new_board_row(f"id-{what}", what, bytes(32))])
    store.close()
    return home


def boards(path: Path) -> list[str]:
    store = Store(path)
    names = [board.name for board in store.boards()]
    store.close()
    return names


def owner(home: Path, end: str = "") -> str:
    """Return the owner of the files in a folder; all must have the same."""
    found = {(home / f"{name}{end}").read_text().split()[0] for name in FILES}
    found |= set(boards(home / f"server.db{end}"))
    assert len(found) == 1, found
    return found.pop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make(tmp_path / "home", "own")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    other = make(tmp_path / "other", "backup")
    backup.save(other, tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


class Killed(NamedTuple):
    """A restore that was killed before each of its steps, each time on a copy of a folder.

    Attributes:
        steps: the calls of the complete restore, with the names of their files.
        copies: the folder of the numbered copies; shared by tests, which must not change them.
    """

    steps: list[tuple[str, str]]
    copies: Path

    @property
    def commit_step(self) -> int:
        """Return the number of the step that commits."""
        return self.steps.index(("replace", "replacement.json"))

    def copy(self, step: tuple[str, str], folder: Path, later: int = 0) -> Path:
        """Return a copy of the folder as it was before a step, or ``later`` steps after it."""
        number = self.steps.index(step) + 1 + later
        shutil.copytree(self.copies / str(number), folder / "killed")
        return folder / "killed"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    make(folder / "home", "own")
    backup.save(make(folder / "other", "backup"), folder / "backup.tar")
    steps = steps_of("restore", folder / "home", folder / "copies", folder / "backup.tar")
    return Killed(steps, folder / "copies")


def test_restore_killed_at_any_step_is_finished_or_undone(killed: Killed, tmp_path: Path):
    steps = killed.steps
    outcomes = []
    shutil.copytree(killed.copies, tmp_path / "copies")
    for number in range(1, len(steps) + 2):
        copy = tmp_path / "copies" / str(number)
        with hold_lock(copy):
            reported = file_replacement.finish(copy)
        outcomes.append(owner(copy))
        if outcomes[-1] == "backup":
            assert owner(copy, ".before") == "own"
        if number <= len(steps):
            assert ("was finished" in reported) is (outcomes[-1] == "backup") or not reported
        left = {path.name.partition(".before")[0] for path in copy.iterdir()}
        assert left == {*NAMES, "server.lock"}
        assert file_replacement.finish(copy) == ""
        assert {stat.S_IMODE((copy / name).stat().st_mode) for name in NAMES} <= {0o600, 0o644}
    decided = outcomes.index("backup")
    assert outcomes == ["own"] * decided + ["backup"] * (len(outcomes) - decided)
    assert decided > 5
    assert len(outcomes) - decided > 5


def test_files_are_synced_before_the_commit_and_moved_before_the_journal_is_removed(
    killed: Killed,
):
    steps, decided = killed.steps, killed.commit_step
    before, after = steps[:decided], steps[decided + 1 :]
    synced = [("fsync", name) for name in (*NAMES, "replacement.json")]
    assert before[-6:-1] == synced
    # Once when it was unpacked, and again after SQLite had changed it.
    assert before.count(("fsync", "server.db")) == 2
    assert before[-1][0] == "fsync"  # of the folder with the new files
    folder = f"{len(steps) + 1}"  # of the copy that came to its end
    assert after[0] == ("fsync", folder)
    last_file = max(after.index(("replace", name)) for name in NAMES)
    end = after.index(("unlink", "replacement.json"))
    assert ("fsync", folder) in after[last_file:end]


def test_finish_killed_at_any_step_continues_at_the_next_start(killed: Killed, tmp_path: Path):
    home = killed.copy(("replace", "replacement.json"), tmp_path, later=1)
    again = steps_of("finish", home, tmp_path / "again")
    assert len(again) > 5
    for number in range(1, len(again) + 2):
        copy = tmp_path / "again" / str(number)
        file_replacement.finish(copy)
        assert (owner(copy), owner(copy, ".before")) == ("backup", "own")


def test_restore_does_not_overwrite_kept_files(home: Path, saved: Path, tmp_path: Path):
    for number in range(3):
        (home / "token").write_text(f"own-{number} token")
        reported: list[str] = []
        backup.load(home, saved, reported.append)
        end = ".before" if not number else f".before-{number + 1}"
        assert reported == [f"The replaced files are kept, with {end} appended to their names."]
        (home / "token").write_text("backup token")
    kept = [(home / f"token{end}").read_text() for end in (".before", ".before-2", ".before-3")]
    assert kept == ["own-0 token", "own-1 token", "own-2 token"]
    assert boards(home / "server.db.before") == ["own"]
    assert boards(home / "server.db.before-2") == ["backup"]


def test_restore_finishes_a_killed_restore_first(killed: Killed, saved: Path, tmp_path: Path):
    home = killed.copy(("replace", "server.pem"), tmp_path)
    reported: list[str] = []
    backup.load(home, saved, reported.append)
    assert "was finished: token, ca.pem, server.pem, server.db are the new ones" in reported[0]
    assert "with .before-2 appended to their names" in reported[1]
    assert owner(home, ".before") == "own"


def test_backup_finishes_a_killed_restore_first(killed: Killed, tmp_path: Path):
    backup.save(killed.copy(("replace", "server.pem"), tmp_path), tmp_path / "after.tar")
    (tmp_path / "new").mkdir()
    backup.load(tmp_path / "new", tmp_path / "after.tar")
    assert owner(tmp_path / "new") == "backup"


def test_backup_and_restore_exclude_each_other(home: Path, saved: Path, tmp_path: Path):
    with while_backups(home, loading=False):
        backup.save(home, tmp_path / "second.tar")  # several may be saved at the same time
        with pytest.raises(ServerError, match="is being saved or loaded in"):
            backup.load(home, saved)
    with hold_lock(home), while_backups(home, loading=True):
        with pytest.raises(ServerError, match="a backup is being loaded in"):
            backup.save(home, tmp_path / "third.tar")
        with (
            pytest.raises(ServerError, match="a backup is being loaded in"),
            hold_lock(home),
        ):
            pass
    assert owner(home) == "own"


def test_restore_works_without_hard_links(home: Path, saved: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    backup.load(home, saved)
    assert (owner(home), owner(home, ".before")) == ("backup", "own")


def test_restore_that_fails_after_the_commit_is_finished_later(
    home: Path, saved: Path, monkeypatch
):
    real = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == home / "server.pem":
            raise OSError(5, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Input/output error"):
            backup.load(home, saved)
    assert file_replacement.is_pending(home)
    assert "was finished" in file_replacement.finish(home)
    assert (owner(home), owner(home, ".before")) == ("backup", "own")


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "[]",
        "{}",
        json.dumps({"what": "restore", "folder": "../x", "names": [], "kept": ""}),
        json.dumps({"what": "restore", "folder": "x", "names": ["../token"], "kept": ""}),
    ],
)
def test_invalid_journal_stops_the_start_and_moves_nothing(home: Path, journal: str):
    (home / file_replacement.JOURNAL).write_text(journal)
    with pytest.raises(ServerError, match="cannot be read"):
        file_replacement.finish(home)
    assert owner(home) == "own"


def test_first_start_killed_at_any_step_leaves_both_certificates_or_none(tmp_path: Path):
    (tmp_path / "home").mkdir()
    steps = steps_of("certificates", tmp_path / "home", tmp_path / "copies")
    for number in range(1, len(steps) + 2):
        copy = tmp_path / "copies" / str(number)
        file_replacement.finish(copy)
        there = {name for name in ("ca.pem", "server.pem") if (copy / name).exists()}
        assert there in (set(), {"ca.pem", "server.pem"})
        made = certificates.load(copy)
        kept = ssl.PEM_cert_to_DER_cert((copy / "ca.pem").read_text())
        assert made.ca == kept


def test_migration_killed_at_any_step_keeps_all_rows_and_copies(tmp_path: Path):
    (tmp_path / "home").mkdir()
    old_database(tmp_path / "home", 2)
    earlier = tmp_path / "home" / "server-schema-2.db"
    earlier.write_text("a copy of an earlier time")
    steps = steps_of("migrate", tmp_path / "home", tmp_path / "copies")
    for number in range(1, len(steps) + 2):
        copy = tmp_path / "copies" / str(number)
        assert boards(copy / "server.db") == ["lab-1", "lab-2"]
        assert (copy / earlier.name).read_text() == "a copy of an earlier time"
        assert boards(copy / "server-schema-2-2.db") == ["lab-1", "lab-2"]


def test_missing_certificate_stops_the_start_if_boards_are_enrolled(tmp_path: Path):
    certificates.load(tmp_path)
    (tmp_path / "server.pem").unlink()
    ca = (tmp_path / "ca.pem").read_bytes()
    with pytest.raises(
        ServerError, match=r"server\.pem is missing .* `mbm server-restore` restores"
    ):
        certificates.load(tmp_path, in_use=True)
    assert (tmp_path / "ca.pem").read_bytes() == ca
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "ca.pem").unlink()
    certificates.load(tmp_path, in_use=True)  # both are missing: removed by the user


def start(home: Path) -> tuple[dict[str, object], str]:
    """Start and stop a server; return the line that it printed and its log."""
    with subprocess.Popen(
        [sys.executable, "-m", "cm_server", "--port", "0"],
        env={**os.environ, "CM_HOME": str(home)},
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        printed = json.loads(server.stdout.readline())
        server.terminate()
    return printed, (home / "server.log").read_text()


def test_start_finishes_a_killed_restore_and_reports_it(tmp_path: Path):
    for what in ("own", "backup"):
        home = tmp_path / what
        home.mkdir()
        store = Store(home / "server.db")
        store.enrol_boards([new_board_row(f"id-{what}", what, bytes(32))])
        store.close()
        certificates.load(home)
    authority = (tmp_path / "backup" / "ca.pem").read_bytes()
    backup.save(tmp_path / "backup", tmp_path / "backup.tar")
    copies = tmp_path / "copies"
    steps = steps_of("restore", tmp_path / "own", copies, tmp_path / "backup.tar")
    home = copies / str(steps.index(("replace", "server.pem")) + 1)
    printed, log = start(home)
    reported = "An interrupted restore was finished: ca.pem, server.pem, server.db are the new"
    assert printed["notes"] == [f"{reported} ones."]
    assert reported in log
    assert boards(home / "server.db") == ["backup"]
    assert (home / "ca.pem").read_bytes() == authority


def test_start_reports_a_missing_database(tmp_path: Path):
    certificates.load(tmp_path)
    printed, log = start(tmp_path)
    (note,) = printed["notes"] if isinstance(printed["notes"], list) else []
    assert "this fleet is empty" in note
    assert note in log
    assert "notes" not in start(tmp_path)[0]
