"""The board's log: what is printed outside of cells, on virtual boards and through dupterm."""

import pytest

from .peer import INTERRUPTED, OK

TICKER = """
import asyncio
async def tick(name, ms):
    n = 0
    while True:
        print(name, n)
        n += 1
        await asyncio.sleep_ms(ms)
"""
STOP = "for task in tasks: task.cancel()\ntasks.clear()"


@pytest.fixture(params=["virtual", "console"])
def peer(request):
    """The server of a board of each kind."""
    if request.param == "virtual":
        return request.getfixturevalue("lab").peer
    return request.getfixturevalue("console_peer")


@pytest.fixture
def board(peer):
    """The board's link; afterwards its tasks are stopped, and it still runs cells."""
    link = peer.link("id-1")
    link.run("tasks = []")
    link.log.clear()
    yield link
    link = peer.link("id-1")
    assert link.run(STOP).status == OK
    assert link.run("__cm__((6 * 7))").value == b"42"


def cell(body, number=0):
    """Return a cell that awaits."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return f"async def __cm_cell__():\n    import asyncio\n{lines}\n    return {number}\n"


def lines(data):
    return bytes(data).replace(b"\r\n", b"\n").decode().splitlines()


def test_task_between_cells_prints_to_the_log(board):
    code = TICKER + "tasks.append(asyncio.create_task(tick('between', 20)))"
    assert board.run(code).output == b""
    board.logged(b"between 5")
    assert board.run("print('the cell')").output.strip() == b"the cell"
    found = [line for line in lines(board.log) if line]
    assert found[:5] == [f"between {n}" for n in range(5)]
    assert board.log_lost == 0


def test_task_beside_a_cell_that_awaits_prints_to_the_log(board):
    board.run(TICKER + "tasks.append(asyncio.create_task(tick('beside', 5)))")
    board.logged(b"beside 1")
    code = cell("for n in range(20):\n    print('cell', n)\n    await asyncio.sleep_ms(10)")
    job = board.run(code, awaits=True)
    assert lines(job.output) == [f"cell {n}" for n in range(20)]
    board.logged(b"beside 20")
    numbers = [int(line.split()[1]) for line in lines(board.log)[:-1]]
    assert numbers == list(range(len(numbers))), "no line is lost, torn or printed twice"


def test_tasks_that_a_cell_makes_print_to_the_cell(board):
    board.run(TICKER + "tasks.append(asyncio.create_task(tick('beside', 5)))")
    board.logged(b"beside 1")
    inner = (
        "async def inner(n):\n    await asyncio.sleep_ms(20)\n    print('inner', n)\n"
        "async def outer():\n    await asyncio.gather(inner(1), inner(2))\n    print('outer')\n"
        "task = asyncio.create_task(outer())\nawait asyncio.sleep_ms(100)\nawait task"
    )
    job = board.run(cell(inner), awaits=True)
    assert lines(job.output) == ["inner 1", "inner 2", "outer"]
    job = board.run("async def main():\n    print('main')\nasyncio.run(main())")
    assert lines(job.output) == ["main"]
    assert b"inner" not in board.log
    assert b"main" not in board.log


def test_function_that_was_imported_first_makes_tasks_of_the_cell(board):
    """`from asyncio import create_task` in a cell precedes the part that follows tasks."""
    board.run("from asyncio import create_task\n" + TICKER)
    board.run("tasks.append(create_task(tick('beside', 5)))")
    board.logged(b"beside 1")
    inner = "async def inner():\n    print('inner')\nawait create_task(inner())"
    assert lines(board.run(cell(inner), awaits=True).output) == ["inner"]


def test_tasks_of_an_earlier_cell_print_to_the_log(board):
    board.run(TICKER)
    make = "tasks.append(asyncio.create_task(tick('early', 5)))\nawait asyncio.sleep_ms(30)"
    first = board.run(cell(make), awaits=True)
    assert lines(first.output)[:3] == ["early 0", "early 1", "early 2"], "it is the cell's task"
    job = board.run(cell("await asyncio.sleep_ms(50)\nprint('late')"), awaits=True)
    assert lines(job.output) == ["late"]


def test_many_tasks_of_a_cell_are_not_kept(board):
    code = (
        "async def nothing(): pass\n"
        "for _ in range(200):\n    await asyncio.create_task(nothing())\n"
        "import cm.loop\nprint(len(cm.loop.own))"
    )
    job = board.run(cell(code), awaits=True)
    assert int(job.output) <= 20


def test_exception_of_a_task_is_in_the_log(lab):
    """On a virtual board: the other one's sys.stderr is no stream of dupterm."""
    board = lab.link()
    board.log.clear()
    code = (
        "import asyncio\nasync def fail():\n    await asyncio.sleep_ms(20)\n    1 / 0\n"
        "task = asyncio.create_task(fail())"
    )
    board.run(code)
    board.logged(b"ZeroDivisionError: divide by zero")


