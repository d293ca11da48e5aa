"""Flash of virtual boards under interrupts: what was written stays written."""

from __future__ import annotations

import random
import time

import pytest

from cloudmanager.client.fleet import Fleet

WAIT = 10.0  # seconds
#: Each round leaves a line that must stay, then writes and removes until it is interrupted.
ROUND = """
with open("/marks", "a") as file:
    file.write("%d\\n")
print("marked")
n = 0
while True:
    n += 1
    with open("/busy-" + str(n %% 3), "w") as file:
        file.write("b" * 5000)
    if n %% 2:
        import os
        os.remove("/busy-" + str(n %% 3))
"""


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("boards")
def test_an_interrupt_in_the_middle_of_a_write_breaks_no_file_system(fleet: Fleet):
    board, rounds, pick = fleet["demo-3"], 30, random.Random(7)
    board.run("import os\nif 'marks' in os.listdir('/'): os.remove('/marks')").raise_for_error()
    for number in range(rounds):
        job = board.submit(ROUND % number, listen=True)
        for event in job.events():
            if event.kind == "output":
                break
        time.sleep(pick.random() * 0.01)
        job.interrupt()
        result = job.results(WAIT)["demo-3"]
        assert result.status == "interrupted", result
    marks = board.run("open('/marks').read().split()").value
    assert marks == [str(number) for number in range(rounds)]
    left = (
        "import os\nfor name in os.listdir('/'):\n    name[:5] != 'busy-' or os.remove('/' + name)"
    )
    board.run(left + "\nos.remove('/marks')").raise_for_error()
    assert board.run("import os; os.statvfs('/')[3] > 0").value is True
