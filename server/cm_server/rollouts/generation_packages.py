"""The packages of a generation: resolved once, and kept in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cm_server.installs import install_manifest
from cm_server.packages import lock
from cm_server.packages.plan import InstallPlan


def describe(plan: InstallPlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the packages of a plan for a generation's manifest.

    Args:
        plan: of an install.
        options: what an upgrade of the packages has to repeat.

    Returns:
        ``kinds``: the files for each kind of bytecode; ``entries``: what the board's list of
        packages says of them; ``lock``: the text of the lock file.
    """
    entries = {}
    kinds = {}
    for mpy, files in sorted(plan.files.items()):
        kinds[str(mpy)] = [[file.path, file.sha256, file.size, file.package] for file in files]
        entries[str(mpy)] = install_manifest.manifest_entries(plan, options, files)
    return {
        "kinds": kinds,
        "entries": entries,
        "lock": lock.dump(plan.wanted, plan.packages),
    }
