"""What PostgreSQL costs several servers: `python -m benchmarks.store_costs` prints a table.

It commits durably. The figures are of one server that does nothing else; docs/scale.md has them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

from cm_server.store.rows import new_board_row
from cm_server.store.shared_store import SharedStore
from tests.engines import running_postgres

_BOARDS: Final = 10_000
_REPEATS: Final = 300
_FACTS: Final = {"platform": "esp32", "version": "1.29.0", "boot": "0" * 16}


def _median_ms(act: Callable[[int], object]) -> float:
    times = []
    for number in range(_REPEATS):
        begun = time.perf_counter()
        act(number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000


def _rows_per_second(rows: int, act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return rows / (time.perf_counter() - begun)


def _end(store: SharedStore, jobs: range) -> None:
    for job in jobs:
        store.end_job(job, "ok")
    store.flush()


def main() -> None:
    """Print the table."""
    with running_postgres(durable=True) as postgres:
        location = postgres.new()
        here, there = SharedStore(location), SharedStore(location)
        for store in (here, there):
            store.register_server("http://127.0.0.1")
        ids = [f"{number:016x}" for number in range(_BOARDS)]
        rows = [new_board_row(id_, f"lab-{id_}", bytes(32)) for id_ in ids]
        here.enrol_boards(rows)
        connecting = _median_ms(lambda number: here.claim_board(ids[number], _FACTS))
        print(f"a board that connects: {connecting:.2f} ms")
        claimed = dict.fromkeys(ids[:_REPEATS], 1)

        def cell(number: int) -> None:
            (job,) = here.insert_jobs([ids[number]], "ann", epochs=claimed)
            here.end_job(job, "ok")

        print(f"a cell, with the result of the one before: {_median_ms(cell):.2f} ms")
        jobs = there.insert_jobs(ids[:_REPEATS], "ann")
        claim = _median_ms(lambda n: here.claim_jobs(there.server_id, [jobs[n]], []))
        print(f"claiming a job of another server: {claim:.2f} ms")
        made: list[range] = []
        rate = _rows_per_second(_BOARDS, lambda: made.append(here.insert_jobs(ids, "ann")))
        print(f"starting {_BOARDS} jobs: {rate:,.0f} rows a second")
        rate = _rows_per_second(_BOARDS, lambda: _end(here, made[0]))
        print(f"ending them: {rate:,.0f} rows a second")
        print(f"reading all boards: {_rows_per_second(_BOARDS, here.boards):,.0f} rows a second")
        for store in (here, there):
            store.close()


if __name__ == "__main__":
    main()
