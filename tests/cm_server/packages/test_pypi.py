"""Distributions of a PyPI index (attack groups 25, 30 and 34); pip's configuration is faked."""

from __future__ import annotations

import asyncio
import os

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages import pypi
from cm_server.packages.http_fetcher import SourceNotFound

from .package_server import PackageServer, digest, sdist, wheel
from .test_index import planned_sources

INFO = "micropython_x.egg-info"


def upip_sdist(
    name: str, version: str, files: dict[str, str], requires: str = "", summary: str = ""
) -> bytes:
    """Return an sdist in the form of upip's packages: without a setup.py."""
    more = {f"{INFO}/PKG-INFO": f"Name: {name}\nVersion: {version}\nSummary: {summary or name}\n"}
    if requires:
        more[f"{INFO}/requires.txt"] = requires
    return sdist(f"{name}-{version}", {**files, **more})


async def test_sdist_without_a_setup_py_is_a_package(package_server, planner):
    raw = upip_sdist("micropython-log", "0.5", {"log/__init__.py": "V\n", "log/handlers.py": "H\n"})
    package_server.project("micropython-log", {"micropython-log-0.5.tar.gz": raw})
    assert await planned_sources(planner, "pypi:micropython-log") == {
        "/lib/log/__init__.py": b"V\n",
        "/lib/log/handlers.py": b"H\n",
    }


async def test_root_files_of_an_sdist_that_are_no_modules_stay_out(package_server, planner):
    about = ("package.json", "examples.json", "manifest.py", "pins.csv", "uv.lock", "src/notes.md")
    files = {"x.py": "X\n", "y.mpy": "M", "x_data/font.bin": "F", "src/z.py": "Z\n"}
    raw = sdist("x-1", {**files, **dict.fromkeys(about, "{}")})
    package_server.project("x", {"x-1.tar.gz": raw})
    assert set(await planned_sources(planner, "pypi:x")) == {
        "/lib/x.py",
        "/lib/y.mpy",
        "/lib/x_data/font.bin",
        "/lib/z.py",
    }


async def test_newest_version_is_chosen_by_pep_440(package_server, planner):
    files = {}
    for version in ("0.9", "0.10", "0.10-1", "0.2", "1.0rc1"):
        files[f"micropython-x-{version}.tar.gz"] = upip_sdist(
            "micropython-x", version, {"x.py": version}
        )
    package_server.project("micropython-x", files)
    assert await planned_sources(planner, "pypi:micropython-x") == {"/lib/x.py": b"0.10-1"}
    assert await planned_sources(planner, "pypi:micropython-x==0.2") == {"/lib/x.py": b"0.2"}
    assert await planned_sources(planner, "pypi:micropython-x<0.10") == {"/lib/x.py": b"0.9"}
    with pytest.raises(SourceNotFound, match="has 1.0rc1, 0.10-1"):
        await planner.make_plan(["pypi:micropython-x==7"])


async def test_dependencies_are_installed_but_builtin_modules_are_not(package_server, planner):
    a = upip_sdist("micropython-a", "1", {"a.py": "A\n"}, "micropython-b>=1\nmicropython-os.path\n")
    package_server.project("micropython-a", {"micropython-a-1.tar.gz": a})
    b = upip_sdist("micropython-b", "2", {"b.py": "B\n"}, "micropython-a\n")  # a cycle
    package_server.project("micropython-b", {"micropython-b-2.tar.gz": b})
    plan = await planner.make_plan(["pypi:micropython-a"], mpys=[0], source_only=True)
    assert [file.path for file in plan.files[0]] == ["/lib/a.py", "/lib/b.py"]
    assert plan.notes == (
        "pypi:micropython-a needs micropython-os-path: MicroPython's built-in os is used",
    )


async def test_package_of_a_builtin_modules_name_is_installed_if_requested(package_server, planner):
    raw = upip_sdist("micropython-os", "1", {"os/__init__.py": "import ffi\n"})
    package_server.project("micropython-os", {"micropython-os-1.tar.gz": raw})
    assert set(await planned_sources(planner, "pypi:micropython-os")) == {"/lib/os/__init__.py"}


async def test_dummy_package_is_noted(package_server, planner):
    raw = upip_sdist(
        "micropython-abc", "0", {"abc.py": ""}, summary="Dummy abc module for MicroPython"
    )
    package_server.project("micropython-abc", {"micropython-abc-0.tar.gz": raw})
    plan = await planner.make_plan(["pypi:micropython-abc"])
    assert "is a dummy" in plan.notes[0]


async def test_wheel_is_read_with_its_metadata(package_server, planner):
    files = {
        "w/__init__.py": "W\n",
        "w-1.dist-info/METADATA": "Name: w\nRequires-Dist: micropython-b; extra == 'x'\n",
        "w-1.dist-info/entry_points.txt": "[console_scripts]\nw = w:main\n",
        "w-1.dist-info/RECORD": "",
        "w-1.data/scripts/evil": "#!/bin/sh\n",
        "evil.pth": "import os; os.system('true')\n",
        "w/_native.so": "elf",
    }
    package_server.project("w", {"w-1-py3-none-any.whl": wheel(files)})
    assert await planned_sources(planner, "pypi:w") == {"/lib/w/__init__.py": b"W\n"}


async def test_binary_wheels_and_yanked_files_are_ignored(package_server, planner):
    package_server.project("w", {"w-1-cp311-cp311-linux_x86_64.whl": wheel({"w.py": "1"})})
    with pytest.raises(SourceNotFound):
        await planner.make_plan(["pypi:w"])
    package_server.project("y", {"y-1.tar.gz": sdist("y-1", {"y.py": "1"})}, yanked="broken")
    with pytest.raises(SourceNotFound):
        await planner.make_plan(["pypi:y"])


