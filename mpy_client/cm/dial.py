# Dialling: TCP, the WebSocket handshake, then each side proves that it knows the board's key.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 2,786 bytes of .mpy, 3,696 bytes of heap to dial (mpy-cross 1.29, 32-bit, 2026-11-25).
import gc
import json
import os
import select
import socket
from binascii import a2b_base64, b2a_base64, hexlify, unhexlify
from hashlib import sha1
from time import ticks_diff, ticks_ms

from cm import mac
from cm.about import about

_IN = const(8)  # as in link.py
_OUT = const(16)
_ROOM = const(1016)  # bytes of the longest message that an idle board can take
_PATIENCE = const(10000)  # ms for each step
_TRIALS = const(6)  # tries to dial that new settings have

_HELLO = const(0x01)
_CHALLENGE = const(0x02)
_PROOF = const(0x03)
_WELCOME = const(0x04)

_ACCEPT = const(b"sec-websocket-accept:")
_GUID = const(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")  # RFC 6455, 1.3


def _say(link, op, data):
    end = _OUT + len(data)
    link.mv[_OUT:end] = data
    link.tell(op, 0, _OUT, end)


# The next message; it must be this one. Gives its end in the buffer.
def _hear(link, op):
    since = ticks_ms()
    while ticks_diff(ticks_ms(), since) < _PATIENCE:
        n = link.recv(_IN)
        if n:
            if link.buf[_IN] != op:
                link.refuse(1002, _IN)
            return n + _IN
        link.wait(1000)
    raise OSError(1006)


def _upgrade(link, host, tcp_port):
    key = b2a_base64(os.urandom(16)).strip()
    text = (
        b"GET /board HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n"
    ) % (host.encode(), tcp_port, key)
    link.io.write(text)  # short: a fresh socket takes it whole
    n = 0
    while link.mv[max(n - 4, 0) : n] != b"\r\n\r\n":
        link.fill(link.mv[n:], 1)
        n += 1
    text = bytes(link.mv[:n])
    at = text.lower().find(_ACCEPT)
    accept = text[at + len(_ACCEPT) :].split(b"\r\n", 1)[0].strip()
    if text[:12] != b"HTTP/1.1 101" or accept != b2a_base64(sha1(key + _GUID).digest()).strip():
        raise OSError(1002)


# The server proves itself first: a stranger learns nothing but the id and a nonce.
def _prove(link, run, job, config):
    name = config["id"]
    key = unhexlify(config["key"])
    sealed = config.get("mac", False)
    nonce = os.urandom(16)
    hello = {"v": 1, "id": name, "nonce": hexlify(nonce).decode()}
    if sealed:
        hello["mac"] = 1
    if "gen" in config:
        hello["gen"] = config["gen"]
    _say(link, _HELLO, json.dumps(hello).encode())
    end = _hear(link, _CHALLENGE)
    at = _IN + 6
    head = nonce + link.mv[at : at + 16] + name.encode()
    proof = mac.hmac(key, b"cm1 server", head, link.mv[at + 48 : end])
    if end - at < 48 or not mac.same(link.mv[at + 16 : at + 48], proof):
        link.refuse(1008, _IN)
    text = json.dumps(about(link, run, job, _ROOM - 16 if sealed else _ROOM)).encode()
    _say(link, _PROOF, mac.hmac(key, b"cm1 board", head, text) + text)
    if sealed:
        mac.begin(mac.hmac(key, b"cm1 session", head))
        link.mac = mac
    return json.loads(bytes(link.mv[at : _hear(link, _WELCOME)]))


# What a socket is told: no waiting for more (TCP_NODELAY); on a board, that a message wakes it;
# else (unix) keep-alive, so that a busy board learns that its link is gone. (Linux's numbers.)
def _tune(sock):
    sock.setsockopt(6, 1, 1)
    if hasattr(os, "dupterm_notify"):
        try:
            sock.setsockopt(1, 20, os.dupterm_notify)
        except (OSError, ValueError, TypeError):
            pass
    else:
        for level, option, value in ((1, 9, 1), (6, 4, 20), (6, 5, 10), (6, 6, 3)):
            sock.setsockopt(level, option, value)


# TLS, verified by the server's own authority for the one name in its certificate; else MACs. In
# the clear a board dials itself only.
def _secure(link, config):
    host = config["host"]
    if "ca" in config:
        import tls

        context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
        context.verify_mode = tls.CERT_REQUIRED
        context.load_verify_locations(a2b_base64(config["ca"]))
        link.io = context.wrap_socket(link.socket, server_hostname="cloudmanager")
    elif "mac" not in config and host[:4] != "127." and host not in ("localhost", "::1"):
        raise OSError(1008)


# New settings (mbm board-config) are kept once they have worked; else the old ones hold on.
def _settings(link):
    try:
        open("/cm.new").close()
    except OSError:
        return "/cm.json"
    if link.tries <= _TRIALS:
        return "/cm.new"
    os.remove("/cm.new")
    print("The new settings do not work: the old ones are back.")
    return "/cm.json"


def _open(link, run):
    name = _settings(link)
    with open(name) as file:
        config = json.load(file)
    if config.get("wifi") or config.get("lan"):
        try:
            from cm import net

            net.up(config)
        finally:
            net = None
            link.drop("net")
    host, tcp_port = config["host"], config["tcp_port"]
    place = socket.getaddrinfo(host, tcp_port, 0, socket.SOCK_STREAM)[0]
    link.socket = link.io = socket.socket(place[0], place[1])
    link.poller.register(link.socket, select.POLLIN)
    link.socket.settimeout(_PATIENCE // 1000)
    link.socket.connect(place[-1])
    _secure(link, config)
    link.socket.setblocking(False)
    _tune(link.socket)
    job = bytes(link.job)
    link.job[:] = b"\0\0\0\0"
    try:
        _upgrade(link, host, tcp_port)
        if "token" in config:
            from cm.identity import enrol

            link.drop("identity")
            enrol(link, config, _say, _hear)
            name = "/cm.json"
        told = _prove(link, run, job, config)
    finally:
        link.job[:] = job
    link.timeout = int(told["beat"] * 2500)
    link.span = int(told["spread"] * 1000)
    link.tries = 1
    if name == "/cm.new":
        os.rename(name, "/cm.json")


# Tries until the link is open. Full jitter: waits a random part of a span that doubles up to the
# server's; only a board that has just started waits for nothing.
def dial(link, run):
    while True:
        if link.tries:
            span = max(1, link.span >> max(0, 3 - link.tries))
            link.idle(int.from_bytes(os.urandom(4), "big") % span)
        link.tries += 1
        try:
            _open(link, run)
            return
        except Exception as e:
            link.close()
            if isinstance(e, MemoryError):
                raise
            if e.args and not link.tries & link.tries - 1:  # of tries 1, 2, 4, 8 …
                print("No link to the server:", e)
        gc.collect()
