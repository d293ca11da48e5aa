"""Jobs that receive messages, their results, and threads that wait for them."""

import itertools
import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.client import jobs
from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.wait import Wait
from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import BoardError, NoSuchBoard, PeerWireError, ServerUnreachable
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.wire import Message
from cloudmanager.results.board_values import Repr

WAIT = 60.0  # seconds that a thread may take on a busy machine
TRACEBACK = """\
Traceback (most recent call last):
  File "<cell>", line 1, in <module>
ZeroDivisionError: divide by zero
"""
UNREACHABLE = ServerUnreachable("http://lab:18266", "CM_URL", "it closed the connection")


class Lab:
    """A group whose cell was accepted; `say` passes a message of the server to it."""

    def __init__(self, boards=("lab-1",), code="1/0", listen=True, fresh=False, **accepted):
        self.stopped: list[list[int]] = []
        self.answered: list[tuple[int, str | None]] = []
        self.group = JobGroup(prepare_cell(code), RunOptions(fresh=fresh), listen=listen)
        numbers = itertools.count(1)
        body = {"jobs": [[next(numbers), board] for board in boards], **accepted}
        self.group.on_accepted(
            body, self.stopped.append, lambda job, text: self.answered.append((job, text))
        )

    @property
    def job(self):
        return next(iter(self.group.jobs.values()))

    def say(self, op, payload=b"", flags=0, board=None):
        job = self.group.jobs[board] if board else self.job
        self.group.handle_message(job, Message(op, flags, job.number, payload))

    def end(self, board=None, status=0, output=b"", rest=b""):
        payload = len(output).to_bytes(2, "big") + output + rest
        self.say(wire.RESULT, payload, status, board)

    def end_by_server(self, status, **body):
        self.say(wire.ENDED, json.dumps(body).encode(), wire.STATUSES.index(status))

    def printed(self, *pieces):
        """Return the result's stdout after the board printed these pieces and ended."""
        for piece in pieces:
            self.say(wire.OUTPUT, piece)
        self.end()
        return self.result.stdout

    @property
    def result(self):
        return self.group.results(0)[self.job.board]


@pytest.mark.parametrize(
    ("pieces", "stdout"),
    [
        ([b"a\r\nb\r\n"], "a\nb\n"),
        ([b"a\r", b"\nb"], "a\nb"),
        ([b"50%\r", b"99%\r"], "50%\r99%\r"),
        ([b"a\r", b"\r\n"], "a\r\n"),
        ([b"a\n\r\n"], "a\n\n"),
        (["é".encode()[:1], "é".encode()[1:]], "é"),
        ([bytes((byte,)) for byte in "日🐍\r\n".encode()], "日🐍\n"),
        ([b"\xff"], "\ufffd"),
        ([b"a\xe2\x82"], "a\ufffd"),
        ([b""], ""),
    ],
)
def test_output_is_joined_across_messages(pieces, stdout):
    assert Lab().printed(*pieces) == stdout


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])), st.data())
@settings(max_examples=60)
def test_output_does_not_depend_on_message_boundaries(text, data):
    raw = text.replace("\n", "\r\n").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert Lab().printed(*pieces) == text


def test_output_in_the_result_follows_earlier_output():
    lab = Lab()
    lab.say(wire.OUTPUT, b"one\r")
    lab.end(output=b"\ntwo", rest=b"3")
    assert (lab.result.stdout, lab.result.value) == ("one\ntwo", 3)


def test_long_output_keeps_its_end(monkeypatch):
    monkeypatch.setattr(jobs, "MAX_OUTPUT_CHARS", 10)
    lab = Lab()
    pieces = [f"{number:04}".encode() for number in range(10)]
    assert lab.printed(*pieces) == "06000700080009"
    assert lab.result.truncated


def test_output_left_out_by_the_server_is_marked():
    lab = Lab()
    lab.say(wire.TRUNCATED)
    lab.end()
    assert lab.result.truncated


# How a job ends


