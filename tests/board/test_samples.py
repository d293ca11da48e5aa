"""cm.emit on a real board: in cells, between cells, too often, too long, interrupted."""

import time

import pytest

from .peer import ERROR, INTERRUPTED, OK


@pytest.fixture(autouse=True)
def _rested(board):
    """The board's link, with a fresh rate limit."""
    board.samples.clear()
    board.run("import cm, sys\ncm.emit\nemit = sys.modules['cm.emit']\nemit.due = emit.dropped = 0")


def values(board):
    return [values for _, _, values in board.samples]


def test_emit_sends_its_values_with_the_time_by_the_boards_clock(board):
    job = board.run("import cm\n__cm__((cm.now_ms(), cm.emit(temp=21.5, on=True, s='é')))")
    assert job.status == OK, job
    now, left = eval(job.value)
    ((at, lost, values),) = board.samples
    assert (left, lost, values) == (True, 0, {"temp": 21.5, "on": True, "s": "é"})
    assert 0 <= at - now < 1000


def test_emit_is_sent_in_order_with_output(board):
    """Frames are not mixed up, and output is neither lost nor duplicated."""
    code = "for n in range(40):\n    print('x' * n)\n    cm.emit(n=n)\n__cm__(('v' * 2000))"
    job = board.run(code)
    assert job.output == b"".join(b"x" * n + b"\n" for n in range(40))
    assert job.value == b"'" + b"v" * 2000 + b"'"
    assert values(board) == [{"n": n} for n in range(40)]


def test_pending_output_is_sent_before_a_sample(board):
    job = board.run("print('x' * 860, end='')\n__cm__((cm.emit(s='y' * 400)))")
    assert (job.output, job.value) == (b"x" * 860, b"True")
    assert values(board) == [{"s": "y" * 400}]


def test_emit_in_a_repr_does_not_change_the_value(board):
    code = "class R:\n    def __repr__(self):\n        cm.emit(r=1)\n        return 'R' * 300\n"
    job = board.run(code + "__cm__(([R(), R(), R(), R()]))")
    assert job.value == b"[" + b", ".join([b"R" * 300] * 4) + b"]"
    assert values(board)
    assert set(map(str, values(board))) == {"{'r': 1}"}


def test_task_between_cells_emits(board):
    code = (
        "import asyncio\nasync def work():\n    for n in range(3):\n"
        "        await asyncio.sleep(0.05)\n        cm.emit(n=n)\nasyncio.create_task(work())\n"
    )
    job = board.run(code + "print('left')")
    assert (job.status, job.output) == (OK, b"left\n")
    board.peer.until(lambda _: len(board.samples) == 3)
    assert values(board) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert job.messages == 1, "nothing of the cell is said twice"


def test_samples_over_the_rate_are_dropped_and_counted(board):
    code = "left = [cm.emit(n=n) for n in range(500)]\n"
    code += "import time\ntime.sleep(1)\n__cm__((sum(left), left[0], left[-1], cm.emit(n=-1)))"
    left, first, last, after = eval(board.run(code).value)
    assert (first, last, after) == (True, False, True)
    assert 50 <= left <= 80
    assert len(board.samples) == left + 1
    # A sample says how many were dropped before it, as many as fit in a byte. A board that computes
    # slowly sends more samples in between, which count some of them.
    counts = [lost for _, lost, _ in board.samples]
    assert sum(counts) == 500 - left or max(counts) == 255
    assert board.samples[-1][2] == {"n": -1}
    assert counts[-1] > 0


def test_rate_limit_works_after_a_pause_of_a_week(board):
    """Ticks wrap: the last sample may seem to be in the future."""
    code = "emit.due = time.ticks_add(time.ticks_ms(), 1 << 28)\n__cm__((cm.emit(n=1)))"
    assert board.run("import time\n" + code).value == b"True"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("emit(pin=object())", "TypeError: pin"),
        ("emit(rows=[1, 2])", "TypeError: rows"),
        ("emit(text='x' * 600)", "ValueError"),
    ],
)
def test_value_that_is_not_json_is_an_error(board, call, error):
    job = board.run(f"cm.{call}")
    assert (job.status, error in job.error, board.samples) == (ERROR, True, [])


def test_nan_and_infinity_become_none(board):
    board.run("inf = float('inf')\ncm.emit(a=inf, b=-inf, c=inf - inf, d=1e30)")
    assert values(board) == [{"a": None, "b": None, "c": None, "d": 1e30}]


@pytest.mark.parametrize("turn", range(20))
def test_interrupt_ends_a_cell_that_only_emits_and_keeps_the_link(board, turn):
    job = board.submit("while True: cm.emit(n=1)")
    time.sleep(turn / 200)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert not board.closed.is_set()


def test_emit_without_its_module_is_an_attribute_error(board):
    board.run("import sys\nsys.path[:], kept = [''], sys.path[:]\nsys.modules.pop('cm.emit')")
    board.run("import cm\nkept_emit = cm.emit\ndel cm.emit")
    job = board.run("cm.__path__, old = '/none', cm.__path__\ncm.emit(n=1)")
    board.run(
        "cm.__path__ = old\nsys.path[:] = kept\ncm.emit = kept_emit\nsys.modules['cm.emit'] = emit"
    )
    assert (job.status, "AttributeError" in job.error) == (ERROR, True)


def kept_samples(link):
    """Return the numbers and the times of all samples that the peer has, without their ages."""
    found = {}
    for at, _, values in link.peer.samples:
        values.pop("", None)
        assert values["n"] not in found, "no sample comes twice"
        found[values["n"]] = at
    return found


def test_samples_without_a_link_are_sent_later_with_their_times(board):
    board.peer.samples.clear()
    job = board.submit(
        "import cm, time\ntimes = []\nfor n in range(40):\n    times.append(cm.now_ms())\n"
        "    cm.emit(n=n)\n    time.sleep_ms(40)\n"
    )
    board.peer.until(lambda _: len(board.samples) >= 5)
    board.cut()
    link = board.peer.link("id-1", after=board)
    link.ping()
    link.peer.until(lambda _: any(values.get("n") == 39 for _, _, values in link.peer.samples))
    found = kept_samples(link)
    assert len(found) >= 38, "but for what was in progress when the link broke"
    assert sorted(found) == list(found), "the oldest first"
    times = eval(link.run("__cm__((times))").value)
    assert all(0 <= at - times[n] < 100 for n, at in found.items())
    assert job.status is None, "its result was lost with the link"
    link.run("cm.emit(n=40)")
    link.peer.until(lambda _: link.peer.samples[-1][2].get("n") == 40)


def test_samples_for_which_there_is_no_room_are_counted(board):
    board.peer.samples.clear()
    board.submit(
        "import cm, time\nbegun = True\ncm.emit(n=-1)\nfor n in range(20):\n"
        "    cm.emit(n=n, s='x' * 180)\n    time.sleep_ms(40)\n"
    )
    board.peer.until(lambda _: len(board.samples) >= 1)
    board.cut()
    link = board.peer.link("id-1", after=board)
    link.ping()
    link.peer.until(lambda _: any(values.get("n") == 19 for _, _, values in link.peer.samples))
    missed = [count for _, count, _ in link.peer.samples]
    there = len(link.peer.samples)
    assert there < 20
    assert 20 <= there + sum(missed) <= 21
