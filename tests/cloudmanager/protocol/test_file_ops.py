"""File operations: which are valid, and which would remove the board's client."""

import pytest

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.file_ops import (
    OP_ARGUMENTS,
    check_file_ops,
    decode_path,
    encode_path,
    is_undecodable,
    touches_starter,
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


@pytest.mark.parametrize(
    ("raw", "path"), [(b"/a\xff", "/a\udcff"), ("/é".encode(), "/é"), (b"/\xc3x", "/\udcc3x")]
)
def test_path_that_is_not_utf8_has_a_text(raw, path):
    assert decode_path(raw) == path
    assert encode_path(path) == raw
    assert is_undecodable(path) == (path != "/é")
    for act in (["stat", path], ["rm", path, True], ["rename", path, "/a"], ["get", path]):
        assert sound(act) == [act]


@pytest.mark.parametrize(
    "act",
    [
        ("put", "/a\udcff", "0" * 64),
        ("mkdir", "/a\udcff"),
        ("makedirs", "/a\udcff"),
        ("rename", "/x", "/a\udcff"),
    ],
)
def test_path_that_is_not_utf8_is_not_written(act):
    with pytest.raises(ServerError, match=r": /a\\xff is not UTF-8 text: .* not written"):
        sound(act)


@pytest.mark.parametrize("path", ["/a\ud800", "/\udcc3\udca9", "/a\0", "/\udcff" + "x" * 100])
def test_path_that_no_board_can_have_is_refused(path):
    with pytest.raises(ServerError, match="is not a path on a board"):
        sound(["stat", path])


ESSENTIAL_FILES = ["/cm.json", "/lib/cm", "/LIB/CM/run.mpy", "/lib/cm_start.mpy"]
CLIENT_FILES = [
    *ESSENTIAL_FILES,
    "/cm.boot",
    "/cm.py",
    "/cm",
    "/cm/x.py",
    "/cm_start.py",
    "/.cm/journal",
    "/lib/cm.py",
    "/lib/cm.new/ok",
]


@pytest.mark.parametrize("path", ESSENTIAL_FILES)
@pytest.mark.parametrize(
    "act",
    [("put", "0" * 64), ("rm", False), ("rename", "/z"), ("rmdir",), ("mkdir",), ("makedirs",)],
)
def test_operations_on_client_files_are_refused(path, act):
    name, *rest = act
    with pytest.raises(ServerError, match="without it the board could not connect"):
        sound([name, path, *rest])


@pytest.mark.parametrize(
    "path", ["/lib/cmx.py", "/x/cm.json", "/lib/x/cm", "/json.py", "/main.py", "/boot.py"]
)
def test_operations_on_similar_paths_are_allowed(path):
    assert sound(["rm", path, True])


def test_client_files_can_be_read():
    assert sound(["ls", "/lib/cm", True], ["get", "/cm.json"], ["makedirs", "/lib"])


@pytest.mark.parametrize("path", ["/main.py", "/Boot.py", "/main.mpy", *CLIENT_FILES])
def test_operations_on_the_starter_are_recognized(path):
    assert touches_starter(["put", path, "0" * 64])
    assert touches_starter(["rename", "/x", path])
    assert not touches_starter(["stat", path])
    assert not touches_starter(["put", "/x" + path, "0" * 64])


@pytest.mark.parametrize("to", ["/logs", "/logs/old", "/logs/a/b", "/LOGS/old"])
def test_folder_is_not_moved_into_itself(to):
    with pytest.raises(ServerError, match="into itself"):
        check_file_ops([["rename", "/logs", to]], max_ops=9, path_bytes=99)


@pytest.mark.parametrize("to", ["/logs.old", "/old/logs", "/Logs", "/log"])
def test_folder_is_moved_elsewhere(to):
    assert check_file_ops([["rename", "/logs", to]], max_ops=9, path_bytes=99)