def test_thread_between_cells_prints_to_the_log(lab):
    board = lab.link()
    board.log.clear()
    code = (
        "import _thread, time\ndef late():\n    time.sleep_ms(80)\n    print('thread')\n"
        "_thread.start_new_thread(late, ())"
    )
    assert board.run(code).output == b""
    board.logged(b"thread\n")


def test_flood_of_the_log_ends_no_cell_and_is_counted_where_it_is_lost(board):
    code = (
        "import asyncio\nasync def flood():\n    while True:\n"
        "        for _ in range(20): print('f' * 99)\n        await asyncio.sleep_ms(0)\n"
        "tasks.append(asyncio.create_task(flood()))"
    )
    board.run(code)
    board.logged(b"f" * 99)
    for n in range(3):
        assert board.run(f"print({n})").output.strip() == b"%d" % n
    job = board.submit(cell("while True: await asyncio.sleep_ms(5)"), awaits=True)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert set(lines(job.output)) == set()


def test_log_bridges_a_link_that_is_away(peer, board):
    board.run(
        "import asyncio, cm.state\nasync def late():\n"
        "    while cm.state.socket: await asyncio.sleep_ms(5)\n"
        "    for n in range(200): print('away', n)\n"
        "tasks.append(asyncio.create_task(late()))"
    )
    # A wait of 5 ms would be over before the task has noticed it.
    peer.rejections = 1 if peer.spread > 1 else 3
    board.cut()
    again = peer.link("id-1", after=board)
    again.logged(b"away 199")
    found = [line for line in lines(again.log) if line.startswith("away")]
    assert found[-50:] == [f"away {n}" for n in range(150, 200)], "the newest KB is kept"
    printed = sum(len(f"away {n}") for n in range(200))
    assert again.log_lost > 0
    kept = len(bytes(again.log).replace(b"\r", b"").replace(b"\n", b""))
    assert kept < 1024 < printed


def test_lost_bytes_are_counted(board):
    """All that was printed has arrived, or is counted: also with a ring that overflows."""
    code = (
        "from cm import log, state\nbefore = log.lost\n"
        "log.write(b'a' * 3000, False)\n__cm__((len(log.text), log.lost - before))"
    )
    assert board.run("import cm.log").status == OK
    size, lost = eval(board.run(code).value)
    assert (size, lost) == (1024, 3000 - 1024)
    board.logged(b"a" * 1024)
    board.peer.until(lambda _: board.log_lost >= lost)


TASK_THAT_PRINTS = """
import asyncio, cm.state
async def work():
    console = cm.state.console
    real = console.Stream.write
    calls = []
    console.Stream.write = lambda stream, b: calls.append(len(b)) or real(stream, b)
    {before}
    for n in range(9): print('by', n)
    console.Stream.write = real
    print(len(calls), 'calls')
t = asyncio.create_task(work())
"""


@pytest.mark.parametrize("port", ["esp8266-1.28", "rp2-1.28"])
def test_task_prints_to_the_log_without_code_of_the_client(boot_lab, port):
    """On RP2, such code took 2 ms a line."""
    link = boot_lab.boot(chip_options={"port": port}).link()
    link.run(TASK_THAT_PRINTS.format(before="pass"))
    link.logged(b"by 8\r\n0 calls\r\n")
    assert lines(link.log)[:9] == [f"by {n}" for n in range(9)]


def test_task_that_starts_a_thread_on_rp2_prints_by_code_of_the_client(boot_lab):
    """Two cores may print then, and must not change the same text at once."""
    link = boot_lab.boot(chip_options={"port": "rp2-1.28"}).link()
    thread = "import _thread; done = []; "
    thread += "_thread.start_new_thread(lambda: done.append(print('thread')), ())\n"
    thread += "    while not done: pass"
    link.run(TASK_THAT_PRINTS.format(before=thread))
    link.logged(b"by 8")
    link.logged(b" calls")
    assert lines(link.log)[-1] != "0 calls"
    assert link.run("print('the cell')").output.strip() == b"the cell"


def test_log_precedes_a_cell_in_the_order_of_printing(board):
    """A message of the log never splits one of the cell."""
    code = TICKER + "tasks.append(asyncio.create_task(tick('x' * 300, 1)))"
    board.run(code)
    board.logged(b"x" * 300)
    body = "for n in range(50):\n    print('y' * 200, n)\n    await asyncio.sleep_ms(1)"
    job = board.run(cell(body), awaits=True)
    assert lines(job.output) == [f"{'y' * 200} {n}" for n in range(50)]


def test_samples_of_a_task_are_not_mixed_with_its_log(board):
    code = (
        "import asyncio, cm\nasync def work():\n    for n in range(200):\n"
        "        print('line', n)\n        cm.emit(n=n)\n        await asyncio.sleep_ms(2)\n"
        "tasks.append(asyncio.create_task(work()))"
    )
    board.run(code)
    board.logged(b"line 199")
    assert [line for line in lines(board.log) if line.startswith("line")] == [
        f"line {n}" for n in range(200)
    ]
