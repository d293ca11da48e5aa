"""Local packages: the files that are sent, and how they are described to the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.local_packages import (
    is_local_source,
    local_package_name,
    read_local_package,
)
from cloudmanager.protocol.errors import PackageError


def write(folder: Path, files: dict[str, Any]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def described(path: Path) -> dict[str, Any]:
    """Return the description of a package, with the content in place of each sent file's path."""
    files = read_local_package(str(path))
    document: dict[str, Any] = json.loads(b"".join(files.pop("package.json").pieces()))
    contents = {key: b"".join(source.pieces()).decode() for key, source in files.items()}
    used = {reference for _, reference in document["urls"] if reference in contents}
    assert used == set(contents), "a file is sent that is not used"
    document["urls"] = [
        [to, contents.get(reference, reference)] for to, reference in document["urls"]
    ]
    return document


@pytest.mark.parametrize(
    "text", [r"C:\driver", "C:/driver", r"d:\lib\x.py", r".\driver", r"..\x", r"\\nas\lib\x"]
)
def test_path_of_windows_is_a_local_package(text: str):
    assert is_local_source(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("./lib/x.py", "x"),
        ("lib/x.mpy", "x"),
        ("~/x.py", "x"),
        ("./pack", "pack"),
        ("./pack/", "pack"),
        ("pack/package.json", "pack"),
        ("pack/other.json", "other"),
        ("made/manifest.py", "made"),
        ("plain/manifest.py", "manifest"),
    ],
)
def test_local_package_has_the_name_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
):
    write(tmp_path, {"pack/x.py": "", "made/manifest.py": "module('x.py')"})
    write(tmp_path, {"plain/manifest.py": "X = 1"})
    monkeypatch.chdir(tmp_path)
    assert is_local_source(text)
    assert local_package_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *["logging", "logging@1.0", "github:o/r/x.py", "https://h/x.py", "pypi:a", "here:b"],
        *["c:driver", "c://host/x.py"],
    ],
)
def test_remote_requirements_are_not_local_sources(text: str):
    assert not is_local_source(text)


def test_folder_without_a_description_is_sent_whole(tmp_path):
    write(tmp_path, {"lib/a.py": "", "lib/d/b.json": "1", "pack/__init__.py": "", "pack/c.py": ""})
    write(tmp_path, {"lib/skipped.txt": "", "lib/.mbmignore": "*.txt", "one.py": ""})
    assert set(read_local_package(str(tmp_path / "lib"))) == {"a.py", "d/b.json"}
    assert set(read_local_package(str(tmp_path / "pack"))) == {"pack/__init__.py", "pack/c.py"}
    assert set(read_local_package(str(tmp_path / "one.py"))) == {"one.py"}


def test_package_may_name_any_file_of_its_repository(tmp_path):
    document = {"urls": [["a.py", "../../shared/a.py"]]}
    package = write(tmp_path, {"lib/p/package.json": document, "shared/a.py": "A"}) / "lib/p"
    with pytest.raises(PackageError, match="outside of its project"):
        read_local_package(str(package))
    (tmp_path / ".git").mkdir()
    assert described(package)["urls"] == [["a.py", "A"]]
    (tmp_path / "shared/a.py").unlink()
    (tmp_path / "shared/a.py").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="outside of its project"):
        read_local_package(str(package))


@pytest.mark.parametrize("name", ["p", "p/package.json"])
def test_package_json_names_files_relative_to_itself(tmp_path, name):
    urls = [
        ["a.py", "a.py"],
        ["b.py", "./src/b.py", "third"],
        ["c.py", "../shared/c.py"],
        ["d.py", "github:o/r/d.py"],
        ["package.json", "package.json"],
    ]
    document = {"urls": urls, "deps": [["log", "1.0"]], "version": "2"}
    files = {"p/a.py": "A", "p/src/b.py": "B", "shared/c.py": "C", "p/package.json": document}
    assert described(write(tmp_path, {**files, "p/unused.py": ""}) / name) == {
        "version": "2",
        "urls": [
            ["a.py", "A"],
            ["b.py", "B"],
            ["c.py", "C"],
            ["d.py", "github:o/r/d.py"],
            ["package.json", json.dumps(document)],
        ],
        "deps": [["log", "1.0"]],
    }


def test_relative_documents_are_part_of_the_package(tmp_path):
    first = {"urls": [["a.py", "a.py"]], "deps": [["../q/other.json", ""], "log"]}
    other = {"urls": [["b.py", "./b.py"]], "deps": [["../p/first.json", "1"], ["uu", "1"]]}
    files = {"p/first.json": first, "p/a.py": "A", "q/other.json": other, "q/b.py": "B"}
    assert described(write(tmp_path, files) / "p/first.json") == {
        "urls": [["a.py", "A"], ["b.py", "B"]],
        "deps": ["log", ["uu", "1"]],
    }


