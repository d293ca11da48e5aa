"""The board's link: authentication, protocol violations, reconnecting, resets."""

import hmac
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudmanager.board_client import compile_client

from .peer import ERROR, EXEC, FILE, INTERRUPTED, OK, RUNNING, TIMEOUT, Job, message

LAST = {"status": OK, "error": "", "dropped": 0}


@pytest.fixture(scope="module")
def near(make_lab):
    """A board that reconnects quickly, since its server has set a short spread."""
    return make_lab(spread=0.2)


@pytest.fixture
def board(near):
    link = near.link()
    yield link
    assert near.link().run("__cm__((6 * 7))").value == b"42"


@pytest.mark.parametrize("key", [bytes(32), b"\x36" * 32, b"\x5c" * 32, bytes(range(224, 256))])
def test_boards_hmac_is_that_of_rfc_2104(board, key):
    parts = b"cm1 board", bytes(range(100))
    code = "from cm import mac\n__cm__((mac.hmac(%r, *%r)))" % (key, parts)
    expected = hmac.digest(key, b"".join(parts), "sha256")
    assert board.run(code).value == repr(expected).encode()


def test_board_reports_its_facts(near, board):
    proof_fields = board.proof_fields
    assert {"run", "files", "ask", "loop"} <= set(proof_fields["parts"])
    assert 512 <= proof_fields["buf"] <= 4096
    facts = proof_fields["facts"]
    assert (facts["platform"], facts["mpy"] & 0xFF) == ("linux", 6)
    assert facts["version"].startswith("1.")
    assert 20_000 < facts["heap"] < 131_072
    assert 8_000 < facts["block"] < facts["heap"]
    assert 100_000 < facts["flash"] < 2 * 1024 * 1024
    assert facts["uptime"] >= 0
    assert len(bytes.fromhex(proof_fields["boot"])) >= 8


def test_idle_board_reports_free_heap_and_rssi_after_a_cell_and_after_a_ping(board):
    def more_facts():
        count = len(board.facts)
        return lambda _: len(board.facts) > count

    wifi = "class WLAN:\n    def __init__(self, n): pass\n    def status(self, what): return -61\n"
    waits = more_facts()
    board.run("import sys\nkept = bytearray(20000)")
    board.peer.until(waits)
    assert (board.facts[-1][0] < board.proof_fields["facts"]["heap"], board.facts[-1][1]) == (
        True,
        0,
    )
    before = board.facts[-1][0]
    waits = more_facts()
    board.run(
        wifi + "WLAN.WLAN = WLAN\nimport cm.firmware\ncm.firmware.network = WLAN\nkept = None"
    )
    board.peer.until(waits)
    assert board.facts[-1][0] > before + 15000
    assert board.facts[-1][1] == -61
    board.run("cm.firmware.network = None")
    waits = more_facts()
    board.ping()
    board.peer.until(waits)


def test_board_refuses_a_server_without_its_key(make_lab):
    lab = make_lab(lie=True, spread=0.2)
    lab.peer.until(lambda peer: len(peer.refused) >= 3)
    assert set(lab.peer.refused) == {1008}
    assert lab.peer.links == {}


def test_board_with_a_wrong_key_refuses_the_server(make_lab):
    lab = make_lab(keys={"id-1": os.urandom(32)}, spread=0.2)
    lab.peer.until(lambda peer: len(peer.refused) >= 2)
    assert set(lab.peer.refused) == {1008}


def test_key_is_not_in_a_command_line_or_a_log(near):
    key = near.identities[0].key.hex()
    pid = near.boards.pids["lab-1"]
    for name in ("cmdline", "environ"):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            assert key.encode() not in file.read()
    assert key not in near.log()
    assert key not in repr(near.identities)


@pytest.mark.parametrize("code", [1001, 1008, 4001, 4002, 4003, 4004, 1011])
def test_board_reconnects_after_every_close_code(near, board, code):
    board.close(code)
    again = near.link(after=board)
    assert again.proof_fields["boot"] == board.proof_fields["boot"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes([0x02, 6]) + bytes(6), 1002),  # a fragment
        (bytes([0xC2, 6]) + bytes(6), 1002),  # a reserved bit
        (bytes([0x82, 0x86]) + bytes(10), 1002),  # masked
        (bytes([0x81, 6]) + b"hello!", 1002),  # text
        (bytes([0x83, 6]) + bytes(6), 1002),  # an unknown opcode
        (bytes([0x89, 126, 0, 200]) + bytes(200), 1002),  # a long ping
        (bytes([0x82, 3]) + bytes(3), 1002),  # shorter than a header
        (bytes([0x82, 126]) + struct.pack(">H", 1017) + bytes(1017), 1009),  # over its buffer
        (bytes([0x82, 127]) + struct.pack(">Q", 70_000), 1009),
    ],
)
def test_board_refuses_protocol_violations(near, board, data, code):
    board.raw(data)
    assert board.closed.wait(5)
    assert board.socket.close_code == code
    near.link(after=board)


