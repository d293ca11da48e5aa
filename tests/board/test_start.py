"""cm_start.py: a new client is on trial for one boot; the power may go at any write."""

from __future__ import annotations

import pytest

from .peer import OK


@pytest.fixture
def lab(boot_lab):
    return boot_lab


def staged(client, *, broken=False):
    """Files of a new client, whole; the old one is there, too. Each says which it is."""
    files = {"/lib/cm/who.py": b"name = 'old'"}
    for path, data in client.items():
        if path.startswith("/lib/cm/"):
            files[path.replace("/lib/cm/", "/lib/cm.new/")] = data
    files["/lib/cm.new/who.py"] = b"name = 'new'"
    if broken:
        files["/lib/cm.new/link.py"] = b"1 / 0"  # it is found before link.mpy
    return {**files, "/lib/cm.new/ok": b""}


WHO = "from cm import who\n__cm__((who.name))"
CONFIRM = "import cm_start, os\nos.remove('/lib/cm/trial')\ncm_start.remove('/lib/cm.old')"


def test_new_client_is_kept_once_it_is_confirmed(lab, client):
    lab.flash.write(staged(client))
    link = lab.boot().link()
    assert link.run(WHO).value == b"'new'"
    assert link.run(CONFIRM).status == OK
    lab.chip.press_reset()
    assert lab.link(after=link).run(WHO).value == b"'new'"


def test_new_client_that_nobody_confirmed_is_taken_back(lab, client):
    lab.flash.write(staged(client))
    link = lab.boot().link()
    assert link.run(WHO).value == b"'new'"
    lab.chip.press_reset()
    again = lab.link(after=link)
    assert again.run(WHO).value == b"'old'"
    lab.chip.press_reset()
    assert lab.link(after=again).run(WHO).value == b"'old'"


def test_new_client_that_does_not_start_is_taken_back_by_itself(lab, client):
    lab.flash.write(staged(client, broken=True))
    assert lab.boot().link().run(WHO).value == b"'old'"


@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
@pytest.mark.parametrize("cut", range(1, 17))
def test_power_cut_at_each_write_of_an_upgrade_leaves_a_client(lab, client, cut, broken):
    lab.flash.write(staged(client, broken=broken))
    link = lab.boot(told={"cut": cut}).link()
    who = link.run(WHO).value
    assert who in ((b"'old'",) if broken else (b"'old'", b"'new'"))
    lab.chip.press_reset()
    assert lab.link(after=link).run(WHO).value == b"'old'"  # nobody confirmed the new one
