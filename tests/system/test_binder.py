"""binder/: what a cloud service runs the tutorials with, and that they run with it."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

from tests.wheel import ROOT, tracked

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_binder_names_extras_that_there_are_and_a_python_that_will_do():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    (wanted,) = [line for line in lines if line and not line.startswith("#")]
    named = re.fullmatch(r"\.\[(.*)\]", wanted)
    assert named is not None
    assert named[1].split(",") == ["lab", "virtual"]
    assert set(named[1].split(",")) <= settings["options.extras_require"].keys()
    runtime = (ROOT / "binder/runtime.txt").read_text().strip().removeprefix("python-")
    least = settings["options"]["python_requires"].removeprefix(">=")
    assert [int(part) for part in runtime.split(".")] >= [int(part) for part in least.split(".")]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The repository and an environment of its own, as such a service makes them."""
    folder = tmp_path_factory.mktemp("cloud")
    copy, made = folder / "repository", folder / "environment"
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    venv.create(made, with_pip=True)
    pip = [str(made / "bin/pip"), "install", "-q", "-r", "binder/requirements.txt"]
    subprocess.run(pip, cwd=copy, check=True)
    return copy, made


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_tutorials_run_with_binders_files_in_an_empty_environment(cloud, tmp_path: Path):
    copy, made = cloud
    environment = {
        "PATH": f"{made / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CM_HOME": str(tmp_path / "cm"),
    }
    run = [str(made / "bin/jupyter-execute"), "--timeout=120", *NOTEBOOKS]
    try:
        done = subprocess.run(
            run, cwd=copy / "notebooks", env=environment, capture_output=True, text=True
        )
    finally:
        subprocess.run([made / "bin/mbm", "server-stop"], env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
