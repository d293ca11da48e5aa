"""A receiver of alarms: an HTTP server on loopback, in a thread."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Receiver:
    """What was posted, and how the next posts are answered.

    Attributes:
        url: where it listens.
        posts: headers and body of each post.
        answers: functions that answer the next posts; then all are accepted.
        hang: is set when hanging answers shall end.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hook"
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[Callable[[http.server.BaseHTTPRequestHandler], None]] = []
        self.hang = threading.Event()

    def hang_until_the_end(self, _: http.server.BaseHTTPRequestHandler) -> None:
        """Answer nothing while the test runs."""
        self.hang.wait(60)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.posts]


def status(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Return an answer with a status."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in {**headers, "Content-Length": "0"}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def slow(seconds: float) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Return an answer that takes a while."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        status(204)(handler)

    return answer


@contextlib.contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Run a receiver during a `with` block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = receiver.answers.pop(0) if receiver.answers else status(204)
            receiver.posts.append((dict(self.headers), body))
            answer(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()
