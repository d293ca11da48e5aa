"""Attributes and messages of each error."""

import copy
import inspect
import pickle
import re

import pytest

from cloudmanager.protocol import errors
from cloudmanager.protocol.errors import (
    BoardError,
    BoardOffline,
    CableError,
    CellSyntaxError,
    CloudmanagerError,
    FleetError,
    LinkLost,
    LocalWireError,
    NoSuchBoard,
    NotAllowed,
    PackageError,
    PeerWireError,
    ServerError,
    ServerUnreachable,
    ServiceError,
    TargetError,
    VersionMismatch,
    WireError,
)

TRACEBACK = """\
Traceback (most recent call last):
  File "<cell>", line 1, in <module>
ZeroDivisionError: divide by zero
"""
ONE_OF_EACH = [
    CloudmanagerError("it broke"),
    ServerUnreachable("ws://lab:18266", "CM_URL", "connection refused"),
    NotAllowed("operator on lab-1"),
    VersionMismatch(1, 2),
    TargetError("The range is in descending order.", "esp-[3-1]", 5, "Write 1-3."),
    NoSuchBoard("lab-7", "lab-1", ("lab-8", "lab-9")),
    BoardOffline("lab-1", 1e9),
    LinkLost("lab-1", 7),
    CellSyntaxError("invalid syntax", 2, 3, "  x y"),
    BoardError("lab-1", "ZeroDivisionError", "divide by zero", TRACEBACK),
    FleetError({"lab-1": BoardOffline("lab-1"), "lab-2": LinkLost("lab-2")}),
    ServerError("the queue of lab-1 is full"),
    ServiceError("TCP port 18266 is taken", "/home/me/cm/server.log"),
    CableError("/dev/ttyUSB0", "No chip's loader answers", "Hold BOOT.", "chip"),
    WireError("the header is short"),
    LocalWireError("the job's number is negative"),
    PeerWireError("the header is short"),
    PackageError("no package is called logs"),
]


def failed(board, text="ZeroDivisionError: divide by zero"):
    return BoardError(board, "ZeroDivisionError", "divide by zero", text)


def own_classes():
    kinds = vars(errors).values()
    return [k for k in kinds if inspect.isclass(k) and k.__module__ == errors.__name__]


def test_docstring_shows_the_class_tree():
    def draw(kind, depth=0):
        yield f"{'  ' * depth}{kind.__name__}"
        for below in kind.__subclasses__():
            if below.__module__ == errors.__name__:
                yield from draw(below, depth + 1)

    drawn = re.findall(r"^( *\w+)(?:  .+)?$", errors.__doc__.split("```")[1], re.MULTILINE)
    assert drawn == list(draw(CloudmanagerError))


