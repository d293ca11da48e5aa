"""The script of docs/how-to/mqtt.md: what boards emit reaches an MQTT broker."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from tests.conftest import running_boards
from tests.engines import await_answer, free_tcp_port
from tests.wheel import ROOT

mqtt = pytest.importorskip("paho.mqtt.client", reason="pip install paho-mqtt")
#: Debian installs it where only root's path looks.
BROKER = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.skipif(BROKER is None, reason="sudo apt-get install mosquitto"),
    pytest.mark.timeout(180),
]
PAGE = ROOT / "docs/how-to/mqtt.md"
SECONDS = 60.0  # a busy machine is late
EMIT = "import cm\ncm.emit(**{'temp': 21.5, 'door': 'open', 'a/b #+': 1})"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    """A broker on loopback; its TCP port."""
    port = free_tcp_port()
    with (tmp_path / "mosquitto.log").open("wb") as log:
        # Without a file of settings, it listens on loopback alone, and asks for no password.
        process = subprocess.Popen([str(BROKER), "-p", str(port)], stdout=log, stderr=log)
    try:
        await_answer(port)
        yield port
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture
def messages(broker: int) -> Iterator[queue.Queue[tuple[str, str]]]:
    """Topic and text of all messages, those that the broker keeps first."""
    found: queue.Queue[tuple[str, str]] = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe("#")
    client.on_message = lambda _client, _data, each: found.put((each.topic, each.payload.decode()))
    client.connect("127.0.0.1", broker)
    client.loop_start()
    yield found
    client.disconnect()
    client.loop_stop()


def test_values_are_published_and_described(
    server: Any, fleet: Fleet, home: Path, broker: int, messages: Any, tmp_path: Path
):
    *_, script = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/how-to/mqtt.md").read_text(), re.S
    )
    assert len(script.splitlines()) < 40
    environment = {**os.environ, "CM_HOME": str(home), "MQTT_PORT": str(broker)}
    with (tmp_path / "script.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=log, stderr=log
        )
    try:
        with running_boards(server, fleet, ["mqtt-1"]):
            found = wait_for(messages, {}, "cloudmanager/mqtt-1/connected", "online")
            fleet["mqtt-1"].run(EMIT).raise_for_error()
            found = wait_for(messages, found, "cloudmanager/mqtt-1/a_b___", "1")
        found = wait_for(messages, found, "cloudmanager/mqtt-1/connected", "offline")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(SECONDS)
    assert found["cloudmanager/mqtt-1/temp"] == "21.5"
    assert found["cloudmanager/mqtt-1/door"] == "open"
    about = json.loads(found["homeassistant/sensor/cloudmanager_mqtt_1_temp/config"])
    assert about["state_topic"] == "cloudmanager/mqtt-1/temp"
    assert about["availability_topic"] == "cloudmanager/mqtt-1/connected"
    assert (about["device"]["name"], about["state_class"]) == ("mqtt-1", "measurement")
    door = json.loads(found["homeassistant/sensor/cloudmanager_mqtt_1_door/config"])
    assert "state_class" not in door


def wait_for(messages: Any, found: dict[str, str], topic: str, text: str) -> dict[str, str]:
    """Return the newest text of each topic, once one has a text."""
    deadline = time.monotonic() + SECONDS
    while found.get(topic) != text:
        name, value = messages.get(timeout=max(deadline - time.monotonic(), 0.01))
        found = {**found, name: value}
    return found
