"""The boot: network, program, safe mode, on a chip that is a real MicroPython with stand-ins.

Each test defines the flash that the chip boots from, and checks the state that the board reports,
its flash and its serial output. The stand-ins (standin_boot.py) replace machine, network and
os.dupterm.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import time

import pytest

from cloudmanager.cable.serial_ports import BoardRepl
from cm_server.net import certificates

from .peer import EXEC, INTERRUPTED, OK, message

pytestmark = pytest.mark.timeout(120)  # a chip that starts three times on a busy machine
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


def test_board_without_wifi_settings_connects(lab):
    assert lab.boot().link().run("__cm__((6 * 7))").value == b"42"


def test_first_wifi_network_that_accepts_the_board_is_used(lab):
    air = {"home": "right", "work": "secret"}
    wifi = [["gone", "x"], ["home", "wrong"], ["work", "secret"], ["home", "right"]]
    lab.boot(air=air, wifi=wifi).link()
    lab.chip.hear(b"Wi-Fi gone: not found")
    lab.chip.hear(b"Wi-Fi home: wrong password")
    lab.chip.power_off()
    assert lab.flash.read("/tried").split() == ["gone", "home", "work"]


def test_host_name_country_and_static_address_are_set(lab):
    address = ["192.168.4.9", "255.255.255.0", "192.168.4.1", "192.168.4.1"]
    more = {"name": "shelf-1", "country": "DE", "ip": address}
    link = lab.boot(air={"home": "right"}, wifi=[["home", "right"]], **more).link()
    code = "import network\n__cm__((network.settings))"
    assert link.run(code).value.decode() == repr(["shelf-1", "DE", tuple(address)])


def test_facts_name_the_network_and_why_the_board_started(lab):
    options = {"reset_cause": 3}
    link = lab.boot(air={"home": "x"}, wifi=[["home", "x"]], chip_options=options).link()
    facts = link.proof_fields["facts"]
    assert (facts["address"], facts["mac"]) == ("192.168.4.7", "28cdc1000001")
    assert facts["reset"] == "wdt"
    assert 2048 < facts["flash"] < 1024 * 1024


def test_board_with_lan_settings_uses_no_wifi(lab):
    assert lab.boot(air={}, lan={"phy_addr": 1}).link().run("__cm__((6 * 7))").value == b"42"
    lab.chip.power_off()
    assert json.loads(lab.flash.read("/tried")) == {"phy_addr": 1}


def test_wifi_failure_is_printed_and_retried(lab):
    lab.boot(air={}, wifi=[["home", "x"]])
    lab.chip.hear(b"Wi-Fi home: not found")
    lab.chip.said.clear()
    lab.chip.hear(b"Wi-Fi home: not found")
    assert not lab.peer.links


def test_network_modules_are_dropped_after_connecting(lab):
    link = lab.boot(air={"home": "x"}, wifi=[["home", "x"]]).link()
    code = "import sys\n__cm__(([n for n in sys.modules if n in ('cm.net', 'cm.boot', 'cm.dial')]))"
    assert link.run(code).value == b"[]"


YEAR_NS = 366 * 86400 * 10**9


def test_clock_is_set_by_the_servers_time(lab):
    lab.peer.clock = lambda: time.time_ns() + 9 * YEAR_NS
    link = lab.boot().link()
    expected = time.gmtime(lab.peer.clock() / 1e9)
    assert link.run("import machine\n__cm__((machine.clock[0][:3]))").value == (
        b"(%d, %d, %d)" % expected[:3]
    )


def test_clock_that_is_right_is_not_set(lab):
    assert lab.boot().link().run("import machine\n__cm__((machine.clock))").value == b"[]"


def test_clock_is_not_set_back_while_the_program_runs(lab):
    lab.peer.spread = 0
    app = "import asyncio\nasync def main():\n while True: await asyncio.sleep_ms(10)\n"
    link = lab.boot(app).link()
    link.program(0, "app.py")
    lab.peer.clock = lambda: time.time_ns() - YEAR_NS
    link.close()
    again = lab.link(after=link)
    assert again.run("import machine\n__cm__((machine.clock))").value == b"[]"


def try_settings(lab, link, changes):
    """Restart a board with other settings, as `mbm board-config` does."""
    code = "with open('/cm.json') as f: text = f.read()\n__cm__((text))"
    new = json.dumps({**json.loads(link.run(code).value.decode()[1:-1]), **changes})
    link.run(f"with open('/cm.new', 'w') as f:\n    f.write({new!r})")
    lab.chip.press_reset()


def test_new_settings_that_work_are_kept(lab):
    link = lab.boot().link()
    try_settings(lab, link, {"name": "new"})
    assert lab.link(after=link).run("__cm__((1))").value == b"1"
    lab.chip.power_off()
    assert json.loads(lab.flash.read("/cm.json"))["name"] == "new"
    assert lab.flash.read("/cm.new.trial") == ""


def test_new_settings_arm_their_watchdog_while_they_are_on_trial(lab):
    link = lab.boot(chip_options={"port": "rp2-1.28"}).link()
    assert link.proof_fields["facts"]["watchdog"] == "timer, 60 s"
    try_settings(lab, link, {"watchdog": 20})
    assert lab.link(after=link).proof_fields["facts"]["watchdog"] == "timer, 20 s"


#: A network, and no interrupt of a task for which time passes at once.
HOME = {"air": {"home": "x"}, "wifi": [["home", "x"]], "link_timeout": 100_000}
#: Programs that let 61 s pass while the board tries new settings. One starts after four failed
#: attempts to connect.
LATER = """
import machine, os
async def main():
    if "cm.new.trial" in os.listdir("/"):
        machine.skip(61000)