def test_every_class_has_an_example():
    assert [type(error) for error in ONE_OF_EACH] == own_classes()


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_error_survives_pickle_and_copy(error):
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(twin), str(twin)) == (type(error), str(error))
        assert {n: str(v) for n, v in vars(twin).items()} == {
            n: str(v) for n, v in vars(error).items()
        }


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_message_ends_with_what_to_do_next(error):
    stands_for_itself = (BoardError, PackageError, ServerError)  # a traceback; one sentence
    if not isinstance(error, stands_for_itself):
        assert re.search(r"\w.*[.]$", error.hint)
    assert str(error).endswith(error.hint)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ServerUnreachable("ws://lab:18266", "CM_URL", "refused"),
            "No server at ws://lab:18266 (from CM_URL): refused. "
            "Start a server with `mbm server-start`, or name another one in CM_URL.",
        ),
        (
            NoSuchBoard("demo-7"),
            "No board is called demo-7. `mbm board-list` shows every board.",
        ),
        (
            NoSuchBoard("a-1", "b-1", [f"a-{number}" for number in range(2, 41)]),
            "No board is called a-1, a-2, a-3, a-4 and 36 more. "
            "Did you mean b-1? `mbm board-list` shows every board.",
        ),
        (
            BoardOffline("lab-1"),
            "lab-1: The board is offline: it was never seen. "
            "Check its power and its network, or wait for it with `--wait`.",
        ),
        (
            LinkLost("lab-1", 7),
            "lab-1, job 7: Lost: the link broke, and the board may still be running the job. "
            "`mbm board-list` shows whether the board is back; "
            "a cell is never repeated automatically.",
        ),
        (
            BoardOffline("lab-1", why="it was seen 3 minutes ago"),
            "lab-1: The board is offline: it was seen 3 minutes ago. "
            "Check its power and its network, or wait for it with `--wait`.",
        ),
        (
            LinkLost("lab-1", why="the board restarted while it ran"),
            "lab-1: Lost: the board restarted while it ran. "
            "`mbm board-list` shows whether the board is back; "
            "a cell is never repeated automatically.",
        ),
        (
            CellSyntaxError("invalid syntax", 2, 5, "  x y  "),
            "invalid syntax (line 2)\n    x y\n      ^\n"
            "Nothing was sent to a board. Correct the line and run the cell again.",
        ),
        (
            TargetError("The range is in descending order.", "esp-[3-1]", 5, "Write 1-3."),
            "The range is in descending order.\n    esp-[3-1]\n         ^\nWrite 1-3.",
        ),
        (BoardError("lab-1", "E", "", TRACEBACK), f"lab-1:\n{TRACEBACK.rstrip()}"),
        (BoardError("lab-1", "OSError", "-2"), "lab-1: OSError: -2"),
        (
            BoardError("lab-1", "KeyboardInterrupt", "", "", "timeout"),
            "lab-1: KeyboardInterrupt Give the cell more time with `timeout=` or `--timeout`.",
        ),
        (
            NotAllowed("operator"),
            "Not allowed: this needs the right 'operator'. "
            "Ask an administrator for a token that may do this, and set CM_TOKEN to that.",
        ),
        (
            NotAllowed("caller", "the server does not know this token"),
            "Not allowed: the server does not know this token. "
            "Ask an administrator for a token that may do this, and set CM_TOKEN to that.",
        ),
        (
            ServiceError("TCP port 18266 is taken.", "/home/me/cm/server.log"),
            "TCP port 18266 is taken. The server's own log is /home/me/cm/server.log.",
        ),
        (
            ServiceError("it does not stop"),
            "it does not stop.",
        ),
        (
            ServerError("the queue is full."),
            "The server refused: the queue is full.",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_message_text(error, message):
    assert str(error) == message


def test_target_error_is_a_value_error():
    assert isinstance(TargetError("Empty.", "", 0, "Write `all`."), ValueError)


@pytest.mark.parametrize(("ours", "older"), [(1, "here"), (3, "on the server's machine")])
def test_version_mismatch_names_the_older_side(ours, older):
    text = str(VersionMismatch(ours, 2))
    assert f"Update the older one, {older}: `pip install --upgrade cloudmanager`, or" in text


@pytest.mark.parametrize(
    ("last_seen", "shown"),
    [
        (1e9 + 43200, "last seen 2001-09-09"),
        (1e30, "last seen at 1e+30"),
        (float("nan"), "last seen at nan"),
    ],
)
def test_offline_board_error_has_last_seen(last_seen, shown):
    assert shown in str(BoardOffline("lab-1", last_seen))


@pytest.mark.parametrize(
    "error",
    [
        BoardError("\x1b[2J", "\x1b]0;", "\u202e", ""),
        BoardError("b", "E", "v", "\x1b[31mred\r\x00"),
        ServerError("\x9b0m"),
        ServerUnreachable("ws://\x07", "\x1b"),
        NoSuchBoard("\x1b", "\x1b", ["\x1b"]),
        CellSyntaxError("\x1b", 1, 1, "\x1bx"),
        TargetError("\x1b", "\x1bx", 1, "\x1b"),
        FleetError({"\x1b-1": BoardOffline("\x1b-1")}),
        PackageError("\x1b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_message_has_no_control_characters(error):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", str(error))


def test_fleet_error_groups_equal_errors():
    boards = [f"lab-{number}" for number in range(1, 41)]
    errors_ = {board: failed(board) for board in boards}
    errors_["lab-39"] = failed("lab-39", TRACEBACK)
    assert str(FleetError(errors_)) == (
        "40 boards failed.\n"
        "lab-[1-38,40]:\n  ZeroDivisionError: divide by zero\n"
        "lab-39:\n  Traceback (most recent call last):\n"
        '    File "<cell>", line 1, in <module>\n'
        "  ZeroDivisionError: divide by zero\n"
        "Each board's own error is in `.errors`."
    )
    assert FleetError(errors_).errors == errors_


@pytest.mark.parametrize(
    ("count", "rest"),
    [(4, ""), (5, "... and 1 more board\n"), (40, "... and 36 more boards\n")],
)
def test_fleet_error_shows_four_and_counts_the_rest(count, rest):
    error = FleetError({f"b-{n}": failed(f"b-{n}", f"E: {n}") for n in range(count)})
    assert str(error).endswith(f"b-3:\n  E: 3\n{rest}{FleetError.hint}")


def test_number_of_an_error_of_the_flash_is_explained():
    assert "read-only" in BoardError("lab-1", "OSError", "30").hint
    assert BoardError("lab-1", "OSError", "-2").hint == ""
