"""Sends messages about alarms to a program of the administrator, or to a service by Apprise.

Each message to a program is a POST with JSON. The header ``Cm-Signature: t=SECONDS,v1=HEX`` has the
time of the attempt and the HMAC-SHA256, by the shared secret, over that time, a dot and the body:
so the receiver knows who sent it, and that it is no repetition of an old one. Redirects are not
followed. An attempt that fails is repeated after a while, with the same id; what waits is bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPInputError
from tornado.iostream import StreamClosedError, UnsatisfiableReadError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient

from cloudmanager.protocol.errors import ServerError

log = logging.getLogger("cm_server")

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0  # for one attempt: what hangs is given up
#: Between the attempts to send a message; after the last one, it is dropped.
RETRY_SECONDS: Final[Sequence[float]] = (5.0, 30.0, 120.0, 600.0, 1800.0)
QUEUED_MESSAGES: Final = 100  # that wait for a receiver; of more, the oldest are dropped
FOLLOWS_REDIRECTS: Final = False  # a receiver must not choose where else the server connects to
_ANSWER_BYTES: Final = 64 * 1024  # of an answer, which is ignored
_MIN_SECRET_CHARS: Final = 16
SIGNATURE_HEADER: Final = "Cm-Signature"
_ERRORS: Final = (
    HTTPClientError,
    HTTPInputError,
    HTTPStreamClosedError,
    HTTPTimeoutError,
    OSError,
    StreamClosedError,
    UnsatisfiableReadError,
    ValueError,
)


class NotDelivered(Exception):
    """A message was not delivered.

    Attributes:
        is_final: whether another attempt is useless.
    """

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final


#: Delivers one message, or raises NotDelivered.
Deliver = Callable[[dict[str, Any]], Awaitable[None]]


class MessageQueue:
    """Delivers messages to one receiver, in order, with several attempts.

    Args:
        name: of the receiver, for the log; without anything secret.
        deliver: delivers one message.
        retry_seconds: between the attempts.
    """

    def __init__(
        self, name: str, deliver: Deliver, retry_seconds: Sequence[float] = RETRY_SECONDS
    ) -> None:
        self._name = name
        self._deliver = deliver
        self._retry_seconds = retry_seconds
        self._queued: deque[dict[str, Any]] = deque()
        self._dropped = 0  # messages since the last one that was delivered
        self._task: asyncio.Task[None] | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Deliver a message later; returns at once."""
        self._queued.append(message)
        self._trim()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _trim(self) -> None:
        while len(self._queued) > QUEUED_MESSAGES:
            self._drop_oldest("too many messages wait")

    def stop(self) -> None:
        """Give up what was not delivered."""
        if self._task is not None:
            self._task.cancel()
        self._queued.clear()

    def _drop_oldest(self, why: str) -> None:
        self._queued.popleft()
        self._dropped += 1
        log.warning("an alarm was not delivered to %s: %s", self._name, why)

    async def _run(self) -> None:
        while self._queued:
            await self._deliver_first()

    async def _deliver_first(self) -> None:
        """Deliver the oldest message, or drop it after the last attempt."""
        message, why = self._queued[0], ""
        for pause in (*self._retry_seconds, None):
            try:
                await self._deliver({**message, "dropped": self._dropped})
            except NotDelivered as error:
                why = str(error)
                if error.is_final or pause is None:
                    break
                log.info("an alarm will be sent to %s again: %s", self._name, why)
            else:
                if self._queued and self._queued[0] is message:
                    self._queued.popleft()
                self._dropped = 0
                return
            await asyncio.sleep(pause)
            if not self._queued or self._queued[0] is not message:
                return  # it was dropped meanwhile
        if self._queued and self._queued[0] is message:
            self._drop_oldest(why)