"""
STUBBORN = """
import machine, os
if "cm.new.trial" in os.listdir("/"):
    machine.skip(61000)
    while True:
        try:
            while True: pass
        except: pass
"""
#: A program that ends the trial.
RESETS = """
import machine, os
if "cm.new.trial" in os.listdir("/"):
    machine.reset()
"""


@pytest.mark.parametrize(
    ("wrong", "program"),
    [
        ({"tcp_port": 1}, LATER),
        ({"wifi": [["gone", "x"]]}, LATER),
        ({"tcp_port": 1}, STUBBORN),
        ({"tcp_port": 1}, RESETS),
    ],
    ids=["port", "wifi", "stubborn", "resets"],
)
def test_new_settings_that_do_not_work_are_discarded(lab, wrong, program):
    link = lab.boot(program, **HOME).link()
    link.program(0, "app.py ended")
    try_settings(lab, link, wrong)
    again = lab.link(after=link)
    lab.chip.hear(b"The new settings do not work: the old ones are back.")
    assert again.run("__cm__((1))").value == b"1"
    assert lab.flash.read("/cm.new.trial") == ""


def pass_time(lab, link, seconds):
    """Let time pass on a board whose server is away."""
    code = (
        "import asyncio, cm.state, machine\nasync def left():\n"
        "    while cm.state.socket: await asyncio.sleep_ms(50)\n"
        f"    machine.skip({seconds * 1000})\nt = asyncio.create_task(left())"
    )
    assert link.run(code).status == OK
    lab.peer.shut()
    link.close()


def test_network_restarts_after_ten_minutes_without_a_link(lab):
    link = lab.boot(**HOME).link()
    assert link.run("kept = 1").status == OK
    pass_time(lab, link, 601)
    lab.chip.hear(b"No link for long: the network restarts.")
    lab.peer.open()
    assert lab.link(after=link).run("__cm__((kept))").value == b"1"


def test_board_restarts_after_an_hour_without_a_link(lab):
    link = lab.boot(**HOME).link()
    pass_time(lab, link, 3601)
    lab.chip.hear(b"No link for long: the board restarts.")
    lab.peer.open()
    again = lab.link(after=link)
    assert again.proof_fields["boot"] != link.proof_fields["boot"]
    assert again.run("import os\n__cm__(('cm.away' in os.listdir('/')))").value == b"False"


def test_board_that_restarted_in_an_outage_waits_longer_the_next_time(lab):
    link = lab.boot(**HOME).link()
    assert link.run("with open('/cm.away', 'w') as f: f.write('1')").status == OK
    pass_time(lab, link, 3601)
    lab.chip.hear(b"No link for long: the network restarts.")


def test_board_without_a_file_system_restarts_when_its_link_is_lost(lab):
    link = lab.boot().link()
    assert link.run("import os\nos.umount('/')").status == OK
    link.close()
    again = lab.link(after=link)
    assert again.proof_fields["boot"] != link.proof_fields["boot"]
    assert b"main.py" in again.run("import os\n__cm__((os.listdir('/')))").value


def test_unreachable_server_is_reported_less_and_less_often(lab):
    lab.peer.shut()
    lab.boot()
    lab.chip.hear(b"No link to the server: [Errno 111] ECONNREFUSED")
    lab.chip.said.clear()
    lab.chip.hear(b"No link to the server: [Errno 111] ECONNREFUSED")
    lab.peer.open()
    assert lab.link().run("__cm__((6 * 7))").value == b"42"
    assert lab.chip.said.count(b"No link") < 4


def test_refused_server_is_named_in_words(lab):
    lab.peer.lie = True
    lab.boot()
    lab.chip.hear(b"No link to the server: it has another key")
    lab.peer.lie = False
    assert lab.link().run("__cm__((6 * 7))").value == b"42"


def test_other_server_is_named_by_its_answer(lab):
    lab.peer.shut()
    answer = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", lab.peer.tcp_port)) as server:
        server.settimeout(10)
        lab.boot()
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
            lab.chip.hear(b"No link to the server: it answers HTTP/1.1 403 Forbidden")
    lab.peer.open()


def test_server_with_a_wrong_certificate_is_refused(lab, tmp_path):
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


def test_board_whose_heap_is_too_full_for_tls_restarts(lab, tmp_path):
    (tmp_path / "ca").mkdir()
    authority = certificates.load(tmp_path / "ca")
    lab.peer.shut()
    lab.peer.tls = authority.context
    lab.peer.open()
    ca = base64.b64encode(authority.ca).decode()
    link = lab.boot(ca=ca, chip_options={"full": True}).link()
    assert link.run("__cm__((6 * 7))").value == b"42"


HELD = """
import asyncio, cm.state
async def left():
    while not cm.state.spare:
        await asyncio.sleep_ms(20)
    print("held", [len(one) for one in cm.state.spare])
