"""Manifests: what is understood, and that nothing is executed."""

from __future__ import annotations

import pytest

from cloudmanager.client.package_manifests import ModuleFiles, is_manifest, read_manifest
from cloudmanager.protocol.errors import PackageError


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ('module("a.py")', ModuleFiles("", "a.py", None, False)),
        ('module("a/b.py", "src")', ModuleFiles("src", "a/b.py", None, False)),
        ('module(module_path="./a.py", base_path="..")', ModuleFiles("..", "a.py", None, False)),
        ('package("a")', ModuleFiles("", "a", None, True)),
        ('package("a/b", base_path="./src")', ModuleFiles("src", "a/b", None, True)),
        ('package("a", ["b.py"], "src")', ModuleFiles("src", "a", ("b.py",), True)),
        ('package("a", files=())', ModuleFiles("", "a", (), True)),
    ],
)  # fmt: skip
def test_files_of_a_manifest(text: str, files: ModuleFiles):
    assert read_manifest(text, "manifest.py").files == [files]


def test_other_contents_of_a_manifest():
    text = """
metadata(version="1.0", description='a', author="x", license="MIT", stdlib=True, pypi="a")
require("a"); require("b", "2", unix_ffi=True)
include("x"); include(("y", "z/manifest.py"))
"""
    manifest = read_manifest(text, "manifest.py")
    assert manifest.version == "1.0"
    assert manifest.requires == [("a", ""), ("b", "2")]
    assert manifest.includes == ["x", "y", "z/manifest.py"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os", "line 1: a manifest is not executed"),
        ("\nX = 1", "line 2: a manifest is not executed"),
        ("print('x')", "a manifest is not executed"),
        ("os.remove('x')", "a manifest is not executed"),
        ("if 1:\n module('a.py')", "a manifest is not executed"),
        ("[module('a.py') for _ in range(2)]", "a manifest is not executed"),
        ("options.defaults(x=1)", "a manifest is not executed"),
        ("module(NAME)", "arguments of module\\(\\) must be literals"),
        ("module('a' + open('/etc/passwd').read())", "must be literals"),
        ("module(**{'module_path': NAME})", "must be literals"),
        ("module(*['a.py'])", "must be literals"),
        ("module()", "missing 1 required positional argument"),
        ("module('a.py', color=1)", "unexpected keyword argument 'color'"),
        ("module(1)", "1 is not a text"),
        ("module('a.mpy')", "a module must be a .py file"),
        ("module('C:/a.py')", "is not a path relative"),
        ("package('$(MPY_DIR)/x')", "is not a path relative"),
        ("package('a', files=[1])", "1 is not a text"),
        ("require('a', library='mine')", "the library 'mine' is not known"),
        ("include('a', fast=True)", "options are not supported"),
        ("freeze('modules')", "freeze\\(\\) is for firmware; use module"),
        ("c_module('x')", "is for firmware"),
        ("module(", "line 1: "),
        ("metadata(version=" + "-" * 90_000 + "1)", "line "),
        ("module('a.py')\n" * 20_000, "too long for a manifest"),
        ("module('a.py\0')", "line 1: "),
    ],
)
def test_what_would_need_execution_is_an_error_with_its_line(text: str, why: str):
    with pytest.raises(PackageError, match=f"^the manifest, .*{why}"):
        read_manifest(text, "the manifest")


def test_manifest_is_distinguished_from_a_module():
    assert is_manifest('import x\nmetadata(version="1")')
    assert is_manifest("freeze('x')")
    assert not is_manifest("X = 1\nprint(X)")
    assert is_manifest('metadata(version="1")\nmodule(')
    assert not is_manifest("X = (\nprint(X)")
    assert not is_manifest("def module(): pass")


@pytest.mark.parametrize(
    "text",
    [
        "if 1:\n module('a.py')",
        "for n in range(3):\n    module(f'm{n}.py')",
        "options.defaults(x=True)\nif options.x:\n    package('p')",
        "[module('a.py') for _ in range(2)]",
        "try:\n    require('x')\nexcept Exception:\n    pass",
        "x = include('a')",
    ],
)
def test_manifest_with_code_is_no_module(text: str):
    assert is_manifest(text)
    with pytest.raises(PackageError, match="a manifest is not executed"):
        read_manifest(text, "the manifest")


@pytest.mark.parametrize(
    "text",
    [
        "def module(name): pass\nmodule('a.py')",
        "from x import package\npackage()",
        "import y as include\ninclude()",
        "require = print\nrequire('x')",
        "def f(module):\n    return module('a')",
        "class freeze: pass\nfreeze()",
        "x.module('a')",
    ],
)
def test_module_with_functions_of_such_names_is_no_manifest(text: str):
    assert not is_manifest(text)
