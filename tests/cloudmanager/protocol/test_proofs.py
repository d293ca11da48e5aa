"""Proofs and MACs, checked against docs/protocol.md and the golden vectors."""

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from cloudmanager.protocol import proofs, wire
from cloudmanager.protocol.errors import PeerWireError
from cloudmanager.protocol.proofs import Hello
from cloudmanager.protocol.wire import Message, pack_json, unpack

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/wire_vectors/messages.json").read_text(encoding="utf-8"))

KEY = bytes(range(32))
NONCE = bytes(range(16))
HELLO = Hello(wire.PROTOCOL, "id-1", bytes(16))


def message(vector):
    return unpack(bytes.fromhex(vector["hex"]))


def hello_of(means):
    fields = means["hello"]
    return Hello(fields["v"], fields["id"], bytes.fromhex(fields["nonce"]))


def vectors(*names):
    chosen = [vector for vector in VECTORS if vector["name"] in names]
    return pytest.mark.parametrize("vector", chosen, ids=lambda vector: vector["what"])


@vectors("HELLO")
def test_golden_hello(vector):
    fields = vector["means"]
    wanted = proofs.Hello(fields["v"], fields["id"], bytes.fromhex(fields["nonce"]))
    assert proofs.read_hello(message(vector)) == wanted


@vectors("CHALLENGE")
def test_golden_challenge(vector):
    means = vector["means"]
    made = proofs.pack_challenge(
        bytes.fromhex(means["key"]), hello_of(means), bytes.fromhex(means["nonce"])
    )
    assert made.hex() == vector["hex"]


@vectors("PROOF")
def test_golden_proof(vector):
    means = vector["means"]
    body = proofs.check_proof(
        bytes.fromhex(means["key"]), hello_of(means), bytes.fromhex(means["nonce"]), message(vector)
    )
    assert body == means["json"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"id": "id-1", "nonce": "00" * 16}, id="no version"),
        pytest.param({"v": "1", "id": "id-1", "nonce": "00" * 16}, id="version as text"),
        pytest.param({"v": 1, "nonce": "00" * 16}, id="no id"),
        pytest.param({"v": 1, "id": 7, "nonce": "00" * 16}, id="id as a number"),
        pytest.param({"v": 1, "id": "", "nonce": "00" * 16}, id="empty id"),
        pytest.param({"v": 1, "id": "x" * 65, "nonce": "00" * 16}, id="id too long"),
        pytest.param({"v": 1, "id": "é", "nonce": "00" * 16}, id="id not ASCII"),
        pytest.param({"v": 1, "id": "\ud800", "nonce": "00" * 16}, id="id half a character"),
        pytest.param({"v": 1, "id": "id-1"}, id="no nonce"),
        pytest.param({"v": 1, "id": "id-1", "nonce": None}, id="nonce null"),
        pytest.param({"v": 1, "id": "id-1", "nonce": "xy" * 16}, id="nonce not hex"),
        pytest.param({"v": 1, "id": "id-1", "nonce": "00" * 15}, id="nonce too short"),
        pytest.param({"v": 1, "id": "id-1", "nonce": "00" * 17}, id="nonce too long"),
    ],
)
def test_malformed_hello_is_refused(body):
    with pytest.raises(PeerWireError, match="HELLO"):
        proofs.read_hello(unpack(pack_json(wire.HELLO, body)))


def test_first_message_must_be_a_hello():
    with pytest.raises(PeerWireError, match="link is new may not send op 0x03"):
        proofs.read_hello(Message(wire.PROOF, 0, 0, b"{}"))


def test_hello_of_another_version_is_read():
    body = {"v": 9, "id": "id-1", "nonce": "00" * 16}
    assert proofs.read_hello(unpack(pack_json(wire.HELLO, body))).version == 9


def test_server_proof_is_the_documented_hmac():
    challenge = unpack(proofs.pack_challenge(KEY, HELLO, NONCE)).payload
    nonce, proof, body = challenge[:16], challenge[16:48], challenge[48:]
    text = b"cm1 server" + HELLO.nonce + nonce + b"id-1" + body
    assert (nonce, proof) == (NONCE, hmac.new(KEY, text, hashlib.sha256).digest())


def proof_of(body, *, key=KEY, hello=HELLO, nonce=NONCE):
    proof = proofs.board_proof(key, hello.nonce + nonce, hello.board_id, body)
    return Message(wire.PROOF, 0, 0, proof + body)


def test_valid_proof_is_accepted():
    assert proofs.check_proof(KEY, HELLO, NONCE, proof_of(b'{"boot": "0a"}')) == {"boot": "0a"}


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(proof_of(b"{}", key=bytes(32)), id="another key"),
        pytest.param(proof_of(b"{}", nonce=bytes(16)), id="another session"),
        pytest.param(proof_of(b"{}", hello=HELLO._replace(board_id="id-2")), id="another board"),
        pytest.param(proof_of(b"{}", hello=HELLO._replace(nonce=NONCE)), id="another hello"),
        pytest.param(Message(wire.PROOF, 0, 0, b""), id="nothing"),
        pytest.param(Message(wire.PROOF, 0, 0, bytes(32) + b"{}"), id="zeros"),
        pytest.param(proof_of(b"{}")._replace(payload=proof_of(b"{}").payload + b" "), id="more"),
        pytest.param(
            Message(
                wire.PROOF, 0, 0, proofs.server_proof(KEY, bytes(16) + NONCE, "id-1", b"{}") + b"{}"
            ),
            id="the server's own proof, sent back",
        ),
    ],
)
def test_wrong_proof_is_not_accepted(forged):
    assert proofs.check_proof(KEY, HELLO, NONCE, forged) is None


def test_valid_proof_with_malformed_json_is_refused():
    with pytest.raises(PeerWireError, match="not JSON"):
        proofs.check_proof(KEY, HELLO, NONCE, proof_of(b"nonsense"))


def test_second_message_must_be_a_proof():
    with pytest.raises(PeerWireError, match="link is challenged may not send op 0x20"):
        proofs.check_proof(KEY, HELLO, NONCE, Message(wire.OUTPUT, 0, 0, b""))
