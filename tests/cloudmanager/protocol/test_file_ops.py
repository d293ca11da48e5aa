"""Acts: what is sound, and what would cut a board off. The server's refusals: test_orders.py."""

from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.file_ops import (
    CLIENT_PATHS,
    OP_ARGUMENTS,
    STARTER_BYTES,
    STARTER_MARK,
    check_file_ops,
)


def sound(*acts):
    return check_file_ops([list(act) for act in acts], max_ops=10, path_bytes=100)


def test_sound_acts_come_back_as_they_are():
    acts = [["put", "/a.py", "0" * 64], ["rm", "/a b/é", True], ["stat", "/"]]
    assert sound(*acts) == acts


@pytest.mark.parametrize("name", OP_ARGUMENTS)
def test_each_act_takes_what_the_table_says_and_nothing_more(name):
    example = {str: "/x", int: 1, bool: True}
    act = [name, "/a", *(example[kind] for kind in OP_ARGUMENTS[name])]
    assert sound(act) == [act]
    with pytest.raises(ServerError):
        sound([*act, 1])
    with pytest.raises(ServerError):
        sound(act[:1])


@pytest.mark.parametrize("path", [*CLIENT_PATHS, "/LIB/CM/run.mpy", "/cm.json.part"])
@pytest.mark.parametrize("act", [("put", "0" * 64), ("rm", False), ("rename", "/z"), ("rmdir",)])
def test_what_the_client_lives_on_is_not_touched(path, act):
    name, *rest = act
    with pytest.raises(ServerError, match="without it the board could not connect"):
        sound([name, path, *rest])


@pytest.mark.parametrize(
    "path", ["/lib/cmx.py", "/cm.json.txt", "/lib/x/cm", "/main.py", "/boot.py"]
)
def test_what_only_looks_like_it_may_be_touched(path):
    assert sound(["rm", path, True])


def test_it_may_be_looked_at():
    assert sound(["ls", "/lib/cm", True], ["get", "/cm.json"], ["makedirs", "/lib"])


def test_starter_is_told_by_what_it_holds():
    starter = (Path(__file__).parents[3] / "mpy_client/main.py").read_bytes()
    assert (len(starter), STARTER_MARK in starter) == (STARTER_BYTES, True)
