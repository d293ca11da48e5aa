"""Ours: a server process of its own, N virtual boards, and a blocking Fleet."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cloudmanager import Boards, Fleet, config, service
from cloudmanager.simulate import names_of, simulate


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """Gives an empty CM_HOME; everything of ours that starts inside keeps its things there."""
    before = os.environ.get("CM_HOME")
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder:
        os.environ["CM_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("CM_HOME")
            if before is not None:
                os.environ["CM_HOME"] = before


@contextlib.contextmanager
def running(boards: int = 1, host: str = config.DEFAULT_HOST) -> Iterator[Boards]:
    """Gives all of `boards` virtual boards, connected to a server that nobody else uses.

    On another `host` than loopback, all links speak TLS.
    """
    with home(), Fleet() as fleet:
        service.start(host, tcp_port=0)
        try:
            virtual = simulate(fleet, names_of("bench", boards), allow_remote=True)
            try:
                yield fleet[f"bench-[1-{boards}]"]
            finally:
                virtual.stop()
        finally:
            service.stop()
