"""File operations on a real board: atomic writes, resumed uploads, limited memory."""

import ast
import hashlib
import os

import pytest

from .peer import INTERRUPTED, OK, TIMEOUT

ENOSPC = 28


def sha(data):
    return hashlib.sha256(data).hexdigest()


def had(job):
    """Return the partial file that the board has reported: size, SHA-256."""
    job.until(lambda job: job.chunks and job.chunks[0][0] == 1)
    payload = job.chunks[0][1]
    return int.from_bytes(payload[:4], "big"), payload[4:].hex()


def written(job):
    """Return the numbers of bytes on the flash that the board has reported."""
    return [int.from_bytes(payload, "big") for flags, payload in job.chunks if not flags]


def put(board, path, data, **more):
    job = board.files(["put", path, len(data), sha(data)], **more)
    size, digest = had(job)
    at = size if size and digest == sha(data[:size]) else 0
    if at == len(data) and at:
        board.data(job, b"")
    else:
        board.put(job, data, at)
    return job.wait()


def answers(job):
    assert job.status == OK, job
    return ast.literal_eval(bytes(job.value).decode())


def read(board, path):
    job = board.files(["get", path], step=1 << 20).wait()
    data = b"".join(payload for flags, payload in job.chunks if not flags)
    assert answers(job) == [(len(data), sha(data))]
    return data


def names(board, path="/"):
    (found,) = answers(board.files(["ls", path, False]).wait())
    return sorted(name for name, _, _ in found)


@pytest.fixture(autouse=True)
def clean(lab, board):
    yield
    for name in ("/a.bin", "/a.bin.mbm-part", "/folder"):
        lab.link().files(["rm", name, True]).wait()


@pytest.mark.parametrize("size", [0, 1, 1010, 1011, 50_000])
def test_put_writes_every_byte(board, size):
    data = os.urandom(size)
    assert answers(put(board, "/a.bin", data)) == [size]
    assert read(board, "/a.bin") == data
    assert "/a.bin.mbm-part" not in names(board)


def test_unchanged_file_is_not_written_again(board):
    put(board, "/a.bin", b"same")
    assert answers(put(board, "/a.bin", b"same")) == [0]


def test_put_reports_progress_at_each_step_and_not_at_each_chunk(board):
    job = put(board, "/a.bin", bytes(50_000), step=16384)
    assert written(job) == [17 * 1010, 34 * 1010]
    assert job.messages == 4  # and what it has, and the result


def test_interrupted_put_is_resumed(board):
    data = os.urandom(60_000)
    job = board.files(["put", "/a.bin", len(data), sha(data)], step=4096)
    assert had(job) == (0, job.chunks[0][1][4:].hex())
    board.put(job, data[:30_000])
    job.until(lambda job: written(job)[-1:] > [24_000])
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    again = board.files(["put", "/a.bin", len(data), sha(data)])
    size, digest = had(again)
    assert (size, digest) == (30_000, sha(data[:30_000]))
    board.put(again, data, size)
    assert answers(again.wait()) == [30_000]
    assert read(board, "/a.bin") == data


def test_partial_file_with_other_content_is_not_used(board):
    job = board.files(["put", "/a.bin", 9_000, sha(bytes(9_000))], step=1024)
    had(job)
    board.put(job, bytes(5_000))
    job.until(lambda job: written(job)[-1:] > [3_000])
    board.interrupt(job)
    job.wait()
    other = os.urandom(8_000)
    assert answers(put(board, "/a.bin", other)) == [8_000]
    assert read(board, "/a.bin") == other


def test_put_is_resumed_after_a_lost_link(lab):
    board, data = lab.link(), os.urandom(40_000)
    job = board.files(["put", "/b.bin", len(data), sha(data)], step=4096)
    had(job)
    board.put(job, data[:20_000])
    job.until(lambda job: written(job)[-1:] > [12_000])
    board.cut()
    back = lab.peer.link("id-1", after=board)
    assert back.proof_fields["last"]["status"] == INTERRUPTED
    assert "link lost" in back.proof_fields["last"]["error"]
    again = back.files(["put", "/b.bin", len(data), sha(data)])
    size, digest = had(again)
    assert size > 12_000
    assert digest == sha(data[:size])
    back.put(again, data, size)
    assert answers(again.wait()) == [len(data) - size]
    back.files(["rm", "/b.bin", False]).wait()