async def test_no_code_of_a_distribution_runs_on_the_server(package_server, planner, tmp_path):
    """Each part of the distribution that could run on the server would create a file."""
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
    package_server.project("canary", {"canary-1.tar.gz": canary})
    plan = await planner.make_plan(["pypi:canary"], mpys=[0x2806])
    paths = [file.path for file in plan.files[0x2806]]
    assert paths == ["/lib/backend.mpy", "/lib/canary/__init__.mpy", "/lib/sitecustomize.mpy"]
    assert not touched.exists()


async def test_archive_that_differs_from_its_hash_is_refused(package_server, planner):
    package_server.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    package_server.put("/files/x-1.tar.gz", sdist("x-1", {"x.py": "evil"}))
    with pytest.raises(PackageError, match="does not have the SHA-256 that its index lists"):
        await planner.make_plan(["pypi:x"])


async def test_archive_is_fetched_once(package_server, planner):
    package_server.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    await planner.make_plan(["pypi:x"])
    await planner.make_plan(["pypi:x"])
    assert package_server.requested_paths.count("/files/x-1.tar.gz") == 1


async def test_html_page_is_supported(package_server, planner):
    raw = sdist("x-1", {"x.py": "1"})
    package_server.put("/files/x-1.tar.gz", raw)
    link = f'<a href="../../files/x-1.tar.gz#sha256={digest(raw)}">x-1.tar.gz</a>'
    package_server.put(
        "/simple/x/", f"<!DOCTYPE html><html><body>{link}</body></html>", "text/html"
    )
    assert await planned_sources(planner, "pypi:x") == {"/lib/x.py": b"1"}


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
async def test_malformed_page_is_refused(package_server, planner, page, kind):
    package_server.put("/simple/x/", page, kind)
    with pytest.raises(PackageError):
        await planner.make_plan(["pypi:x"])


async def test_unknown_name_is_an_error_without_a_fallback(package_server, planner, tmp_path):
    package_server.publish("micropython-x")
    with pytest.raises(SourceNotFound, match="not in the index that pip is configured with"):
        await planner.make_plan(["pypi:micropython-x"])
    assert package_server.requested_paths == ["/simple/micropython-x/"]


async def test_private_index_may_use_another_private_host(package_server, planner):
    async with PackageServer().serving() as files:
        raw = sdist("x-1", {"x.py": "1"})
        files.put("/x-1.tar.gz", raw)
        package_server.project("x", {})
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
        package_server.put("/simple/x/", page, "application/vnd.pypi.simple.v1+json")
        assert await planned_sources(planner, "pypi:x") == {"/lib/x.py": b"1"}


async def test_public_index_cannot_refer_to_a_private_host(
    package_server, planner, monkeypatch, tmp_path
):
    async with PackageServer().serving() as inside:
        raw = sdist("x-1", {"x.py": "1"})
        inside.put("/x-1.tar.gz", raw)
        files = [{"filename": "x-1.tar.gz", "url": f"{inside.url}/x-1.tar.gz", "hashes": {}}]
        page = {"meta": {"api-version": "1.0"}, "name": "x", "files": files}
        package_server.put("/simple/x/", page, "application/vnd.pypi.simple.v1+json")

        async def outside(_):
            return False

        monkeypatch.setattr(planner.fetcher, "is_private_host", outside)
        with pytest.raises(PackageError, match="private address"):
            await planner.make_plan(["pypi:x"])
        assert inside.requested_paths == []


async def test_sdist_without_a_single_folder_is_refused(package_server, planner):
    two = sdist("x-1", {"x.py": "1"})
    raw = wheel({"a/x.py": "1", "b/y.py": "2"})
    package_server.project("x", {"x-1.zip": raw})
    package_server.project("y", {"y-1.tar.gz": two[:-20]})
    for requirement in ("pypi:x", "pypi:y"):
        with pytest.raises(PackageError, match="not an sdist|not a valid archive|truncated"):
            await planner.make_plan([requirement])


# The configuration of pip


@pytest.fixture
def configure_pip(monkeypatch, tmp_path):
    """Return a function that sets the only configuration file of pip."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))

    def configure(text: str) -> None:
        (tmp_path / "pip.conf").write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))

    return configure


async def test_index_comes_from_pips_configuration(configure_pip, monkeypatch):
    configure_pip("[global]\nindex-url = https://one.example/simple\ncert = /certs.pem\n")
    assert await pypi.read_pip_settings() == ("https://one.example/simple", "/certs.pem")
    configure_pip(
        "[global]\nindex-url = https://one.example\n[install]\nindex-url = https://two.example\n"
    )
    assert (await pypi.read_pip_settings()).url == "https://two.example"
    monkeypatch.setenv("PIP_INDEX_URL", "https://three.example")
    assert (await pypi.read_pip_settings()).url == "https://three.example"


async def test_extra_indexes_of_pip_are_ignored(configure_pip):
    configure_pip("[global]\nextra-index-url = https://extra.example\n")
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    assert (await pypi.read_pip_settings()).url == PYPI_SIMPLE_ENDPOINT


async def test_pip_configuration_is_read_once(package_server, tmp_path, monkeypatch):
    calls = []

    async def fake_settings():
        calls.append(1)
        await asyncio.sleep(0)
        return pypi.PipSettings(f"{package_server.url}/simple", "")

    monkeypatch.setattr("cm_server.packages.planner.read_pip_settings", fake_settings)
    planner = package_server.planner(tmp_path, pypi=None)
    package_server.project("x", {"x-1.tar.gz": sdist("x-1", {"x.py": "1"})})
    await asyncio.gather(planner.make_plan(["pypi:x"]), planner.make_plan(["pypi:x"]))
    assert calls == [1]
