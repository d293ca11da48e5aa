"""Jupyter's conformance suite, for the kernel that the wheel installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jupyter_kernel_test
import pytest

from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.wheel import build, pip

pytestmark = pytest.mark.timeout(120)  # the wheel is built first

PNG = "b'\\x89PNG\\r\\n\\x1a\\n'"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which only the wheel is installed, without the source tree."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, build(folder / "build"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def environment(installed: Path, boards: VirtualBoards, home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(installed))
        patch.setenv("JUPYTER_PATH", str(installed / "share/jupyter"))
        patch.setenv("IPYTHONDIR", str(installed / "ipython"))
        patch.chdir(installed)
        yield


def test_wheel_installs_the_kernelspec(installed: Path):
    command = [sys.executable, "-m", "jupyter_client.kernelspecapp", "list", "--json"]
    listed = subprocess.run(command, check=True, capture_output=True, env=dict(os.environ)).stdout
    spec = json.loads(listed)["kernelspecs"]["cm_kernel"]
    assert spec["resource_dir"] == str(installed / "share/jupyter/kernels/cm_kernel")
    assert spec["spec"]["display_name"] == "MicroPython (Cloudmanager)"
    assert spec["spec"]["interrupt_mode"] == "message"
    assert spec["spec"]["argv"][0] == "python"
    assert (Path(spec["resource_dir"]) / "logo-64x64.png").exists()


def test_package_is_imported_from_the_wheel(installed: Path):
    command = [sys.executable, "-c", "import cm_kernel; print(cm_kernel.__file__)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == str(installed / "cm_kernel/__init__.py")


class TestConformance(jupyter_kernel_test.KernelTests):
    """All tests of the suite; those of stderr and clear_output run on the host."""

    kernel_name = "cm_kernel"
    language_name = "micropython"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "%%host\nimport sys\nprint('oh', file=sys.stderr)"
    code_clear_output = "%%host\nfrom IPython.display import clear_output\nclear_output()"
    code_page_something = "print?"
    code_generate_error = "1/0"
    code_execute_result = [
        {"code": "6*7", "result": "42"},
        {"code": "import sys; sys.implementation.name", "result": "'micropython'"},
        {"code": f"{PNG} + bytes(16)", "mime": "image/png"},
    ]
    code_display_data = [{"code": "%%board demo-[1-2]\nprint('both')", "mime": "text/plain"}]
    completion_samples = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import sys\nsys.implemen", "matches": {"implementation"}},
    ]
    complete_code_samples = ["6*7", "print('hello, world')", "%boards"]
    incomplete_code_samples = ["for n in range(3):", "def f(a,"]
    invalid_code_samples = ["import = 7q", "x = = 1"]
    code_history_pattern = "6?7*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "print"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.kc.execute_interactive("%board_use demo-1", timeout=20)
        cls.kc.execute_interactive("import sys", timeout=20)

    def setUp(self) -> None:
        self.flush_channels()