def test_value_with_a_missing_piece_is_not_a_literal():
    lab = Lab()
    lab.say(wire.VALUE, b"[1, ")
    lab.say(wire.TRUNCATED, flags=wire.VALUE_TRUNCATED)
    lab.end(rest=b"3]")
    assert isinstance(lab.result.value, Repr)
    assert (lab.result.value_truncated, lab.result.truncated) == (True, False)


def test_endless_value_is_truncated(monkeypatch):
    monkeypatch.setattr(jobs, "MAX_VALUE_BYTES", 1000)
    lab = Lab()
    for _ in range(100):
        lab.say(wire.VALUE, b"1" * 100)
    lab.end(rest=b"1")
    assert isinstance(lab.result.value, Repr)
    assert len(lab.result.text) < 1200


def test_value_in_several_messages_is_joined():
    lab = Lab()
    lab.say(wire.VALUE, b"[1, '\xc3")
    lab.say(wire.VALUE, b"\xa9', ")
    lab.end(rest=b"3]")
    assert lab.result.value == [1, "é", 3]


def test_truncated_value_is_marked():
    lab = Lab()
    lab.end(status=wire.VALUE_TRUNCATED, rest=b"[1, 2")
    assert (lab.result.value_truncated, lab.result.value) == (True, "[1, 2")


@pytest.mark.parametrize(("number", "status"), [(1, "error"), (2, "interrupted"), (3, "timeout")])
def test_failure_has_a_traceback_with_lines_of_the_cell(number, status):
    lab = Lab(code="1/0")
    lab.end(status=number, rest=TRACEBACK.replace("\n", "\r\n").encode())
    assert lab.result.status == status
    assert lab.result.traceback == TRACEBACK.replace("<module>\n", "<module>\n    1/0\n")


@pytest.mark.parametrize("name", ["cm.run", "cm/run.py"])  # /lib/cm; version 0.1 and frozen clients
def test_traceback_omits_frames_of_the_client(name):
    client = f'  File "{name}", line 1, in run\r\n'
    lab = Lab(code="")
    lab.end(status=1, rest=f"Traceback:\r\n{client}{client}OSError: 5\r\n".encode())
    assert lab.result.traceback == "Traceback:\nOSError: 5\n"


@pytest.mark.parametrize("status", ["offline", "lost", "interrupted", "timeout", "error"])
def test_server_ends_a_job_with_a_reason(status):
    lab = Lab()
    lab.say(wire.OUTPUT, b"half a line\r")
    lab.end_by_server(status, why="because")
    assert (lab.result.status, lab.result.why) == (status, "because")
    assert lab.result.stdout == "half a line\r"


def test_unknown_status_is_lost():
    lab = Lab()
    lab.say(wire.ENDED, b"{}", flags=99)
    assert lab.result.status == "lost"


def test_successful_job_without_a_link_has_lost_its_value():
    """Not None, which would be a value: the real one was lost."""
    lab = Lab()
    lab.end_by_server("ok", why="", output_lost=True)
    assert (lab.result.ok, lab.result.truncated) == (True, True)
    assert repr(lab.result.value) == "<lost with the link>"


def test_failed_job_without_a_link_has_its_error():
    lab = Lab()
    lab.end_by_server("error", why=TRACEBACK[20:], output_lost=True)
    assert isinstance(lab.result.error, BoardError)
    assert (lab.result.error.ename, lab.result.truncated) == ("ZeroDivisionError", True)


def test_job_whose_link_to_the_server_broke_is_lost():
    lab = Lab()
    lab.say(wire.OUTPUT, b"so far\r")
    lab.group.end_as_lost(lab.job, "the link broke")
    assert (lab.result.status, lab.result.stdout) == ("lost", "so far\r")


def test_ended_job_does_not_become_lost():
    lab = Lab()
    lab.end(rest=b"1")
    lab.group.end_as_lost(lab.job, "the link broke")
    assert lab.result.value == 1


