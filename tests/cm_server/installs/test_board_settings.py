"""Jobs about settings: what is written to a board, and what its caller gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.installs.board_settings import (
    StoredSecrets,
    read_settings,
    read_settings_job,
)
from cm_server.installs.content_store import Content, ContentStore
from cm_server.installs.plan_cache import PlanCache
from cm_server.installs.services import InstallServices
from cm_server.jobs.model import Board
from cm_server.limits import Limits
from cm_server.store.rows import new_board_row
from cm_server.store.secret_rows import SecretRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

LIMITS = Limits()
PASSWORD = "correct horse"


class Lab:
    """A store, the contents of a server, and one board with settings."""

    def __init__(self, folder: Path, settings: Any = None) -> None:
        self.store = Store(None)
        row = new_board_row("id1", "lab-1", bytes(32))
        self.store.enrol_boards([row])
        self.board = Board(row)
        queue = StoreQueue(self.store, LIMITS)
        contents = ContentStore(folder, LIMITS, lambda *_: None)
        self.services = InstallServices(
            content_store=contents,
            plan_cache=PlanCache(1),
            plan_turns=None,  # type: ignore[arg-type]
            package_planner=None,  # type: ignore[arg-type]
            firmware_source=None,  # type: ignore[arg-type]
            mounts=None,  # type: ignore[arg-type]
            store_queue=queue,
            limits=LIMITS,
        )
        self.raw = None if settings is None else json.dumps(settings).encode()
        self.writes = 0

    def set_secret(self, name: str, value: str, target: str = "all") -> None:
        self.store.set_secret(SecretRow(name, value, target, 0.0))

    def run(self, request: dict[str, Any]) -> Any:
        """Carry out a job, as the board would; return its value."""
        spec, _ = read_settings_job(self.services, request, 1)
        generator = spec.make_generator(self.board, spec.read_store(self.board).result())
        assert list(next(generator)) == [["get", "/settings.json"]]
        try:
            if self.raw is None:
                ops = generator.throw(FileNotFoundError(2, "No such file", "/settings.json"))
            else:
                ops = generator.send([self.raw])
            ((name, path, content),) = ops
            assert (name, path) == ("put", "/settings.json")
            assert isinstance(content, Content)
            self.raw = content.read(0, content.size)
            self.writes += 1
            generator.send([content.size])
        except StopIteration as end:
            assert self.services.store_queue.drain()
            return end.value
        raise AssertionError("the job did not end")

    def change(self, **settings: Any) -> Any:
        return json.loads(self.run({"change": json.dumps(settings)}))

    def read(self) -> Any:
        return json.loads(self.run({}))

    @property
    def settings(self) -> Any:
        assert self.raw is not None
        return json.loads(self.raw)


def test_secret_is_written_to_the_board_and_its_caller_gets_the_reference(tmp_path: Path):
    lab = Lab(tmp_path, {"interval": 30, "mqtt": {"host": "a"}})
    lab.set_secret("mqtt", PASSWORD)
    reference = {"secret": "mqtt"}
    expected = {"interval": 30, "mqtt": {"host": "b", "password": reference}, "wifi": reference}
    value = lab.change(mqtt={"host": "b", "password": reference}, wifi=reference)
    assert value == expected
    assert lab.settings == {
        "interval": 30,
        "mqtt": {"host": "b", "password": PASSWORD},
        "wifi": PASSWORD,
    }
    assert lab.read() == expected
    assert lab.services.content_store.used_bytes == 0  # nothing of it is kept on the disk


def test_other_changes_renew_the_secrets_of_a_board(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.set_secret("mqtt", PASSWORD)
    lab.change(mqtt={"secret": "mqtt"}, own="correct horses")
    lab.set_secret("mqtt", "battery staple")
    assert lab.read() == {"mqtt": {"secret": "mqtt"}, "own": "correct horses"}
    assert lab.change(interval=5)["mqtt"] == {"secret": "mqtt"}
    assert lab.settings == {"mqtt": "battery staple", "own": "correct horses", "interval": 5}


def test_removed_secret_stays_on_the_board_and_out_of_replies(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.set_secret("mqtt", PASSWORD)
    lab.change(mqtt={"secret": "mqtt"})
    lab.store.remove_secret("mqtt")
    assert lab.change(interval=5) == {"mqtt": {"secret": "mqtt"}, "interval": 5}
    assert lab.settings["mqtt"] == PASSWORD


def test_secret_that_is_replaced_by_a_value_is_none_any_more(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.set_secret("mqtt", PASSWORD)
    lab.change(mqtt={"secret": "mqtt"})
    assert lab.change(mqtt="open") == {"mqtt": "open"}
    assert lab.read() == {"mqtt": "open"}
    lab.change(mqtt={"secret": "mqtt"})
    lab.raw = b'{"mqtt": 5}'  # somebody has changed the file
    lab.change(a=1)
    assert lab.settings == {"mqtt": 5, "a": 1}
    assert lab.read() == {"mqtt": 5, "a": 1}


def test_value_of_a_secret_elsewhere_in_the_file_is_masked(tmp_path: Path):
    lab = Lab(tmp_path, {"copies": [{"a": PASSWORD}, "open"], "text": f"not {PASSWORD}"})
    lab.set_secret("mqtt", PASSWORD)
    assert lab.read() == {
        "copies": [{"a": {"secret": "mqtt"}}, "open"],
        "text": f"not {PASSWORD}",
    }
    lab.raw = f"[{PASSWORD}".encode()
    assert lab.run({}) == "[…"


def test_file_without_secrets_is_returned_as_it_is(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.raw = b'{"a":1,   "b":  [NaN]}'
    assert lab.run({}) == '{"a":1,   "b":  [NaN]}'


def test_unchanged_settings_are_not_written(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.change(a=1)
    lab.change(a=1)
    assert lab.writes == 1


def test_key_called_secret_is_an_ordinary_one(tmp_path: Path):
    lab = Lab(tmp_path)
    assert lab.change(secret="hello") == {"secret": "hello"}
    assert lab.settings == {"secret": "hello"}
    assert lab.change(a={"secret": "x", "b": 1}, c={"secret": 5}) == {
        "secret": "hello",
        "a": {"secret": "x", "b": 1},
        "c": {"secret": 5},
    }


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("wifi", "there is no secret called 'wifi' for this board; there are mqtt"),
        ("roof", "there is no secret called 'roof' for this board; there are mqtt"),
    ],
)
def test_secret_that_a_board_may_not_get_is_not_written(tmp_path: Path, reference: str, error: str):
    lab = Lab(tmp_path, {"a": 1})
    lab.set_secret("mqtt", PASSWORD)
    lab.set_secret("roof", "battery staple", "roof-*")
    with pytest.raises(ServerError) as caught:
        lab.change(b={"secret": reference})
    assert caught.value.reason == error
    assert (lab.settings, lab.writes) == ({"a": 1}, 0)


def test_board_that_lost_its_right_to_a_secret_keeps_the_old_value(tmp_path: Path):
    lab = Lab(tmp_path)
    lab.set_secret("mqtt", PASSWORD)
    lab.change(mqtt={"secret": "mqtt"})
    lab.set_secret("mqtt", "battery staple", "roof-*")
    assert lab.change(a=1) == {"mqtt": {"secret": "mqtt"}, "a": 1}
    assert lab.settings == {"mqtt": PASSWORD, "a": 1}


def test_secret_of_other_boards_cannot_be_guessed(tmp_path: Path):
    lab = Lab(tmp_path, {"guesses": ["1233", "1234", "1235"]})
    lab.set_secret("pin", "1234", "roof-*")
    assert lab.read() == {"guesses": ["1233", "1234", "1235"]}


@pytest.mark.parametrize(
    "request_",
    [
        [],
        "x",
        {"change": {}},
        {"change": "["},
        {"change": "[]"},
        {"change": "5"},
        {"change": '{"a": NaN}'},
        {"change": '{"a": "\\ud800"}'},
        {"change": '{"a": [{"secret": "mqtt"}]}'},
        {"change": '{"a": [[{"b": {"secret": "mqtt"}}]]}'},
        {"change": '{"a":' * 30 + "1" + "}" * 30},
        {"change": '{"a":' + "[" * 30 + "]" * 30 + "}"},
        {"change": '{"a":' * 9000 + "1" + "}" * 9000},
    ],
    ids=repr,
)
def test_malformed_request_is_refused(tmp_path: Path, request_: Any):
    with pytest.raises(ServerError):
        read_settings_job(Lab(tmp_path).services, request_, 1)


def test_settings_that_are_no_object_or_too_long_are_not_changed(tmp_path: Path):
    lab = Lab(tmp_path)
    for raw in (b"[", b"[]", b"\xff", b'"x"'):
        lab.raw = raw
        with pytest.raises(ServerError, match="is not a JSON object; remove the file"):
            lab.change(a=1)
        assert lab.raw == raw
    lab.raw = None
    with pytest.raises(ServerError, match="would be longer than 16 KiB"):
        lab.change(a="x" * LIMITS.settings_bytes)
    assert lab.writes == 0


def test_missing_file_is_an_error_of_a_read(tmp_path: Path):
    generator = read_settings(StoredSecrets({}, {}))
    next(generator)
    with pytest.raises(FileNotFoundError):
        generator.throw(FileNotFoundError(2, "No such file", "/settings.json"))


def test_audit_log_gets_keys_and_names_of_secrets_but_no_values(tmp_path: Path):
    change = json.dumps({"pin": "0000", "mqtt": {"password": {"secret": "mqtt"}}})
    _, text = read_settings_job(Lab(tmp_path).services, {"change": change}, 1)
    assert text == "pin, mqtt (secrets: mqtt)"


def test_uses_are_deleted_with_the_board():
    store = Store(None)
    store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
    uses = {("mqtt", "password"): "mqtt", ("a",): "b"}
    store.secret_rows.set_uses("id1", uses)
    assert store.secret_rows.uses_of("id1") == uses
    store.secret_rows.set_uses("id1", {})
    assert store.secret_rows.uses_of("id1") == {}
    store.secret_rows.set_uses("id1", uses)
    store.delete_boards(["id1"])
    assert store.secret_rows.uses_of("id1") == {}
