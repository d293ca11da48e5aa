"""Ctrl-C or a cancellation while a Fleet connects or closes leaves no link and no thread.

Python runs signal handlers where a function begins and after a call of C code. The tests raise at
each of these places in the client's modules, one after the other.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import cloudmanager.client
from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer

WAIT = 60.0
CLIENT = Path(cloudmanager.client.__file__).parent
MODULES = {str(CLIENT / name) for name in ("fleet.py", "link.py", "outgoing.py")}


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename in MODULES


def interrupted_at(step: int, act: Callable[[], object]) -> bool:
    """Call a function and raise KeyboardInterrupt at one place; return False if it ended before."""
    places = itertools.count()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        here = is_ours(frame) and event in ("call", "return", "c_return")
        after_call = event == "return" and is_ours(frame.f_back)
        if (here or after_call) and next(places) == step:
            sys.setprofile(None)
            raise KeyboardInterrupt

    gc.disable()  # Python ignores what is raised in the callbacks of weak references
    try:
        sys.setprofile(profile)
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return False


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def client_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("cloudmanager")}


#: A socket that has no thread yet is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")
def test_interrupted_connection_leaves_nothing(server: RunningServer):
    before = client_threads()
    for step in itertools.count():
        fleet = Fleet()

        def connect_and_close(fleet: Fleet = fleet) -> None:
            fleet.exchange()
            fleet.close()

        interrupted = interrupted_at(step, connect_and_close)
        connect_and_close()  # the Fleet can still be used
        wait_until(lambda: client_threads() <= before, f"a thread is left after step {step}")
        if not interrupted:
            break
    assert step > 50


async def test_cancelled_connection_leaves_no_link(server: RunningServer):
    before = client_threads()
    for _ in range(5):
        fleet = AsyncFleet()
        connecting = asyncio.create_task(fleet.connect())
        await asyncio.sleep(0)  # the thread that connects has begun
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await fleet.connect()
        await fleet.close()
        del fleet, connecting
    await asyncio.to_thread(wait_until, lambda: client_threads() <= before, "a link is left")
