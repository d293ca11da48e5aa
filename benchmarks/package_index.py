"""A mip package index on loopback that counts requests; also used by tests."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping


class PackageIndex:
    """The content of an index.

    Attributes:
        url: the index's URL.
        request_counts: path -> number of requests.
        pages: path -> content.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.request_counts: collections.Counter[str] = collections.Counter()
        self.pages: dict[str, bytes] = {}

    def publish(
        self, name: str, version: str, files: Mapping[str, str | bytes], *dependencies: str
    ) -> None:
        """Add a version of a package, which becomes its latest version.

        Args:
            name: of the package.
            version: of the package.
            files: path -> content.
            dependencies: NAME or NAME@VERSION.
        """
        hashes = []
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            short = hashlib.sha256(data).hexdigest()[:8]
            hashes.append([path, short])
            self.pages[f"/file/{short[:2]}/{short}"] = data
        deps = [[*need.split("@"), "latest"][:2] for need in dependencies]
        manifest = {"v": 1, "version": version, "hashes": hashes, "deps": deps}
        for at in (version, "latest"):
            self.pages[f"/package/py/{name}/{at}.json"] = json.dumps(manifest).encode()


@contextlib.contextmanager
def running_package_index() -> Iterator[PackageIndex]:
    """Serve an empty index during a `with` block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.request_counts[self.path] += 1
            page = index.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64  # of the listening socket; beyond it, clients retry after a second

    with Server(("127.0.0.1", 0), Handler) as server:
        index = PackageIndex(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()