class Webhook:
    """Posts messages to a URL.

    Args:
        url: of the receiver, checked.
        secret: with which messages are signed.
        answer_seconds: for one attempt.
    """

    def __init__(self, url: str, secret: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._url = url
        self._secret = secret.encode()
        self._answer_seconds = answer_seconds

    async def deliver(self, message: dict[str, Any]) -> None:
        """Post one message.

        Raises:
            NotDelivered: the receiver did not accept it.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        request = HTTPRequest(
            self._url,
            "POST",
            headers={
                "Content-Type": "application/json",
                "User-Agent": "cloudmanager",
                SIGNATURE_HEADER: sign(self._secret, int(time.time()), body),
            },
            body=body,
            connect_timeout=min(CONNECT_SECONDS, self._answer_seconds),
            request_timeout=self._answer_seconds,
            follow_redirects=FOLLOWS_REDIRECTS,
            decompress_response=False,
        )
        client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=_ANSWER_BYTES)
        try:
            response = await client.fetch(request, raise_error=False)
        except _ERRORS as error:
            raise NotDelivered(type(error).__name__) from error
        finally:
            client.close()
        if response.error is not None and not 100 <= response.code < 599:
            raise NotDelivered(type(response.error).__name__)
        if not 200 <= response.code < 300:
            # What the receiver does not want now, it will not want later, but for 408 and 429.
            is_final = 300 <= response.code < 500 and response.code not in (408, 429)
            raise NotDelivered(f"status {response.code}", is_final=is_final)


def sign(secret: bytes, at: int, body: bytes) -> str:
    """Return the value of the header that signs a message.

    Args:
        secret: that the receiver knows, too.
        at: seconds since 1970.
        body: the message.
    """
    digest = hmac.new(secret, b"%d.%s" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class AppriseReceiver:
    """Sends messages to a service, by the library Apprise.

    Args:
        url: of the service, such as ``slack://…``, as Apprise documents it.

    Raises:
        ServerError: Apprise is missing, or does not know such a URL.
    """

    def __init__(self, url: str) -> None:
        try:
            import apprise
        except ImportError as error:
            how = "`pip install 'cloudmanager[alarms]'` installs it"
            raise ServerError(f"CM_WEBHOOK needs Apprise for this URL: {how}") from error
        # Its messages may contain the URL, which is secret.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        self._apprise = apprise.Apprise()
        if not self._apprise.add(url):
            raise ServerError("Apprise does not accept a URL in CM_WEBHOOK")

    async def deliver(self, message: dict[str, Any]) -> None:
        """Send one message as text.

        Raises:
            NotDelivered: the service did not accept it.
        """
        text = message_text(message)
        accepted = await asyncio.to_thread(self._apprise.notify, title="Cloudmanager", body=text)
        if not accepted:
            raise NotDelivered("the service did not accept it")


def message_text(message: dict[str, Any]) -> str:
    """Return a message as text for people: one line for each kind of events."""
    lines = []
    for event in message["events"]:
        others = event["count"] - len(event["names"])
        more = f" and {others} more" if others else ""
        times = f" ({event['times']} times)" if event["times"] > event["count"] else ""
        lines.append(f"{event['kind']}: {', '.join(event['names'])}{more}{times}")
    if message["dropped"]:
        lines.append(f"{message['dropped']} earlier messages were not delivered")
    return "\n".join(lines)


def make_queues(urls: str, secret: str) -> list[MessageQueue]:
    """Return the receivers of alarms.

    Args:
        urls: one or more, with spaces between: of ``http`` or ``https``, or of Apprise.
        secret: that signs messages to programs.

    Raises:
        ServerError: a URL or the secret is wrong; the text has neither.
    """
    return [_make_queue(url, secret) for url in urls.split()]


def _make_queue(url: str, secret: str) -> MessageQueue:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ServerError("CM_WEBHOOK has an invalid URL") from None
    if parts.scheme not in ("http", "https"):
        service = AppriseReceiver(url)
        return MessageQueue(f"{parts.scheme or 'a service'} (Apprise)", service.deliver)
    if not host or parts.username is not None:
        raise ServerError("a URL in CM_WEBHOOK must have a host, and no user name")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ServerError("CM_WEBHOOK must be https, unless the receiver is on this machine")
    if len(secret) < _MIN_SECRET_CHARS:
        raise ServerError(
            "CM_WEBHOOK needs CM_WEBHOOK_SECRET, which signs the messages: "
            f"{_MIN_SECRET_CHARS} characters or more"
        )
    name = f"{host}:{port}" if port else host
    return MessageQueue(name, Webhook(url, secret).deliver)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
