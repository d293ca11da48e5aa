"""The old micropython-* distributions; FIELD 5, groups 25, 30 and 34. What pip says: faked."""

from __future__ import annotations

import asyncio
import os

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages import pypi
from cm_server.packages.http_fetcher import SourceNotFound

from .shelf import Shelf, digest, sdist, wheel
from .test_index import sources

INFO = "micropython_x.egg-info"


def old(
    name: str, version: str, files: dict[str, str], requires: str = "", summary: str = ""
) -> bytes:
    """An sdist as upip's packages are: without a setup.py."""
    more = {f"{INFO}/PKG-INFO": f"Name: {name}\nVersion: {version}\nSummary: {summary or name}\n"}
    if requires:
        more[f"{INFO}/requires.txt"] = requires
    return sdist(f"{name}-{version}", {**files, **more})


async def test_sdist_without_a_setup_py_is_a_package(shelf, packages):
    raw = old("micropython-log", "0.5", {"log/__init__.py": "V\n", "log/handlers.py": "H\n"})
    shelf.project("micropython-log", {"micropython-log-0.5.tar.gz": raw})
    assert await sources(packages, "pypi:micropython-log") == {
        "/lib/log/__init__.py": b"V\n",
        "/lib/log/handlers.py": b"H\n",
    }


async def test_newest_version_is_chosen_as_versions_are_ordered(shelf, packages):
    files = {}
    for version in ("0.9", "0.10", "0.10-1", "0.2", "1.0rc1"):
        files[f"micropython-x-{version}.tar.gz"] = old("micropython-x", version, {"x.py": version})
    shelf.project("micropython-x", files)
    assert await sources(packages, "pypi:micropython-x") == {"/lib/x.py": b"0.10-1"}
    assert await sources(packages, "pypi:micropython-x==0.2") == {"/lib/x.py": b"0.2"}
    assert await sources(packages, "pypi:micropython-x<0.10") == {"/lib/x.py": b"0.9"}
    with pytest.raises(SourceNotFound, match="there is 1.0rc1, 0.10-1"):
        await packages.make_plan(["pypi:micropython-x==7"])


async def test_dependencies_come_along_and_what_micropython_brings_does_not(shelf, packages):
    a = old("micropython-a", "1", {"a.py": "A\n"}, "micropython-b>=1\nmicropython-os.path\n")
    shelf.project("micropython-a", {"micropython-a-1.tar.gz": a})
    b = old("micropython-b", "2", {"b.py": "B\n"}, "micropython-a\n")  # a cycle
    shelf.project("micropython-b", {"micropython-b-2.tar.gz": b})
    plan = await packages.make_plan(["pypi:micropython-a"], mpys=[0], source_only=True)
    assert [file.path for file in plan.files[0]] == ["/lib/a.py", "/lib/b.py"]
    assert plan.notes == (
        "pypi:micropython-a needs micropython-os-path: MicroPython brings its own os",
    )


async def test_asking_for_what_hides_a_module_of_the_client_is_refused(shelf, packages):
    raw = old("micropython-os", "1", {"os/__init__.py": "import ffi\n"})
    shelf.project("micropython-os", {"micropython-os-1.tar.gz": raw})
    with pytest.raises(PackageError, match="would hide MicroPython's own module 'os'"):
        await packages.make_plan(["pypi:micropython-os"])


async def test_dummy_is_told(shelf, packages):
    raw = old("micropython-abc", "0", {"abc.py": ""}, summary="Dummy abc module for MicroPython")
    shelf.project("micropython-abc", {"micropython-abc-0.tar.gz": raw})
    plan = await packages.make_plan(["pypi:micropython-abc"])
    assert "is a dummy" in plan.notes[0]


