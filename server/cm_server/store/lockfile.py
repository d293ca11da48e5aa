"""Whose folder it is: one server at a time has it, or a backup that is loaded into it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError


@contextlib.contextmanager
def hold_lock(home: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two servers never share a store.

    Raises:
        ServerError: somebody else holds it.
    """
    import fcntl  # not on Windows, where the store's own locks have to do

    with config.server_lock_file(home).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with while_backups(home, loading=False):
                pass  # else that is what holds the lock
            raise ServerError(
                f"A server runs in {home} already; `mbm server-stop` ends it"
            ) from error
        yield


@contextlib.contextmanager
def while_backups(home: Path, *, loading: bool) -> Iterator[None]:
    """Hold off loading a backup while one is saved, and the reverse; several may be saved at once.

    The lock is the folder's own, since a server that runs has the other one.

    Raises:
        ServerError: the other one goes on.
    """
    import fcntl  # not on Windows

    handle = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if loading else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        what = "saved or loaded" if loading else "loaded"
        raise ServerError(f"a backup is being {what} in {home}; try again") from error
    except OSError:
        pass  # a network folder that has no such locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