def test_long_error_leaves_room_for_the_facts(near):
    """The last error is cut off, so that it fits into the buffer with what else a board reports."""
    link = near.link()
    assert link.run("raise ValueError('\\'\"' * 200)").status == ERROR
    link.cut()
    again = near.link(after=link)
    assert again.proof_fields["last"]["status"] == ERROR
    assert again.run("__cm__((6 * 7))").value == b"42"


def test_longest_message_fits(board):
    code = b"#" * (board.proof_fields["buf"] - 14)
    assert board.run(code).status == OK


def test_frames_in_pieces_are_joined(board):
    job = board.jobs[b"slow"] = Job(b"slow")
    data = message(EXEC, b"slow", struct.pack(">II", 0, 6) + b"x = 12")
    for byte in bytes([0x82, len(data)]) + data:
        board.raw(bytes([byte]))
    assert job.wait().status == OK


def test_several_frames_in_one_packet_are_handled_in_order(board):
    job = board.jobs[b"fast"] = Job(b"fast")
    data = message(EXEC, b"fast", struct.pack(">II", 0, 6) + b"x = 12")
    board.raw(bytes([0x89, 2, 1, 2, 0x8A, 0]) + bytes([0x82, len(data)]) + data + bytes([0x89, 0]))
    assert job.wait().status == OK


def test_pong_has_the_bytes_of_its_ping(board):
    for size in (0, 1, 125):
        assert board.ping(b"p" * size) < 1


def test_board_reconnects_and_reports_its_last_job(near, board):
    board.run("x = 1", number=b"\1\2\3\4")
    board.cut()
    again = near.link(after=board)
    assert again.proof_fields["last"] == {"job": "01020304", **LAST}


def test_outcome_of_a_cell_is_reported_after_a_lost_link(near, board):
    code = "import time\nfor n in range(4):\n    print('out')\n    time.sleep(0.2)\nkept = 5"
    job = board.submit(code, number=b"cut!")
    job.until(lambda job: job.output)
    board.cut()
    again = near.link(after=board)
    last = again.proof_fields["last"]
    assert (last["job"], last["status"]) == (b"cut!".hex(), OK)
    assert last["dropped"] >= 8
    assert again.run("__cm__((kept))").value == b"5"


def test_cell_that_is_sent_twice_runs_once(near, board):
    first = board.run("twice = 1", number=b"same")
    assert first.status == 0
    board.submit("twice = 2", number=b"same")
    again = near.link(after=board)
    assert near.peer.refused or board.closed.wait(5)
    assert again.run("__cm__((twice))").value == b"1"


def test_error_of_a_cell_is_reported_after_a_lost_link(near, board):
    job = board.submit("import time\nprint(1)\ntime.sleep(0.5)\nraise OSError('\\0\\x07é' * 300)")
    job.until(lambda job: job.output)
    board.cut()
    last = near.link(after=board).proof_fields["last"]
    assert last["status"] == ERROR
    assert len(last["error"]) <= 256
    assert last["error"].isprintable() or "\n" in last["error"]


def test_timeout_works_without_a_link(near, board):
    job = board.submit("print(1)\nwhile True: pass", timeout_ms=600)
    job.until(lambda job: job.output)
    board.cut()
    assert near.link(after=board).proof_fields["last"]["status"] == TIMEOUT  # not: interrupted


def test_cell_without_a_link_is_interrupted_after_the_limit(near, board):
    board.run("import cm.state\ncm.state.link_timeout = 500")  # 60 s otherwise
    job = board.submit("print(1)\nwhile True: pass")
    job.until(lambda job: job.output)
    board.cut()
    last = near.link(after=board).proof_fields["last"]
    assert (last["status"], "link lost" in last["error"]) == (INTERRUPTED, True)


def test_input_ends_with_the_link(near, board):
    job = board.submit("try:\n    input()\nexcept EOFError:\n    ended = 1")
    job.until(lambda job: job.prompts)
    board.cut()
    assert near.link(after=board).run("__cm__((ended))").value == b"1"


def test_printing_cell_survives_the_loss_of_its_link(near, board):
    job = board.submit("for n in range(20000):\n    print('line', n)")
    job.until(lambda job: len(job.output) > 1000)
    board.cut()
    last = near.link(after=board).proof_fields["last"]
    assert last["status"] == OK
    assert last["dropped"] > 100_000


def test_board_reconnects_when_the_server_is_silent(make_lab):
    lab = make_lab(beat=0.2, spread=0.2)
    link = lab.link()
    begun = time.monotonic()
    lab.link(after=link)
    assert 0.3 < time.monotonic() - begun < 20


def test_input_ends_when_the_server_is_silent(make_lab):
    lab = make_lab(beat=0.2, spread=0.2)
    link = lab.link()
    job = link.submit("try:\n    input()\nexcept EOFError:\n    ended = 1")
    job.until(lambda job: job.prompts)
    again = lab.link(after=link)
    assert again.proof_fields["last"]["status"] == OK
    assert again.run("__cm__((ended))").value == b"1"


