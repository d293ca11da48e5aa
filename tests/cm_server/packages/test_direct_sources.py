"""Packages at URLs, and files that the caller sent along; FIELD 5, group 29."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server import limits
from cm_server.packages import http_fetcher
from cm_server.packages.http_fetcher import SourceNotFound

from .shelf import Shelf
from .test_index import sources


@pytest.fixture
async def public(monkeypatch):
    """A server that counts as one of the public internet."""
    monkeypatch.setattr(http_fetcher, "is_public", lambda address: address == "127.0.0.2")
    async with Shelf().serving("127.0.0.2") as public:
        yield public


async def test_url_of_a_file_a_document_and_a_folder(public, packages):
    public.put("/p/m.py", "M = 1\n")
    public.put("/p/package.json", {"urls": [["n.py", "sub/n.py"]], "version": "1"})
    public.put("/p/sub/n.py", "N = 1\n")
    assert await sources(packages, f"{public.url}/p/m.py") == {"/lib/m.py": b"M = 1\n"}
    for url in (f"{public.url}/p", f"{public.url}/p/package.json"):
        assert await sources(packages, url) == {"/lib/n.py": b"N = 1\n"}


async def test_url_of_a_private_address_is_refused(shelf, packages):
    shelf.put("/m.py", "M = 1\n")
    with pytest.raises(PackageError, match="private address"):
        await packages.make_plan([f"{shelf.url}/m.py"])
    assert shelf.asked == []


async def test_public_package_cannot_lead_to_a_private_index(public, shelf, packages):
    """The index is configured and may be private: to those who name it, not to a package."""
    shelf.put("/admin", "secret")
    public.put("/package.json", {"urls": [["x.py", f"{shelf.url}/admin"]]})
    with pytest.raises(PackageError, match="private address"):
        await packages.make_plan([public.url])
    assert shelf.asked == []


async def test_hashes_at_a_url_are_refused(public, packages):
    public.put("/package.json", {"hashes": [["a.py", "01234567"]]})
    with pytest.raises(PackageError, match="only an index keeps files by them"):
        await packages.make_plan([public.url])


@pytest.mark.parametrize("where", ["../x.py", "/x.py", "a/../../x.py", "x\\y.py"])
async def test_file_above_the_documents_folder_is_refused(public, packages, where):
    public.put("/p/package.json", {"urls": [["x.py", where]]})
    with pytest.raises(PackageError, match="is refused"):
        await packages.make_plan([f"{public.url}/p"])


async def test_web_page_in_a_files_place_is_refused(public, packages):
    public.put("/m.py", "<html>please log in</html>", "text/html; charset=utf-8")
    with pytest.raises(PackageError, match="web page where a file should be"):
        await packages.make_plan([f"{public.url}/m.py"])


async def test_files_that_were_sent_along_are_a_package(packages):
    sent = {"./driver": {"driver.py": b"D = 1\n", "data/x.json": b"{}"}}
    found = await sources(packages, "./driver", sent=sent)
    assert found == {"/lib/driver.py": b"D = 1\n", "/lib/data/x.json": b"{}"}


async def test_sent_package_json_says_which_files_and_what_is_needed(shelf, packages):
    shelf.publish("log")
    document = {"urls": [["d.py", "src/driver.py"]], "deps": [["log", "1.0"]]}
    files = {"package.json": json.dumps(document).encode(), "src/driver.py": b"D\n", "no.py": b""}
    assert list(await sources(packages, "x", sent={"x": files})) == ["/lib/d.py", "/lib/log.py"]


async def test_sent_document_cannot_name_the_servers_own_files(packages):
    document = {"urls": [["x.py", "/etc/passwd"]]}
    files = {"package.json": json.dumps(document).encode()}
    with pytest.raises(SourceNotFound, match="has no file '/etc/passwd'"):
        await packages.make_plan(["x"], sent={"x": files})


async def test_too_many_files_are_refused(packages, monkeypatch):
    monkeypatch.setattr(limits, "PACKAGE_FILES", 3)
    with pytest.raises(PackageError, match="too many files"):
        await packages.make_plan(["x"], sent={"x": {f"a{n}.py": b"" for n in range(4)}})
