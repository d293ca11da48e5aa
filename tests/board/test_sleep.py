"""Deep sleep on chips: a real MicroPython with stand-ins for each port (standin_boot.py).

The chips sleep for no time, but their memory is lost and their interpreter starts again. A test
sees for how many ms each sleep was in the file `sleeps`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .peer import OK, SLEEP_REPLY, STAY_AWAKE, message

ESP = ("esp32-1.28", "esp8266-1.28")
PORTS = (*ESP, "rp2-1.28")
SECONDS = 60.0  # until a chip must have woken so often, also on a busy machine
pytestmark = pytest.mark.timeout(200)
COUNT = "import cm\ncm.sleep({})\n"


@pytest.fixture
def lab(boot_lab):
    boot_lab.peer.beat = 1000.0
    boot_lab.peer.spread = 0
    return boot_lab


def boot(lab, port, app, **settings):
    path = Path(lab.folder) / "sleeps"
    path.unlink(missing_ok=True)
    options = {"port": port, "sleeps": str(path), "sleeps_fast": True, "ticks_from_zero": True}
    return lab.boot(app, chip_options=options, **settings)


def sleeps(lab) -> list[int]:
    """Return for how many ms the chip has slept, each time."""
    path = Path(lab.folder) / "sleeps"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait(lab, count, seconds=SECONDS):
    """Wait until the chip has slept so often."""
    deadline = time.monotonic() + seconds
    while len(sleeps(lab)) < count:
        assert time.monotonic() < deadline, (sleeps(lab), bytes(lab.chip.said[-1000:]))
        time.sleep(0.02)


def image(lab) -> bytes:
    return lab.flash.path.read_bytes()


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("wakes", [12, pytest.param(50, marks=pytest.mark.soak)])
def test_wakes_from_cm_sleep_write_nothing_to_flash(lab, port, wakes):
    boot(lab, port, COUNT.format(60))
    wait(lab, 1)
    before = image(lab)
    wait(lab, wakes + 1, SECONDS * 3)
    lab.chip.power_off()
    assert image(lab) == before
    assert set(sleeps(lab)) == {60_000}
    assert all(ms == 60_000 for ms, _ in lab.peer.sleeps)


@pytest.mark.parametrize("port", ESP)
def test_fifty_wakes_without_radio_write_nothing_to_flash(lab, port):
    boot(lab, port, COUNT.format("60, connect_every=100"))
    wait(lab, 1)
    before = image(lab)
    wait(lab, 51, SECONDS * 2)
    lab.chip.power_off()
    assert image(lab) == before
    assert len(lab.peer.seen) == 1


@pytest.mark.parametrize("port", ESP)
@pytest.mark.parametrize("wakes", [6, pytest.param(50, marks=pytest.mark.soak)])
def test_wakes_from_a_deepsleep_of_the_program_write_nothing_to_flash(lab, port, wakes):
    """But the first one: that the start was a good one."""
    boot(lab, port, "import machine\nmachine.deepsleep(5000)")
    wait(lab, 2)
    before = image(lab)
    wait(lab, wakes + 2, SECONDS * 3)
    lab.chip.power_off()
    assert image(lab) == before
    assert lab.flash.read("/cm.boot").startswith("0 ")


def test_rp2_counts_starts_after_a_deepsleep_of_the_program_but_writes_nothing(lab):
    """Its cause looks as that of a watchdog: docs/sleep.md says to use cm.sleep."""
    before = lab.boot("import machine\nmachine.deepsleep(5000)") and image(lab)
    lab.chip.power_off()
    boot(lab, "rp2-1.28", "import machine\nmachine.deepsleep(5000)")
    before = image(lab)
    wait(lab, 3)
    lab.peer.until(
        lambda peer: any(
            "safe mode" in link.proof_fields["facts"]["program"] for link in peer.links.values()
        ),
        timeout=SECONDS,
    )
    lab.chip.power_off()
    assert image(lab) == before


def test_bad_starts_of_rp2_are_counted_over_resets_but_not_over_a_power_cut(lab):
    def is_safe(peer):
        return [
            "safe mode" in link.proof_fields["facts"]["program"] for link in peer.links.values()
        ]

    app = "import machine\nmachine.reset()"
    lab.boot(app, chip_options={"port": "rp2-1.28"})
    lab.peer.until(lambda peer: True in is_safe(peer), timeout=SECONDS)
    lab.chip.power_off()
    lab.boot(app, chip_options={"port": "rp2-1.28"})
    lab.peer.until(lambda peer: False in is_safe(peer), timeout=SECONDS)


@pytest.mark.parametrize(
    ("port", "turns"),
    [
        ("esp32-1.28", [10_800_000]),
        ("esp8266-1.28", [4_200_000, 4_200_000, 2_400_000]),
        ("rp2-1.28", [4_200_000, 4_200_000, 2_400_000]),
    ],
)
def test_long_sleep_is_done_in_turns_without_the_program(lab, port, turns):
    app = "import cm\nprint('runs')\ncm.sleep(3 * 3600)\n"
    boot(lab, port, app)
    wait(lab, 2 * len(turns))
    assert sleeps(lab)[: 2 * len(turns)] == turns * 2
    assert len(lab.peer.seen) <= 3
    lab.chip.hear(b"runs")
    assert {ms for ms, _ in lab.peer.sleeps} == {10_800_000}


@pytest.mark.parametrize("port", ESP)
def test_rtc_memory_of_the_program_is_its_own(lab, port):
    app = """
