"""The rollouts on the dashboard's page, in Chromium: waves, failures, buttons by rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from cloudmanager.client.fleet import Fleet

from .conftest import LONG_WAIT, PICTURES, WAIT
from .test_dashboard_page import running_page

pytestmark = pytest.mark.timeout(300)
NAMES = ["demo-1", "demo-2", "demo-3"]


@pytest.fixture
def folder(tmp_path: Path, boards: Any, fleet: Fleet) -> Iterator[Path]:
    """A folder for ``fleet.toml``; no rollout of its group goes on afterwards."""
    expect.set_options(timeout=WAIT)
    yield tmp_path
    for rollout in fleet.rollouts():
        if rollout["state"] in ("running", "paused"):
            fleet.abort_rollout(rollout["group"])


def apply(fleet: Fleet, folder: Path, number: int, **rollout: Any) -> None:
    """Begin a rollout of a setting; ``health`` and others are as in the file."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in rollout.items()]
    path = folder / "fleet.toml"
    path.write_text(
        f'[pane]\ntarget = "demo-[1-3]"\nsettings = {{ n = {number} }}\n[pane.rollout]\n'
        + "\n".join(lines)
    )
    fleet.apply(fleet.plan(path))


def new_page(browser: Browser, scheme: Any, width: int, link: str) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.goto(link)
    page.locator(".cm-table").wait_for()
    return page


def test_pane_shows_waves_and_failures_and_its_buttons_change_the_rollout(
    browser: Browser, fleet: Fleet, folder: Path
):
    problems: list[str] = []
    apply(fleet, folder, 1, waves=[1, "100%"], pause="0s", health="1", health_timeout="20s")
    with running_page("demo-*") as link:
        page = new_page(browser, "light", 1280, link)
        page.on("pageerror", lambda error: problems.append(str(error)))
        pane = page.locator(".cm-rollout").filter(has=page.get_by_role("heading", name="pane"))
        show = page.get_by_role("button", name="Rollouts")
        show.wait_for()
        if show.get_attribute("aria-expanded") == "false":  # it has ended before the page opened
            show.click()
        expect(pane.locator(".cm-rollout-state")).to_have_text("done", timeout=LONG_WAIT)
        expect(pane.locator(".cm-lines")).to_contain_text("demo-[1-3]")
        expect(pane.locator(".cm-wave")).to_have_count(2)

        check = "raise OSError('no sensor')"
        apply(fleet, folder, 2, waves=[1, "100%"], pause="0s", health=check, health_timeout="20s")
        expect(pane.locator(".cm-rollout-state")).to_have_text("failed", timeout=LONG_WAIT)
        expect(pane.locator(".cm-why")).to_contain_text("1 failed, and max_failures is 0")
        expect(pane.locator(".cm-lines")).to_contain_text("demo-1: health: OSError: no sensor")
        expect(pane.locator(".cm-lines")).to_contain_text("not begun")
        pictures(page, "failed")

        apply(fleet, folder, 3, waves=[1, 2, "100%"], pause="1h", health="1")
        state = pane.locator(".cm-rollout-state")
        expect(state).to_contain_text("running, wave 1 of 3")
        expect(pane.locator(".cm-lines")).to_contain_text("proven", timeout=LONG_WAIT)
        pictures(page, "wide")
        pane.get_by_role("button", name="Pause pane").click()
        expect(state).to_have_text("paused, wave 1 of 3")
        expect(page.get_by_role("button", name="Rollouts (1 in progress)")).to_be_visible()
        pane.get_by_role("button", name="Resume pane").click()
        expect(state).to_have_text("running, wave 1 of 3")
        pane.get_by_role("button", name="Abort pane").click()
        expect(state).to_have_text("running, wave 1 of 3")  # it asks first
        pane.get_by_role("button", name="Abort pane").click()
        expect(state).to_have_text("aborted")
        pane.get_by_role("button", name="Roll back pane").dblclick()
        expect(state).to_contain_text("running")
        assert problems == []
        page.context.close()
    assert {each["caller"] for each in fleet.rollouts()} == {"local"}


def pictures(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"rollouts-{name}.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=PICTURES / f"rollouts-{name}-dark.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 420, "height": 900})
    overflow = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    page.screenshot(path=PICTURES / f"rollouts-{name}-narrow.png")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert overflow <= 0


def test_viewer_sees_rollouts_without_buttons(browser: Browser, fleet: Fleet, folder: Path):
    apply(fleet, folder, 4, pause="1h", health="1")
    with running_page("--role", "viewer") as link:
        page = new_page(browser, "dark", 800, link)
        pane = page.locator(".cm-rollout").filter(has=page.get_by_role("heading", name="pane"))
        expect(pane.locator(".cm-rollout-state")).to_contain_text("running")
        expect(pane.get_by_role("button")).to_have_count(0)
        page.context.close()
