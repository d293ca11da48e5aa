"""Magics whose work waits on the server for boards that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.error import UsageError

from cloudmanager import Results
from cloudmanager.client.fleet import Fleet
from cm_magics.board_page import make_section

from .test_magics import Shell, ip, shell  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")
AWAY = "away-magic"


@pytest.fixture
def away(shell: Shell, fleet: Fleet) -> Iterator[str]:  # noqa: F811
    """A board that is enrolled and never connects."""
    fleet.enrol([AWAY])
    yield AWAY
    fleet.revoke(AWAY)


def waiting(fleet: Fleet) -> list[int]:
    return [job["job"] for job in fleet.jobs(AWAY, waiting=True)]


def test_cell_waits_and_its_result_is_shown_later(away: str, shell: Shell, fleet: Fleet):  # noqa: F811
    shown = shell.run(f"%%board {away} --when-online --expires 2h -o r\nprint(1)\n")
    (number,) = waiting(fleet)
    assert f"{away}: waits for the board until 20" in shown
    assert f"as job {number}" in shown
    results = shell.ip.user_ns["r"]
    assert isinstance(results, Results)
    assert results[away].status == "waiting"
    assert "waiting until 20" in shell.run(f"%board_result {number}")
    fleet.interrupt([number])
    assert "interrupted" in shell.run(f"%board_result {number}")


def test_other_magics_wait_too(away: str, shell: Shell, fleet: Fleet, tmp_path: Path):  # noqa: F811
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("A = 1\n")
    for line in (
        f"%board_cp {away} {tmp_path}/src/a.py :lib/ --when-online",
        f"%board_sync {away} {tmp_path}/src :app --when-online",
        f"%board_install {away} {tmp_path}/src/a.py --when-online",
        f"%board_reset {away} --when-online",
    ):
        shown = shell.run(line)
        assert shell.error is None, line
        assert f"{away}: waits for the board until 20" in shown, line
    shown = shell.run(f"%%board_writefile {away} :notes.txt --when-online\nhello\n")
    assert f"{away}: waits for the board until 20" in shown
    assert len(waiting(fleet)) == 5


def test_options_that_exclude_each_other_are_usage_errors(away: str, shell: Shell):  # noqa: F811
    shell.run(f"%%board {away} --when-online --wait 5\n1\n")
    assert isinstance(shell.error, UsageError)
    assert "--wait keeps" in str(shell.error)
    shell.run(f"%board_reset {away} --expires 5h")
    assert "--expires needs --when-online" in str(shell.error)


def test_page_of_a_board_lists_what_waits_for_it(away: str, fleet: Fleet):
    number = fleet[away].run("6 * 7", when_online=True)[away].job
    section = make_section(fleet, {"name": away}, "Recent jobs")
    assert section is not None
    (job,) = section["jobs"]
    assert job["number"] == number
    assert job["line"].startswith(f"{number} · waits until 20")
    assert job["line"].endswith(" · 6 * 7")
