"""All that makes a server this server, in one file: its database, keys, certificates, tokens.

``python -m cm_server.store.backup save FILE`` works whether or not the server runs, ``… load FILE``
only while it does not run. The file is a tar archive with mode 0600: whoever has it can impersonate
the server. Caches, logs and virtual boards are left out.
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
from cloudmanager.protocol.errors import ServerError
from cm_server import limits

from . import file_replacement, schema
from .lockfile import hold_lock, while_backups
from .rows import AuditRow
from .store import Store

log = logging.getLogger("cm_server")

DATABASE = "server.db"
#: What is kept.
FILE_NAMES = ("token", "ca.pem", "server.pem", "bridge.json", DATABASE)
#: After a load, jobs' numbers go on so much later: boards remember jobs that it does not know.
JOB_ID_GAP = 1_000_000


def save(home: Path, path: Path) -> list[str]:
    """Write a backup; return the names of what is in it.

    Args:
        home: the server's folder; the server may run.
        path: the file to write; one that is there is replaced once the new one is whole.

    Raises:
        ServerError: there is no server's database in the folder, or a backup is being loaded.
        OSError: it cannot be written.
    """
    with while_backups(home, loading=False):
        if file_replacement.is_pending(home):  # a load was broken off
            with hold_lock(home):
                file_replacement.finish(home)
        return _save(home, path)


def _save(home: Path, path: Path) -> list[str]:
    if not (home / DATABASE).exists():
        why = f"{home} holds no {DATABASE}: there is nothing to back up"
        raise ServerError(f"{why} (of a server with --store, PostgreSQL's own pg_dump is the way)")
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with _open_private(beside) as file, tarfile.open(fileobj=file, mode="w") as archive:
            names = [name for name in FILE_NAMES if (home / name).exists()]
            for name in names:
                _add_file(archive, home / name)
        beside.replace(path)
        config.sync_folder(path.absolute().parent)
    finally:
        beside.unlink(missing_ok=True)
    return names


@contextlib.contextmanager
def _open_private(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a new file that only its owner may read; it is on the disk when this is done."""
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
            source.backup(target)  # of one moment, and nobody who writes has to wait
        archive.add(copy, DATABASE, filter=_strip_owner)


def _strip_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who its owner was here."""
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o600, 0, 0, "", ""
    return info


def load(home: Path, path: Path, say: Callable[[str], None] = log.warning) -> list[str]:
    """Make a folder what it was at a backup, all of it or nothing, and return the files' names.

    What is replaced stays beside it, with ``.before``, ``.before-2`` and so on behind its name.
    A load that was broken off earlier is finished first.

    Args:
        home: the server's folder; the server must not run.
        path: the backup.
        say: is called with each sentence that whoever loads it should read.

    Raises:
        ServerError: the server runs, or the file is no backup that this version can read.
        OSError: it cannot be read, or the folder cannot be written.
    """
    with hold_lock(home), while_backups(home, loading=True):
        if told := file_replacement.finish(home):
            say(told)
        with file_replacement.staging(home) as folder:
            found = _unpack(path, folder)
            _prepare_database(folder / DATABASE)
            if end := file_replacement.replace_all(home, folder, found, "restore"):
                say(f"What was there is kept, with {end} behind its name.")
    return found


def _unpack(path: Path, folder: Path) -> list[str]:
    """Unpack what a backup holds, and nothing else that an archive may."""
    try:
        with tarfile.open(path) as archive:
            found = [info for info in archive if info.name in FILE_NAMES and info.isreg()]
            for info in found:
                source = archive.extractfile(info)
                assert source is not None
                with _open_private(folder / info.name) as file:
                    while piece := source.read(limits.MIB):
                        file.write(piece)
    except tarfile.TarError as error:
        raise ServerError(f"{path} is no backup of a server: {error}") from error
    names = {info.name for info in found}
    if DATABASE not in names:
        raise ServerError(f"{path} is no backup of a server: there is no {DATABASE} in it")
    return [name for name in FILE_NAMES if name in names]


def _prepare_database(path: Path) -> None:
    """Carry an older database over, leave a row in its audit log, go on with later numbers."""
    now = time.time()
    store = Store(path)
    what = "a backup was loaded"
    note = AuditRow(now, "local", "this machine", "load", "", what, None, None, None, "done")
    store.add_audit_row(note, durable=True)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (newest,) = db.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()
        row = (newest + JOB_ID_GAP, "", "local", now, now, "lost", what)
        names = "id, board, caller, created, ended, status, error"
        db.execute(f"INSERT INTO jobs ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def _act(act: str, home: Path, path: Path) -> dict[str, object]:
    if act == "save":
        return {"files": save(home, path)}
    notes: list[str] = []
    return {"files": load(home, path, notes.append), "notes": notes}


def main() -> None:
    """Do what the command line says; one line of JSON on standard output says what was done."""
    parser = argparse.ArgumentParser(prog="python -m cm_server.store.backup")
    parser.add_argument("act", choices=("save", "load"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    os.umask(0o077)
    try:
        said = _act(options.act, config.make_home_folder(), options.file)
    except (ServerError, OSError) as error:
        said = {"error": error.reason if isinstance(error, ServerError) else str(error)}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
