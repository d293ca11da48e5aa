"""Back up a server's identity and data in one file: its database, keys, certificates, tokens.

``python -m cm_server.store.backup save FILE`` works whether or not the server runs, ``… load FILE``
only while it does not run. The file is a tar archive with mode 0600: its owner can impersonate the
server. It does not contain caches, logs and virtual boards.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sqlite3
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError, ServiceError
from cm_server.limits import MIB

from . import file_replacement, sample_folder, schema
from .lockfile import hold_lock, while_backups
from .rows import AuditRow
from .store import Store

log = logging.getLogger("cm_server")

DATABASE = "server.db"
#: The files in a backup.
FILE_NAMES = ("token", "ca.pem", "server.pem", "bridge.json", DATABASE)
#: After a restore, job numbers skip this many: boards may remember jobs after the backup.
JOB_ID_GAP = 1_000_000
#: How jobs end that waited for their boards when the backup was made.
RESTORED_ERROR = "the server was restored from a backup; it may have run since that was made"
#: Why rollouts are paused that were in progress when the backup was made.
RESTORED_ROLLOUT = "the server was restored from a backup"


def save(home: Path, path: Path, *, with_samples: bool = True) -> list[str]:
    """Write a backup; return the names of the files and folders in it.

    Args:
        home: the server's folder; the server may run.
        path: the file to write; an existing one is replaced when the new one is complete.
        with_samples: whether it has the samples that are kept for days, too.

    Raises:
        ServerError: the folder has no server's database, a backup is being loaded into it, or the
            path is that of a folder, a device or a pipe.
        OSError: the backup cannot be written.
    """
    with while_backups(home, loading=False):
        if file_replacement.is_pending(home):  # an interrupted restore
            with hold_lock(home):
                file_replacement.finish(home)
        return _save(home, path, with_samples=with_samples)


def _save(home: Path, path: Path, *, with_samples: bool) -> list[str]:
    if not (home / DATABASE).exists():
        why = f"{home} contains no {DATABASE}: there is nothing to back up"
        raise ServerError(f"{why} (for a server with --store, use PostgreSQL's pg_dump)")
    if path.exists() and not path.is_file():
        raise ServerError(f"{path} is no file, and is not replaced: name a file")
    path = path.resolve()  # what a link refers to is replaced, not the link
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with _open_private(draft) as file, tarfile.open(fileobj=file, mode="w") as archive:
            names = [name for name in FILE_NAMES if (home / name).exists()]
            for name in names:
                _add_file(archive, home / name)
            if with_samples and _add_samples(archive, home):
                names.append(sample_folder.FOLDER)
        draft.replace(path)
        config.sync_folder(path.absolute().parent)
    finally:
        draft.unlink(missing_ok=True)
    return names


@contextlib.contextmanager
def _open_private(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a new file that only its owner may read; at the end, wait until it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _add_file(archive: tarfile.TarFile, path: Path) -> None:
    if path.name != DATABASE:
        archive.add(path, path.name, filter=_strip_owner)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / DATABASE
        schema.make_private(copy)
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)  # a consistent snapshot; writers need not wait
        archive.add(copy, DATABASE, filter=_strip_owner)


def _add_samples(archive: tarfile.TarFile, home: Path) -> bool:
    """Add the files of samples as they are at one moment; return whether there are any."""
    with tempfile.TemporaryDirectory(dir=home, prefix="backup-") as name:
        folder = Path(name)
        names = sample_folder.copy_files(home / sample_folder.FOLDER, folder)
        for each in names:
            member = f"{sample_folder.FOLDER}/{each}"
            archive.add(folder / each, member, filter=_strip_owner)
        return bool(names)


def _strip_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the file's owner on this machine from its entry."""
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o600, 0, 0, "", ""
    return info


