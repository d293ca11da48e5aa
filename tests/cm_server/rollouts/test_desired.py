"""What a board says about its generation, and what a restart in a rollout is."""

from __future__ import annotations

import pytest

from cm_server.rollouts import desired

A, B = "a" * 16, "b" * 16


@pytest.mark.parametrize(
    ("before", "after", "is_switch"),
    [
        (None, f"trying {B} 0 60", True),  # it starts with its first generation
        (f"proven {A}", f"trying {B} 0 60", True),
        (f"proven {A}\nreverted {B} ?no link", f"trying {B} 0 60", True),
        (f"trying {B} 0 60", f"proven {A}\nreverted {B} health: OSError", True),
        (f"trying {B} 0 60", f"\nreverted {B} app.py ended: ValueError", True),
        (f"proven {A}", f"proven {A}\nreverted {B} ?no link", True),  # it had no link meanwhile
        (f"trying {B} 0 60", f"proven {A}\nreverted {B} it restarted", False),  # a crash
        (f"proven {A}\nreverted {B} ?no link", f"proven {A}\nreverted {B} ?no link", False),
        (f"cleared {A}\nreverted {B} ?no link", f"proven {A}", True),  # it was sent again
        (f"proven {A}", f"proven {A}", False),
        (f"trying {B} 0 60", f"trying {B} 0 60", False),
        (None, None, False),
        ("", "", False),
    ],
)
def test_restarts_of_a_switch_differ_from_others(before, after, is_switch):
    assert desired.is_switch_restart(before, after) is is_switch


def test_board_that_came_back_from_a_generation_does_not_have_it():
    assert desired.read_board_generation(f"proven {A}").has(A)
    assert desired.read_board_generation(f"proven {A}\nreverted {B} x").has(A)
    assert not desired.read_board_generation(f"proven {A}\nreverted {A} x").has(A)
    assert not desired.read_board_generation(f"trying {A} 0 60").has(A)


def test_what_differs_on_a_board_is_read_as_it_was_written():
    fact = desired.drifted_fact(A, ["/app.py", "/lib/x y.mpy"], ["a b", "c"])
    parts = desired.read_drifted_fact(fact)
    assert (parts.generation, parts.paths) == (A, frozenset(("/app.py", "/lib/x y.mpy")))
    assert parts.settings == {"a b", "c"}
    assert not desired.read_board_generation(fact).has(A)
    many = desired.drifted_fact(A, [f"/{number}" for number in range(999)], [])
    assert len(many) < 2000
    for other in (None, "", f"proven {A}", "drifted", 5):
        assert desired.read_drifted_fact(other) == desired.DriftedParts()
