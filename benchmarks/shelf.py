"""A mip index on loopback, which counts what is asked of it; tests use it, too."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping


class PackageIndex:
    """Pages by their paths.

    Attributes:
        url: the index's.
        request_counts: how often each page was.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.request_counts: collections.Counter[str] = collections.Counter()
        self.pages: dict[str, bytes] = {}

    def publish(
        self, name: str, version: str, files: Mapping[str, str | bytes], *dependencies: str
    ) -> None:
        """Put a version of a package there, which is the newest then."""
        hashes = []
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            short = hashlib.sha256(data).hexdigest()[:8]
            hashes.append([path, short])
            self.pages[f"/file/{short[:2]}/{short}"] = data
        deps = [[*need.split("@"), "latest"][:2] for need in dependencies]
        told = {"v": 1, "version": version, "hashes": hashes, "deps": deps}
        for at in (version, "latest"):
            self.pages[f"/package/py/{name}/{at}.json"] = json.dumps(told).encode()


@contextlib.contextmanager
def running_package_index() -> Iterator[PackageIndex]:
    """Give an empty one that is served meanwhile."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.request_counts[self.path] += 1
            page = made.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64  # beyond it, a connection is tried again after a second

    with Server(("127.0.0.1", 0), Handler) as server:
        made = PackageIndex(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