def test_pings_keep_the_link_open(make_lab):
    lab = make_lab(beat=0.2, spread=0.2)
    link = lab.link()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        link.ping()
        time.sleep(0.1)
    assert not link.closed.is_set()


def test_restarted_board_has_a_new_boot_id_and_keeps_its_flash(near, board):
    board.run("with open('kept.txt', 'w') as f:\n    f.write('kept')")
    near.boards.restart("lab-1")
    again = near.link(after=board)
    assert again.proof_fields["boot"] != board.proof_fields["boot"]
    assert again.proof_fields["last"] is None
    assert again.run("__cm__((open('/kept.txt').read()))").value == b"'kept'"


def test_reset_board_reconnects_immediately_and_keeps_its_flash(near, board):
    board.run("gone = 1\nwith open('stays.txt', 'w') as f:\n    f.write('stays')")
    begun = time.monotonic()
    board.reset()
    again = near.link(after=board)
    assert time.monotonic() - begun < 10
    assert board.socket.close_code == 1005  # a close without a code, not a broken link
    assert again.proof_fields["boot"] != board.proof_fields["boot"]
    assert again.proof_fields["last"] is None
    assert "NameError" in again.run("gone").error
    assert again.run("__cm__((open('/stays.txt').read()))").value == b"'stays'"


def test_board_without_memory_to_reconnect_restarts(near, board):
    assert "MemoryError" in board.run("x = None\nwhile True:\n    x = [x]").error
    board.cut()
    again = near.link(after=board)
    assert again.proof_fields["boot"] != board.proof_fields["boot"]
    assert "NameError" in again.run("x").error


def test_board_can_be_reset_repeatedly(near, board):
    for _ in range(5):
        board.reset()
        board = near.link(after=board)
    assert list(near.boards.pids) == ["lab-1"]


def test_boards_reconnect_when_the_server_is_back(make_lab):
    lab = make_lab(20, spread=2.0)
    lab.peer.until(lambda peer: len(peer.links) == 20)
    lab.peer.shut()
    time.sleep(0.5)
    lab.peer.open()
    begun = time.monotonic()
    lab.peer.until(lambda peer: len(peer.links) == 20)
    assert time.monotonic() - begun < 3.5
    jobs = [link.submit("__cm__((1))") for link in lab.peer.links.values()]
    assert [job.wait().value for job in jobs] == [b"1"] * 20


def test_board_keeps_trying_to_connect(make_lab):
    lab = make_lab(start=False, spread=0.2)
    lab.peer.shut()
    lab.boards.start()
    time.sleep(0.5)
    lab.peer.open()
    assert lab.link().run("__cm__((1))").value == b"1"


def test_status_running_is_never_reported(near, board):
    assert board.proof_fields["last"] is None or board.proof_fields["last"]["status"] != RUNNING


def test_transfer_ends_when_the_server_is_silent(make_lab):
    lab = make_lab(beat=0.2, spread=0.2)
    link = lab.link()
    ops = json.dumps([1000, [["put", "/big", 100_000, "0" * 64]]])
    job = link.submit(ops, op=FILE)
    job.until(lambda job: job.chunks)
    last = lab.link(after=link).proof_fields["last"]
    assert (last["status"], "link lost" in last["error"]) == (INTERRUPTED, True)


DIAL = """
import sys
sys.path.append({client!r})
from cm import firmware, link

done = []
class Stub:
    SOCK_STREAM = POLLIN = PROTOCOL_TLS_CLIENT = CERT_REQUIRED = 0
    {names}
    def getaddrinfo(self, *_):
        return [(2, 1, 0, "", "address")]
    def socket(self, *_):
        return self
    def setsockopt(self, *option):
        done.append(option)
    def connect(self, address):
        done.append(address)
    def SSLContext(self, _):
        return self
    def wrap_socket(self, *_, **__):
        done.append("TLS")
        raise OSError
    def register(self, *_):
        pass
    settimeout = load_verify_locations = register
firmware.socket = firmware.tls = link.poller = Stub()
import cm.dial as dial
dial.open = lambda _: firmware.io.StringIO('{{"host": "h", "tcp_port": 1, "ca": ""}}')
try:
    dial.connect()
except OSError:
    print(done)
"""


@pytest.mark.parametrize(
    ("names", "option"),
    [
        pytest.param("pass", 1, id="unix"),  # which does not name it
        pytest.param("TCP_NODELAY = 1", 1, id="esp32"),
        pytest.param("TCP_NODELAY = 64", 64, id="rp2, esp8266"),  # where 1 does nothing
    ],
)
def test_small_writes_are_not_delayed_in_the_handshake(tmp_path, names, option):
    """TLS's handshake writes three records in a row: each would wait for an acknowledgement."""
    code = DIAL.format(client=str(compile_client(tmp_path)), names=names)
    binary = str(Path(sys.executable).parent / "micropython")
    done = subprocess.run([binary, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"[(6, {option}, 1), 'address', 'TLS']\n", "")
