"""The boot: network, program, safe mode, on a chip that is a real MicroPython with stand-ins.

Each story has the flash that the chip boots from, and what the fleet, the flash and the serial
port show then. The stand-ins (standin_boot.py) are for machine, network and os.dupterm.
"""

from __future__ import annotations

import base64
import json
import struct
import time

import pytest

from cloudmanager.cable.serial_ports import BoardRepl
from cm_server.net import certificates

from .peer import EXEC, INTERRUPTED, OK, message

AGAIN = 2  # EXEC's flag: it was sent before

TICKING = """
import asyncio, time
late = []
async def main():
    while True:
        began = time.ticks_ms()
        await asyncio.sleep_ms(100)
        late.append(time.ticks_diff(time.ticks_ms(), began) - 100)
"""


@pytest.fixture
def lab(boot_lab):
    return boot_lab


# The network


def test_board_without_wifi_settings_dials_as_it_is(lab):
    assert lab.boot().link().run("__cm__((6 * 7))").value == b"42"


def test_first_network_that_lets_it_in_is_taken(lab):
    air = {"home": "right", "work": "secret"}
    wifi = [["gone", "x"], ["home", "wrong"], ["work", "secret"], ["home", "right"]]
    lab.boot(air=air, wifi=wifi).link()
    lab.chip.hear(b"Wi-Fi gone: not found")
    lab.chip.hear(b"Wi-Fi home: wrong password")
    lab.chip.power_off()
    assert lab.flash.read("/tried").split() == ["gone", "home", "work"]


def test_board_with_a_cable_waits_for_that_and_not_for_wifi(lab):
    assert lab.boot(air={}, lan={"phy_addr": 1}).link().run("__cm__((6 * 7))").value == b"42"
    lab.chip.power_off()
    assert json.loads(lab.flash.read("/tried")) == {"phy_addr": 1}


def test_without_wifi_it_says_why_and_goes_on_trying(lab):
    lab.boot(air={}, wifi=[["home", "x"]])
    lab.chip.hear(b"Wi-Fi home: not found")
    lab.chip.said.clear()
    lab.chip.hear(b"Wi-Fi home: not found")
    assert not lab.peer.links


def test_wifi_parts_are_gone_when_it_is_connected(lab):
    link = lab.boot(air={"home": "x"}, wifi=[["home", "x"]]).link()
    code = "import sys\n__cm__(([n for n in sys.modules if n in ('cm.net', 'cm.boot', 'cm.dial')]))"
    assert link.run(code).value == b"[]"


def test_new_settings_that_work_are_kept(lab):
    link = lab.boot().link()
    told = json.loads(link.run("__cm__((open('/cm.json').read()))").value.decode()[1:-1])
    new = json.dumps({**told, "name": "new"})
    link.run(f"with open('/cm.new', 'w') as f:\n    f.write({new!r})")
    lab.chip.press_reset()
    assert lab.link(after=link).run("__cm__((1))").value == b"1"
    lab.chip.power_off()
    assert json.loads(lab.flash.read("/cm.json"))["name"] == "new"
    assert lab.flash.read("/cm.new") == ""


def test_new_settings_that_do_not_work_are_taken_back(lab):
    link = lab.boot().link()
    told = json.loads(link.run("__cm__((open('/cm.json').read()))").value.decode()[1:-1])
    new = json.dumps({**told, "tcp_port": 1})
    link.run(f"with open('/cm.new', 'w') as f:\n    f.write({new!r})")
    lab.chip.press_reset()
    lab.link(after=link, timeout=25)
    lab.chip.hear(b"The new settings do not work: the old ones are back.")
    assert lab.flash.read("/cm.new") == ""


def test_server_that_is_away_is_said_ever_more_seldom_until_it_is_back(lab):
    lab.peer.shut()
    lab.boot()
    lab.chip.hear(b"No link to the server: [Errno 111] ECONNREFUSED")
    lab.chip.said.clear()
    lab.chip.hear(b"No link to the server: [Errno 111] ECONNREFUSED")
    lab.peer.open()
    assert lab.link().run("__cm__((6 * 7))").value == b"42"
    assert lab.chip.said.count(b"No link") < 4


def test_server_with_a_bad_certificate_is_refused_until_it_has_the_right_one(lab, tmp_path):
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right, wrong = (certificates.load(tmp_path / name) for name in ("right", "wrong"))
    lab.peer.shut()
    lab.peer.tls = wrong.context
    lab.peer.open()
    lab.boot(ca=base64.b64encode(right.ca).decode())
    for _ in range(2):  # it goes on trying
        lab.chip.hear(b"The certificate is not correctly signed by the trusted CA")
        lab.chip.said.clear()
    assert not lab.peer.seen
    lab.peer.shut()
    lab.peer.tls = right.context
    lab.peer.open()
    assert lab.link().run("__cm__((6 * 7))").value == b"42"


