"""File operations: which are valid, and which would remove the board's client."""

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


def test_valid_operations_are_returned_unchanged():
    acts = [["put", "/a.py", "0" * 64], ["rm", "/a b/é", True], ["stat", "/"]]
    assert sound(*acts) == acts


@pytest.mark.parametrize("name", OP_ARGUMENTS)
def test_each_operation_needs_its_argument_types(name):
    example = {str: "/x", int: 1, bool: True}
    act = [name, "/a", *(example[kind] for kind in OP_ARGUMENTS[name])]
    assert sound(act) == [act]
    with pytest.raises(ServerError):
        sound([*act, 1])
    with pytest.raises(ServerError):
        sound(act[:1])


@pytest.mark.parametrize("path", [*CLIENT_PATHS, "/LIB/CM/run.mpy", "/cm.json.part"])
@pytest.mark.parametrize("act", [("put", "0" * 64), ("rm", False), ("rename", "/z"), ("rmdir",)])
def test_operations_on_client_files_are_refused(path, act):
    name, *rest = act
    with pytest.raises(ServerError, match="without it the board could not connect"):
        sound([name, path, *rest])


@pytest.mark.parametrize(
    "path", ["/lib/cmx.py", "/cm.json.txt", "/lib/x/cm", "/main.py", "/boot.py"]
)
def test_operations_on_similar_paths_are_allowed(path):
    assert sound(["rm", path, True])


def test_client_files_can_be_read():
    assert sound(["ls", "/lib/cm", True], ["get", "/cm.json"], ["makedirs", "/lib"])


def test_operations_on_the_starter_are_recognized():
    starter = (Path(__file__).parents[3] / "mpy_client/main.py").read_bytes()
    assert (len(starter), STARTER_MARK in starter) == (STARTER_BYTES, True)


@pytest.mark.parametrize("to", ["/logs", "/logs/old", "/logs/a/b", "/LOGS/old"])
def test_folder_is_not_moved_into_itself(to):
    with pytest.raises(ServerError, match="into itself"):
        check_file_ops([["rename", "/logs", to]], max_ops=9, path_bytes=99)


@pytest.mark.parametrize("to", ["/logs.old", "/old/logs", "/Logs", "/log"])
def test_folder_is_moved_elsewhere(to):
    assert check_file_ops([["rename", "/logs", to]], max_ops=9, path_bytes=99)
