"""``fleet.toml``: what is read, and what is said about mistakes."""

import pytest

from cloudmanager.client.fleet_file import (
    FleetFileError,
    Group,
    RolloutSettings,
    parse_fleet_file,
)

WHOLE = """
[greenhouse]
target   = "greenhouse-*!greenhouse-9"
app      = "src/greenhouse"
packages = ["logging", "github:acme/sht31@v1.2"]
settings = { interval = 30, mqtt = { secret = "mqtt" } }
pin      = ["greenhouse-7"]
rollback = "network"
firmware = "1.29.0"
client   = "current"
window   = { start = "0 3 * * *", for = "2h", tz = "Europe/Berlin" }
[greenhouse.board."greenhouse-3"]
settings = { offset = 0.4 }
[greenhouse.rollout]
waves        = [1, "10%", "100%"]
parallel     = 5
pause        = "10m"
health       = "import app; app.ok()"
health_timeout = "90s"
deadline     = "2d"
max_failures = 1
on_failure   = "all"
"""


def test_all_keys_are_read():
    (group,) = parse_fleet_file(WHOLE)
    assert group == Group(
        name="greenhouse",
        target="greenhouse-*!greenhouse-9",
        app="src/greenhouse",
        packages=("logging", "github:acme/sht31@v1.2"),
        settings={"interval": 30, "mqtt": {"secret": "mqtt"}},
        pin=("greenhouse-7",),
        rollback="network",
        firmware="1.29.0",
        client="current",
        window={"start": "0 3 * * *", "for": 7200, "tz": "Europe/Berlin"},
        board_settings={"greenhouse-3": {"offset": 0.4}},
        rollout=RolloutSettings(
            waves=(1, "10%", "100%"),
            parallel=5,
            pause=600,
            health="import app; app.ok()",
            health_timeout=90,
            deadline=172800,
            max_failures=1,
            on_failure="all",
        ),
    )


def test_most_keys_have_defaults():
    (group,) = parse_fleet_file('[lab]\ntarget = "lab-*"\napp = "src"\n')
    assert group == Group("lab", "lab-*", app="src")


@pytest.mark.parametrize("text", ["[a\nb = 1", "[a]\ntarget = lab", "[a]\n[a]\n"])
def test_syntax_error_names_its_line(text: str):
    with pytest.raises(FleetFileError, match=r"this is not valid TOML: .*line \d"):
        parse_fleet_file(text)


LAB = '[lab]\ntarget = "lab-*"\napp = "src"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no group"),
        ("lab = 1", r"lab: is in no group: write it below the name of one, such as"),
        ("[lab]\napp = 'src'", "lab.target: is missing"),
        ("[lab]\ntarget = 'lab-*'", "lab: says nothing about its boards"),
        (LAB + "setings = {}", "lab.setings: this key does not exist; did you mean settings?"),
        (
            LAB + "x = 1",
            "lab.x: this key does not exist; the keys are app, board, client, firmware, "
            "packages, pin, rollback, rollout, settings, target, window$",
        ),
        (LAB + "[lab.rollout]\npase = '1m'", r"lab\.rollout\.pase: .*; did you mean pause\?"),
        (LAB + "[lab.board.b1]\napp = 'x'", r"lab\.board\.b1\.app: this key does not exist"),
        (LAB + "client = '0.2'", "lab.client: must be 'current'"),
        (LAB + "firmware = 1", "lab.firmware: must be a string"),
        (LAB + "window = 'x'", "lab.window: must be a table"),
        (LAB + "[lab.window]\nstart = 'x'", "lab.window.for: is missing"),
        (LAB + "[lab.window]\nfor = '1h'", "lab.window.start: is missing"),
        (LAB + "[lab.window]\nstrat = 'x'", r"lab\.window\.strat: .*; did you mean start\?"),
        (LAB + "[lab.window]\nstart = 'x'\nfor = 2", "lab.window.for: must be a span"),
        (LAB + "[lab.window]\nstart = 1\nfor = '2h'", "lab.window.start: must be a string"),
        (LAB + "rollback = 'no'", "lab.rollback: must be 'local' or 'network'"),
        (LAB + "packages = 'logging'", "lab.packages: must be a list of strings"),
        (LAB + "packages = ['a', 'a']", "lab.packages: has an entry twice"),
        (LAB + "pin = [1]", "lab.pin: must be a list of strings"),
        (LAB + "settings = 1", "lab.settings: must be a table"),
        (LAB + "settings = { at = 2026-01-01 }", "boards cannot have the value 2026-01-01"),
        (LAB + "settings = { x = [inf] }", "boards cannot have nan or inf"),
        (LAB + "[lab.rollout]\npause = 10", "lab.rollout.pause: must be a span"),
        (LAB + "[lab.rollout]\npause = '10 m'", "lab.rollout.pause: '10 m' is not a span"),
        (LAB + "[lab.rollout]\ndeadline = '0s'", "lab.rollout.deadline: must be longer than 0"),
        (LAB + "[lab.rollout]\nmax_failures = -1", "max_failures: must be a whole number"),
        (LAB + "[lab.rollout]\nmax_failures = true", "max_failures: must be a whole number"),
        (LAB + "[lab.rollout]\nhealth = 'import app; app.ok('", r"health: is not Python: .*line 1"),
        (LAB + "[lab.rollout]\nwaves = [1]", "lab.rollout.waves: must end with"),
        (LAB + "[lab.rollout]\non_failure = 'x'", "on_failure: must be 'failed' or 'all'"),
        (LAB + "rollout = 1", "lab.rollout: must be a table"),
        ("[lab]\ntarget = 'lab-['\napp = 'x'", "lab.target: "),
        ("[lab]\ntarget = 1\napp = 'x'", "lab.target: must be a string"),
        ("[lab]\ntarget = 'platform=esp32'\napp = 'x'", "lab.target: platform= is a fact"),
        ("['my lab']\napp = 'x'", '"my lab".target: is missing'),
    ],
)
def test_mistake_names_the_key(text: str, why: str):
    with pytest.raises(FleetFileError, match=why):
        parse_fleet_file(text)


def test_pause_may_be_nothing():
    (group,) = parse_fleet_file(LAB + "[lab.rollout]\npause = '0s'")
    assert group.rollout.pause == 0


def test_group_may_say_nothing_but_which_client_its_boards_have():
    (group,) = parse_fleet_file('[lab]\ntarget = "lab-*"\nclient = "current"\n')
    assert group == Group("lab", "lab-*", client="current")


def test_labels_may_be_in_a_target():
    (group,) = parse_fleet_file("[lab]\ntarget = 'room=lab!lab-3'\napp = 'x'")
    assert group.target == "room=lab!lab-3"
