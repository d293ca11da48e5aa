"""The verbs of secrets: values for boards' settings, which no reply contains.

No sockets, no SQL.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.names import check_identifier
from cloudmanager.protocol.targets import parse_target
from cm_server.auth import access
from cm_server.store.secret_rows import SecretRow
from cm_server.store.store import Store

from .request_context import RequestContext

#: A shorter one would be found by chance among other settings, where replies leave it out.
MIN_SECRET_CHARS: Final = 4
_NOT_STORABLE: Final = re.compile("[\0\ud800-\udfff]")  # NUL: PostgreSQL; the others have no UTF-8


async def set_secret(context: RequestContext) -> dict[str, Any]:
    """Store a secret, or give it another value; the reply says what may be shown of it."""
    body, limits = context.body, context.services.limits
    name, value = body.get("name"), body.get("value")
    target = body.get("target") or access.ALL_BOARDS
    if not isinstance(name, str) or not isinstance(target, str):
        raise ServerError("name and target must be text")
    check_identifier(name, name, 0)
    parse_target(target)
    context.audit_entry.target, context.audit_entry.detail = target, name
    _check_value(value, limits.secret_bytes)
    row = SecretRow(name, str(value), target, time.time())
    audit_row = context.audit_entry.to_row()

    def store_secret(store: Store) -> None:
        known = {each.name for each in store.secret_rows.infos()}
        if name not in known and len(known) >= limits.secrets:
            raise ServerError(f"there are {limits.secrets} secrets already; remove one")
        store.set_secret(row, audit_row)

    await context.services.store_queue.run(store_secret, refusable=True, durable=True)
    context.audit_entry.written = True
    return row.info._asdict()


def _check_value(value: Any, max_bytes: int) -> None:
    """Refuse a value that cannot be a secret; no message contains it."""
    if not isinstance(value, str) or _NOT_STORABLE.search(value):
        raise ServerError("a secret must be text")
    if len(value) < MIN_SECRET_CHARS or len(value.encode()) > max_bytes:
        raise ServerError(
            f"a secret must have at least {MIN_SECRET_CHARS} characters, and {max_bytes} bytes "
            "at most"
        )


async def list_secrets(context: RequestContext) -> list[dict[str, Any]]:
    """Return what may be shown of all secrets, by name."""
    infos = await context.services.store_queue.run(
        lambda store: store.secret_rows.infos(), refusable=True
    )
    return [info._asdict() for info in infos]


async def remove_secret(context: RequestContext) -> str:
    """Delete a secret; boards that have its value keep it. Return its name."""
    name = context.body.get("name")
    context.audit_entry.detail = str(name)[: context.services.limits.audit_chars]
    audit_row = context.audit_entry.to_row()

    def remove(store: Store) -> None:
        known = [info.name for info in store.secret_rows.infos()]
        if name not in known:
            listed = f"; there are {', '.join(known)}" if known else ""
            raise ServerError(f"there is no secret called {str(name)[:64]!r}{listed}")
        store.remove_secret(str(name), audit_row)

    await context.services.store_queue.run(remove, refusable=True, durable=True)
    context.audit_entry.written = True
    return str(name)
