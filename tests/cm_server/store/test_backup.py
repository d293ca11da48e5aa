"""Backups of running servers, and their restore."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.sample_columns import unpack_stream
from cm_server.store import backup
from cm_server.store.backup import JOB_ID_GAP, load, save
from cm_server.store.lockfile import hold_lock
from cm_server.store.rows import TokenRow, new_board_row
from cm_server.store.sample_files import SampleFiles
from cm_server.store.sample_folder import FOLDER
from cm_server.store.sample_query import DAY, SampleBatch, SampleQuery, SampleRetention, Series
from cm_server.store.store import Store
from cm_server.store.waiting_rows import WaitingWork

from .test_schema import old_database

KEY = bytes(range(32))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("token", "ca.pem", "server.pem", "server.log"):
        (home / name).write_text(f"the {name}")
    store = Store(home / "server.db")
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    store.insert_jobs(["id1"] * 3, "ann")
    store.end_job(1, "error", "ValueError")
    store.close()
    return home


def test_backup_of_running_server_is_restored(home: Path, tmp_path: Path):
    running = Store(home / "server.db")
    running.add_token(TokenRow("abc", "ann", "viewer"))  # still in the write-ahead log
    file, other = tmp_path / "backup.tar", tmp_path / "other"
    names = save(home, file)
    running.insert_jobs(["id1"], "ann")
    running.close()
    assert names == ["token", "ca.pem", "server.pem", "server.db"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other.mkdir()
    assert load(other, file) == names
    assert (other / "server.pem").read_text() == "the server.pem"
    assert {stat.S_IMODE((other / name).stat().st_mode) for name in names} == {0o600}
    store = Store(other / "server.db")
    assert [board.key for board in store.boards()] == [KEY]
    assert [token.name for token in store.tokens()] == ["ann"]
    assert [job.id for job in store.open_jobs()] == [2, 3]
    assert store.audit_rows(1)[0][3:] == (
        "load",
        "",
        "a backup was loaded",
        None,
        None,
        None,
        "done",
    )
    store.close()


def test_jobs_that_waited_are_lost_after_a_restore(home: Path, tmp_path: Path):
    """They may have run since the backup was made, so they must not run a second time."""
    store = Store(home / "server.db")
    work = WaitingWork("abc", b"led.on()", {}, 8, 2e9, fresh=False)
    (number,) = store.insert_waiting_jobs(["id1"], "ann", work, lambda _: "")
    store.close()
    save(home, tmp_path / "backup.tar")
    load(home, tmp_path / "backup.tar")
    store = Store(home / "server.db")
    row = store.job(number)
    assert row is not None
    assert (row.status, row.error) == ("lost", backup.RESTORED_ERROR)
    assert (store.waiting_rows.all_jobs(), store.blob_rows.total_bytes()) == ([], 0)
    store.close()


def test_backup_replaces_nothing_but_a_file(home: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ServerError, match="is no file, and is not replaced"):
            save(home, path)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "real.tar")
    save(home, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert tarfile.is_tarfile(tmp_path / "real.tar")


def test_restore_skips_job_numbers_that_boards_may_remember(home: Path, tmp_path: Path):
    save(home, tmp_path / "backup.tar")
    load(home, tmp_path / "backup.tar")
    store = Store(home / "server.db")
    assert list(store.insert_jobs(["id1"], "ann")) == [3 + JOB_ID_GAP + 1]
    store.close()


def test_restore_keeps_old_database_with_its_write_ahead_log(home: Path, tmp_path: Path):
    save(home, tmp_path / "backup.tar")
    killed = Store(home / "server.db")
    killed.add_token(TokenRow("abc", "ann", "viewer"))
    for end in ("", "-wal"):  # as kill -9 leaves it
        (tmp_path / f"server.db{end}").write_bytes((home / f"server.db{end}").read_bytes())
    killed.close()
    for end in ("", "-wal"):
        (tmp_path / f"server.db{end}").replace(home / f"server.db{end}")
    (home / "token").write_text("a newer token")
    load(home, tmp_path / "backup.tar")
    assert (home / "token.before").read_text() == "a newer token"
    before, now = Store(home / "server.db.before"), Store(home / "server.db")
    assert [token.name for token in before.tokens()] == ["ann"]
    assert now.tokens() == []
    before.close()
    now.close()


def test_folder_of_running_server_is_not_restored(home: Path, tmp_path: Path):
    save(home, tmp_path / "backup.tar")
    before = (home / "server.db").read_bytes()
    with hold_lock(home), pytest.raises(ServerError, match="runs in .* `mbm server-stop` ends it"):
        load(home, tmp_path / "backup.tar")
    assert (home / "server.db").read_bytes() == before


def archive(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
            file.addfile(info, io.BytesIO(data))
    return path


FILE = tarfile.REGTYPE


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "it contains no server.db"),
        ([("server.db", tarfile.SYMTYPE, b"")], "it contains no server.db"),
        ([("../server.db", FILE, b"x"), ("/server.db", FILE, b"x")], "it contains no server.db"),
        ([("server.db", FILE, b"no database" * 1000)], "file is not a database"),
        (None, "is not a backup of a server"),
    ],
)
def test_invalid_backup_changes_nothing(home: Path, tmp_path: Path, members, message):
    file = tmp_path / "backup.tar"
    if members is None:
        file.write_bytes(b"no archive" * 1000)
    else:
        archive(file, ("token", FILE, b"evil"), *members)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(ServerError, match=message):
        load(home, file)
    after = {path.name: path.read_bytes() for path in home.iterdir()}
    assert after == before | {"server.lock": b""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "home"]


def test_other_members_of_an_archive_are_ignored(home: Path, tmp_path: Path):
    members = [(name, FILE, b"evil") for name in ("../evil", "server.lock", "virtual/evil")]
    database = (home / "server.db").read_bytes()
    load(home, archive(tmp_path / "backup.tar", *members, ("server.db", FILE, database)))
    assert not (tmp_path / "evil").exists()
    assert not (home / "virtual").exists()
    assert (home / "server.lock").read_bytes() == b""


@pytest.mark.parametrize("version", [0, 2])
def test_backup_of_older_version_is_migrated(home: Path, tmp_path: Path, version: int):
    (tmp_path / "old").mkdir()
    old_database(tmp_path / "old", version)
    save(tmp_path / "old", tmp_path / "backup.tar")
    load(home, tmp_path / "backup.tar")
    store = Store(home / "server.db")
    assert [board.id for board in store.boards()] == ["id1", "id2"]
    store.close()


def test_failed_backup_keeps_the_earlier_file(home: Path, tmp_path: Path, monkeypatch):
    file = tmp_path / "backup.tar"
    save(home, file)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(backup, "_add_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save(home, file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "home"]


def run(home: Path, *words: object) -> dict[str, object]:
    """Run the command; return its line of JSON."""
    ran = subprocess.run(
        [sys.executable, "-m", "cm_server.store.backup", *map(str, words)],
        env={**os.environ, "CM_HOME": str(home)},
        capture_output=True,
        check=True,
    )
    assert not ran.stderr
    outcome: dict[str, object] = json.loads(ran.stdout)
    return outcome


def test_command_prints_its_outcome_as_json(home: Path, tmp_path: Path):
    names = ["token", "ca.pem", "server.pem", "server.db"]
    assert run(home, "save", tmp_path / "backup.tar") == {"files": names}
    for kept in (".before", ".before-2"):
        assert run(home, "load", tmp_path / "backup.tar") == {
            "files": names,
            "notes": [f"The replaced files are kept, with {kept} appended to their names."],
        }
    error = str(run(tmp_path / "empty", "save", tmp_path / "backup.tar")["error"])
    assert "empty contains no server.db: there is nothing to back up (for a server with" in error
    assert "No such file" in str(run(home, "load", tmp_path / "nothing.tar")["error"])


def test_samples_are_in_a_backup_of_a_running_server(home: Path, tmp_path: Path):
    series = [Series("id1", "lab-1", "temp")]
    query = SampleQuery(boards=["id1"], names=None, since=0, until=30_000 * DAY)
    files = SampleFiles(home / FOLDER, SampleRetention())
    for at in (20_786, 20_787):
        values = SampleBatch(at, series)
        values.times.append(at * DAY)
        values.indexes.append(0)
        values.values.append(21.5)
        files.append(values)
        while files.tidy(20_787 * DAY, may_delete=True):
            pass
    assert save(home, tmp_path / "small.tar", with_samples=False)[-1] == "server.db"
    assert save(home, tmp_path / "whole.tar")[-1] == FOLDER  # while it is in use
    values.values[0] = 99.0
    files.append(values)
    files.close()

    def kept() -> list[float]:
        files = SampleFiles(home / FOLDER, SampleRetention())
        found = list(unpack_stream(files.read(query).data).values)
        files.close()
        return found

    notes: list[str] = []
    assert load(home, tmp_path / "small.tar", notes.append)[-1] == "server.db"
    assert kept() == [21.5, 21.5, 99.0]
    assert load(home, tmp_path / "whole.tar", notes.append)[-1] == FOLDER
    assert kept() == [21.5, 21.5]
    assert len(list((home / f"{FOLDER}.before-2").glob("*.parquet"))) == 2
    assert not list(home.glob("backup-*"))


def test_members_outside_of_the_folder_of_samples_are_ignored(home: Path, tmp_path: Path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as made:
        made.add(home / "server.db", "server.db")
        for name in ("history/../../up.parquet", "history/x.py", "history/raw-x/../../token"):
            made.add(home / "server.db", name)
    load(home, path)
    assert sorted(path.name for path in tmp_path.rglob("*up*")) == []
    assert not (home / FOLDER).exists()
    assert set(before) <= {path.name for path in tmp_path.rglob("*")}
