"""Alarms reach their receivers, whatever these do, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError, ServiceError
from cm_server.net import webhook
from cm_server.net.webhook import MessageQueue, Webhook, make_queues
from tests.cm_server.receiver import Receiver, running_receiver, slow, status
from tests.wheel import ROOT

#: The import of Apprise imports modules that Python will not have for ever.
apprise_imports = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SECRET = "0123456789abcdef"
EVENTS = [{"kind": "board-lost", "count": 2, "times": 2, "names": ["lab-1", "lab-2"]}]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


def message(number: int = 1) -> dict[str, Any]:
    return {"id": f"{number:016x}", "at": 1.0, "events": EVENTS}


def queue_to(url: str, *pauses: float, answer_seconds: float = 10.0) -> MessageQueue:
    return MessageQueue("there", Webhook(url, SECRET, answer_seconds).deliver, pauses)


async def delivered(queue: MessageQueue) -> None:
    """Wait until a queue has nothing more to do."""
    assert queue._task is not None
    await asyncio.wait_for(queue._task, 20)


async def test_message_is_signed_with_its_time(receiver: Receiver):
    queue = queue_to(receiver.url)
    queue.send(message())
    await delivered(queue)
    ((headers, body),) = receiver.posts
    assert json.loads(body) == {**message(), "dropped": 0}
    signature = headers["Cm-Signature"]
    found = re.fullmatch(r"t=([0-9]+),v1=([0-9a-f]{64})", signature)
    assert found is not None
    signed = found[1].encode() + b"." + body
    assert found[2] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert abs(int(found[1]) - time.time()) < 60
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("failure", [status(500), status(503), status(429), slow(1.0)])
async def test_failed_attempt_is_repeated_with_the_same_id(receiver: Receiver, failure):
    receiver.answers = [failure, failure]
    queue = queue_to(receiver.url, 0.01, 0.01, answer_seconds=0.5)
    queue.send(message())
    await delivered(queue)
    assert [each["id"] for each in receiver.messages] == [message()["id"]] * 3


async def test_receiver_that_is_gone_gets_it_when_it_is_back():
    with running_receiver() as receiver:
        url = receiver.url
    queue = queue_to(url, *[0.05] * 100)
    queue.send(message())
    await asyncio.sleep(0.2)
    port = int(url.split(":")[2].split("/")[0])
    back = asyncio.Event()
    bodies = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"Content-Length: ([0-9]+)", head)[1])  # type: ignore[index]
        bodies.append(await reader.readexactly(size))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        back.set()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        await asyncio.wait_for(back.wait(), 20)
        await delivered(queue)
    assert json.loads(bodies[0])["id"] == message()["id"]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_redirect_is_not_followed(receiver: Receiver, code):
    with running_receiver() as other:
        receiver.answers = [status(code, Location=other.url)]
        queue = queue_to(receiver.url, 0.01)
        queue.send(message(1))
        queue.send(message(2))
        await delivered(queue)
        assert other.posts == []
    assert [each["id"][-1] for each in receiver.messages] == ["1", "2"]
    assert receiver.messages[1]["dropped"] == 1


async def test_receiver_that_hangs_delays_nobody(receiver: Receiver):
    receiver.answers = [receiver.hang_until_the_end]
    queue = queue_to(receiver.url, 0.01, answer_seconds=0.5)
    loop = asyncio.get_running_loop()
    queue.send(message())
    longest = 0.0
    for _ in range(20):
        began = loop.time()
        await asyncio.sleep(0)
        longest = max(longest, loop.time() - began)
    assert longest < 0.4
    await delivered(queue)
    assert len(receiver.posts) == 2


async def test_long_answer_is_not_kept(receiver: Receiver, caplog):
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(64):  # 4 MB
                handler.wfile.write(b"x" * 65536)

    receiver.answers = [answer]
    queue = queue_to(receiver.url, answer_seconds=30)
    queue.send(message())
    await delivered(queue)
    assert len(receiver.posts) == 1
    assert "an alarm was not delivered" in caplog.text


async def test_messages_that_wait_are_bounded(receiver: Receiver, monkeypatch):
    monkeypatch.setattr(webhook, "QUEUED_MESSAGES", 3)
    queue = queue_to(receiver.url)
    for number in range(10):
        queue.send(message(number))
    await delivered(queue)
    assert [int(each["id"]) for each in receiver.messages] == [7, 8, 9]
    assert [each["dropped"] for each in receiver.messages] == [7, 0, 0]


async def test_message_is_given_up_after_the_last_attempt(receiver: Receiver):
    receiver.answers = [status(500)] * 3
    queue = queue_to(receiver.url, 0.01, 0.01)
    queue.send(message(1))
    queue.send(message(2))
    await delivered(queue)
    assert [(each["id"][-1], each["dropped"]) for each in receiver.messages] == [
        ("1", 0),
        ("1", 0),
        ("1", 0),
        ("2", 1),
    ]


@apprise_imports
@pytest.mark.parametrize(
    ("url", "secret", "why"),
    [
        ("https://hooks.example/x", "", "CM_WEBHOOK_SECRET"),
        ("https://hooks.example/x", "short", "16 characters"),
        ("http://hooks.example/x", SECRET, "must be https"),
        ("http://10.0.0.1/x", SECRET, "must be https"),
        ("https://user:pass@hooks.example/", SECRET, "no user name"),
        ("https:///x", SECRET, "must have a host"),
        ("https://[::1/x", SECRET, "invalid URL"),
        ("nonsense://tokenA/tokenB", SECRET, "Apprise"),
        ("hooks.example", SECRET, "Apprise"),
    ],
)
def test_wrong_settings_are_refused_without_their_secrets(url, secret, why):
    with pytest.raises(ServerError, match=why) as caught:
        make_queues(url, secret)
    for hidden in ("pass", "tokenA", "/x"):
        assert hidden not in str(caught.value)
    if secret:
        assert secret not in str(caught.value)


@apprise_imports
async def test_apprise_sends_text(receiver: Receiver):
    pytest.importorskip("apprise")
    (queue,) = make_queues(receiver.url.replace("http://", "json://"), "")
    queue.send(message())
    await delivered(queue)
    ((_, body),) = receiver.posts
    assert json.loads(body)["message"] == "board-lost: lab-1, lab-2"


def test_text_of_a_message_has_numbers():
    more = {"kind": "board-lost", "count": 3, "times": 3, "names": ["lab-1"]}
    text = webhook.message_text({"events": [more], "dropped": 2})
    assert text == "board-lost: lab-1 and 2 more\n2 earlier messages were not delivered"
    again = {"kind": "safe-mode", "count": 1, "times": 57, "names": ["lab-1"]}
    text = webhook.message_text({"events": [again], "dropped": 0})
    assert text == "safe-mode: lab-1 (57 times)"


@pytest.fixture
def documented(unused_tcp_port: int) -> Iterator[subprocess.Popen[str]]:
    """The receiver of docs/how-to/alarms.md."""
    page = (ROOT / "docs/how-to/alarms.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "CM_WEBHOOK_SECRET": SECRET, "PORT": str(unused_tcp_port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


async def test_receiver_of_the_documentation_accepts_genuine_messages(
    documented: subprocess.Popen[str], unused_tcp_port: int
):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    genuine = queue_to(url, *[0.1] * 200)
    for number in (1, 1, 3):  # the second time as if the answer was lost
        genuine.send(message(number))
        await delivered(genuine)
    forged = MessageQueue("there", Webhook(url, "not the secret 0").deliver, ())
    forged.send(message(2))
    await delivered(forged)
    assert forged._dropped == 1
    documented.terminate()
    assert documented.stdout is not None
    lines = documented.stdout.read().splitlines()
    assert lines == ["board-lost 2 lab-1 lab-2"] * 2


def test_server_does_not_start_with_wrong_settings(start_server: Any, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CM_WEBHOOK", "http://10.0.0.1/secret-path")
    with (
        pytest.raises(ServiceError, match="must be https") as caught,
        start_server(tmp_path / "home"),
    ):
        pass
    assert "secret-path" not in str(caught.value)