def load(home: Path, path: Path, notify: Callable[[str], None] = log.warning) -> list[str]:
    """Restore a backup into a folder, atomically; return the files' names.

    Replaced files are kept beside the new ones, with ``.before``, ``.before-2`` and so on appended
    to their names. An earlier restore that was interrupted is finished first.

    Args:
        home: the server's folder; the server must not run.
        path: the backup.
        notify: called with each sentence that the user should read.

    Raises:
        ServerError: the server runs, or the file is not a backup that this version can read.
        OSError: the backup cannot be read, or the folder cannot be written.
    """
    with hold_lock(home), while_backups(home, loading=True):
        if finished := file_replacement.finish(home):
            notify(finished)
        with file_replacement.staging(home) as folder:
            names = _unpack(path, folder)
            _prepare_database(folder / DATABASE)
            if suffix := file_replacement.replace_all(home, folder, names, "restore"):
                notify(f"The replaced files are kept, with {suffix} appended to their names.")
    return names


def _unpack(path: Path, folder: Path) -> list[str]:
    """Unpack the files of a backup, and no other members of the archive; return their names."""
    samples = folder / sample_folder.FOLDER
    try:
        with tarfile.open(path) as archive:
            found = [info for info in archive if _is_known(info.name) and info.isreg()]
            for info in found:
                source = archive.extractfile(info)
                assert source is not None
                if info.name not in FILE_NAMES:
                    samples.mkdir(mode=0o700, exist_ok=True)
                with _open_private(folder / info.name) as file:
                    while piece := source.read(MIB):
                        file.write(piece)
    except tarfile.TarError as error:
        raise ServerError(f"{path} is not a backup of a server: {error}") from error
    names = {info.name for info in found}
    if DATABASE not in names:
        raise ServerError(f"{path} is not a backup of a server: it contains no {DATABASE}")
    folders = [sample_folder.FOLDER] if samples.exists() else []
    return [*(name for name in FILE_NAMES if name in names), *folders]


def _is_known(name: str) -> bool:
    """Return whether a member of an archive is a file of a backup."""
    folder, slash, file = name.partition("/")
    if slash:
        return folder == sample_folder.FOLDER and sample_folder.is_file_name(file)
    return name in FILE_NAMES


def _prepare_database(path: Path) -> None:
    """Migrate an older database, add a row to its audit log, and skip job numbers.

    Jobs that waited for their boards when the backup was made may have run since: they are lost.
    Rollouts that were in progress are paused.
    """
    now = time.time()
    store = Store(path)
    _end_waiting_jobs(store)
    store.rollout_rows.pause_all(RESTORED_ROLLOUT)
    detail = "a backup was loaded"
    row = AuditRow(now, "local", "this machine", "load", "", detail, None, None, None, "done")
    store.add_audit_row(row, durable=True)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (newest,) = db.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()
        job = (newest + JOB_ID_GAP, "", "local", now, now, "lost", detail)
        names = "id, board, caller, created, ended, status, error"
        db.execute(f"INSERT INTO jobs ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", job)


def _end_waiting_jobs(store: Store) -> None:
    """End the jobs that waited when the backup was made: they must not run a second time."""
    store.end_waiting_jobs(store.waiting_rows.all_jobs(), "lost", RESTORED_ERROR)


def _run_command(options: argparse.Namespace, home: Path) -> dict[str, object]:
    path = options.file
    if options.command == "save":
        return {"files": save(home, path, with_samples=not options.without_samples)}
    notes: list[str] = []
    return {"files": load(home, path, notes.append), "notes": notes}


def _error_text(error: ServerError | ServiceError | OSError) -> str:
    if isinstance(error, ServerError):
        return error.reason
    if isinstance(error, ServiceError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def main() -> None:
    """Run the command line; print the outcome as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m cm_server.store.backup")
    parser.add_argument("command", choices=("save", "load"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--without-samples", action="store_true")
    options = parser.parse_args()
    os.umask(0o077)
    try:
        outcome = _run_command(options, config.make_home_folder())
    except (ServerError, ServiceError, OSError) as error:
        outcome = {"error": _error_text(error)}
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
