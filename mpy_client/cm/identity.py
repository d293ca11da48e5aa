# Who the board is: enrols itself with a token, and takes a new key, in /cm.json.
# Boards: all; loaded for that and dropped.
# Cost: 882 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
import json
import os
from binascii import hexlify, unhexlify
from struct import unpack_from
from sys import platform

from cm.mac import hmac

_IN = const(8)  # as in link.py
_OUT = const(16)
_ENROL = const(0x05)
_ENROLLED = const(0x06)
_REKEYED = const(0x25)


def load():
    with open("/cm.json") as file:
        return json.load(file)


# Written beside and renamed: a power cut leaves the old one or the new.
def save(config):
    with open("/cm.tmp", "w") as file:
        json.dump(config, file)
    os.rename("/cm.tmp", "/cm.json")
    if "cm.new" in os.listdir("/"):  # settings on trial, which worked: this is them, and more
        os.remove("/cm.new")


# Over TLS only. The board makes its own key, and keeps it before it is told: asked again with the
# same token and key, the server gives the same identity. The hello comes next, on the same link.
def enrol(link, config, say, hear):
    if "ca" not in config:
        raise OSError(1008)
    if "key" not in config:
        config["key"] = hexlify(os.urandom(32)).decode()
        save(config)
    try:
        from machine import unique_id

        uid = hexlify(unique_id()).decode()
    except ImportError:
        uid = config["key"][:8]
    about = {"v": 1, "uid": uid, "platform": platform}
    for name in ("token", "key", "name"):
        about[name] = config.get(name, "")
    say(link, _ENROL, json.dumps(about).encode())
    config.update(json.loads(bytes(link.mv[_IN + 6 : hear(link, _ENROLLED)])))
    del config["token"]
    save(config)


# REKEY: the number of the new key, and what it is derived with; no key crosses the wire.
def rekey(link, view):
    config = load()
    gen = config.get("gen", 0) + 1
    if unpack_from(">I", view)[0] != gen:
        return
    key = hmac(unhexlify(config["key"]), b"cm1 rekey", view)
    config["key"] = hexlify(key).decode()
    config["gen"] = gen
    proof = hmac(key, b"cm1 rekeyed", view)
    save(config)
    link.mv[_OUT : _OUT + 32] = proof
    link.tell(_REKEYED, 0, _OUT, _OUT + 32)
