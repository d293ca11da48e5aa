"""The verbs about desired state: plan, apply, status, pause, resume, abort, roll back, history.

No sockets, no SQL.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, ServerError
from cloudmanager.protocol.targets import fold_names, natural_key, parse_target
from cloudmanager.protocol.waves import Wave, wave_sizes
from cm_server.auth import access
from cm_server.auth.credentials import ROLES
from cm_server.installs import planning
from cm_server.installs.content_store import Content
from cm_server.jobs.model import Board
from cm_server.rollouts import (
    desired,
    generation_firmware,
    generation_packages,
    network_change,
    plans,
)
from cm_server.rollouts.desired import DesiredGroup
from cm_server.rollouts.firmware_ops import FIRMWARE_ROLE
from cm_server.rollouts.plans import GroupBoards, GroupPlan
from cm_server.rollouts.steps import UNPROVEN_MARK
from cm_server.rollouts.way_back import rollback_options
from cm_server.rollouts.windows import read_window
from cm_server.store.rollout_rows import (
    OPEN_STATES,
    GenerationRow,
    NewRollout,
    RolloutBoardRow,
    RolloutChange,
    RolloutRow,
)
from cm_server.store.store import Store

from .request_context import RequestContext, resolve_boards
from .request_limits import is_whole_number

_MAX_REASONS: Final = 3  # why boards cannot get a generation, in one message
_MIN_GENERATION: Final = 4  # characters of an id that a caller gives


async def plan_rollouts(context: RequestContext) -> dict[str, Any]:
    """Return what would change if the groups of a request were applied; nothing is changed."""
    made = await _make_plans(context)
    return await _describe(context, made)


async def _describe(context: RequestContext, made: Sequence[GroupPlan]) -> dict[str, Any]:
    latest = await _visible_rollouts(context)
    names = {plan.group.name for plan in made}
    generations = {desired.short_id(row.generation): row.group for row in latest}
    reached = {board.name for plan in made for board in plan.boards}
    reached |= {name for plan in made for name in plan.pinned}
    released: dict[str, list[str]] = {}
    for name in sorted(context.boards, key=natural_key):
        group = generations.get(plans.present_generation(context.boards[name]))
        if group in names and name not in reached:
            released.setdefault(str(group), []).append(name)
    return {
        "groups": [plan.describe(context.services.rollouts.now()) for plan in made],
        "changed": sum(len(plan.changed) for plan in made),
        "open": {
            row.group: {
                "rollout": row.number,
                "generation": row.generation,
                "state": row.state,
                "boards": len(row.plan["boards"]),
            }
            for row in latest
            if row.group in names and row.state in OPEN_STATES
        },
        "released": released,
        "gone": sorted(
            row.group
            for row in latest
            if row.group not in names and not row.group.startswith(network_change.GROUP_PREFIX)
        ),
        "fingerprint": plans.fingerprint(made),
    }


async def _make_plans(context: RequestContext) -> list[GroupPlan]:
    services = context.services
    groups = desired.read_groups(context.body.get("groups"), services.limits)
    found = plans.find_boards(groups, context.boards)
    context.audit_entry.boards = sum(len(each.boards) for each in found.values())
    context.audit_entry.detail = ", ".join(group.name for group in groups)
    shorts = {plans.known_generation(board) for each in found.values() for board in each.boards} - {
        ""
    }
    known = await services.store_queue.run(lambda store: _known(store, shorts), refusable=True)
    made = []
    for group in groups:
        packages, contents = await _packages(context, group, found[group.name])
        boards = found[group.name].boards
        firmware = None
        if group.firmware is not None:
            firmware = await generation_firmware.find_firmware(
                services.installs, group.firmware, boards, context.token.hash
            )
            contents = {**contents, **firmware.contents}
        plan = plans.plan_group(group, found[group.name], packages, known, firmware)
        made.append(dataclasses.replace(plan, contents=contents))
    return made


def _known(store: Store, shorts: set[str]) -> plans.Known:
    """Return what the store knows of generations, by the first digits of their ids."""
    ids = [each for short in shorts for each in store.rollout_rows.find_generation(short)]
    rows = store.rollout_rows.generations_of(ids)
    manifests = {desired.short_id(row.sha256): row.manifest for row in rows.values()}
    secrets = {info.name: parse_target(info.target) for info in store.secret_rows.infos()}
    return plans.Known(manifests, secrets)


async def _packages(
    context: RequestContext, group: DesiredGroup, found: GroupBoards
) -> tuple[dict[str, Any] | None, Mapping[str, Content]]:
    """Resolve the packages of a group for the kinds of its boards; return their files, too."""
    if not group.wanted or not found.boards:
        return None, {}
    services, token = context.services, context.token
    sent, locks = context.body.get("sent") or {}, context.body.get("locks") or {}
    if not isinstance(sent, dict) or not isinstance(locks, dict):
        raise ServerError("`sent` and `locks` must be JSON objects")
    body: dict[str, Any] = {
        "wanted": list(group.wanted),
        "sent": {name: sent[name] for name in group.wanted if name in sent},
    }
    if group.name in locks:
        body["lock"] = locks[group.name]
    options = planning.read_plan_options(body, services.limits)
    options["trusted"] = token.role == ROLES[-1] and access.reaches_all(token)
    options["owner"] = token.hash
    caller = planning.PlanCaller(context.connection, token)
    async with services.installs.plan_turns.of(token.hash):
        prepared = await planning.prepare_plan(services.installs, caller, found.boards, options)
    return generation_packages.describe(prepared.plan, prepared.options), prepared.contents


async def apply_rollouts(context: RequestContext) -> dict[str, Any]:
    """Begin the rollouts that bring the groups of a request to what they should be.

    A group whose boards all have its generation gets none. With ``fingerprint``, that of a plan,
    nothing is done if the plan would be another one now.
    """
    services = context.services
    made = await _make_plans(context)
    reply = await _describe(context, made)
    expected = context.body.get("fingerprint")
    if expected is not None and expected != reply["fingerprint"]:
        raise ServerError(
            "the plan is stale: boards or rollouts have changed since it was made; plan again"
        )
    for plan in made:
        _check_firmware_role(context, plan.manifest)
    refused = [change for plan in made for change in plan.changes if change.error]
    if refused:
        shown = [f"{fold_names(each.names)}: {each.error}" for each in refused[:_MAX_REASONS]]
        more = len(refused) - len(shown)
        raise ServerError("; ".join([*shown, *([f"and {more} more reasons"] if more else [])]))
    chosen = [plan for plan in made if plan.changed]
    latest = {row.group: row for row in await _visible_rollouts(context)}
    running = [plan for plan in chosen if _is_in_progress(latest.get(plan.group.name), plan)]
    groups = {plan.group.name: plan.generation for plan in chosen if plan not in running}
    previous = await services.store_queue.run(
        lambda store: _generations_before(store, groups), refusable=True
    )
    new = [
        _new_rollout(context, plan, previous[plan.group.name])
        for plan in chosen
        if plan not in running
    ]
    numbers: list[int] = []
    if new:
        row, place = context.audit_entry.to_row(), services.rollouts.place
        numbers = await services.store_queue.run(
            lambda store: store.add_rollouts(new, place, row), refusable=True, durable=True
        )
        context.audit_entry.written = True
        services.rollouts.reload()
    begun = [plan.group.name for plan in chosen if plan not in running]
    return {
        **reply,
        "rollouts": dict(zip(begun, numbers, strict=True)),
        "in_progress": {plan.group.name: latest[plan.group.name].number for plan in running},
    }


def _generations_before(store: Store, groups: Mapping[str, str]) -> dict[str, str | None]:
    """Return to which generation each group goes back from another one; None for none.

    Args:
        store: the store.
        groups: the name of a group -> the id of the generation that it gets.
    """
    found = {
        group: store.rollout_rows.newest_done(group, besides=generation)
        for group, generation in groups.items()
    }
    return {group: row and row.generation for group, row in found.items()}


def _check_firmware_role(context: RequestContext, manifest: Mapping[str, Any]) -> None:
    """Refuse a generation with firmware to a token that may not change firmware."""
    if "firmware" in manifest and not access.has_role(context.token, FIRMWARE_ROLE):
        raise NotAllowed(FIRMWARE_ROLE)


def _is_in_progress(row: RolloutRow | None, plan: GroupPlan) -> bool:
    """Return whether a group is being brought to the same generation in the same way already."""
    return (
        row is not None
        and row.state == "running"
        and row.generation == plan.generation
        and row.plan["options"] == vars(plan.group.options)
        and row.plan.get("window") == plan.group.stored_window
        and row.plan.get("rollback", "local") == plan.group.rollback
        and bool(row.plan.get("client")) == (plan.group.client is not None)
        and set(row.plan["boards"]) >= {board.id for board in plan.changed}
    )


def _new_rollout(context: RequestContext, plan: GroupPlan, previous: str | None) -> NewRollout:
    services, token = context.services, context.token
    now = services.rollouts.now()
    store = services.installs.content_store
    contents: dict[str, bytes] = {}
    for digest, size in desired.content_sizes(plan.manifest).items():
        content = plan.contents.get(digest) or store.get(digest, token.hash)
        if content is None or content.size != size:
            raise ServerError("a file of the app was not uploaded, or is no longer on the server")
        contents[digest] = content.read(0, size)
    if sum(map(len, contents.values())) > services.limits.generation_bytes:
        raise ServerError(
            f"{plan.group.name} has more than {services.limits.generation_bytes} bytes of files"
        )
    return NewRollout(
        group=plan.group.name,
        generation=GenerationRow(plan.generation, dict(plan.manifest), now, token.name),
        previous=previous,
        token=token.hash,
        plan={
            "target": plan.group.target,
            "pin": list(plan.pinned),
            "caller": token.name,
            "waves": list(plan.group.waves),
            "options": vars(plan.group.options).copy(),
            "window": plan.group.stored_window,
            "rollback": plan.group.rollback,
            "client": plan.group.client is not None,
            "boards": [board.id for board in plan.changed],
            "position": [0, now, None],
        },
        boards=plan.waves(),
        contents=contents,
    )


# What is in progress, and what was


async def _visible_rollouts(context: RequestContext) -> list[RolloutRow]:
    """Return the newest rollout of each group that has a board which the token covers."""
    rows = await context.services.store_queue.run(
        lambda store: store.rollout_rows.latest(), refusable=True
    )
    return [row for row in rows if _is_visible(context, row)]


def _is_visible(context: RequestContext, row: RolloutRow) -> bool:
    if access.reaches_all(context.token):
        return True
    by_id = context.services.registry.by_id
    boards = (by_id.get(board_id) for board_id in row.plan["boards"])
    return any(context.boards.get(each.name) is each for each in boards if each is not None)


async def list_rollouts(context: RequestContext) -> list[dict[str, Any]]:
    """Return the newest rollout of each group, with the states of its boards.

    One for boards that have joined the group does not hide that the one before it has failed.
    """
    rows = []
    for newest in await _visible_rollouts(context):
        if newest.plan.get("joined"):
            failed = await context.services.store_queue.run(
                functools.partial(_failed_before, newest), refusable=True
            )
            if failed is not None and _is_visible(context, failed):
                rows.append(failed)
        rows.append(newest)
    described = []
    for row in rows:
        number = row.number
        boards = await context.services.store_queue.run(
            functools.partial(_boards_of, number), refusable=True
        )
        described.append(_describe_rollout(context, row, boards))
    return described


def _failed_before(joined: RolloutRow, store: Store) -> RolloutRow | None:
    return store.rollout_rows.failed_before(joined)


def _boards_of(number: int, store: Store) -> list[RolloutBoardRow]:
    return store.rollout_rows.boards_of(number)


def _describe_rollout(
    context: RequestContext, row: RolloutRow, boards: Sequence[RolloutBoardRow]
) -> dict[str, Any]:
    by_id = context.services.registry.by_id
    listed = []
    for each in boards:
        board = by_id.get(each.board)
        if board is not None and context.boards.get(board.name) is board:
            listed.append(
                {
                    "board": board.name,
                    "wave": each.wave + 1,
                    "state": each.state,
                    "since": each.since,
                    "why": each.why.removeprefix(UNPROVEN_MARK),
                    "online": board.online,
                }
            )
    listed.sort(key=lambda each: (each["wave"], natural_key(str(each["board"]))))
    names = {each["board"] for each in listed}
    others: dict[str, list[str]] = {"have": [], "lack": []}
    short = desired.short_id(row.generation)
    is_group = not row.group.startswith(network_change.GROUP_PREFIX)
    for board in _group_boards(context, row) if is_group else ():
        if board.name not in names:
            has_it = plans.present_generation(board) == short
            others["have" if has_it else "lack"].append(board.name)
    return {**_describe_row(context, row), "boards": listed, "others": others}


def _describe_row(context: RequestContext, row: RolloutRow) -> dict[str, Any]:
    window = read_window(row.plan.get("window"))
    return {
        "rollout": row.number,
        "group": row.group,
        "generation": row.generation,
        "previous": row.previous,
        "state": row.state,
        "why": row.why,
        "caller": row.plan.get("caller", ""),
        "created": row.created,
        "changed": row.changed,
        "wave": int(row.plan["position"][0]) + 1,
        "waves": list(wave_sizes(row.plan["waves"], len(row.plan["boards"]))),
        "joined": bool(row.plan.get("joined")),
        "options": row.plan["options"],
        "window": None if window is None else window.describe(context.services.rollouts.now()),
        "what": row.plan.get("what", ""),
        "may_change": access.has_role(context.token, access.SUBMIT_ROLE)
        and not _uncovered(context, row),
    }


async def rollout_history(context: RequestContext) -> list[dict[str, Any]]:
    """Return the newest rollouts, the newest first."""
    limit = context.services.limits.reply_rollouts
    count = context.body.get("count") or limit
    if not is_whole_number(count) or not 0 < count <= limit:
        raise ServerError(f"between 1 and {limit} rollouts can be read at a time")
    rows = await context.services.store_queue.run(
        lambda store: store.rollout_rows.history(count), refusable=True
    )
    return [_describe_row(context, row) for row in rows if _is_visible(context, row)]


async def pause_rollouts(context: RequestContext) -> list[dict[str, Any]]:
    """Pause rollouts: boards that are being switched finish, no further one begins."""
    change = RolloutChange("paused", f"by {context.token.name}", ("running",))
    return await _change_rollouts(context, change)


async def resume_rollouts(context: RequestContext) -> list[dict[str, Any]]:
    """Let paused rollouts go on."""
    return await _change_rollouts(context, RolloutChange("running", "", ("paused",)))


async def abort_rollouts(context: RequestContext) -> list[dict[str, Any]]:
    """End rollouts: boards that are being switched finish, no further one begins."""
    change = RolloutChange("aborted", f"by {context.token.name}", ("running", "paused"))
    return await _change_rollouts(context, change)


async def _change_rollouts(context: RequestContext, change: RolloutChange) -> list[dict[str, Any]]:
    """Change the state of the newest rollout of the requested groups, or of all."""
    rows = await _requested(context)
    chosen = [row for row in rows if row.state in change.permitted]
    if not chosen:
        if not rows:
            raise ServerError("there is no rollout")
        states = ", ".join(f"{row.group} is {row.state}" for row in rows)
        wanted = " or ".join(change.permitted)
        raise ServerError(f"no rollout is {wanted}: {states}")
    for row in chosen:
        _check_covers(context, row)
    numbers = [row.number for row in chosen]
    context.audit_entry.detail = ", ".join(row.group for row in chosen)
    audit_row = context.audit_entry.to_row()
    changed = await context.services.store_queue.run(
        lambda store: store.set_rollout_states(numbers, change, audit_row),
        refusable=True,
        durable=True,
    )
    context.audit_entry.written = True
    context.services.rollouts.reload()
    return [
        _describe_row(context, row._replace(state=change.state, why=change.why))
        for row in chosen
        if row.number in changed
    ]


async def _requested(context: RequestContext) -> list[RolloutRow]:
    """Return the newest rollouts of the group that a request names, or of all groups."""
    rows = await _visible_rollouts(context)
    group = context.body.get("group")
    if group is None:
        return rows
    found = [row for row in rows if row.group == group]
    if not found:
        known = ", ".join(row.group for row in rows)
        there = f"; there are {known}" if known else ""
        raise ServerError(f"there is no rollout of a group {str(group)[:64]!r}{there}")
    return found


def _check_covers(context: RequestContext, row: RolloutRow) -> None:
    """Refuse a change of a rollout with boards that the token does not cover."""
    if _uncovered(context, row):
        raise NotAllowed(f"operator on all boards of {row.group}")


def _uncovered(context: RequestContext, row: RolloutRow) -> bool:
    """Return whether a rollout has boards that the token does not cover."""
    if access.reaches_all(context.token):
        return False
    boards = map(context.services.registry.by_id.get, row.plan["boards"])
    return any(context.boards.get(each.name) is not each for each in boards if each is not None)


async def find_firmware(context: RequestContext) -> list[dict[str, Any]]:
    """Return the images of a version of MicroPython for boards; they are downloaded if necessary.

    One row for the boards that get the same: their names, the image's SHA-256, or why they get
    none. The images can be sent by the token like those that it has uploaded.
    """
    wanted = desired.read_firmware({"name": context.body.get("version")})
    assert wanted is not None
    boards = resolve_boards(context)
    services = context.services
    context.audit_entry.detail = wanted.name
    found = await generation_firmware.find_firmware(
        services.installs, wanted, boards, context.token.hash
    )
    rows: dict[tuple[str, int, str], list[str]] = {}
    for board in boards:
        error = found.refusal_reason(board)
        entry = found.images.get(generation_firmware.machine_of(board))
        digest = "" if error or entry is None else entry[1].digest
        size = 0 if error or entry is None else entry[1].size
        rows.setdefault((digest, size, error), []).append(board.name)
    for content in found.contents.values():
        content.owners.add(context.token.hash)
        services.installs.content_store.add(content)
    return [
        {"boards": names, "sha256": digest, "size": size, "error": error}
        for (digest, size, error), names in rows.items()
    ]


async def roll_back(context: RequestContext) -> dict[str, Any]:
    """Bring a group back to an earlier generation: the one before, or one that is named.

    With ``dry_run``, nothing is changed.
    """
    services = context.services
    rows = await _requested(context)
    if context.body.get("group") is None:
        rows = [row for row in rows if not row.group.startswith(network_change.GROUP_PREFIX)]
    if not rows:
        raise ServerError("there is no rollout")
    if rows[0].group.startswith(network_change.GROUP_PREFIX):
        raise ServerError(
            "network settings are not rolled back: boards on which new ones do not work have the "
            "old ones; give the others the old ones as new ones"
        )
    if len(rows) != 1:
        names = ", ".join(row.group for row in rows)
        raise ServerError(
            f"one group is rolled back at a time: name it (`--group GROUP`); there are {names}"
        )
    (row,) = rows
    if row.plan.get("joined"):  # what somebody wants undone is the one that failed before it
        joined = row
        row = await services.store_queue.run(
            lambda store: _failed_before(joined, store) or joined, refusable=True
        )
    _check_covers(context, row)
    wanted = context.body.get("generation")
    if wanted is None:
        wanted = row.previous
        if wanted is None:
            raise ServerError(f"{row.group} had no generation before")
    if not isinstance(wanted, str) or len(wanted) < _MIN_GENERATION:
        raise ServerError(
            "a generation is named by 4 or more digits of its id (a group by `--group GROUP`)"
        )
    found = await services.store_queue.run(
        lambda store: _find_generation(store, row, wanted), refusable=True
    )
    generation = found.generation
    _check_firmware_role(context, generation.manifest)
    reached = _group_boards(context, row)
    short = desired.short_id(generation.sha256)
    changed = [board for board in reached if plans.present_generation(board) != short]
    sizes = wave_sizes(found.waves, len(changed))
    reply = {
        "group": row.group,
        "generation": generation.sha256,
        "rollout": None,
        "boards": [board.name for board in changed],
        "waves": list(sizes),
    }
    if not changed or context.body.get("dry_run"):
        return reply
    now = services.rollouts.now()
    new = NewRollout(
        group=row.group,
        generation=generation,
        previous=found.previous,
        token=context.token.hash,
        plan={
            "target": row.plan["target"],
            "pin": row.plan["pin"],
            "waves": list(found.waves),
            "window": None,  # the way back is not put off
            "rollback": row.plan.get("rollback", "local"),
            "client": False,  # boards keep the client that they have
            "caller": context.token.name,
            "options": found.options,
            "boards": [board.id for board in changed],
            "position": [0, now, None],
        },
        boards={
            board.id: next(wave for wave, size in enumerate(sizes) if number < size)
            for number, board in enumerate(changed)
        },
        contents=found.contents,
    )
    context.audit_entry.detail = f"{row.group} to {short}"
    audit_row, place = context.audit_entry.to_row(), services.rollouts.place
    numbers = await services.store_queue.run(
        lambda store: store.add_rollouts([new], place, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    services.rollouts.reload()
    return {**reply, "rollout": numbers[0]}


def _group_boards(context: RequestContext, row: RolloutRow) -> list[Board]:
    """Return the boards of a rollout's group that are enrolled now, in natural order."""
    group = DesiredGroup(row.group, row.plan["target"])
    try:
        found = plans.find_boards([group], context.boards)[row.group].boards
    except CloudmanagerError:  # a board that the target names is not enrolled any more
        return []
    return [board for board in found if board.name not in row.plan["pin"]]


