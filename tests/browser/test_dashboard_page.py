"""``mbm dashboard`` in Chromium; what it refuses is tested in cm_magics/test_web_page.py."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from cloudmanager.client.fleet import Fleet

from .conftest import PICTURES, WAIT

pytestmark = pytest.mark.timeout(120)


@contextlib.contextmanager
def running_page(*words: str) -> Iterator[str]:
    """Run `mbm dashboard`; yield the link that it prints. Ctrl-C must end it."""
    command = [sys.executable, "-m", "cloudmanager", "dashboard", "--no-browser", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield next(line.strip() for line in process.stdout if "http://" in line)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.fixture(scope="module")
def pages(browser: Browser, boards: Any) -> Iterator[Any]:
    """A function that returns a page of a new browser profile."""
    contexts = []

    def new_page() -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        return context.new_page()

    expect.set_options(timeout=WAIT)
    yield new_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def opened(pages: Any) -> Iterator[tuple[Page, str]]:
    """A page that was opened with the link, and the link."""
    with running_page("demo-*") as link:
        page = pages()
        page.goto(link)
        page.locator(".cm-table").wait_for()
        yield page, link


def test_page_shows_boards_runs_cells_and_transfers_files(
    opened: tuple[Page, str], fleet: Fleet, tmp_path: Any
):
    page, _ = opened
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    expect(page.locator(".cm-count")).to_contain_text("3 of ")
    page.get_by_role("row").filter(has=page.get_by_text("demo-1", exact=True)).click()
    page.get_by_role("button", name="Run…").click()
    page.locator(".cm-prompt textarea").fill("print('from', 6 * 7)")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".cm-pane")).to_contain_text("from 42")

    page.get_by_text("demo-1", exact=True).first.dblclick()
    expect(page.locator(".cm-pane")).to_contain_text("MicroPython")
    (tmp_path / "from_browser.txt").write_text("a file")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload…", exact=True).last.click()
    chooser.value.set_files(tmp_path / "from_browser.txt")
    page.get_by_role("button", name="Files of this board").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download /from_browser.txt").click()
    assert download.value.path().read_text() == "a file"
    fleet["demo-1"].rm(":/from_browser.txt").raise_for_error()

    code = "import asyncio\nasync def f():\n    print('beside')\nt = asyncio.create_task(f())"
    fleet["demo-1"].run(code)
    expect(page.locator(".cm-log")).to_contain_text("beside")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / "dashboard-without-jupyter.png")
    assert problems == []


def test_link_works_once_and_the_page_needs_its_cookie(opened: tuple[Page, str], pages: Any):
    page, link = opened
    stranger = pages()
    for url in (link, page.url, page.url + "page.js", page.url + "model.json"):
        response = stranger.goto(url)
        assert response.status == 403, url
        assert "Press Enter there" in stranger.inner_text("body")
    cookies = page.context.cookies(page.url)
    assert [(each["httpOnly"], each["sameSite"]) for each in cookies] == [(True, "Strict")]
    assert cookies[0]["path"] == urlsplit(page.url).path.rstrip("/")
    assert page.context.cookies(link) == [], "other paths of this host do not get it"


def test_script_of_another_place_is_not_run(opened: tuple[Page, str]):
    page, _ = opened
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
            " document.body.append(s); }"
        )
    assert page.evaluate("window.bad") is None


def test_viewers_page_changes_nothing_and_its_token_is_revoked(pages: Any, fleet: Fleet):
    with running_page("--role", "viewer") as link:
        page = pages()
        page.goto(link)
        expect(page.locator(".cm-count")).to_contain_text("idle")
        expect(page.get_by_role("button", name="Run…")).to_have_count(0)
        page.get_by_text("demo-1", exact=True).first.dblclick()
        expect(page.locator(".cm-log")).to_contain_text("operator")
    tokens = [each for each in fleet.request("token-list") if each["name"].startswith("dashboard-")]
    assert [(each["role"], each["state"]) for each in tokens] == [("viewer", "revoked")]
    expect(page.locator(".cm-lost")).to_contain_text("mbm dashboard")