import cm, machine
kept = machine.RTC().memory()
cm.emit(kept=str(kept))
machine.RTC().memory(kept + b"x")
cm.sleep(60)
"""
    boot(lab, port, app)
    lab.peer.until(lambda peer: len(peer.samples) >= 4, timeout=SECONDS)
    assert [values["kept"] for _, _, values in lab.peer.samples[:4]] == [
        "b''",
        "b'x'",
        "b'xx'",
        "b'xxx'",
    ]


@pytest.mark.parametrize("port", ESP)
def test_samples_are_gathered_until_the_board_connects(lab, port):
    """It connects at each third wake; each sample is as old as the sleeps since then."""
    app = """
import cm, machine
n = int(machine.RTC().memory() or b"0")
machine.RTC().memory(b"%d" % (n + 1))
cm.emit(n=n)
cm.sleep(100, connect_every=3)
"""
    boot(lab, port, app)
    lab.peer.until(lambda peer: len(peer.samples) >= 7, timeout=SECONDS)
    found = [
        (values["n"], values.get("", 0) // 100_000, lost) for _, lost, values in lab.peer.samples
    ]
    ages = [0, 2, 1, 0, 2, 1, 0]
    assert found[:7] == [(n, age, 0) for n, age in enumerate(ages)]
    assert lab.peer.sleeps[0][0] == 300_000


@pytest.mark.parametrize("port", PORTS)
def test_sample_and_sleep_follow_the_proof_at_once(lab, port):
    """A wake with nothing to do needs one answer: WELCOME, and that it may sleep."""
    early = []
    lab.peer.before_welcome = lambda messages: early.append(len(messages)) or True
    boot(lab, port, "import cm\ncm.emit(a=1)\ncm.sleep(60)\n")
    wait(lab, 4)
    assert early[:2] == [2, 2]
    assert all(values["a"] == 1 for _, _, values in lab.peer.samples)
    assert len(lab.peer.samples) in (len(lab.peer.sleeps), len(lab.peer.sleeps) + 1)


def test_sample_is_sent_again_if_the_server_does_not_accept_the_board(lab):
    """A server that has lost the board's facts closes the link; then the board sends them all."""
    refused = []
    lab.peer.before_welcome = lambda messages: refused.append(messages) is not None
    app = """
import cm, machine
n = int(machine.RTC().memory() or b"0")
machine.RTC().memory(b"%d" % (n + 1))
cm.emit(n=n)
cm.sleep(100)
"""
    boot(lab, "esp32-1.28", app)
    lab.peer.until(lambda peer: len(peer.samples) >= 4, timeout=SECONDS)
    assert [values["n"] for _, _, values in lab.peer.samples[:4]] == [0, 1, 2, 3]
    assert len(refused) >= 3