class _WayBack(NamedTuple):
    """What a group is brought back to.

    Attributes:
        generation: what its boards get.
        contents: the files of that, by SHA-256.
        previous: the id of what they had before; None for nothing that was proven.
        waves: of the rollout.
        options: of the rollout.
    """

    generation: GenerationRow
    contents: dict[str, bytes]
    previous: str | None
    waves: Sequence[Wave]
    options: dict[str, Any]


def _find_generation(store: Store, row: RolloutRow, text: str) -> _WayBack:
    """Return the way back of a group to the generation whose id begins with a text.

    Args:
        store: the store.
        row: the newest rollout of the group.
        text: digits.
    """
    found = store.rollout_rows.find_generation(text)
    if len(found) != 1:
        many = "several generations begin" if found else "no generation begins"
        raise ServerError(f"{many} with {text[:64]}")
    (wanted,) = found
    rows = store.rollout_rows
    before = rows.newest_done(row.group, besides=wanted)
    # That of boards that have joined the group has one wave.
    applied = rows.newest_done(row.group) if row.plan.get("joined") else None
    return _WayBack(
        rows.generations_of(found)[wanted],
        rows.contents_of(wanted),
        before and before.generation,
        (applied or row).plan["waves"],
        rollback_options(rows, applied or row, wanted),
    )
