"""The verb of ``mbm`` about samples of days and months ago."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.sample_history import HistoryPage, history_request, read_reply
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.sample_columns import NO_NANOARROW, WAYS, has_nanoarrow
from cloudmanager.protocol.sample_text import csv_header, csv_rows, json_rows, time_text
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.text import one_line

from .commands import OK, AddVerb, check_writable

_NO_DUCKDB: Final = (
    "Parquet needs DuckDB here: `pip install 'cloudmanager[history]'`, with the same Python"
)


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    samples = add_verb("board-samples", board_samples, "show values that boards emitted days ago")
    add = samples.add_argument
    add("target", metavar="TARGET", help="boards, connected or not")
    add("names", nargs="*", default=[], metavar="NAME", help="only these values (default: all)")
    add("--since", type=_check_span, required=True, metavar="SPAN", help="the last 12h, 7d or 8w")
    add("--until", type=_check_span, metavar="SPAN", help="up to a SPAN ago (default: up to now)")
    add("--every", type=_check_span, metavar="SPAN", help="one value for each SPAN, such as 5m")
    add(
        "--how",
        choices=WAYS,
        help="with --every, how the values of each span become one (default: mean)",
    )
    files = samples.add_mutually_exclusive_group()
    files.add_argument("--csv", metavar="FILE", help="write a CSV file; -: to standard output")
    files.add_argument("--parquet", metavar="FILE", help="write a Parquet file")
    samples.epilog = (
        "Times are in UTC. Without --csv and --parquet, a line is printed for each value."
    )


def _check_span(text: str) -> str:
    """Return a span as it is, if it is one; the type of an option."""
    try:
        parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def board_samples(options: argparse.Namespace) -> int:
    """Show values, or write them to a file."""
    if options.how is not None and options.every is None:
        options.verb_parser.error("--how needs --every, whose spans it is about")
    if not has_nanoarrow():
        raise CloudmanagerError(NO_NANOARROW)
    body = history_request(
        options.target,
        {
            "since": options.since,
            "until": options.until,
            "every": options.every,
            "how": options.how,
            "names": options.names or None,
        },
    )
    with Fleet() as fleet:
        fleet.boards(options.target)  # an unknown board, or a wrong target, is an error
        pages = _pages(fleet, body)
        if options.parquet:
            count = _write_parquet(pages, Path(options.parquet))
        elif options.csv and options.csv != "-":
            with _draft(Path(options.csv)) as draft, draft.open("w", encoding="utf-8") as file:
                count = _write_csv(pages, file)
        elif options.csv:
            count = _write_csv(pages, sys.stdout)
        else:
            count = _print_values(pages, as_json=options.json)
    if not count:
        print(f"{options.target}: the server has kept no values of this time.", file=sys.stderr)
    elif path := options.parquet or (options.csv if options.csv != "-" else None):
        text = json.dumps({"values": count, "file": path}) if options.json else ""
        values = "1 value" if count == 1 else f"{count:,} values"
        print(text or f"Wrote {values} to {path}.")
    return OK


def _pages(fleet: Fleet, body: dict[str, Any]) -> Iterator[HistoryPage]:
    """Yield pages, each asked for when it is wanted."""
    since: float | None = body["since"]
    while since is not None:
        page, since = read_reply(fleet.request("sample-history", **{**body, "since": since}))
        yield page


def _write_csv(pages: Iterator[HistoryPage], file: IO[str]) -> int:
    file.write(csv_header())
    count = 0
    for page in pages:
        file.write(csv_rows(page.series, page.columns))
        count += len(page.columns.times)
    return count


def _print_values(pages: Iterator[HistoryPage], *, as_json: bool) -> int:
    count = 0
    if as_json:
        print("[")
    for page in pages:
        if as_json:
            text = json_rows(page.series, page.columns)
            print(f",\n{text}" if count and text else text, end="")
        else:
            for time, index, value in zip(*page.columns, strict=True):
                board, name = page.series[index]
                print(f"{time_text(time)} {board} {one_line(name)} {value:.10g}")
        count += len(page.columns.times)
    if as_json:
        print("\n]")
    return count


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Yield a path for a new file; at the end it takes the place of ``path``.

    Raises:
        OSError: ``path`` cannot be written; it is the path in the error.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        check_writable(path)
        draft.touch()
        yield draft
        draft.replace(path)
    except OSError as error:
        if error.filename == str(draft):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        draft.unlink(missing_ok=True)


def _write_parquet(pages: Iterator[HistoryPage], path: Path) -> int:
    """Write a Parquet file with DuckDB, sorted by board, name and time; return its rows."""
    try:
        import duckdb
    except ImportError:
        raise CloudmanagerError(_NO_DUCKDB) from None
    import nanoarrow

    from cloudmanager.protocol.sample_columns import make_array

    count = 0
    with _draft(path) as draft, duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TABLE found (time BIGINT, board TEXT, name TEXT, value DOUBLE)")
        for page in pages:
            count += len(page.columns.times)
            if not page.series:
                continue
            connection.execute("CREATE OR REPLACE TABLE series (n INTEGER, board TEXT, name TEXT)")
            rows = [[number, *each] for number, each in enumerate(page.series)]
            connection.executemany("INSERT INTO series VALUES (?, ?, ?)", rows)
            connection.register("page", nanoarrow.ArrayStream(make_array(page.columns)))
            connection.execute(
                "INSERT INTO found SELECT time, board, name, value "
                "FROM page JOIN series ON n = series"
            )
            connection.unregister("page")
        place = str(draft).replace("'", "''")
        connection.execute(
            "COPY (SELECT make_timestamp(time)::TIMESTAMPTZ AS time, board, name, value FROM found "
            f"ORDER BY board, name, time) TO '{place}' (FORMAT parquet, COMPRESSION zstd)"
        )
    return count
