"""Jobs that have not ended, and their cells, are bounded per token."""

from __future__ import annotations

from cm_server.jobs.open_jobs import OpenCell, OpenJobs
from cm_server.limits import Limits
from cm_server.store.rows import TokenRow

ANN = TokenRow("a" * 64, "ann", "operator")
BEN = TokenRow("b" * 64, "ben", "operator")
CAT = TokenRow("c" * 64, "cat", "admin")
LIMITS = Limits(
    open_jobs=10,
    open_jobs_per_token=5,
    reserved_open_jobs=2,
    open_cells_bytes=1000,
    open_cells_token_bytes=500,
    reserved_open_cells_bytes=200,
)


def test_jobs_count_until_they_end():
    jobs = OpenJobs(LIMITS)
    cell = OpenCell(jobs, ANN.hash, 4, 100)
    assert jobs.refusal_reason(ANN, 1, 10) == ""
    assert (
        jobs.refusal_reason(ANN, 2, 10) == "the token 'ann' has 4 jobs that have not ended already"
    )
    cell.end_job()
    assert jobs.refusal_reason(ANN, 2, 10) == ""
    assert jobs.bytes.total == 100
    for _ in range(3):
        cell.end_job()
    assert (jobs.jobs.total, jobs.bytes.total) == (0, 0)


def test_code_of_a_cell_counts_once():
    jobs = OpenJobs(LIMITS)
    OpenCell(jobs, ANN.hash, 3, 400)
    assert "has 400 bytes of cells" in jobs.refusal_reason(ANN, 1, 101)
    assert jobs.refusal_reason(BEN, 1, 400) == ""
    OpenCell(jobs, BEN.hash, 3, 400)
    assert "reserved for administrators" in jobs.refusal_reason(BEN, 1, 10)
    assert jobs.refusal_reason(CAT, 1, 200) == ""
