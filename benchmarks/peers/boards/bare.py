# The bare forwarder's board: connects, runs each message as code, answers with its output.
# No key, heartbeat, interrupt or reconnection. For MicroPython's unix port.
import io
import socket
import sys

_HELLO = b"GET /board HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

sock = socket.socket()
sock.connect(socket.getaddrinfo("127.0.0.1", int(sys.argv[1]))[0][-1])
sock.setsockopt(6, 1, 1)  # TCP_NODELAY
sock.write(_HELLO)
while sock.readline() != b"\r\n":
    pass

buf = bytearray(4096)
view = memoryview(buf)
names = {"__name__": "__main__"}
out = None


def show(*args, **kw):
    print(*args, file=out, **kw)


names["print"] = show
while True:
    if not sock.readinto(view[:2]):
        break
    n = buf[1]
    if n == 126:
        sock.readinto(view[:2])
        n = buf[0] << 8 | buf[1]
    sock.readinto(view[:n])
    out = io.StringIO()
    try:
        exec(str(view[:n], "utf-8"), names)
    except Exception as error:
        sys.print_exception(error, out)
    answer = out.getvalue().encode()[:4000]
    n = len(answer)
    head = 6 if n < 126 else 8
    buf[0] = 0x82
    buf[1] = 0x80 | (n if n < 126 else 126)
    if n >= 126:
        buf[2], buf[3] = n >> 8, n & 255
    buf[head - 4 : head] = b"\0\0\0\0"  # a mask of zero
    buf[head : head + n] = answer
    sock.write(view[: head + n])
