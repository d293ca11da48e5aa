"""Whose folder it is: one server at a time has it, or a backup that is loaded into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two servers never share a store.

    Raises:
        ServerError: somebody else holds it.
    """
    import fcntl  # not on Windows, where the store's own locks have to do

    with config.lock_file(home).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServerError(
                f"A server runs in {home} already; `mbm server-stop` ends it"
            ) from error
        yield