def test_wrong_bytes_leave_the_old_file_and_no_partial_file(board):
    put(board, "/a.bin", b"old")
    job = board.files(["put", "/a.bin", 3, sha(b"new")])
    had(job)
    board.put(job, b"nee")
    assert "[Errno 5] EIO: /a.bin" in job.wait().error
    assert read(board, "/a.bin") == b"old"
    assert "/a.bin.mbm-part" not in names(board)


def test_full_flash_is_cleaned_up(board):
    job = put(board, "/a.bin", bytes(1_200_000))
    assert f"({ENOSPC}, '/a.bin')" in job.error
    assert names(board).count("/a.bin") == names(board).count("/a.bin.mbm-part") == 0
    assert answers(put(board, "/a.bin", bytes(100_000))) == [100_000]


def test_file_larger_than_the_heap_is_written_without_allocating(board):
    free = "import gc; gc.collect(); __cm__((gc.mem_alloc()))"
    put(board, "/a.bin", b"")
    before = int(board.run(free).value)
    data = os.urandom(400_000)  # the heap has 128 KB
    put(board, "/a.bin", data)
    assert int(board.run(free).value) - before < 1_000
    assert read(board, "/a.bin") == data


def test_get_waits_for_acknowledgements(board):
    data = os.urandom(30_000)
    put(board, "/a.bin", data)
    job = board.files(["get", "/a.bin"], step=1024)
    job.until(lambda job: sum(len(payload) for _, payload in job.chunks) > 4096)
    assert board.ping() < 5  # it is alive, and has had time to send too much
    came = sum(len(payload) for _, payload in job.chunks)
    assert came <= 4096 + 1008
    while job.status is None:
        board.data(job, came.to_bytes(4, "big"))
        job.until(lambda job, came=came: job.status is not None or _size(job) > came)
        came = _size(job)
    assert answers(job) == [(len(data), sha(data))]


def _size(job):
    return sum(len(payload) for _, payload in job.chunks)


def test_job_that_waits_for_data_answers_pings_and_times_out(board):
    job = board.files(["put", "/a.bin", 9, sha(b"123456789")], timeout_ms=400)
    had(job)
    assert board.ping() < 5
    assert job.wait().status == TIMEOUT


def test_operations_stop_at_the_first_failure(board):
    job = board.files(
        ["makedirs", "/folder/x/y"],
        ["makedirs", "/folder/x/y"],
        ["stat", "/folder/x"],
        ["ls", "/folder", True],
        ["rmdir", "/folder/x/y"],
    )
    made, again, stat, found, gone = answers(job.wait())
    assert (made, again, gone) == (None, None, None)
    assert stat[0] == 0x4000
    assert found == [("/folder/x", 0x4000, 0), ("/folder/x/y", 0x4000, 0)]
    job = board.files(["mkdir", "/folder/z"], ["rm", "/no", False], ["mkdir", "/folder/w"])
    assert "OSError: [Errno 2] ENOENT: /no" in job.wait().error
    assert names(board, "/folder") == ["/folder/x", "/folder/z"]


def test_folder_is_removed_only_recursively(board):
    answers(board.files(["makedirs", "/folder/x"]).wait())
    assert "EISDIR" in board.files(["rm", "/folder", False]).wait().error
    assert "EISDIR" in put_begun(board, "/folder").error
    assert answers(board.files(["rm", "/folder", True]).wait()) == [None]


def put_begun(board, path):
    return board.files(["put", path, 1, sha(b"1")]).wait()


def test_hash_distinguishes_files_folders_and_nothing(board):
    put(board, "/a.bin", b"12345")
    job = board.files(
        ["hash", "/a.bin", 5],
        ["hash", "/a.bin", -1],
        ["hash", "/a.bin", 4],
        ["hash", "/no", 5],
        ["hash", "/lib", 0],
    )
    assert answers(job.wait()) == [sha(b"12345"), sha(b"12345"), "", None, False]


def test_files_module_is_loaded_only_while_it_is_needed(board):
    look = "import sys; __cm__(('cm.files' in sys.modules))"
    assert answers(board.files(["stat", "/"]).wait())
    assert board.run(look).value == b"False"


def test_file_operations_change_no_variables(board):
    board.run("kept = 1")
    names_before = board.run("__cm__((sorted(globals())))").value
    put(board, "/a.bin", b"x")
    assert board.run("__cm__((sorted(globals())))").value == names_before