def test_wake_whose_first_attempt_to_connect_fails_is_as_short_in_its_second(lab):
    """It reports no facts, and does not wait for WELCOME, unless the server has refused that."""
    proofs, hellos = [], []

    def is_second() -> bool:
        hellos.append(len(proofs))
        return len(hellos) % 2 == 0

    lab.peer.before_challenge = is_second
    lab.peer.before_welcome = lambda messages: proofs.append(len(messages)) or True
    boot(lab, "rp2-1.28", "import cm\ncm.sleep(60)\n")
    wait(lab, 4)
    assert proofs[:3] == [1, 1, 1]
    assert len(hellos) >= 8


def test_oldest_samples_are_dropped_and_counted_if_the_memory_is_full(lab):
    app = """
import cm, machine
n = int(machine.RTC().memory() or b"0")
machine.RTC().memory(b"%d" % (n + 1))
for _ in range(5):
    cm.emit(n=n, text="x" * 100)
cm.sleep(100, connect_every=3)
"""
    boot(lab, "esp8266-1.28", app)
    lab.peer.until(lambda peer: len(peer.sleeps) >= 2, timeout=SECONDS)
    found = [(values["n"], lost) for _, lost, values in lab.peer.samples[5:]]
    assert found[:8] == [(2, 7), (2, 0), (2, 0), (3, 0), (3, 0), (3, 0), (3, 0), (3, 0)]


@pytest.mark.parametrize("port", PORTS)
def test_job_runs_before_the_board_sleeps(lab, port):
    jobs = []

    def reply(link):
        if jobs:
            return message(SLEEP_REPLY, bytes(4))
        jobs.append(link)
        return message(SLEEP_REPLY, bytes(4), (10_000).to_bytes(4, "big"), STAY_AWAKE)

    lab.peer.sleep_reply = reply
    boot(lab, port, COUNT.format(60))
    lab.peer.until(lambda _: jobs, timeout=SECONDS)
    job = jobs[0].submit("import sys\n__cm__((sys.modules['app'].__name__))")
    assert job.wait(SECONDS).value == b"'app'"
    wait(lab, 1)


def test_board_whose_server_does_not_answer_sleeps_all_the_same(lab):
    lab.peer.sleep_reply = lambda _: None
    boot(lab, "esp32-1.28", COUNT.format(60))
    wait(lab, 2)


def test_bare_except_around_cm_sleep_does_not_keep_the_board_awake(lab):
    app = "import cm\nwhile True:\n    try:\n        cm.sleep(60)\n    except:\n        pass\n"
    boot(lab, "esp32-1.28", app)
    wait(lab, 3)


BAD = ["-1", "0", "366 * 86400", "'60'", "None", "True", "float('nan')", "float('inf')"]
BAD_EVERY = ["0", "-1", "1.5", "'2'", "100000", "float('nan')"]


def test_bad_time_of_sleep_is_an_error_with_a_sentence(lab):
    boot(lab, "esp32-1.28", "")
    link = lab.link(timeout=SECONDS)
    calls = [*BAD, *(f"60, connect_every={every}" for every in BAD_EVERY)]
    for arguments in calls:
        job = link.run(f"import cm\ncm.sleep({arguments})")
        assert job.error.splitlines()[-1] in (
            "TypeError: cm.sleep takes numbers",
            "ValueError: cm.sleep: more than 0 s, and at most 30 days until it connects",
        ), (arguments, job.error)
    assert link.run("__cm__((6 * 7))").value == b"42"


@pytest.mark.parametrize("port", ["rp2-1.28", "esp32-1.28"])
def test_lightsleep_is_not_ended_by_the_ticks_of_the_client(lab, port):
    boot(lab, port, "", watchdog=30)
    link = lab.link(timeout=SECONDS)
    code = """import cm, machine, time
began = time.ticks_ms()
cm.{}
slept = time.ticks_diff(time.ticks_ms(), began)
__cm__((slept >= 290))"""
    assert link.run(code.format("lightsleep(300)")).value == b"True"
    code = "import cm.state\n__cm__((len(cm.state.console.dogs)))"
    assert link.run(code).value == b"1", "its watchdog is armed again"
    assert link.run("while True: pass", timeout_ms=300).status != OK, "so are its ticks"