def test_malformed_ended_is_a_peer_wire_error():
    with pytest.raises(PeerWireError):
        Lab().say(wire.RESULT, b"")


def test_unknown_message_about_a_job_is_ignored():
    lab = Lab()
    lab.say(0x7F, b"?")
    assert not lab.group.wait(0)


def test_elapsed_starts_when_the_cell_is_sent():
    lab = Lab()
    before = time.perf_counter()
    lab.say(wire.STARTED)
    lab.end()
    assert 0 <= lab.result.elapsed <= time.perf_counter() - before


# A job while it runs


def test_queued_job_knows_what_it_waits_for():
    lab = Lab(["a", "b", "c"], queued=[[1, 0], [2, 3]])
    states = {name: (job.state, job.wait) for name, job in lab.group.jobs.items()}
    assert states == {"a": ("queued", Wait()), "b": ("queued", Wait(3)), "c": ("running", None)}
    lab.say(wire.STARTED, board="b")
    assert lab.group.jobs["b"].state == "running"


def test_fresh_job_is_resetting_until_it_prints():
    lab = Lab(["a", "b"], fresh=True, queued=[[2, 1]])
    lab.say(wire.STARTED, board="b")
    assert [job.state for job in lab.group.jobs.values()] == ["resetting", "resetting"]
    lab.say(wire.OUTPUT, b"hi", board="b")
    assert [job.state for job in lab.group.jobs.values()] == ["resetting", "running"]


def test_job_has_elapsed_time():
    job = Lab().job
    before = job.elapsed()
    assert 0 <= before <= job.elapsed()


def test_output_is_read_from_a_position(monkeypatch):
    monkeypatch.setattr(jobs, "MAX_OUTPUT_CHARS", 4)
    lab = Lab()
    lab.say(wire.OUTPUT, b"one ")
    text, place = lab.job.read_output()
    assert text == "one "
    lab.say(wire.OUTPUT, b"two ")
    text, place = lab.job.read_output(place)
    assert (text, lab.job.read_output(place)) == ("two ", ("", place))
    lab.say(wire.OUTPUT, b"three ")  # more than is kept: the list is replaced
    assert lab.job.read_output(place)[0] == "ree "


# A group


def test_group_ends_with_its_last_job():
    lab = Lab(["a", "b"], left_out=["c"])
    lab.end("b", rest=b"2")
    assert not lab.group.wait(0)
    lab.end("a", rest=b"1")
    assert lab.group.wait(0)
    assert lab.group.results().to_dict() == {"a": 1, "b": 2}
    assert (lab.group.left_out, lab.group.results().left_out) == (("c",), ("c",))


def test_results_timeout_has_the_number_of_unfinished_boards():
    lab = Lab(["a", "b", "c"])
    lab.end("b")
    with pytest.raises(TimeoutError, match="2 of 3 boards are not done"):
        lab.group.results(0.01)


def test_repr_of_a_group_is_one_line():
    lab = Lab(["a-1", "a-2", "b"], queued=[[3, 1]])
    lab.end("a-1")
    assert repr(lab.group) == "<JobGroup: jobs 1-3 on a-[1-2],b, 1 ok, 1 running, 1 queued>"


def test_group_without_jobs_has_no_results():
    assert len(Lab([]).group.results(0)) == 0


def test_refused_group_raises_in_all_methods():
    group = JobGroup(prepare_cell("1"), listen=True)
    group.on_refused(NoSuchBoard("lab-7"))
    for ask in (group.accepted.result, group.results, lambda: list(group.events())):
        with pytest.raises(NoSuchBoard):
            ask()
    assert group.wait(0)


def test_several_threads_wait_for_one_group():
    lab = Lab()
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(lab.group.results(WAIT).value)) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    lab.end(rest=b"7")
    for thread in threads:
        thread.join(WAIT)
    assert got == [7] * 5


def test_interrupt_names_the_jobs_that_have_not_ended():
    lab = Lab(["a", "b", "c"])
    lab.end("b")
    lab.group.interrupt()
    assert lab.stopped == [[1, 3]]


