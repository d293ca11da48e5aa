"""Interrupts do not damage the flash file system of virtual boards."""

from __future__ import annotations

import random
import time

import pytest

from cloudmanager.client.fleet import Fleet

WAIT = 60.0  # seconds, even on a busy machine
#: A round appends a line that must be kept, then writes and removes files until interrupted.
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
def test_interrupted_writes_do_not_damage_the_file_system(fleet: Fleet):
    board = fleet["demo-3"]
    rounds = 30
    delays = random.Random(7)
    board.run("import os\nif 'marks' in os.listdir('/'): os.remove('/marks')").raise_for_error()
    for number in range(rounds):
        job = board.submit(ROUND % number, listen=True)
        for event in job.events():
            if event.kind == "output":
                break
        time.sleep(delays.random() * 0.01)
        job.interrupt()
        result = job.results(WAIT)["demo-3"]
        assert result.status == "interrupted", result
    marks = board.run("open('/marks').read().split()").value
    assert marks == [str(number) for number in range(rounds)]
    cleanup = (
        "import os\nfor name in os.listdir('/'):\n    name[:5] != 'busy-' or os.remove('/' + name)"
    )
    board.run(cleanup + "\nos.remove('/marks')").raise_for_error()
    assert board.run("import os; os.statvfs('/')[3] > 0").value is True
