"""A web server on loopback with pages that a test defines: a mip index, a forge, a PyPI index."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import ssl
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from cm_server.limits import Limits
from cm_server.packages.planner import PackagePlanner
from cm_server.packages.source_settings import ForgeUrls, SourceSettings

COMMITS = {name: hashlib.sha1(name.encode()).hexdigest() for name in "abcdef"}
Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]

LIMITS = Limits()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sdist(root: str, files: Mapping[str, bytes | str]) -> bytes:
    """Return a .tar.gz with files in one folder."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def wheel(files: Mapping[str, bytes | str]) -> bytes:
    """Return a zip with files."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return raw.getvalue()


class PackageServer:
    """Serves pages and records the requests.

    Attributes:
        pages: path -> HTTP response, or a coroutine function that writes it.
        requested_paths: the path of each request, in order.
        request_heads: the head of each request, in order.
        login: ``USER:PASSWORD`` that each request needs; "" for none.
    """

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Handler] = {}
        self.requested_paths: list[str] = []
        self.request_heads: list[str] = []
        self.url = ""
        self.login = ""

    @contextlib.asynccontextmanager
    async def serving(
        self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[PackageServer]:
        tasks: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(serve, host, 0, ssl=tls)
        self.url = f"{'https' if tls else 'http'}://{host}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            self.requested_paths.append(path)
            self.request_heads.append(head)
            page = self.pages.get(path, reply(b"not found", 404))
            token = base64.b64encode(self.login.encode()).decode()
            if self.login and f"Authorization: Basic {token}\r\n" not in head:
                page = reply(b"log in", 401)
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def put(self, path: str, content: Any, kind: str = "", **headers: str) -> None:
        """Add a page with a content: bytes, text, or what is converted to JSON."""
        if not isinstance(content, (bytes, str)):
            content, kind = json.dumps(content), kind or "application/json"
        data = content.encode() if isinstance(content, str) else content
        self.pages[path] = reply(data, 200, kind or "application/octet-stream", **headers)

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        self.pages[path] = reply(b"", status, "text/plain", Location=to)

    # A mip index

    def publish(
        self,
        name: str,
        version: str = "1.0",
        files: Mapping[str, bytes | str] | None = None,
        *,
        index: str = "/pi",
        form: str = "py",
        latest: bool = True,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add a package to a mip index, in the format of micropython-lib's tools."""
        hashes = []
        for path, content in (files or {f"{name}.py": f"V = {version!r}\n"}).items():
            data = content.encode() if isinstance(content, str) else content
            prefix = digest(data)[:8]
            hashes.append([path, prefix])
            self.put(f"{index}/file/{prefix[:2]}/{prefix}", data)
        document = {"v": 1, "hashes": hashes, "urls": [], "version": version, **fields}
        for at in (version, "latest") if latest else (version,):
            self.put(f"{index}/package/{form}/{name}/{at}.json", document)
        return document

    # A forge

    def refs(self, repository: str, **refs: str) -> None:
        """Set the commit of each ref, by its letter in COMMITS: HEAD, `heads_main`, `tags_v1`, …"""
        lines = [b"# service=git-upload-pack\n", None]
        for number, (name, letter) in enumerate(refs.items()):
            full = "HEAD" if name == "HEAD" else f"refs/{name.replace('_', '/', 1)}"
            more = b"\0multi_ack side-band-64k" if not number else b""
            lines.append(f"{COMMITS[letter]} {full}".encode() + more + b"\n")
        lines.append(None)
        response = b"".join(
            b"0000" if line is None else b"%04x" % (len(line) + 4) + line for line in lines
        )
        self.put(f"/{repository}.git/info/refs?service=git-upload-pack", response)

    def commit(self, repository: str, letter: str, files: Mapping[str, Any]) -> None:
        """Add files to a commit of a repository."""
        for path, content in files.items():
            self.put(f"/raw/{repository}/{COMMITS[letter]}/{path}", content, "text/plain")

    # A PyPI index

    def project(self, name: str, files: Mapping[str, bytes], **fields: Any) -> None:
        """Add a project to the PyPI index; ``files`` are archives by their file names."""
        listed = []
        for file, content in files.items():
            self.put(f"/files/{file}", content)
            hashes = {"sha256": digest(content)}
            listed.append(
                {"filename": file, "url": f"../../files/{file}", "hashes": hashes, **fields}
            )
        page = {"meta": {"api-version": "1.0"}, "name": name, "files": listed}
        self.put(f"/simple/{name}/", page, "application/vnd.pypi.simple.v1+json")

    def settings(self, **more: Any) -> SourceSettings:
        """Return settings with which a planner fetches everything from this server."""
        forge = ForgeUrls(
            self.url + "/{repo}.git/info/refs?service=git-upload-pack",
            self.url + "/raw/{repo}/{commit}/{path}",
        )
        given = {
            "indexes": {"": f"{self.url}/pi"},
            "forges": dict.fromkeys(("github", "gitlab", "codeberg"), forge),
            "pypi": f"{self.url}/simple",
        }
        return SourceSettings(**{**given, **more})

    def planner(self, folder: Path, limits: Limits = LIMITS, **more: Any) -> PackagePlanner:
        return PackagePlanner(folder, limits, self.settings(**more))


def reply(body: bytes, status: int = 200, kind: str = "text/plain", **headers: str) -> bytes:
    """Return an HTTP response."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def bomb(size: int = 10 * 1024**3) -> bytes:
    """Return a gzip bomb: members of 64 MiB of zeros, at most four."""
    raw = gzip.compress(b"\0" * 64 * 1024**2, 9)
    return raw * max(1, min(size // (64 * 1024**2), 4))
