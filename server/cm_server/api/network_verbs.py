"""The verbs ``fleet-wifi`` and ``fleet-server``: other network settings for boards, in waves.

No sockets, no SQL.
"""

from __future__ import annotations

from typing import Any

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import fold_names, natural_key, parse_target
from cloudmanager.protocol.waves import DEFAULT_WAVES, check_waves, wave_sizes
from cm_server.jobs.model import Board
from cm_server.rollouts import desired, network_change, plans
from cm_server.rollouts.network_change import NetworkChange
from cm_server.store.rollout_rows import GenerationRow, NewRollout

from .request_context import RequestContext


async def change_wifi(context: RequestContext) -> dict[str, Any]:
    """Give boards another Wi-Fi, as a rollout."""
    return await _change(context, network_change.read_wifi(context.body))


async def change_server(context: RequestContext) -> dict[str, Any]:
    """Let boards connect to another address of the server, as a rollout."""
    return await _change(context, network_change.read_server(context.body))


async def _change(context: RequestContext, change: NetworkChange) -> dict[str, Any]:
    services, token, body = context.services, context.token, context.body
    given = body.get("options") or {}
    options = desired.read_options(given)
    if options.health or options.on_failure != "failed":
        raise ServerError("network settings have no health cell, and go back on each board alone")
    if change.group == network_change.SERVER and "health_timeout" not in given:
        given = {**given, "health_timeout": network_change.MOVED_SECONDS}
        options = desired.read_options(given)
    try:
        waves = check_waves(body.get("waves") or list(DEFAULT_WAVES))
    except ValueError as error:
        raise ServerError(f"waves {error}") from error
    boards = _find_boards(context)
    sizes = wave_sizes(waves, len(boards))
    manifest = change.manifest()
    what = network_change.describe(manifest)
    context.audit_entry.boards, context.audit_entry.detail = len(boards), what
    reply: dict[str, Any] = {
        "group": change.group,
        "what": what,
        "boards": [board.name for board in boards],
        "away": [board.name for board in boards if not board.online],
        "waves": list(sizes),
        "rollout": None,
    }
    if body.get("dry_run"):
        return reply
    now = services.rollouts.now()
    new = NewRollout(
        group=change.group,
        generation=GenerationRow(desired.manifest_hash(manifest), manifest, now, token.name),
        previous=None,
        token=token.hash,
        plan={
            "target": str(body.get("target")),
            "pin": [],
            "caller": token.name,
            "waves": list(waves),
            "options": vars(options).copy(),
            "boards": [board.id for board in boards],
            "position": [0, now, None],
            "what": what,
        },
        boards=plans.waves_of(boards, sizes),
        contents={},
        network=change.sent,
    )
    audit_row, place = context.audit_entry.to_row(), services.rollouts.place
    (reply["rollout"],) = await services.store_queue.run(
        lambda store: store.add_rollouts([new], place, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    services.rollouts.reload()
    return reply


def _find_boards(context: RequestContext) -> list[Board]:
    """Return the boards of the target, connected or not, in natural order.

    Raises:
        ServerError: some of them cannot get other settings.
    """
    target = parse_target(str(context.body.get("target") or ""))
    names = sorted(target.listed_names(context.boards), key=natural_key)
    boards = [context.boards[name] for name in names]
    refused = {board.name: network_change.refusal_reason(board.client_parts) for board in boards}
    for why in filter(None, refused.values()):
        named = fold_names(name for name, each in refused.items() if each == why)
        raise ServerError(f"{named}: {why}")
    return boards