def test_interrupt_of_an_ended_group_sends_nothing():
    lab = Lab()
    lab.end()
    lab.group.interrupt()
    assert lab.stopped == []


def test_interrupt_before_acceptance_is_sent_later():
    stopped: list[list[int]] = []
    group = JobGroup(prepare_cell("while True: pass"))
    group.interrupt()
    group.on_accepted({"jobs": [[7, "a"]]}, stopped.append, lambda job, text: None)
    assert stopped == [[7]]


def test_interrupt_and_answer_before_submit_do_nothing():
    group = JobGroup(prepare_cell("1"))
    group.interrupt()
    group.answer(Lab().job, "7")
    assert not group.wait(0)


def test_answer_is_sent_for_the_asking_job():
    lab = Lab(["a", "b"])
    lab.group.answer(lab.group.jobs["b"], "zwölf")
    lab.group.answer(lab.group.jobs["a"], None)
    assert lab.answered == [(2, "zwölf"), (1, None)]


# Events


def summaries(events):
    return [(event.kind, event.job.board, event.text) for event in events]


def test_events_are_in_order_of_arrival():
    lab = Lab(["a", "b"], queued=[[2, 1]])
    lab.say(wire.OUTPUT, b"hi\r\n", board="a")
    lab.say(wire.INPUT, b"wie viele? ", board="a")
    lab.say(wire.TRUNCATED, board="a")
    lab.end("a", output=b"bye")
    lab.say(wire.STARTED, board="b")
    lab.end("b")
    assert summaries(lab.group.events()) == [
        ("queued", "b", "behind 1 job"),
        ("output", "a", "hi\n"),
        ("input", "a", "wie viele? "),
        ("truncated", "a", ""),
        ("output", "a", "bye"),
        ("ended", "a", ""),
        ("started", "b", ""),
        ("ended", "b", ""),
    ]


def test_events_of_another_thread_are_awaited():
    lab = Lab()
    events = lab.group.events()
    thread = threading.Thread(target=lab.end)
    thread.start()
    assert summaries(events) == [("ended", "lab-1", "")]
    thread.join(WAIT)


def test_events_tick_while_nothing_happens():
    lab = Lab()
    events = lab.group.events(0.001)
    assert [next(events), next(events)] == [None, None]
    lab.end()
    assert [event.kind for event in events if event is not None] == ["ended"]


@pytest.mark.parametrize("tick", [(), (0.001,)], ids=["no tick", "tick"])
def test_events_continue_where_the_reader_stopped(tick):
    lab = Lab()
    lab.say(wire.OUTPUT, b"1")
    events = lab.group.events(*tick)
    assert next(events).text == "1"
    del events
    lab.say(wire.OUTPUT, b"2")
    lab.end()
    assert summaries(lab.group.events(*tick)) == [("output", "lab-1", "2"), ("ended", "lab-1", "")]
    assert list(lab.group.events(*tick)) == []


def test_events_need_a_group_that_listens():
    with pytest.raises(ValueError, match="listen=True"):
        next(Lab(listen=False).group.events())


def test_events_are_not_queued_without_listen():
    lab = Lab(listen=False)
    assert lab.printed(b"hi") == "hi"


def test_pieces_of_a_failed_repr_are_dropped():
    group = JobGroup(prepare_cell("thing"))
    jobs = group.on_accepted({"jobs": [[7, "lab-1"]]}, lambda _: None, lambda _job, _text: None)
    traceback = (
        b'Traceback (most recent call last):\n  File "<cell>", line 1, in <module>\nOSError: x'
    )
    group.handle_message(jobs[7], wire.Message(wire.VALUE, 0, 7, b"Thing(1, 2, "))
    group.handle_message(jobs[7], wire.Message(wire.RESULT, 1, 7, b"\0\0" + traceback))
    assert group.results()["lab-1"].traceback.startswith("Traceback (most recent call last):")
