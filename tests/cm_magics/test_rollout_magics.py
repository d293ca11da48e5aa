"""The magics about desired state, in an IPython shell of this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.fleet_file import FleetFileError

from .test_magics import Shell, ip, shell  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")


def test_plan_apply_and_status(shell: Shell, fleet: Fleet, tmp_path: Path):  # noqa: F811
    path = tmp_path / "fleet.toml"
    path.write_text('[demo]\ntarget = "away-3"\nsettings = { a = 1 }\n')
    fleet.enrol(["away-3"])
    try:
        assert "away-3\n    set a" in shell.run(f"%fleet_plan {json.dumps(str(path))}")
        assert " has begun; %fleet_status shows it." in shell.run(f"plan = %fleet_apply {path}")
        plan: Any = shell.ip.user_ns["plan"]
        assert plan.changed == 1
        assert "waiting, not connected" in shell.run("%fleet_status")
        assert "Usage: %fleet_plan FILE" in shell.run("%fleet_plan")
        assert "Usage: %fleet_status" in shell.run("%fleet_status demo")
        path.write_text("[demo]\n")
        shell.run(f"%fleet_plan {path}")
        assert isinstance(shell.error, FleetFileError)
    finally:
        fleet.abort_rollout()
        fleet.revoke("away-3")
