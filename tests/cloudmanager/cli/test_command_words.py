"""Command lines of the user's editor, and those that messages show, on each system."""

import sys

import pytest

from cloudmanager.cli.command_words import find_program, join_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"notepad", ["notepad"]),
        (r"C:\bin\ed.exe -w", [r"C:\bin\ed.exe", "-w"]),
        (
            r'"C:\Program Files\Code\code.exe" --wait',
            [r"C:\Program Files\Code\code.exe", "--wait"],
        ),
        (r'ed --title="my file" C:\a', ["ed", "--title=my file", r"C:\a"]),
        ('ed "not closed', ["ed", "not closed"]),
        ("  ", []),
    ],
)
def test_words_on_windows_keep_backslashes(text: str, words: list[str]):
    assert split_words(text, windows=True) == words


def test_words_elsewhere_are_those_of_a_shell():
    assert split_words(r"my\ ed 'a b' --wait", windows=False) == ["my ed", "a b", "--wait"]
    with pytest.raises(ValueError, match="No closing quotation"):
        split_words("ed 'a", windows=False)


def test_line_to_paste_has_the_quotation_marks_of_its_shell():
    words = ["mbm", "board-upload", "lab-1", r"C:\my files\a.py", ":a.py"]
    assert join_words(words, windows=True) == r'mbm board-upload lab-1 "C:\my files\a.py" :a.py'
    assert split_words(join_words(words, windows=True), windows=True) == words
    assert split_words(join_words(words, windows=False), windows=False) == words


def test_program_is_found_on_the_path_or_keeps_its_name():
    assert find_program(sys.executable) == sys.executable
    assert find_program("no-such-editor") == "no-such-editor"
