"""JupyterLab in headless Chromium, as a person sees it: a real kernel, server and boards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

WAIT = 60.0  # seconds that anything here may take on a busy machine
START_SECONDS = 60.0
TOKEN = "for-tests"
#: Without these, Chromium looks for the network at every start.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: No help from afar: news, announcements, and questions before a kernel is shut down.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells in the page
    "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Light"},
}


class Lab(NamedTuple):
    """A running JupyterLab."""

    url: str
    folder: Path  # the notebooks


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium: the tests bring no browser of their own."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Lab]:
    """A JupyterLab whose kernels find the tests' server by CM_HOME."""
    folder, own = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    for name, value in SETTINGS.items():
        package, _, plugin = name.rpartition("/")
        path = own / "lab/user-settings" / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    env = {
        **os.environ,
        "CM_HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(own),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(own / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    command += ["--ServerApp.port_retries=0", "--expose-app-in-browser"]
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder)
    try:
        yield Lab(_address(process, own), folder)
    finally:
        process.terminate()
        process.wait(WAIT)


def _address(process: subprocess.Popen[bytes], own: Path) -> str:
    """Wait for the file in which JupyterLab says where it listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for path in (own / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):
                return str(json.loads(path.read_text())["url"])
        assert process.poll() is None, (own / "log").read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start")


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def output(self, number: int) -> Locator:
        return self.cell(number).locator(".jp-OutputArea")

    def run(self, number: int, *, wait: bool = True) -> None:
        """Run a cell, as a person does it."""
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        if wait:
            self.done(number)

    def prompt(self, number: int) -> str:
        return self.cell(number).locator(".jp-InputArea-prompt").inner_text()

    def done(self, number: int, timeout: float = WAIT) -> None:
        """Wait until a cell has its number."""
        number_only = r"^\[\d+\]:?$"
        self.page.wait_for_function(
            "([at, text]) => new RegExp(text).test(document.querySelectorAll("
            "'.jp-Notebook .jp-Cell')[at].querySelector('.jp-InputArea-prompt').innerText)",
            arg=[number, number_only],
            timeout=timeout * 1000,
        )

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


@pytest.fixture
def open_notebook(jupyter: Lab, chromium: Browser) -> Iterator[Any]:
    """What opens a notebook: of cells, or of a file that is there."""
    with contextlib.ExitStack() as stack:

        def open_it(cells: list[str] | Path, *, dark: bool = False, name: str = "") -> Notebook:
            context = chromium.new_context(viewport={"width": 1400, "height": 1000})
            stack.callback(context.close)
            page = context.new_page()
            path = jupyter.folder / (name or f"test{time.monotonic_ns()}.ipynb")
            if isinstance(cells, Path):
                shutil.copy(cells, path)
            else:
                notebook = nbformat.v4.new_notebook()
                notebook.cells = [nbformat.v4.new_code_cell(text) for text in cells]
                notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
                nbformat.write(notebook, path)
            page.goto(f"{jupyter.url}lab/tree/{path.name}?token={TOKEN}&reset")
            page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT * 1000)
            page.get_by_text("(ipykernel) | Idle").wait_for(timeout=WAIT * 1000)
            if dark:
                page.evaluate(
                    "document.body.dataset.jpThemeLight === 'true' && "
                    "window.jupyterapp?.commands.execute('apputils:change-theme', "
                    "{theme: 'JupyterLab Dark'})"
                )
            return Notebook(page)

        yield open_it
