"""JupyterLab in a browser, for tests that click and type.

    def test_it_adds(lab: Lab):
        page = lab.open("sums.ipynb", ["1 + 1"])
        page.run_all()
        assert page.outputs(0) == ["2"]
        page.picture("sums")          # saved as build/screenshots/sums.png

JupyterLab listens on a free TCP port of loopback, and opens copies of notebooks.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    expect,
    sync_playwright,
)
from playwright.sync_api import Error as PlaywrightError

from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_kernel.install import install

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "build/screenshots"
RECORD = Path(__file__).with_name("page_record.js")
PATHS = os.pathsep.join(str(ROOT / name) for name in ("", "server"))
WAIT = 20_000  # ms: maximum wait for one event in a page, on a busy machine
#: Maximum wait in ms for a page to open, the first of which takes 40 s on a busy machine, and for
#: all cells of a notebook to be run.
LONG_WAIT = 90_000
#: The last five keep Chromium from contacting hosts on the Internet.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Extensions of JupyterLab that no test needs: they take a good part of the time in which a page
#: opens, and the debugger makes requests to each kernel.
DISABLED = (
    "debugger",
    "extensionmanager",
    "fileeditor",
    "hub",
    "launcher",
    "logconsole",
    "lsp",
    "mermaid",
    "pdf",
    "running",
    "terminal",
    "toc",
    "vega5",
    "workspaces",
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {
        "windowingMode": "none"
    },  # put all cells into the page, not only visible ones
}


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.area = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.cells: Locator = self.area.locator(".jp-CodeCell")
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until the kernel has started and is idle."""
        self.page.get_by_text(re.compile(r"[^|]+ \| Idle$")).wait_for(timeout=LONG_WAIT)

    def run_all(self) -> None:
        """Choose Run All Cells, and wait until the kernel is idle."""
        self.menu("Run", "Run All Cells")
        self.page.wait_for_timeout(200)  # until the kernel has received the first cell
        self.wait_idle()

    def menu(self, name: str, item: str) -> None:
        """Choose a menu item."""
        self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()

    def type(self, cell: int, text: str) -> None:
        """Replace the text of a code cell."""
        self.cells.nth(cell).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(text)

    def press(self, keys: str) -> None:
        """Press keys, such as Shift+Tab."""
        self.page.keyboard.press(keys)

    def run(self, cell: int, text: str) -> None:
        """Replace the text of a code cell and run it, without waiting."""
        self.type(cell, text)
        self.press("Control+Enter")

    def stop(self) -> None:
        """Press the stop button."""
        self.area.locator('[data-jp-item-name="interrupt"]').click()

    def source(self, cell: int) -> str:
        """Return the text of a code cell."""
        return "\n".join(self.cells.nth(cell).locator(".cm-line").all_inner_texts())

    def outputs(self, cell: int) -> list[str]:
        """Return the texts of a code cell's outputs."""
        found = self.cells.nth(cell).locator(".jp-OutputArea-output")
        return [text.rstrip("\n") for text in found.all_inner_texts()]

    def wait_output(self, cell: int, text: str) -> None:
        """Wait until an output of a code cell contains a text."""
        outputs = self.cells.nth(cell).locator(".jp-OutputArea-output", has_text=text)
        outputs.first.wait_for(timeout=WAIT)

    def picture(self, name: str) -> Path:
        """Save a screenshot of the page; return its path."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        self.page.screenshot(path=path)
        return path


class Lab:
    """A running JupyterLab, and a browser."""

    def __init__(self, folder: Path, url: str, token: str, browser: BrowserContext) -> None:
        self._folder, self._url, self._token = folder, url, token
        self._browser = browser  # one context, so that JupyterLab's files are loaded once
        self._reused: dict[str, Notebook] = {}  # by name of the notebook's file

    def open(
        self,
        name: str,
        cells: Sequence[str] | None = None,
        *,
        kernel: str = "cm_kernel",
        keep: bool = False,
    ) -> Notebook:
        """Open a notebook: a tutorial, without its outputs, or a new one with these cells.

        Its kernel is a new one. With ``keep``, the notebook is opened as it was saved.
        """
        self._shut_down(name)  # a test that failed may have left one
        if keep:
            notebook: Any = nbformat.read(self._folder / name, as_version=4)
        elif cells is None:
            notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            for picture in (ROOT / "notebooks").glob("*.png"):
                shutil.copy(picture, self._folder)
        else:
            notebook = nbformat.v4.new_notebook()
            notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
            notebook.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
        nbformat.write(notebook, self._folder / name)
        page = self._browser.new_page()
        workspace = f"{self._url}/lab/workspaces/{Path(name).stem}"  # one workspace per page
        page.goto(f"{workspace}/tree/{name}?reset&token={self._token}")
        return Notebook(page)

    def reuse(self, name: str, cells: Sequence[str], *, kernel: str = "cm_kernel") -> Notebook:
        """Return the notebook that an earlier test of the module opened, or else open it.

        It is as the earlier test left it. After a test that failed, it is a new one.
        """
        if name not in self._reused:
            self._reused[name] = self.open(name, cells, kernel=kernel)
        return self._reused[name]

    def close(self, notebook: Notebook) -> None:
        """Close a notebook's page, and shut down its kernel."""
        self.shut_down(notebook)
        notebook.page.close()

    def close_all(self) -> None:
        """Close all pages, and shut down all kernels."""
        self._reused.clear()
        self._shut_down()
        for page in self._browser.pages:
            page.close()

    def describe_pages(self, test: str) -> Iterator[tuple[str, str]]:
        """Return the address of each open page and what it sent, received and was typed last.

        Args:
            test: name of the test that failed, in the names of the pictures that are saved.
        """
        for number, page in enumerate(self._browser.pages, 1):
            path = PICTURES / f"failed-{re.sub(r'[^a-z0-9]+', '-', test)}-{number}.png"
            try:
                record = page.evaluate("[...(window.cmRecord ?? []), performance.now() / 1000]")
                page.screenshot(path=path, timeout=WAIT)
            except PlaywrightError as error:  # the page has crashed, or was closed
                record = [str(error)]
            yield page.url, "\n".join(map(str, record))

    def shut_down(self, notebook: Notebook) -> None:
        """Shut down a notebook's kernel."""
        self._shut_down(Path(urlsplit(notebook.page.url).path).name)

    def _shut_down(self, name: str = "") -> None:
        """Shut down the kernel of the notebook of this name, without a name all of them."""
        head = {"Authorization": f"token {self._token}"}
        for session in self._browser.request.get(f"{self._url}/api/sessions", headers=head).json():
            if name in ("", session["path"]):
                kernel = f"{self._url}/api/kernels/{session['kernel']['id']}"
                self._browser.request.delete(kernel, headers=head)


