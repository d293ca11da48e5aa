"""``/api/samples``: samples of days ago as CSV or JSON, for programs that speak HTTP."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final

from tornado.iostream import StreamClosedError

from cloudmanager.protocol.errors import CloudmanagerError, NoSuchBoard, NotAllowed
from cloudmanager.protocol.sample_columns import unpack_stream
from cloudmanager.protocol.sample_text import csv_header, csv_rows, json_rows
from cm_server.api import replies, verbs

from .caller_socket import CallerHandler

_TEXTS: Final = ("target", "how")
_NUMBERS: Final = ("since", "until", "every")
_MAX_ARGUMENT_CHARS: Final = 500
_FORMATS: Final = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


class SamplesHandler(CallerHandler):
    """Samples of boards that a token reaches; the token is needed from this machine, too."""

    required_credential = "token, no link"

    async def get(self) -> None:
        """Answer with samples, page by page as the client reads them."""
        token = await self.authenticate()
        if token is None:
            return
        kind = self.get_query_argument("format", "csv")
        try:
            body = self._read_arguments()
            if kind not in _FORMATS:
                raise ValueError("format must be csv or json")
        except ValueError as error:
            self.refuse(400, str(error))
            return
        is_first = True
        while True:
            if why := self._services.tokens.refusal_reason(token):
                self.refuse_late(401, why, is_first=is_first)
                return
            try:
                reply = verbs.handle_request(self._services, token, body, self.address)
                head, *pieces = await replies.collect(await reply)
            except CloudmanagerError as error:
                self.refuse_late(_status(error), str(error).rstrip("."), is_first=is_first)
                return
            text = await asyncio.to_thread(_format, kind, head["series"], pieces)
            if is_first:
                self.set_header("Content-Type", _FORMATS[kind])
                self.write(csv_header() if kind == "csv" else "[\n")
            elif text and kind == "json" and self._has_rows:
                self.write(",\n")
            self._has_rows = bool(text) or (not is_first and self._has_rows)
            is_first = False
            self.write(text)
            if head["next"] is None:
                break
            try:
                await self.flush()
            except StreamClosedError:
                return
            body["since"] = head["next"]
        self.finish("\n]\n" if kind == "json" else "")

    _has_rows = False

    def refuse_late(self, status: int, why: str, *, is_first: bool) -> None:
        """Refuse a request; if a part of the answer is sent, close the connection within it."""
        if is_first:
            self.refuse(status, why)
        elif self.request.connection is not None:
            stream: Any = self.detach()
            stream.close()

    def _read_arguments(self) -> dict[str, Any]:
        """Return the request of the query's arguments.

        Raises:
            ValueError: one is wrong; the text says which.
        """
        body: dict[str, Any] = {"verb": "sample-history"}
        for name in self.request.query_arguments:
            if name not in (*_TEXTS, *_NUMBERS, "name", "format"):
                raise ValueError(f"there is no argument {name[:32]!r}")
        for name in _TEXTS:
            if (text := self.get_query_argument(name, None)) is not None:
                if len(text) > _MAX_ARGUMENT_CHARS:
                    raise ValueError(f"{name} is too long")
                body[name] = text
        for name in _NUMBERS:
            if (text := self.get_query_argument(name, None)) is not None:
                body[name] = _read_number(name, text)
        if "since" not in body:
            raise ValueError("since is missing: seconds since 1970")
        if names := self.get_query_arguments("name"):
            body["names"] = names
        return body


def _read_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds") from None


def _status(error: CloudmanagerError) -> int:
    if isinstance(error, NotAllowed):
        return 403
    return 404 if isinstance(error, NoSuchBoard) else 400


def _format(kind: str, series: list[list[str]], pieces: list[str]) -> str:
    """Return the values of a page as text (in a thread)."""
    columns = unpack_stream(b"".join(map(base64.b64decode, pieces)))
    return (csv_rows if kind == "csv" else json_rows)(series, columns)