def test_watchdog_is_armed_when_it_is_wanted_and_fed(lab):
    link = lab.boot(watchdog=30, told={"port": "esp32-1.28"}).link()
    assert link.run("import machine\n__cm__((machine.dogs[0].timeout))").value == b"30000"
    until = time.monotonic() + 10
    while link.run("import machine\n__cm__((machine.dogs[0].fed))").value == b"0":
        assert time.monotonic() < until
        time.sleep(0.1)


# The program


def test_async_program_runs_beside_cells_and_keeps_its_tick(lab):
    """Every tick of a window; another window where the machine itself was busy for so long."""
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    windows = []
    while not any(max(late) <= 20 for late in windows):
        assert len(windows) < 8, windows
        link.run("import app\napp.late.clear()")
        cells = 0
        while int(link.run("import app\nn = len(app.late)\n__cm__((n))").value) < 10:
            cells += 1
        windows.append(json.loads(link.run("import app\n__cm__((app.late))").value))
        assert cells > 50, "cells were served beside it"


def test_async_program_is_stopped(lab):
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    link.stop()
    link.program(0, "app.py ended")
    count = "import app\n__cm__((len(app.late)))"
    first = link.run(count).value
    time.sleep(0.3)
    assert link.run(count).value == first


def test_blocking_program_keeps_the_board_busy_until_it_is_stopped(lab):
    link = lab.boot("while True:\n    pass").link()
    link.program(1, "app.py")
    assert link.ping() < 1
    link.stop()
    link.program(0, "app.py ended")
    assert link.run("__cm__((6 * 7))").value == b"42"


def test_blocking_program_that_prints_harms_nothing(lab):
    link = lab.boot("while True:\n    print('x' * 50)").link()
    link.program(1, "app.py")
    link.stop()
    link.program(0, "app.py ended")
    assert link.run("print('fine')").output == b"fine\r\n"


def test_program_that_ends_leaves_the_board_to_cells(lab):
    link = lab.boot("x = 7").link()
    link.program(0, "app.py ended")
    assert link.run("import app\n__cm__((app.x))").value == b"7"
    lab.chip.power_off()
    assert lab.flash.read("/cm.boot").startswith("0 ")


def test_program_starts_without_a_server(lab):
    lab.peer.shut()
    lab.boot("print('started')")
    lab.chip.hear(b"started", timeout=20)
    lab.peer.open()
    assert lab.link(timeout=20).run("import app\n__cm__((1))").status == OK


def test_blocking_program_gives_way_when_the_link_is_gone_for_long(lab):
    """The limit is a minute: here it is set to a second."""
    code = "import cm.run, time\ncm.run.limit = 1000\nprint('began')\nwhile True: pass"
    link = lab.boot(code).link()
    link.program(1, "app.py")
    link.cut()
    again = lab.link(after=link)
    again.program(1, "app.py")
    assert (1, "app.py") in again.programs, "it was started anew, now that there is a link"


def test_fresh_leaves_the_program_out_this_once(lab):
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    link.reset()
    again = lab.link(after=link)
    assert again.told["facts"]["program"] == "app.py was left out this once"
    again.reset()
    third = lab.link(after=again)
    assert third.told["boot"] != again.told["boot"]


DEAF = "while True:\n    try:\n        while True:\n            pass\n    except:\n        pass"


BUSY = {
    "computes": "while True:\n    pass",
    "prints": "while True:\n    print('x' * 50)",
    "swallows": DEAF,
}


@pytest.mark.parametrize("app", BUSY.values(), ids=BUSY)
def test_reset_ends_a_program_that_keeps_the_board_busy(lab, app):
    link = lab.boot(app).link()
    link.program(1, "app.py")
    link.reset()
    again = lab.link(after=link)
    assert again.told["boot"] != link.told["boot"]
    assert again.told["facts"]["program"] == "app.py was left out this once"
    assert again.run("__cm__((6 * 7))").value == b"42"


def test_reset_leaves_out_a_program_that_is_new_on_the_board(lab):
    link = lab.boot().link()
    assert link.run("with open('/app.py', 'w') as f:\n    f.write('while True: pass')").status == OK
    link.reset()
    again = lab.link(after=link)
    assert again.told["facts"]["program"] == "app.py was left out this once"
    assert again.run("__cm__((6 * 7))").value == b"42"


def test_reset_without_a_program_leaves_none_out_later(lab):
    link = lab.boot().link()
    link.reset()
    again = lab.link(after=link)
    assert again.run("import os\n__cm__(('cm.skip' in os.listdir('/')))").value == b"False"


def test_cell_that_the_program_overtook_runs_when_it_is_sent_again(lab):
    link = lab.boot("while True:\n    pass").link()
    link.program(1, "app.py")
    job = link.submit("n = globals().get('n', 0) + 1\n__cm__((n))")
    link.ping()
    link.stop()
    link.program(0, "app.py ended")
    assert job.status is None
    link.send(again(job, "n = globals().get('n', 0) + 1\n__cm__((n))"))
    assert job.wait().value == b"1"


