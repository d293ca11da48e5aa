"""The golden vectors of the protocol on a real MicroPython: its answers, byte for byte."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.protocol.frames import FrameReader
from cloudmanager.virtual.virtual_boards import VirtualBoards

CELLS = json.loads((Path(__file__).parent.parent / "wire_vectors/cells.json").read_text("utf-8"))
KEY = bytes(range(32))
WAIT = 20.0  # seconds that a board may take for anything


class BoardLink:
    """The server's end of one board's link, message by message."""

    def __init__(self, sock):
        self.sock = sock
        self.reader = FrameReader(65_536, masked=True)
        self.came = []
        sock.settimeout(WAIT)

    def send(self, message):
        self.sock.sendall(frames.encode_frame(message))

    def receive(self):
        """Return the next message; skip pings and pongs."""
        while not self.came:
            data = self.sock.recv(65_536)
            assert data, "the board hung up"
            found = list(self.reader.feed(data))
            assert all(frame.opcode == frames.BINARY for frame in found)
            self.came += [frame.payload for frame in found]
        return self.came.pop(0)

    def upgrade(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.sock.recv(1)
        (key,) = [
            line[19:] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: ")
        ]
        accept = frames.accept_key(key.decode())
        self.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )

    def greet(self):
        """Authenticate each other; return the fields of PROOF."""
        hello = proofs.read_hello(wire.unpack(self.receive()))
        nonce = os.urandom(proofs.NONCE_BYTES)
        self.send(proofs.pack_challenge(KEY, hello, nonce))
        proof_fields = proofs.check_proof(KEY, hello, nonce, wire.unpack(self.receive()))
        assert proof_fields is not None
        welcome = {"name": "golden", "beat": 60.0, "spread": 2.0}
        self.send(wire.pack_json(wire.WELCOME, welcome))
        return proof_fields

    def receive_whole(self):
        """Return the next INPUT or RESULT, with the output of messages before it."""
        output = b""
        while (message := wire.unpack(self.receive())).op == wire.OUTPUT:
            output += message.payload
        if message.op != wire.RESULT:
            assert output == b""
            return wire.pack(message.op, message.payload, job=message.job, flags=message.flags)
        ending = wire.read_result(message)
        output += ending.output
        rest = re.sub(
            rb'  File "cm[/.].*\n', b"", ending.value_or_traceback
        )  # a frame of the client's own
        payload = len(output).to_bytes(2, "big") + output + rest
        return wire.pack(wire.RESULT, payload, job=message.job, flags=message.flags)


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(WAIT)
        identity = BoardIdentity("golden", "0123456789abcdef", KEY)
        folder = tmp_path_factory.mktemp("golden")
        with VirtualBoards([identity], listening.getsockname(), folder):
            sock, _ = listening.accept()
            with sock:
                link = BoardLink(sock)
                link.upgrade()
                link.proof_fields = link.greet()
                yield link


def test_board_sends_the_fields_of_protocol_md(link):
    assert set(link.proof_fields) == {"boot", "buf", "parts", "facts", "last"}
    facts = {"platform", "version", "mpy", "machine", "client", "heap", "rssi", "program"}
    facts |= {"block", "uptime", "flash", "watchdog"}
    assert set(link.proof_fields["facts"]) == facts
    assert (link.proof_fields["last"], "run" in link.proof_fields["parts"]) == (None, True)


def renumbered(text, cell):
    """Return a golden message with a new job number: a board runs no job twice."""
    data = bytearray.fromhex(text)
    data[2] = CELLS.index(cell) + 1
    return bytes(data)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell["what"])
def test_board_answers_a_golden_cell(link, cell):
    for step in cell["steps"]:
        if "to_board" in step:
            link.send(renumbered(step["to_board"], cell))
        else:
            assert link.receive_whole() == renumbered(step["from_board"], cell)
