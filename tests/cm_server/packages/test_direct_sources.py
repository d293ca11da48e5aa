"""Packages at URLs, and files that the caller sent (attack group 29)."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages import http_fetcher
from cm_server.packages.http_fetcher import SourceNotFound

from .package_server import PackageServer
from .test_index import planned_sources


@pytest.fixture
async def public(monkeypatch):
    """Yield a server whose address counts as public."""
    monkeypatch.setattr(http_fetcher, "is_public", lambda address: address == "127.0.0.2")
    async with PackageServer().serving("127.0.0.2") as public:
        yield public


async def test_url_may_be_of_a_file_a_document_or_a_folder(public, planner):
    public.put("/p/m.py", "M = 1\n")
    public.put("/p/package.json", {"urls": [["n.py", "sub/n.py"]], "version": "1"})
    public.put("/p/sub/n.py", "N = 1\n")
    assert await planned_sources(planner, f"{public.url}/p/m.py") == {"/lib/m.py": b"M = 1\n"}
    for url in (f"{public.url}/p", f"{public.url}/p/package.json"):
        assert await planned_sources(planner, url) == {"/lib/n.py": b"N = 1\n"}


async def test_url_of_a_private_address_is_refused(package_server, planner):
    package_server.put("/m.py", "M = 1\n")
    with pytest.raises(PackageError, match="private address"):
        await planner.make_plan([f"{package_server.url}/m.py"])
    assert package_server.requested_paths == []


async def test_public_package_cannot_refer_to_a_private_index(public, package_server, planner):
    """The configured index may be private, but only requirements for it may use that."""
    package_server.put("/admin", "secret")
    public.put("/package.json", {"urls": [["x.py", f"{package_server.url}/admin"]]})
    with pytest.raises(PackageError, match="private address"):
        await planner.make_plan([public.url])
    assert package_server.requested_paths == []


async def test_hashes_in_a_document_at_a_url_are_refused(public, planner):
    public.put("/package.json", {"hashes": [["a.py", "01234567"]]})
    with pytest.raises(PackageError, match="only an index serves files by hash"):
        await planner.make_plan([public.url])


@pytest.mark.parametrize("where", ["./x.py", "../x.py", "sub/../../x.py", "../p/./x.py"])
async def test_document_names_files_relative_to_itself(public, planner, where):
    public.put("/p/package.json", {"urls": [["y.py", where, "a third item"]]})
    path = "/p/x.py" if where in ("./x.py", "../p/./x.py") else "/x.py"
    public.put(path, "X = 1\n")
    assert await planned_sources(planner, f"{public.url}/p") == {"/lib/y.py": b"X = 1\n"}


@pytest.mark.parametrize("where", ["x\\y.py", "file:///etc/passwd", "c:x.py"])
async def test_file_that_is_not_at_an_http_url_is_refused(public, planner, where):
    public.put("/p/package.json", {"urls": [["x.py", where]]})
    with pytest.raises(PackageError, match="not at an http URL"):
        await planner.make_plan([f"{public.url}/p"])


async def test_dependency_may_be_a_relative_document(public, planner):
    public.put("/p/package.json", {"urls": [["a.py", "a.py"]], "deps": [["../q/other.json", ""]]})
    public.put("/p/a.py", "A = 1\n")
    public.put("/q/other.json", {"urls": [["b.py", "./b.py"]], "deps": ["../p/package.json"]})
    public.put("/q/b.py", "B = 1\n")
    assert await planned_sources(planner, f"{public.url}/p/package.json") == {
        "/lib/a.py": b"A = 1\n",
        "/lib/b.py": b"B = 1\n",
    }


async def test_web_page_instead_of_a_file_is_refused(public, planner):
    public.put("/m.py", "<html>please log in</html>", "text/html; charset=utf-8")
    with pytest.raises(PackageError, match="a web page instead of the file"):
        await planner.make_plan([f"{public.url}/m.py"])


async def test_sent_files_are_a_package(planner):
    sent = {"./driver": {"driver.py": b"D = 1\n", "data/x.json": b"{}"}}
    found = await planned_sources(planner, "./driver", sent=sent)
    assert found == {"/lib/driver.py": b"D = 1\n", "/lib/data/x.json": b"{}"}


async def test_sent_package_json_lists_files_and_dependencies(package_server, planner):
    package_server.publish("log")
    document = {"urls": [["d.py", "src/driver.py"]], "deps": [["log", "1.0"]]}
    files = {"package.json": json.dumps(document).encode(), "src/driver.py": b"D\n", "no.py": b""}
    assert list(await planned_sources(planner, "x", sent={"x": files})) == [
        "/lib/d.py",
        "/lib/log.py",
    ]


@pytest.mark.parametrize("where", ["./src/x.py", "src/../src/x.py", "../shared/y.py"])
async def test_sent_document_names_sent_files(planner, where):
    """A caller sends a file outside of its folder under the path that the document has for it."""
    files = {"src/x.py": b"X\n", "../shared/y.py": b"Y\n"}
    document = {"urls": [["z.py", where, None]]}
    files["package.json"] = json.dumps(document).encode()
    found = await planned_sources(planner, "x", sent={"x": files})
    assert found == {"/lib/z.py": files["../shared/y.py" if "shared" in where else "src/x.py"]}


async def test_file_that_was_not_sent_is_an_error(planner):
    files = {"package.json": b'{"urls": [["x.py", "no.py"]]}'}
    with pytest.raises(SourceNotFound, match="x has no file 'no.py'"):
        await planner.make_plan(["x"], sent={"x": files})


async def test_sent_document_cannot_refer_to_files_of_the_server(planner):
    document = {"urls": [["x.py", "/etc/passwd"]]}
    files = {"package.json": json.dumps(document).encode()}
    with pytest.raises(PackageError, match="names a file outside its repository or folder"):
        await planner.make_plan(["x"], sent={"x": files})


@pytest.mark.limits(package_files=3)
async def test_too_many_files_are_refused(planner):
    with pytest.raises(PackageError, match="too many files"):
        await planner.make_plan(["x"], sent={"x": {f"a{n}.py": b"" for n in range(4)}})
