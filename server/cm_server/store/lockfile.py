"""Locks on a server's folder: for one running server, and between backups and restores."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError


@contextlib.contextmanager
def hold_lock(home: Path) -> Iterator[None]:
    """Hold the lock of a server's folder, so that two servers never use the same store.

    Raises:
        ServerError: another process holds it.
    """
    with config.server_lock_file(home).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with while_backups(home, loading=False):
                pass  # raises its own error if a restore holds the lock, not a server
            raise ServerError(
                f"A server runs in {home} already; `mbm server-stop` ends it"
            ) from error
        yield


@contextlib.contextmanager
def while_backups(home: Path, *, loading: bool) -> Iterator[None]:
    """Exclude restores while a backup is saved, and backups while one is restored.

    Several backups may be saved at the same time. The lock is on the folder itself, since a
    running server holds the lock file.

    Raises:
        ServerError: a backup or restore that excludes this one is in progress.
    """
    handle = os.open(home, os.O_RDONLY)
    try:
        _lock_folder(handle, exclusive=loading)
    except BlockingIOError as error:
        os.close(handle)
        what = "saved or loaded" if loading else "loaded"
        raise ServerError(f"a backup is being {what} in {home}; try again") from error
    except OSError:
        pass  # a network folder that does not support such locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def _lock_folder(handle: int, *, exclusive: bool) -> None:
    """Lock an open folder until it is closed.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the file system does not support locks.
    """
    fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
