"""The text of a cell's jobs as HTML."""

from cloudmanager.display.html_text import lines_html
from cloudmanager.results.html_table import BLOCK_STYLE, FAILURE_COLOUR, WARNING_COLOUR


def test_failures_are_coloured_and_text_is_escaped():
    lines = [[("── ", "bad"), ("lab-1", "bad name")], [("<b>", "")], [("late", "warn")]]
    assert lines_html(lines) == (
        f'<pre style="{BLOCK_STYLE}"><span style="color: {FAILURE_COLOUR}">── </span>'
        f'<span style="color: {FAILURE_COLOUR}; font-weight: bold">lab-1</span>\n&lt;b&gt;\n'
        f'<span style="color: {WARNING_COLOUR}">late</span></pre>'
    )


def test_text_without_failures_has_no_html():
    assert lines_html([[("── ", "rule"), ("lab-1", "name")], [("hi", "")]]) is None