LAB = pytest.StashKey[Lab]()
FAILED = pytest.StashKey[bool]()  #: whether a test's set-up or its call has failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test what its pages sent and received.

    It belongs to the traceback, which `--rerun-show-tracebacks` shows; other parts of a report are
    lost if the second run of the test succeeds.
    """
    report = yield
    if call.when == "setup":
        item.stash[FAILED] = False  # a test that failed may be run again
    if report.failed and call.when != "teardown":
        item.stash[FAILED] = True
        lab = item.session.stash.get(LAB, None)
        add_section = getattr(report.longrepr, "addsection", None)
        if lab is not None and add_section is not None:
            for title, text in lab.describe_pages(item.name):
                add_section(title, text)
    return report


@pytest.fixture(autouse=True)
def close_after_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close all notebooks after a test that failed, so that its next run opens new ones."""
    yield
    if request.node.stash[FAILED] and (lab := request.session.stash.get(LAB, None)):
        lab.close_all()


@pytest.fixture(scope="module", autouse=True)
def close_after_module(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if lab := request.session.stash.get(LAB, None):
        lab.close_all()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: `apt-get install chromium`, which `make test` does for root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(
    browser: Browser,
    boards: VirtualBoards,
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    """JupyterLab, whose kernels use the shared server with demo-1 to demo-3."""
    folder, notebooks = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("notebooks")
    install(prefix=str(folder))
    token, tcp_port = secrets.token_hex(16), _free_tcp_port()
    url = f"http://127.0.0.1:{tcp_port}"
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(WAIT)
    context.set_default_navigation_timeout(LONG_WAIT)
    context.add_init_script(path=RECORD)
    expect.set_options(timeout=WAIT)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            f"--ServerApp.port={tcp_port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={notebooks}",
            "--Application.log_level=ERROR",
        ],
        env={**os.environ, **_environment(folder), "JUPYTER_TOKEN": token},
        cwd=notebooks,
    )
    try:
        _wait_until_ready(process, f"{url}/api")
        lab = request.session.stash[LAB] = Lab(notebooks, url, token, context)
        yield lab
        del request.session.stash[LAB]
    finally:
        process.terminate()
        process.wait(10)


def _environment(folder: Path) -> dict[str, str]:
    """Return environment variables that keep JupyterLab's files below a folder."""
    for name, settings in SETTINGS.items():
        path = folder / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    page_config = folder / "config/labconfig/page_config.json"
    page_config.parent.mkdir(parents=True)
    disabled = {f"@jupyterlab/{name}-extension": True for name in DISABLED}
    page_config.write_text(json.dumps({"disabledExtensions": disabled}))
    return {
        "JUPYTER_PATH": str(folder / "share/jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": PATHS,
    }


def _free_tcp_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + LONG_WAIT / 1000
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("JupyterLab did not start")
