"""The client's numbers are those of the protocol."""

import pytest

from .client_numbers import START, client_sources, with_numbers


@pytest.mark.parametrize("path", client_sources(), ids=lambda path: path.name)
def test_client_has_the_protocol_s_numbers(path):
    source = path.read_text()
    assert source == with_numbers(source), "run `python -m tests.board.client_numbers`"


def test_wrong_number_is_replaced():
    head = f"# a file\n{START}\n"
    assert with_numbers(head + "_EXEC = const(99)\n\nop = _EXEC\n") == (
        head + "_EXEC = const(0x10)\n\nop = _EXEC\n"
    )


@pytest.mark.parametrize("source", ["_EXEC = const(16)\nop = _EXEC\n", "op = _EXEC\n"])
def test_number_outside_of_the_block_is_refused(source):
    with pytest.raises(ValueError, match="_EXEC"):
        with_numbers(source)
