# Connects to the server: TCP, the WebSocket handshake, mutual authentication by the board's key.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 2,947 bytes of .mpy, 3,008 bytes of heap to connect (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, mac, state
from cm.firmware import binascii, gc, hashlib, json, os, select, socket, time, tls

# Numbers: written by `python -m tests.board.client_numbers`.
_BUF = const(1024)
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_TAG = const(16)
_HELLO = const(0x01)
_CHALLENGE = const(0x02)
_PROOF = const(0x03)
_WELCOME = const(0x04)
_CLOSE_PROTOCOL_ERROR = const(1002)
_CLOSE_POLICY = const(1008)

_ENOMEM = const(12)
_PROOF_BYTES = const(960)  # of PROOF's JSON, for which the buffer has room
_STEP_MS = const(10000)  # ms for each step of the connection
about = None  # what sleep.py reports in place of about.py

_NO_CA = const("no ca in /cm.json")
_ACCEPT = const(b"sec-websocket-accept:")
_GUID = const(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")  # RFC 6455, 1.3


def _send(op, data):
    end = _OUT + len(data)
    link.mv[_OUT:end] = data
    link.send(op, 0, _OUT, end)


# Receives the next message, which must be of type op. Returns its end in the buffer.
def _expect(op):
    since = time.ticks_ms()
    while time.ticks_diff(time.ticks_ms(), since) < _STEP_MS:
        n = link.recv(_IN)
        if n:
            if link.buf[_IN] == op:
                return n + _IN
            link.refuse(_CLOSE_PROTOCOL_ERROR, _IN, "protocol error")
        link.wait(1000)
    raise RuntimeError("no answer")


def _upgrade(host, tcp_port):
    key = binascii.b2a_base64(os.urandom(16)).strip()
    text = (
        b"GET /board HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n"
    ) % (host.encode(), tcp_port, key)
    state.io.write(text)  # short: a new socket accepts it in one piece
    n = 0
    while link.mv[max(n - 4, 0) : n] != b"\r\n\r\n":
        link.fill(link.mv[n:], 1)
        n += 1
    text = bytes(link.mv[:n])
    at = text.lower().find(_ACCEPT)
    accept = text[at + len(_ACCEPT) :].split()[:1]
    proof = binascii.b2a_base64(hashlib.sha1(key + _GUID).digest()).strip()
    if text[:12] != b"HTTP/1.1 101" or accept != [proof]:
        raise RuntimeError("it answers " + text.split(b"\r\n")[0].decode())


# Authenticates the server first, so that a stranger learns only the id and a nonce. Returns
# WELCOME's fields.
def _authenticate(job, config):
    name = config["id"]
    key = binascii.unhexlify(config["key"])
    use_macs = config.get("mac")
    nonce = os.urandom(16)
    hello = {"v": 1, "id": name, "nonce": binascii.hexlify(nonce).decode()}
    if use_macs:
        hello["mac"] = 1
    if "gen" in config:
        hello["gen"] = config["gen"]
    _send(_HELLO, json.dumps(hello).encode())
    end = _expect(_CHALLENGE)
    at = _IN + _HEADER
    head = nonce + link.mv[at : at + 16] + name.encode()
    proof = mac.hmac(key, b"cm1 server", head, link.mv[at + 48 : end])
    if end - at < 48 or not mac.equal(link.mv[at + 16 : at + 48], proof):
        link.refuse(_CLOSE_POLICY, _IN, "it has another key")
    room = _BUF - _IN - _TAG if use_macs else _BUF - _IN
    fields = (about or link.find("about"))(job, room)
    last = fields["last"]
    while True:
        text = json.dumps(fields).encode()
        if len(text) <= _PROOF_BYTES or not last or not last["error"]:
            break
        last["error"] = last["error"][64:]
    _send(_PROOF, mac.hmac(key, b"cm1 board", head, text) + text)
    if use_macs:
        mac.start(mac.hmac(key, b"cm1 session", head))
        state.mac = mac
    return json.loads(bytes(link.mv[at : _expect(_WELCOME)]))


# Starts TLS, verified by the server's own certificate authority for the one name in its
# certificate. Without TLS messages carry MACs. Without both only the loopback address is allowed.
def _start_tls(config):
    host = config["host"]
    if "ca" in config:
        context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
        context.verify_mode = tls.CERT_REQUIRED
        context.load_verify_locations(binascii.a2b_base64(config["ca"]))
        state.spare = ()
        gc.collect()  # TLS needs up to 17 KB in one piece
        state.io = context.wrap_socket(state.socket, server_hostname="cloudmanager")
    elif "mac" not in config and host[:4] != "127." and host not in ("localhost", "::1"):
        raise RuntimeError(_NO_CA)


def connect():
    name = "/cm.new.trial" if state.trial else "/cm.json"
    with open(name) as file:
        config = json.load(file)
    if config.get("wifi") or config.get("lan"):
        try:
            from cm import net

            net.connect(config)
        finally:
            net = None
            link.drop("net")
    host, tcp_port = config["host"], config["tcp_port"]
    address = socket.getaddrinfo(host, tcp_port, 0, socket.SOCK_STREAM)[0]
    sock = state.socket = state.io = socket.socket(address[0], address[1])
    link.poller.register(sock, select.POLLIN)
    # Without it, TLS's handshake waits 40 ms for a delayed acknowledgement. It is 1, but 64 on RP2
    # and ESP8266 (extmod/modlwip.c), where 1 does nothing; the unix port does not name it.
    sock.setsockopt(6, getattr(socket, "TCP_NODELAY", 1), 1)
    sock.settimeout(_STEP_MS // 1000)
    sock.connect(address[-1])
    _start_tls(config)
    sock.setblocking(False)
    state.console.set_options(sock)
    job = bytes(link.job)
    link.job[:] = b"\0\0\0\0"
    try:
        _upgrade(host, tcp_port)
        if "token" in config:
            if "ca" not in config:
                raise RuntimeError(_NO_CA)
            from cm.identity import enrol

            link.drop("identity")
            enrol(config, _send, _expect)
            name = "/cm.json"
        welcome = _authenticate(job, config)
    finally:
        link.job[:] = job
    if "time" in welcome:  # not from a server of version 0.1
        link.find("clock").set_clock(welcome["time"])
    state.timeout = int(welcome["beat"] * 2500)
    state.spread = int(welcome["spread"] * 1000)
    state.tries = 1
    if state.trial:  # new settings (mbm board-config) replace the old ones once they have worked
        if name == "/cm.new.trial":
            os.rename(name, "/cm.json")
        state.trial = 0
    link.drop("outage")
    try:
        os.remove("/cm.away")
    except OSError:
        pass


# Repeats until the link is open. The delay is random ("full jitter") within a span that doubles up
# to the server's; only the first attempt after a start has no delay.
def dial():
    while True:
        if state.tries:
            span = max(1, state.spread >> max(0, 3 - state.tries))
            link.idle(int.from_bytes(os.urandom(4), "big") % span)
        state.tries += 1
        try:
            connect()
            return
        except Exception as e:
            link.close()
            # mbedTLS reports a full heap as an OSError (lib/mbedtls_errors).
            if isinstance(e, MemoryError) or e.args[:1] == (_ENOMEM,):
                raise MemoryError
            if e.args and not state.tries & state.tries - 1:  # after attempts 1, 2, 4, 8 …
                import cm.log  # noqa: F401 - it keeps what is printed

                print("No link to the server:", e)
            if state.nic:
                from cm.outage import check

                check()
