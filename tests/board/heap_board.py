# Stand-ins for a board with a network and for its server, as far as the client uses them: the
# client connects, runs one cell, and waits for the next. heap.mjs runs this step by step and
# measures differences of the heap, so all stand-ins exist before the first step.
import binascii
import builtins
import gc
import json
import os as real_os
import struct
import sys
import time


class Done(BaseException):
    pass


class Has:
    pass


class Timer:
    def __init__(self, number):
        pass

    def init(self, period, callback):
        pass

    def deinit(self):
        pass


class Context:  # of TLS, which is the socket itself here
    def __init__(self, kind):
        pass

    def load_verify_locations(self, ca):
        pass

    def wrap_socket(self, sock, server_hostname):
        return sock


class Hash:  # every digest is zeros: both sides agree
    def __init__(self, data=b""):
        pass

    def update(self, data):
        pass

    def digest(self):
        return bytes(32)


def message(op, data):
    data = bytes([op, 0, 0, 0, 0, 1]) + data
    return bytes([0x82, len(data)]) + data


CELL = b"x = 41\nprint('x is', x)\n__cm__((x + 1))"
accept = binascii.b2a_base64(bytes(32)).strip()
says = [  # what the server says; the board is idle after each
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
    + accept
    + b"\r\n\r\n"
    + message(2, bytes(48) + b'{"v":1}')
    + message(4, b'{"name":"lab-1","beat":15.0,"spread":2.0,"time":1796000000000}'),
    message(0x10, struct.pack(">II", 0, len(CELL)) + CELL),
]
turn = 0
answer = bytearray(2048)  # longer than any message: one that grows would count as the client's
length = 0


class Socket:
    def __init__(self, family, kind):
        self.at = 0

    def setsockopt(self, *_):
        pass

    settimeout = setblocking = connect = close = setsockopt

    def readinto(self, view, n):
        data = says[turn][self.at : self.at + n]
        if not data:
            return None
        view[: len(data)] = data
        self.at += len(data)
        return len(data)

    def write(self, b, at=0, n=None):
        global length
        length = len(b) if n is None else n
        answer[:length] = memoryview(b)[at : at + length]
        return length


class Poll:
    def register(self, sock, event):
        self.sock = sock

    def unregister(self, sock):
        pass

    def poll(self, ms):
        if self.sock.at == len(says[turn]):
            sys.modules["cm.state"].leaving = True  # else no exception ends the client
            raise Done
        return True


# Names that the firmware of a board with a network has, and this build has not.
board = Has()
NAMES = (
    "AF_INET SOCK_STREAM getaddrinfo setsockopt settimeout setblocking connect fileno sha1 init "
    "deinit period mode callback unhexlify uctypes addressof bytearray_at kbd_intr mem_free "
    "PROTOCOL_TLS_CLIENT CERT_REQUIRED SSLContext wrap_socket load_verify_locations verify_mode "
    "server_hostname soft_reset urandom dupterm dupterm_notify modify unregister POLLIN POLLOUT "
    "reset get_ident"
)
for name in NAMES.split():
    setattr(board, name, None)
# MicroPython's pools of names double when they are full: the next one is allocated here, so that
# the step that happens to need one name more is not charged with it.
for n in range(570):
    setattr(board, "name_%d" % n, None)
board = Has()
machine, os, select, hashlib, socket, clock, tls = (Has() for _ in range(7))
tls.SSLContext, tls.PROTOCOL_TLS_CLIENT, tls.CERT_REQUIRED = Context, 0, 2
machine.Timer, machine.reset = Timer, None
os.urandom = bytes
os.listdir, os.stat, os.remove = real_os.listdir, real_os.stat, real_os.remove
os.dupterm = os.dupterm_notify = lambda *_: None
select.poll, select.POLLIN, select.POLLOUT = Poll, 1, 4
hashlib.sha1 = hashlib.sha256 = Hash
socket.socket, socket.SOCK_STREAM = Socket, 1
socket.getaddrinfo = lambda *_: [(2, 1, 0, "", ("192.168.1.1", 18266))]
for name in ("sleep_ms", "ticks_ms", "ticks_us", "ticks_diff", "ticks_add"):
    setattr(clock, name, getattr(time, name))
sys.modules.update(machine=machine, os=os, select=select, hashlib=hashlib, socket=socket)
sys.modules["tls"] = tls
binascii.a2b_base64 = lambda text: bytes(355)  # this build's own takes no text
sys.modules["time"] = clock
built_in = dict(sys.modules)
real_import = __import__


# With an empty sys.path, MicroPython imports built-in modules whatever sys.modules has.
def standin_import(name, *rest):
    return built_in[name] if not sys.path and name in built_in else real_import(name, *rest)


builtins.__import__ = standin_import
sys.path.append("/client")
config = {"id": "0123456789abcdef", "key": "00" * 32, "host": "192.168.1.1", "tcp_port": 18266}
config["ca"] = "MIIB" * 118  # as long as the server's; what TLS itself needs is not counted
with open("/cm.json", "w") as file:
    json.dump(config, file)
seen = dict.fromkeys(
    (
        "start",
        "firmware",
        "state",
        "link",
        "run",
        "console",
        "idle",
        "ran",
        "ask",
        "mac",
        "dial",
        "files",
        "emit",
        "log",
        "mount",
    )
)
# ---
seen["start"] = gc.mem_alloc()
import cm.firmware

# ---
seen["firmware"] = gc.mem_alloc()
import cm.state

# ---
seen["state"] = gc.mem_alloc()
import cm.link

# ---
seen["link"] = gc.mem_alloc()
import cm.run

# ---
seen["run"] = gc.mem_alloc()
import cm.console

# ---
seen["console"] = gc.mem_alloc()
try:
    cm.link.start(cm.console)
except Done:
    pass
# ---
seen["idle"] = gc.mem_alloc()
turn = 1
cm.state.socket.at = 0
try:
    cm.run.serve()
except Done:
    pass
# ---
seen["ran"] = gc.mem_alloc()
import cm.ask

# ---
seen["ask"] = gc.mem_alloc()
import cm.mac

# ---
seen["mac"] = gc.mem_alloc()
import cm.dial

# ---
seen["dial"] = gc.mem_alloc()
import cm.files

# ---
seen["files"] = gc.mem_alloc()
import cm.emit

# ---
seen["emit"] = gc.mem_alloc()
import cm.log

# ---
seen["log"] = gc.mem_alloc()
import cm.mount

# ---
seen["mount"] = gc.mem_alloc()
print(json.dumps([sys.implementation.version[:3], seen, bytes(answer[:length])[-2:].decode()]))