t = asyncio.create_task(left())
__cm__((cm.state.spare))
"""


def test_memory_of_the_last_tls_link_is_kept_for_the_next_one(lab, tmp_path):
    """Two blocks, which the parts that connect would divide on a heap that is nearly full."""
    (tmp_path / "ca").mkdir()
    authority = certificates.load(tmp_path / "ca")
    lab.peer.shut()
    lab.peer.tls = authority.context
    lab.peer.open()
    link = lab.boot(ca=base64.b64encode(authority.ca).decode()).link()
    assert link.run(HELD).value == b"()"
    lab.peer.shut()
    lab.chip.hear(b"held [16800, 4500]")
    lab.peer.open()
    again = lab.link(after=link)
    assert again.run("import cm.state\n__cm__((cm.state.spare))").value == b"()"


def test_configured_watchdog_is_armed_and_fed(lab):
    link = lab.boot(watchdog=30, chip_options={"port": "esp32-1.28"}).link()
    assert link.run("import machine\n__cm__((machine.dogs[0].timeout))").value == b"30000"
    assert link.proof_fields["facts"]["watchdog"] == "hardware, 30 s"
    until = time.monotonic() + 10
    while link.run("import machine\n__cm__((machine.dogs[0].fed))").value == b"0":
        assert time.monotonic() < until
        time.sleep(0.1)


# The program


def test_async_program_runs_beside_cells_on_time(lab):
    """All ticks of one window are on time, beside many cells; a busy machine may spoil some."""
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    windows: list[tuple[int, int]] = []  # by how much a tick was late at most, in ms; cells
    while not any(late <= 20 and cells > 50 for late, cells in windows):
        assert len(windows) < 30, windows
        link.run("import app\napp.late.clear()")
        cells = 0
        while int(link.run("import app\nn = len(app.late)\n__cm__((n))").value) < 10:
            cells += 1
        late = json.loads(link.run("import app\n__cm__((app.late))").value)
        windows.append((max(late), cells))


def test_async_program_can_be_stopped(lab):
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


def test_blocking_program_may_print(lab):
    link = lab.boot("while True:\n    print('x' * 50)").link()
    link.program(1, "app.py")
    link.stop()
    link.program(0, "app.py ended")
    assert link.run("print('fine')").output == b"fine\r\n"


def test_output_and_traceback_of_a_program_are_in_the_log(lab):
    link = lab.boot("print('begun')\nraise ValueError('wrong')").link()
    link.logged(b"ValueError: wrong")
    first, *rest = bytes(link.log).decode().split("\r\n")
    assert (first, rest[0]) == ("begun", "Traceback (most recent call last):")
    assert link.run("print('cell')").output == b"cell\r\n"


def test_output_of_an_async_program_beside_a_cell_is_in_the_log(lab):
    app = (
        "import asyncio\nasync def main():\n    n = 0\n    while True:\n        print('app', n)\n"
        "        n += 1\n        await asyncio.sleep_ms(10)\n"
    )
    link = lab.boot(app).link()
    link.logged(b"app 3")
    code = "async def __cm_cell__():\n    import asyncio\n    await asyncio.sleep_ms(100)\n"
    job = link.run(code + "    print('cell')\n", awaits=True)
    assert job.output == b"cell\r\n"
    link.logged(b"app 15")


def test_blocking_program_prints_while_there_is_no_link(lab):
    app = (
        "import time, cm.state\nprint('begun')\nwhile cm.state.socket: time.sleep_ms(5)\n"
        "print('alone')\n"
    )
    link = lab.boot(app).link()
    link.logged(b"begun")
    link.cut()
    again = lab.link(after=link)
    again.logged(b"alone")
    assert again.run("print(1)").output == b"1\r\n"


def test_why_a_board_did_not_connect_is_in_the_log(lab):
    lab.peer.shut()
    lab.boot()
    lab.chip.hear(b"No link to the server")
    lab.peer.open()
    lab.link().logged(b"No link to the server: [Errno 111] ECONNREFUSED")


def test_board_runs_cells_after_its_program_has_ended(lab):
    link = lab.boot("x = 7").link()
    link.program(0, "app.py ended")
    assert link.run("import app\n__cm__((app.x))").value == b"7"
    lab.chip.power_off()
    assert lab.flash.read("/cm.boot").startswith("0 ")


def test_program_starts_without_a_server(lab):
    lab.peer.shut()
    lab.boot("print('started')")
    lab.chip.hear(b"started")
    lab.peer.open()
    assert lab.link().run("import app\n__cm__((1))").status == OK


def test_blocking_program_is_stopped_when_the_link_is_lost_for_long(lab):
    """The limit of one minute is set to one second."""
    code = "import cm.state, time\ncm.state.link_timeout = 1000\nprint('began')\nwhile True: pass"
    link = lab.boot(code).link()
    link.program(1, "app.py")
    link.cut()
    again = lab.link(after=link)
    again.program(1, "app.py")
    assert (1, "app.py") in again.programs, "it was started again, now that there is a link"


def test_reset_for_a_fresh_cell_skips_the_program_once(lab):
    link = lab.boot(TICKING).link()
    link.program(0, "app.py")
    link.reset()
    again = lab.link(after=link)
    assert again.proof_fields["facts"]["program"] == "app.py left out until a hard reset"
    again.reset()
    third = lab.link(after=again)
    assert third.proof_fields["boot"] != again.proof_fields["boot"]


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
    assert again.proof_fields["boot"] != link.proof_fields["boot"]
    assert again.proof_fields["facts"]["program"] == "app.py left out until a hard reset"
    assert again.run("__cm__((6 * 7))").value == b"42"


def test_reset_skips_a_program_that_is_new_on_the_board(lab):
    link = lab.boot().link()
    assert link.run("with open('/app.py', 'w') as f:\n    f.write('while True: pass')").status == OK
    link.reset()
    again = lab.link(after=link)
    assert again.proof_fields["facts"]["program"] == "app.py left out until a hard reset"
    assert again.run("__cm__((6 * 7))").value == b"42"


def test_reset_without_a_program_skips_no_later_one(lab):
    link = lab.boot().link()
    link.reset()
    again = lab.link(after=link)
    assert again.run("import os\n__cm__(('cm.skip' in os.listdir('/')))").value == b"False"


def test_cell_that_was_skipped_for_the_program_runs_when_it_is_sent_again(lab):
    link = lab.boot("while True:\n    pass").link()
    link.program(1, "app.py")
    job = link.submit("n = globals().get('n', 0) + 1\n__cm__((n))")
    link.ping()
    link.stop()
    link.program(0, "app.py ended")
    assert job.status is None
    link.send(again(job, "n = globals().get('n', 0) + 1\n__cm__((n))"))
    assert job.wait().value == b"1"


def test_cell_never_runs_twice_even_after_a_program(lab):
    link = lab.boot("while True:\n    pass").link()
    link.program(1, "app.py")
    link.stop()
    link.program(0, "app.py ended")
    job = link.submit("n = globals().get('n', 0) + 1")
    assert job.wait().status == OK
    link.send(again(job, "n = globals().get('n', 0) + 1"))
    assert link.run("__cm__((n))").value == b"1"


def again(job, code):
    """Send a cell with the flag of a repeated one."""
    head = struct.pack(">II", 0, len(code))
    return message(EXEC, job.number, head + code.encode(), AGAIN)


# Crashes, and safe mode

CRASHES = {
    "at import": "raise ValueError('at import')",
    "at once": "async def main():\n    raise ValueError('at once')",
    "after a while": "import asyncio\nasync def main():\n    await asyncio.sleep(0.05)\n    1/0",
}


@pytest.mark.parametrize("app", CRASHES.values(), ids=CRASHES)
def test_crash_of_the_program_is_reported_and_cells_run(lab, app):
    link = lab.boot(app).link()
    lab.peer.until(lambda _: any("ended: " in text for _, text in link.programs))
    (state,) = {text for _, text in link.programs if "ended: " in text}  # a new link tells it, too
    assert state.startswith(("app.py ended: ValueError: at", "app.py ended: ZeroDivisionError"))
    assert link.run("__cm__((6 * 7))").value == b"42"
    lab.chip.power_off()
    count, kept = lab.flash.read("/cm.boot").split("\n", 1)
    assert count.startswith("1 ")
    assert 'File "app.py", line' in kept


@pytest.mark.parametrize("app", CRASHES.values(), ids=CRASHES)
def test_three_bad_starts_lead_to_safe_mode(lab, app):
    lab.boot(app)
    link = None
    for _ in range(3):
        link = lab.link(after=link)
        lab.peer.until(lambda _, link=link: any("ended: " in text for _, text in link.programs))
        lab.chip.press_reset()
    safe = lab.link(after=link)
    assert safe.proof_fields["facts"]["program"].startswith("safe mode, without app.py: ")
    assert safe.run("import sys\n__cm__(('app' in sys.modules))").value == b"False"


def test_program_that_resets_the_board_leads_to_safe_mode(lab):
    app = "import machine\nwith open('/starts', 'a') as f:\n    f.write('x ')\nmachine.reset()"
    lab.boot(app)
    lab.peer.until(
        lambda peer: any(
            "safe mode" in link.proof_fields["facts"]["program"] for link in peer.links.values()
        ),
    )
    assert lab.link().proof_fields["facts"]["program"] == "safe mode: app.py reset the board"
    assert lab.starts() == ["x"] * 3


def test_another_program_gets_its_own_three_starts(lab):
    lab.boot(CRASHES["at import"])
    link = None
    for _ in range(3):
        link = lab.link(after=link)
        lab.peer.until(lambda _, link=link: any("ended: " in text for _, text in link.programs))
        lab.chip.press_reset()
    safe = lab.link(after=link)
    assert "safe mode" in safe.proof_fields["facts"]["program"]
    safe.run("with open('/app.py', 'w') as f:\n    f.write('print(1)')")
    lab.chip.press_reset()
    other = lab.link(after=safe)
    other.program(0, "app.py ended")
    assert "safe mode" not in other.proof_fields["facts"]["program"]


def test_boots_without_wifi_are_no_bad_starts(lab):
    lab.boot(CRASHES["at import"], air={}, wifi=[["home", "x"]])
    for _ in range(4):
        lab.chip.hear(b"not found")
        lab.chip.power_off()
        lab.chip.said.clear()
        lab.chip.press_reset()
    lab.chip.power_off()
    # no link, and the program had not been started: it is not to blame
    assert lab.flash.read("/cm.boot").split(" ")[0] in ("", "0")


# The serial port


@pytest.mark.parametrize("app", ["", TICKING, "while True:\n    pass"])
def test_ctrl_c_on_the_serial_port_enters_the_repl(lab, app):
    link = lab.boot(app).link()
    if app:
        link.program(1, "app.py")
    with BoardRepl(lab.chip.port) as repl:
        repl.await_prompt(60)
        assert repl.run("print(6 * 7)").strip() == "42"


def test_ctrl_c_while_the_heap_is_locked_leaves_a_repl_that_can_allocate(lab):
    """The heap is locked for an instant at a cell's end; here the Ctrl-C comes just then."""
    link = lab.boot("").link()
    link.submit(
        """import cm.link, cm.state
unlock = cm.link.heap_unlock
def interrupted():
    cm.link.heap_unlock = unlock
    raise cm.state.console.keyboard
def unlock_in_cell():
    cm.link.heap_unlock = interrupted
    return unlock()
cm.link.heap_unlock = unlock_in_cell
"""
    )
    with BoardRepl(lab.chip.port) as repl:
        repl.await_prompt(60)
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