def test_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "package.json").write_bytes(b'\xef\xbb\xbf{"urls": [], "version": "1"}')
    assert described(tmp_path)["version"] == "1"


MANIFEST = """
\"\"\"What it is.\"\"\"
metadata(description="A driver", version="1.2.0", pypi_publish="x")
# Dependencies
require("logging")
require("umqtt.simple", version="1.4", pypi="paho")
module("top.py")
module("helper.py", base_path="src", opt=3)
package("drv")
package("mini", files=("a.py", "sub/b.py"), base_path="src")
include("../common")
include(["more/manifest.py"])
"""


@pytest.mark.parametrize("name", ["p", "p/manifest.py"])
def test_manifest_is_understood_as_by_micropython(tmp_path, name):
    files = {
        "p/manifest.py": MANIFEST,
        "p/top.py": "T",
        "p/src/helper.py": "H",
        "p/drv/__init__.py": "D",
        "p/drv/in/x.py": "X",
        "p/drv/notes.txt": "N",
        "p/src/mini/a.py": "A",
        "p/src/mini/sub/b.py": "B",
        "p/src/mini/c.py": "no",
        "p/unused.py": "no",
        "common/manifest.py": 'module("c.py")\ninclude("../p")',
        "common/c.py": "C",
        "p/more/manifest.py": 'metadata(version="9")\npackage("", files=["m.py"])',
        "p/more/m.py": "M",
    }
    found = described(write(tmp_path, files) / name)
    assert found["version"] == "1.2.0"
    assert found["deps"] == [["logging", ""], ["umqtt.simple", "1.4"]]
    assert found["urls"] == [
        ["top.py", "T"],
        ["helper.py", "H"],
        ["drv/__init__.py", "D"],
        ["drv/in/x.py", "X"],
        ["mini/a.py", "A"],
        ["mini/sub/b.py", "B"],
        ["c.py", "C"],
        ["m.py", "M"],
    ]


def test_package_json_is_preferred_to_a_manifest(tmp_path):
    write(tmp_path, {"manifest.py": 'module("a.py")', "package.json": {"urls": []}})
    assert described(tmp_path)["urls"] == []


def test_module_called_manifest_is_an_ordinary_file(tmp_path):
    write(tmp_path, {"manifest.py": "import os\nFILES = os.listdir()", "a.py": ""})
    assert set(read_local_package(str(tmp_path))) == {"manifest.py", "a.py"}
    assert set(read_local_package(str(tmp_path / "manifest.py"))) == {"manifest.py"}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"package.json": {"urls": [["a.py", "no.py"]]}}, "has no file 'no.py'"),
        ({"package.json": {"urls": [["a.py", "/etc/passwd"]]}}, "absolute or hidden"),
        ({"package.json": {"urls": [["a.py", "../.ssh/id"]]}}, "absolute or hidden"),
        ({"package.json": {"urls": [["a.py", "../../.env"]]}}, "absolute or hidden"),
        ({"package.json": {"urls": [["a.py", "../../etc/passwd"]]}}, "outside of its project"),
        ({"package.json": {"deps": [["../../p.json", ""]]}}, "outside of its project"),
        ({"manifest.py": 'include("../../manifest.py")'}, "outside of its project"),
        ({"package.json": {"urls": [["a.py", "x\\y.py"]]}}, "absolute or hidden"),
        ({"package.json": {"urls": [["a.py", "file:///x"]]}}, "absolute or hidden"),
        ({"package.json": {"deps": [["./no.json", ""]]}}, "has no file 'no.json'"),
        ({"package.json": "[1]"}, "does not contain a JSON object"),
        ({"package.json": "{"}, "is not valid JSON"),
        ({"package.json": '{"a": 1, "a": 2}'}, "duplicate key"),
        ({"package.json": "[" * 100_000}, "is not valid JSON"),
        ({"manifest.py": 'module("no.py")'}, "has no file 'no.py'"),
        ({"manifest.py": 'module("a.py"', "a.py": ""}, "manifest.py, line 1: .*never closed"),
        ({"manifest.py": 'package("no")'}, "has no folder 'no'"),
        ({"manifest.py": 'include("no")'}, "has no file 'no'"),
        ({"manifest.py": 'module("a.py", base_path="../.ssh")'}, "absolute or hidden"),
        ({"manifest.py": 'package("/etc")'}, "line 1: '/etc' is not a path relative"),
    ],
)
def test_package_that_cannot_be_read_is_an_error(tmp_path, files, why):
    write(tmp_path / "p", files)
    with pytest.raises(PackageError, match=why):
        read_local_package(str(tmp_path / "p"))


def test_folder_without_files_is_an_error(tmp_path):
    with pytest.raises(PackageError, match="has no file that could be installed"):
        read_local_package(str(tmp_path))
