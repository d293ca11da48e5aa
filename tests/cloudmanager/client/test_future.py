"""A value that one thread sets and others wait for."""

import math
import threading
from typing import Any, cast

import pytest

from cloudmanager.client.future import Once
from cloudmanager.protocol.errors import ServerUnreachable

WAIT = 20.0  # seconds that a thread may take on a busy machine
UNREACHABLE = ServerUnreachable("http://lab:18266", "CM_URL", "it hung up")


def test_once_waits_for_its_value():
    once: Once[int] = Once()
    thread = threading.Thread(target=once.set, args=(7,))
    assert (once.done, once.wait(0), once.wait(-1)) == (False, False, False)
    thread.start()
    assert once.get() == 7
    assert (once.done, once.wait(), once.wait(math.inf)) == (True, True, True)
    thread.join(WAIT)


def test_once_raises_its_error_each_time():
    once: Once[int] = Once()
    once.fail(UNREACHABLE)
    for _ in range(2):
        with pytest.raises(ServerUnreachable):
            once.get()
    assert once.done


def test_once_calls_who_wants_to_know_once_set_or_later():
    called = []
    once: Once[int] = Once()
    once.then(lambda: called.append("before"))
    assert called == []
    once.set(7)
    once.then(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_failed_once_calls_who_wants_to_know():
    called = []
    once: Once[int] = Once()
    once.then(lambda: called.append(once.done))
    once.fail(UNREACHABLE)
    assert called == [True]


def test_once_is_awaited_by_who_drives_it():
    async def ask(once):
        return await once

    once: Once[int] = Once()
    asking = ask(once)
    assert asking.send(None) is once
    once.set(7)
    with pytest.raises(StopIteration) as caught:
        asking.send(None)
    assert caught.value.value == 7


def test_wait_that_is_interrupted_keeps_nobody_else_waiting():
    """Ctrl-C may come when the lock is acquired, before ``wait`` knows of it."""
    once: Once[int] = Once()
    lock, is_mine = once._unset, threading.Event()

    class Interrupted:
        release = staticmethod(lock.release)

        def acquire(self, timeout):
            if threading.current_thread() is not threading.main_thread():
                assert is_mine.wait(WAIT)
                return lock.acquire(timeout=timeout)
            assert lock.acquire(timeout=timeout)
            is_mine.set()
            raise KeyboardInterrupt

    once._unset = cast("Any", Interrupted())
    others = [threading.Thread(target=once.wait) for _ in range(2)]
    for thread in others:
        thread.start()
    setting = threading.Timer(0.05, once.set, (1,))
    setting.start()
    with pytest.raises(KeyboardInterrupt):
        once.wait()
    for thread in (*others, setting):
        thread.join(WAIT)
        assert not thread.is_alive()
