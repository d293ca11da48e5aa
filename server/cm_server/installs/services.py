"""What installs and file transfers need of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm_server.limits import Limits
from cm_server.packages.firmware_source import FirmwareSource
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

from .content_store import ContentStore
from .mounts import Mounts
from .plan_cache import PlanCache
from .plan_turns import PlanTurns

if TYPE_CHECKING:
    from cm_server.packages.planner import PackagePlanner


@dataclass(frozen=True)
class InstallServices:
    """The parts of the server that installs and file transfers use.

    Attributes:
        content_store: the contents of files for boards.
        plan_cache: the plans that were not carried out yet.
        plan_turns: lets a few plans be made at the same time.
        package_planner: returns what makes plans, always the same; loaded when it is first needed.
        firmware_source: downloads firmware.
        mounts: the folders of callers that are mounted on boards.
        store_queue: of the store, which knows what boards have installed.
        limits: of transfers and plans.
    """

    content_store: ContentStore
    plan_cache: PlanCache
    plan_turns: PlanTurns
    package_planner: Callable[[], PackagePlanner]
    firmware_source: FirmwareSource
    mounts: Mounts
    store_queue: StoreQueue[Store]
    limits: Limits
