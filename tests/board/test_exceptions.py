"""An exception of any class, at any step of the client, does not end the client.

On a real board a tick, a full heap or a task may raise it; here a function of
the client is replaced, for one call, by one that raises it.
"""

from __future__ import annotations

import pytest

from .peer import OK

CLASSES = (
    "BaseException",
    "Exception",
    "KeyboardInterrupt",
    "SystemExit",
    "GeneratorExit",
    "MemoryError",
    "OSError",
    "StopIteration",
    "EOFError",
    "ImportError",
    "asyncio.CancelledError",
)
#: Module and function; what follows a cell's end, an idle board's wait, a reconnect.
STEPS = (
    "cm.link.send",
    "cm.link.recv",
    "cm.link.idle",
    "cm.link.close",
    "cm.link.restore",
    "cm.link.drop",
    "cm.link.connect",
    "cm.run.serve",
    "cm.run.send",
    "cm.run.recv",
    "cm.run.poll",
    "cm.run.append",
    "cm.run.flush",
    "cm.run.clear",
    "cm.run.receive_job",
    "cm.run.run_job",
    "cm.state.console.attach",
    "cm.state.console.detach",
    "cm.tasks.wait",
    "cm.tasks.busy",
)
#: Makes `place.name` raise once, and puts it back.
RAISE_ONCE = """
import asyncio, cm.link, cm.run, cm.state, cm.loop, cm.tasks
def raise_once(place, name, error):
    old = getattr(place, name)
    def once(*args):
        setattr(place, name, old)
        raise error
    setattr(place, name, once)
raise_once({place}, {name!r}, {error}())
"""


@pytest.fixture(scope="module")
def labs(make_lab):
    return make_lab(count=len(STEPS))


def test_every_class_and_every_step_leave_a_board_that_runs_cells(labs):
    """All steps at once, each on a board of its own and with another class."""
    raise_at_all_steps(labs, lambda number: CLASSES[number % len(CLASSES)])


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("error", CLASSES)
def test_class_at_any_step_leaves_a_board_that_runs_cells(labs, error):
    raise_at_all_steps(labs, lambda _: error)


def raise_at_all_steps(labs, error_for):
    for number, step in enumerate(STEPS, 1):
        place, _, name = step.rpartition(".")
        cell = RAISE_ONCE.format(place=place, name=name, error=error_for(number))
        labs.link(number).submit(cell)
    for number, step in enumerate(STEPS, 1):
        assert is_back(labs, number), (step, error_for(number))


def is_back(labs, number) -> bool:
    """Whether the board runs a cell again, on the same link or on a new one."""
    for _ in range(8):
        try:
            job = labs.link(number, timeout=10).submit("__cm__((6 * 7))")
            job.until(lambda job: job.status is not None, 1.5)
            if job.status == OK and job.value == b"42":
                return True
        except Exception:  # its link has just closed
            pass
        except AssertionError:  # the cell was lost with the link
            pass
    return False
