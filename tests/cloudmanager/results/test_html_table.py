"""Values as an HTML table: grouped, limited and escaped."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from cloudmanager.results.html_table import FAILURE_COLOUR, results_html
from cloudmanager.results.results import Result, Results

EVIL = "<script>alert(1)</script>\x1b[2J\u202e</td><img src=x onerror=alert(1)>"


def html_of(found, left_out=()) -> Any:
    return results_html(found, left_out)


def results(values, **more):
    return Results(
        {name: Result(name, 1, "ok", text=text, **more) for name, text in values.items()}
    )


class Cells(HTMLParser):
    """Collects the texts of a table's cells, by row, and all tags."""

    def __init__(self, html):
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        left = "text-align: left"
        assert dict(attributes).get("style", left) in (left, f"{left}; white-space: nowrap")
        assert [name for name, _ in attributes] in ([], ["style"])
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1] and not data.startswith("…"):
            self.rows[-1][-1] += data


def rows(html):
    return Cells(html).rows


def test_equal_values_share_a_row_and_exceptions_are_last():
    html = html_of(results({"a-1": "21.5", "a-2": "85.0", "a-3": "21.5"}))
    assert rows(html) == [["board", "value"], ["a-[1,3]", "21.5"], ["a-2", "85.0"]]
    assert '<th style="text-align: left; white-space: nowrap">a-2<' in html  # not broken at "-"


@pytest.mark.parametrize(
    ("one", "two", "table"),
    [
        ("{'t': 1, 'h': 2}", "{'t': 3, 'h': 4}", [["t", "h"], ["1", "2"], ["3", "4"]]),
        ("(1, 'x')", "(2, 'y')", [["0", "1"], ["1", "'x'"], ["2", "'y'"]]),
        ("P(t=1, h='x')", "P(t=2, h='y')", [["t", "h"], ["1", "'x'"], ["2", "'y'"]]),
        ("P(t=1, h='x')", "(2, 'y')", [["0", "1"], ["1", "'x'"], ["2", "'y'"]]),
        ("{'t': 1}", "{'h': 1}", [["value"], ["{'t': 1}"], ["{'h': 1}"]]),
        ("()", "(1,)", [["value"], ["()"], ["(1,)"]]),
        ("<Pin 4>", "5", [["value"], ["<Pin 4>"], ["5"]]),
    ],
)
def test_dicts_and_tuples_of_equal_shape_have_columns(one, two, table):
    found = rows(html_of(results({"a": one, "b": two})))
    assert [row[1:] for row in found] == table


@pytest.mark.parametrize(
    "none",
    [
        results({"a": "1", "b": "1"}),
        results({"a": "1"}),
        results({"a": "1", "b": ""}),
        results({"a": "1", "b": "2"}, stdout="x\n"),
        results({"a": "1", "b": "'" + "x" * 2000 + "'"}),
        Results({"a": Result("a", 1, "ok", text="1"), "b": Result("b", 2, "offline")}),
        Results({}),
    ],
)
def test_no_table_of_values_where_text_suffices(none):
    assert html_of(none) is None


# Outcomes, which a notebook shows for a variable


def test_outcomes_of_equal_results_share_a_row():
    found = Results(
        {
            "a-1": Result("a-1", 1, "ok", stdout="hi\n", text="1"),
            "a-2": Result("a-2", 2, "ok", stdout="hi\n", text="1"),
            "a-3": Result("a-3", 3, "error", traceback="Traceback:\nOSError: x\n"),
            "a-4": Result("a-4", 4, "offline", why="it was last seen 3 s ago"),
        },
        left_out=("a-9",),
    )
    html = found._repr_html_() or ""
    plain = re.sub("<[^>]+>", "|", html)
    for text in ("a-[1-2]", "hi", "OSError: x", "last seen 3 s ago", "not connected: a-9"):
        assert text in plain
    assert html.count("<tr>") == 4  # with the headings
    assert html.count(f"color: {FAILURE_COLOUR}") == 2


def test_one_result_is_a_table():
    html = Result("a-1", 1, "ok", stdout="hi\n" * 9000, text="7")._repr_html_()
    assert "… 18,808 more characters" in html
    assert html.count("<tr>") == 2


def test_no_results_are_no_table():
    assert Results({})._repr_html_() is None


@pytest.mark.parametrize("template", ["{0!r}", "{0}", "{{{0!r}: 1}}", "({0!r}, 1)"])
def test_text_of_boards_is_escaped(template):
    html = html_of(results({"a": template.format(EVIL), "b": template.format("x")}))
    assert Cells(html).tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert not re.search("[\x1b\u202e]", html)
    assert "alert(1)" in html


def test_table_size_is_limited():
    many = results({f"a-{n}": str(n) for n in range(5000)})
    html = html_of(many, tuple(f"b-{n}" for n in range(1, 900, 2)))
    assert len(html) < 20_000
    assert "… and 4,900 more boards" in html
    assert "not connected: b-[1,3" in html


def test_number_of_columns_is_limited():
    wide = "{" + ", ".join(f"'{n}': 1" for n in range(80)) + "}"
    html = html_of(results({"a": wide, "b": wide.replace("1}", "2}")}))
    assert len(rows(html)[0]) == 13
