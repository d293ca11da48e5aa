"""A value that one thread sets and others wait for."""

import math
import threading
from typing import Any, cast

import pytest

from cloudmanager.client.future import Future
from cloudmanager.protocol.errors import ServerUnreachable

WAIT = 60.0  # seconds that a thread may take on a busy machine
UNREACHABLE = ServerUnreachable("http://lab:18266", "CM_URL", "it closed the connection")


def test_future_waits_for_its_value():
    once: Future[int] = Future()
    thread = threading.Thread(target=once.set_result, args=(7,))
    assert (once.done, once.wait(0), once.wait(-1)) == (False, False, False)
    thread.start()
    assert once.result() == 7
    assert (once.done, once.wait(), once.wait(math.inf)) == (True, True, True)
    thread.join(WAIT)


def test_future_raises_its_error_each_time():
    once: Future[int] = Future()
    once.set_exception(UNREACHABLE)
    for _ in range(2):
        with pytest.raises(ServerUnreachable):
            once.result()
    assert once.done


def test_callbacks_are_called_when_set_or_later():
    called = []
    once: Future[int] = Future()
    once.add_done_callback(lambda: called.append("before"))
    assert called == []
    once.set_result(7)
    once.add_done_callback(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_callbacks_are_called_after_an_exception():
    called = []
    once: Future[int] = Future()
    once.add_done_callback(lambda: called.append(once.done))
    once.set_exception(UNREACHABLE)
    assert called == [True]


def test_awaited_future_yields_a_pause():
    async def ask(once):
        return await once

    once: Future[int] = Future()
    asking = ask(once)
    assert asking.send(None).future is once
    once.set_result(7)
    with pytest.raises(StopIteration) as caught:
        asking.send(None)
    assert caught.value.value == 7


def test_interrupted_wait_does_not_block_other_threads():
    """Ctrl-C can arrive when the lock is acquired but ``acquire`` has not returned."""
    once: Future[int] = Future()
    lock, is_mine = once._unset_lock, threading.Event()

    class Interrupted:
        release = staticmethod(lock.release)

        def acquire(self, timeout):
            if threading.current_thread() is not threading.main_thread():
                assert is_mine.wait(WAIT)
                return lock.acquire(timeout=timeout)
            assert lock.acquire(timeout=timeout)
            is_mine.set()
            raise KeyboardInterrupt

    once._unset_lock = cast("Any", Interrupted())
    others = [threading.Thread(target=once.wait) for _ in range(2)]
    for thread in others:
        thread.start()
    setting = threading.Timer(0.05, once.set_result, (1,))
    setting.start()
    with pytest.raises(KeyboardInterrupt):
        once.wait()
    for thread in (*others, setting):
        thread.join(WAIT)
        assert not thread.is_alive()
