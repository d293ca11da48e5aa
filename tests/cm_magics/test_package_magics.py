"""The magics for packages on boards, in an IPython shell of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.package_index import PackageIndex, running_package_index
from cloudmanager import Fleet, Results

from .test_magics import Shell, ip, shell  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")


@pytest.fixture(autouse=True)
def work(fleet: Fleet, boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    fleet["demo-[1-3]"].rm(":/.cm", recursive=True)
    fleet["demo-[1-3]"].rm(":/lib/mmm.mpy")


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with running_package_index() as made:
        made.publish("mmm", "1.0", {"mmm.py": "M = 1"})
        yield made


def test_install_packages_upgrade_uninstall(shell: Shell, index: PackageIndex):  # noqa: F811
    plan = shell.run(f"%board_install demo-[1-2] here:mmm --index here={index.url} --dry-run")
    assert "bytes free; dry run, nothing was changed" in plan
    shown = shell.run(f"r = %board_install demo-[1-2] here:mmm --index here={index.url}")
    assert shown.splitlines()[0].startswith("── demo-[1-2] ")
    assert f"here:mmm 1.0  from {index.url}\n  /lib/mmm.mpy\n1 file, " in shown
    results = shell.ip.user_ns["r"]
    assert isinstance(results, Results)
    assert results["demo-1"].value.packages == {"here:mmm": "1.0"}
    index.publish("mmm", "1.1", {"mmm.py": "M = 2"})
    assert "here:mmm 1.1" in shell.run("%board_upgrade demo-1")
    shell.run("%board_use demo-[1-2]")
    shown = shell.run("%board_packages")
    assert shown.index("demo-1") < shown.index("here:mmm 1.1") < shown.index("here:mmm 1.0")
    assert "/lib/mmm.mpy (removed)" in shell.run("%board_uninstall demo-[1-2] here:mmm")
    assert "no packages" in shell.run("%board_packages")


def test_installing_a_local_file_shows_its_notes(shell: Shell):  # noqa: F811
    Path("mmm.py").write_text("def f(:\n")
    shown = shell.run("%board_install demo-3 ./mmm.py")
    assert "note: /lib/mmm.py" in shown
    shell.run("%board_uninstall demo-3 mmm")


def test_refused_install_raises_and_suggests_force(shell: Shell):  # noqa: F811
    Path("mmm.py").write_text("M = 1")
    shell.run("%%board demo-3\nopen('/lib/mmm.mpy', 'w').close()")
    shown = shell.run("%board_install demo-3 ./mmm.py")
    assert "--force overwrites it" in shown
    assert shown.count("\n") < 4
    assert shell.error is not None
    assert "1 file" in shell.run("%board_install demo-3 ./mmm.py --force")
    shell.run("%board_uninstall demo-3 mmm")


@pytest.mark.parametrize(
    "line",
    [
        "%board_install",
        "%board_install demo-1",
        "%board_install demo-1 --locked",
        "%board_install demo-1 --nope mmm",
        "%board_uninstall demo-1",
        "%board_packages demo-1 mmm",
        "%board_upgrade",
    ],
)
def test_wrong_usage_is_an_error(shell: Shell, line: str):  # noqa: F811
    assert "UsageError" in shell.run(line)


def test_completion_is_registered_and_unregistered(shell: Shell):  # noqa: F811
    assert shell.complete("%board_install demo-2") == ["demo-2"]
    assert "--dry-run" in shell.complete("%board_upgrade demo-2 --d")
    assert "--index" in shell.complete("%board_install demo-2 mmm --i")
    shell.ip.run_line_magic("unload_ext", "cm_magics")
    assert "board_install" not in shell.ip.magics_manager.magics["line"]
