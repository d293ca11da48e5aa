# The board's identity in /cm.json: enrols with a token, and replaces its key.
# Boards: all; loaded for that, then dropped.
# Cost: 909 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link
from cm.firmware import binascii, json, machine, os, struct, sys
from cm.mac import hmac

hexlify = binascii.hexlify
unhexlify = binascii.unhexlify

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_ENROL = const(0x05)
_ENROLLED = const(0x06)
_REKEYED = const(0x25)


def load():
    with open("/cm.json") as file:
        return json.load(file)


# Writes to another file and renames it: after a power cut there is the old file or the new one.
def save(config):
    with open("/cm.tmp", "w") as file:
        json.dump(config, file)
    os.rename("/cm.tmp", "/cm.json")
    # New settings: config includes them, or has a newer key.
    for name in ("cm.new", "cm.new.trial"):
        if name in os.listdir("/"):
            os.remove(name)


# Enrols. The board generates its own key and saves it before it sends it: if it asks
# again with the same token and key, the server returns the same identity. HELLO follows on the same
# link.
def enrol(config, send, expect):
    if "key" not in config:
        config["key"] = hexlify(os.urandom(32)).decode()
        save(config)
    uid = (
        hexlify(machine.unique_id()).decode()
        if hasattr(machine, "unique_id")
        else config["key"][:8]
    )
    about = {"v": 1, "uid": uid, "platform": sys.platform}
    for name in ("token", "key", "name"):
        about[name] = config.get(name, "")
    send(_ENROL, json.dumps(about).encode())
    config.update(json.loads(bytes(link.mv[_IN + _HEADER : expect(_ENROLLED)])))
    del config["token"]
    save(config)


# Handles REKEY, which has the number of the new key and the data that it is derived with; no key is
# sent over the network.
def rekey(view):
    link.drop("identity")
    config = load()
    gen = config.get("gen", 0) + 1
    if struct.unpack_from(">I", view)[0] != gen:
        return
    key = hmac(unhexlify(config["key"]), b"cm1 rekey", view)
    config["key"] = hexlify(key).decode()
    config["gen"] = gen
    proof = hmac(key, b"cm1 rekeyed", view)
    save(config)
    link.mv[_OUT : _OUT + 32] = proof
    link.send(_REKEYED, 0, _OUT, _OUT + 32)