async def test_wheel_is_read_with_its_metadata(shelf, packages):
    files = {
        "w/__init__.py": "W\n",
        "w-1.dist-info/METADATA": "Name: w\nRequires-Dist: micropython-b; extra == 'x'\n",
        "w-1.dist-info/entry_points.txt": "[console_scripts]\nw = w:main\n",
        "w-1.dist-info/RECORD": "",
        "w-1.data/scripts/evil": "#!/bin/sh\n",
        "evil.pth": "import os; os.system('true')\n",
        "w/_native.so": "elf",
    }
    shelf.project("w", {"w-1-py3-none-any.whl": wheel(files)})
    assert await sources(packages, "pypi:w") == {"/lib/w/__init__.py": b"W\n"}


async def test_wheel_for_another_machine_and_yanked_files_are_left_out(shelf, packages):
    shelf.project("w", {"w-1-cp311-cp311-linux_x86_64.whl": wheel({"w.py": "1"})})
    with pytest.raises(SourceNotFound):
        await packages.make_plan(["pypi:w"])
    shelf.project("y", {"y-1.tar.gz": sdist("y-1", {"y.py": "1"})}, yanked="broken")
    with pytest.raises(SourceNotFound):
        await packages.make_plan(["pypi:y"])


async def test_no_setup_py_no_build_backend_no_pth_and_no_entry_point_ever_runs(
    shelf, packages, tmp_path
):
    """A canary: whatever of it ran on the server would touch a file."""
    touched = tmp_path / "touched"
    touch = f"open({str(touched)!r}, 'w').close()\n"
    canary = sdist(
        "canary-1",
        {
            "canary/__init__.py": touch,
            "setup.py": touch,
            "setup.cfg": "[metadata]\nname = attr: canary.name\n",
            "pyproject.toml": "[build-system]\nrequires=[]\nbuild-backend='backend'\n",
            "backend.py": touch,
            "canary.pth": f"import os; {touch}",
            "sitecustomize.py": touch,
            f"{INFO}/entry_points.txt": "[console_scripts]\nx = canary:main\n",
            f"{INFO}/PKG-INFO": "Name: canary\n",
        },
    )
    shelf.project("canary", {"canary-1.tar.gz": canary})
    plan = await packages.make_plan(["pypi:canary"], mpys=[0x2806])
    paths = [file.path for file in plan.files[0x2806]]
    assert paths == ["/lib/backend.mpy", "/lib/canary/__init__.mpy", "/lib/sitecustomize.mpy"]
    assert not touched.exists()


async def test_archive_that_is_not_what_the_index_promised_is_refused(shelf, packages):
    shelf.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    shelf.put("/files/x-1.tar.gz", sdist("x-1", {"x.py": "evil"}))
    with pytest.raises(PackageError, match="not what its index promised"):
        await packages.make_plan(["pypi:x"])


async def test_archive_is_fetched_once(shelf, packages):
    shelf.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    await packages.make_plan(["pypi:x"])
    await packages.make_plan(["pypi:x"])
    assert shelf.asked.count("/files/x-1.tar.gz") == 1


async def test_html_page_is_understood_too(shelf, packages):
    raw = sdist("x-1", {"x.py": "1"})
    shelf.put("/files/x-1.tar.gz", raw)
    link = f'<a href="../../files/x-1.tar.gz#sha256={digest(raw)}">x-1.tar.gz</a>'
    shelf.put("/simple/x/", f"<!DOCTYPE html><html><body>{link}</body></html>", "text/html")
    assert await sources(packages, "pypi:x") == {"/lib/x.py": b"1"}


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"[]", "application/json"),
        (b"{", "application/json"),
        (b'{"files": [1]}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"not here", "text/html"),
        (b"\xff" * 100, "application/octet-stream"),
    ],
)
async def test_page_that_is_nonsense_is_refused(shelf, packages, page, kind):
    shelf.put("/simple/x/", page, kind)
    with pytest.raises(PackageError):
        await packages.make_plan(["pypi:x"])