def test_cell_that_ran_is_not_run_again_also_behind_a_program(lab):
    link = lab.boot("while True:\n    pass").link()
    link.program(1, "app.py")
    link.stop()
    link.program(0, "app.py ended")
    job = link.submit("n = globals().get('n', 0) + 1")
    assert job.wait().status == OK
    link.send(again(job, "n = globals().get('n', 0) + 1"))
    assert link.run("__cm__((n))").value == b"1"


def again(job, code):
    """A cell as the server sends it once more."""
    head = struct.pack(">II", 0, len(code))
    return message(EXEC, job.number, head + code.encode(), AGAIN)


# Crashes, and safe mode

CRASHES = {
    "at import": "raise ValueError('at import')",
    "at once": "async def main():\n    raise ValueError('at once')",
    "after a while": "import asyncio\nasync def main():\n    await asyncio.sleep(0.05)\n    1/0",
}


@pytest.mark.parametrize("app", CRASHES.values(), ids=CRASHES)
def test_program_that_crashes_is_told_with_its_error_and_cells_run(lab, app):
    link = lab.boot(app).link()
    lab.peer.until(lambda _: any("ended: " in text for _, text in link.programs))
    (told,) = {text for _, text in link.programs if "ended: " in text}  # a new link tells it, too
    assert told.startswith(("app.py ended: ValueError: at", "app.py ended: ZeroDivisionError"))
    assert link.run("__cm__((6 * 7))").value == b"42"
    lab.chip.power_off()
    count, kept = lab.flash.read("/cm.boot").split("\n", 1)
    assert count.startswith("1 ")
    assert 'File "app.py", line' in kept


@pytest.mark.parametrize("app", CRASHES.values(), ids=CRASHES)
def test_three_bad_starts_are_followed_by_safe_mode(lab, app):
    lab.boot(app)
    link = None
    for _ in range(3):
        link = lab.link(after=link)
        lab.peer.until(lambda _, link=link: any("ended: " in text for _, text in link.programs))
        lab.chip.press_reset()
    safe = lab.link(after=link)
    assert safe.told["facts"]["program"].startswith("safe mode, without app.py: ")
    assert safe.run("import sys\n__cm__(('app' in sys.modules))").value == b"False"


def test_program_that_resets_the_board_ends_in_safe_mode(lab):
    app = "import machine\nwith open('/starts', 'a') as f:\n    f.write('x ')\nmachine.reset()"
    lab.boot(app)
    lab.peer.until(
        lambda peer: any(
            "safe mode" in link.told["facts"]["program"] for link in peer.links.values()
        ),
        timeout=25,
    )
    assert lab.link().told["facts"]["program"] == "safe mode: app.py reset the board"
    assert lab.starts() == ["x"] * 3


def test_another_program_gets_its_own_three_starts(lab):
    lab.boot(CRASHES["at import"])
    link = None
    for _ in range(3):
        link = lab.link(after=link)
        lab.peer.until(lambda _, link=link: any("ended: " in text for _, text in link.programs))
        lab.chip.press_reset()
    safe = lab.link(after=link)
    assert "safe mode" in safe.told["facts"]["program"]
    safe.run("with open('/app.py', 'w') as f:\n    f.write('print(1)')")
    lab.chip.press_reset()
    other = lab.link(after=safe)
    other.program(0, "app.py ended")
    assert "safe mode" not in other.told["facts"]["program"]


def test_boots_without_wifi_never_count(lab):
    lab.boot(CRASHES["at import"], air={}, wifi=[["home", "x"]])
    for _ in range(4):
        lab.chip.hear(b"not found")
        lab.chip.power_off()
        lab.chip.said.clear()
        lab.chip.press_reset()
    lab.chip.power_off()
    # no link, and the program had not been started: it is not to blame
    assert lab.flash.read("/cm.boot").split(" ")[0] in ("", "0")


# The cable


@pytest.mark.parametrize("app", ["", TICKING, "while True:\n    pass"])
def test_ctrl_c_on_the_cable_leaves_for_the_repl(lab, app):
    link = lab.boot(app).link()
    if app:
        link.program(1, "app.py")
    with BoardRepl(lab.chip.port) as repl:
        repl.await_prompt(10)
        assert repl.run("print(6 * 7)").strip() == "42"


def test_interrupt_over_the_link_ends_only_the_cell(lab):
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    job = link.submit("while True: pass")
    link.interrupt(job)
    assert job.wait().status == INTERRUPTED
    before = int(link.run("import app\n__cm__((len(app.late)))").value)
    time.sleep(0.4)
    assert int(link.run("import app\n__cm__((len(app.late)))").value) > before