async def test_unknown_name_is_an_error_and_no_other_index_is_asked(shelf, packages, tmp_path):
    shelf.publish("micropython-x")
    with pytest.raises(SourceNotFound, match="not in the index that pip is configured with"):
        await packages.make_plan(["pypi:micropython-x"])
    assert shelf.asked == ["/simple/micropython-x/"]


async def test_index_that_is_inside_may_keep_its_archives_elsewhere_inside(shelf, packages):
    async with Shelf().serving() as files:
        raw = sdist("x-1", {"x.py": "1"})
        files.put("/x-1.tar.gz", raw)
        shelf.project("x", {})
        page = {
            "meta": {"api-version": "1.0"},
            "name": "x",
            "files": [
                {
                    "filename": "x-1.tar.gz",
                    "url": f"{files.url}/x-1.tar.gz",
                    "hashes": {"sha256": digest(raw)},
                }
            ],
        }
        shelf.put("/simple/x/", page, "application/vnd.pypi.simple.v1+json")
        assert await sources(packages, "pypi:x") == {"/lib/x.py": b"1"}


async def test_public_index_does_not_lead_inside(shelf, packages, monkeypatch, tmp_path):
    async with Shelf().serving() as inside:
        raw = sdist("x-1", {"x.py": "1"})
        inside.put("/x-1.tar.gz", raw)
        files = [{"filename": "x-1.tar.gz", "url": f"{inside.url}/x-1.tar.gz", "hashes": {}}]
        page = {"meta": {"api-version": "1.0"}, "name": "x", "files": files}
        shelf.put("/simple/x/", page, "application/vnd.pypi.simple.v1+json")

        async def outside(_):
            return False

        monkeypatch.setattr(packages.fetcher, "is_private_host", outside)
        with pytest.raises(PackageError, match="private address"):
            await packages.make_plan(["pypi:x"])
        assert inside.asked == []


async def test_archive_without_one_folder_is_refused(shelf, packages):
    two = sdist("x-1", {"x.py": "1"})
    raw = wheel({"a/x.py": "1", "b/y.py": "2"})
    shelf.project("x", {"x-1.zip": raw})
    shelf.project("y", {"y-1.tar.gz": two[:-20]})
    for wish in ("pypi:x", "pypi:y"):
        with pytest.raises(PackageError, match="no sdist|no sound archive|cut off"):
            await packages.make_plan([wish])


# pip's own word


@pytest.fixture
def pip_says(monkeypatch, tmp_path):
    """Make `python -m pip config list` read one file only."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))

    def say(text: str) -> None:
        (tmp_path / "pip.conf").write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))

    return say


async def test_index_is_the_one_that_pip_is_configured_with(pip_says, monkeypatch):
    pip_says("[global]\nindex-url = https://one.example/simple\ncert = /certs.pem\n")
    assert await pypi.read_pip_settings() == ("https://one.example/simple", "/certs.pem")
    pip_says(
        "[global]\nindex-url = https://one.example\n[install]\nindex-url = https://two.example\n"
    )
    assert (await pypi.read_pip_settings()).url == "https://two.example"
    monkeypatch.setenv("PIP_INDEX_URL", "https://three.example")
    assert (await pypi.read_pip_settings()).url == "https://three.example"


async def test_extra_indexes_of_pip_are_left_out(pip_says):
    pip_says("[global]\nextra-index-url = https://extra.example\n")
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    assert (await pypi.read_pip_settings()).url == PYPI_SIMPLE_ENDPOINT


async def test_pip_is_asked_once(shelf, tmp_path, monkeypatch):
    calls = []

    async def configured():
        calls.append(1)
        await asyncio.sleep(0)
        return pypi.PipSettings(f"{shelf.url}/simple", "")

    monkeypatch.setattr("cm_server.packages.planner.read_pip_settings", configured)
    packages = shelf.packages(tmp_path, pypi=None)
    shelf.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    await asyncio.gather(packages.make_plan(["pypi:x"]), packages.make_plan(["pypi:x"]))
    assert calls == [1]
