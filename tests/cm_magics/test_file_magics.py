"""The magics for files on boards, in an IPython shell of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager import Results
from cm_magics import file_magics
from cm_magics.magic_line import split_words

from .test_magics import Shell, ip, shell  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cp_copies_to_boards_and_back(shell: Shell, work: Path):  # noqa: F811
    (work / "a.py").write_text("a = 1")
    assert "5 bytes written" in shell.run("%board_cp demo-[1-2] a.py :magic/")
    assert "already up to date" in shell.run("%board_cp demo-[1-2] a.py :magic/")
    shown = shell.run("r = %board_cp demo-[1-2] :magic/a.py back")
    assert (work / "back/demo-2/a.py").read_text() == "a = 1"
    assert "back/demo-1/a.py" in shown
    results = shell.ip.user_ns["r"]
    assert isinstance(results, Results)
    assert results["demo-1"].value == Path("back/demo-1/a.py")
    shell.run("%board_rm -r demo-[1-2] :magic")


def test_writefile_ls_and_rm_use_the_chosen_boards(shell: Shell, work: Path):  # noqa: F811
    shell.run("%board_use demo-1")
    assert "9 bytes written" in shell.run("%%board_writefile :magic/b.py\nb = 'é'\n")
    assert "           9 /magic/b.py" in shell.run("%board_ls :magic")
    shell.run("%board_rm :magic/b.py")
    assert "b.py" not in shell.run("%board_ls :magic")
    shell.run("%board_rm -r :magic")


def test_path_that_cannot_be_removed_does_not_keep_the_others(shell: Shell, work: Path):  # noqa: F811
    shell.run("%%board_writefile demo-1 :magic/b.py\nb = 1\n")
    shown = shell.run("%board_rm demo-1 :no1.py :magic/b.py :no2.py")
    assert [shown.count(f"'demo-1:/no{number}.py'") for number in (1, 2)] == [1, 1]
    assert isinstance(shell.error, FileNotFoundError)
    assert "b.py" not in shell.run("%board_ls demo-1 :magic")
    shell.run("%board_rm -r demo-1 :magic")


def test_sync_shows_its_plan(shell: Shell, work: Path):  # noqa: F811
    (work / "src").mkdir()
    (work / "src/c.py").write_text("c")
    assert "copy    /magic/c.py" in shell.run("%board_sync demo-1 src :magic --dry-run")
    assert "offline" not in shell.run("%board_sync demo-1 src :magic")
    assert shell.run("%board_sync demo-1 src :magic").startswith("1 equal")
    (work / "src/c.py").unlink()
    assert "deleted /magic/c.py" in shell.run("%board_sync demo-1 src :magic --delete")
    shell.run("%board_rm -r demo-1 :magic")


def test_file_error_on_a_board_raises_the_builtin_exception(shell: Shell, work: Path):  # noqa: F811
    shown = shell.run("%board_rm demo-1 :nowhere.py")
    assert isinstance(shell.error, FileNotFoundError)
    assert shown == "FileNotFoundError: [Errno 2] No such file or directory: 'demo-1:/nowhere.py'"
    shown = shell.run("%board_rm demo-[1-2] :nowhere.py")
    assert "\n:/nowhere.py: No such file or directory.\n" in shown  # the block of both boards
    assert "FleetError: demo-[1-2] failed (2 of 2 boards): FileNotFoundError: " in shown
    assert "demo-[1-2] failed" in shown


def test_missing_local_file_is_reported_in_one_line(shell: Shell, work: Path):  # noqa: F811
    assert shell.run("%board_cp demo-1 no.py :").count("\n") == 0
    assert isinstance(shell.error, FileNotFoundError)


@pytest.mark.parametrize(
    "line",
    [
        "%board_cp demo-1 a.py",
        "%board_rm demo-1",
        "%board_sync demo-1",
        "%board_ls",
        "%board_ls --nope demo-1",
    ],
)
def test_wrong_usage_is_an_error(shell: Shell, work: Path, line: str):  # noqa: F811
    assert "UsageError" in shell.run(line)


@pytest.mark.parametrize("words", ["a.py b.py", "a.py :b.py c"])
def test_copy_without_a_direction_is_refused(shell: Shell, work: Path, words: str):  # noqa: F811
    shown = shell.run(f"%board_cp demo-1 {words}")
    assert shown.startswith("ValueError: Copy to the boards, from them or on them: ")
    assert shown.count("\n") == 0


def test_several_paths_are_listed_and_copied(shell: Shell, work: Path):  # noqa: F811
    for name in ("b.py", "sub/c.py"):
        shell.run(f"%%board_writefile demo-1 :magic/{name}\nb = 1\n")
    shell.run("r = %board_ls demo-1 :magic/sub :magic")
    paths = [entry.path for entry in shell.ip.user_ns["r"].value]
    assert paths == ["/magic/sub/c.py", "/magic/sub", "/magic/b.py"]
    shell.run("%board_cp demo-1 :magic/b.py :magic/sub :copied/")
    assert "/copied/sub/c.py" in shell.run("%board_ls -r demo-1 :copied")
    shell.run("%board_cp demo-1 :magic/b.py :copied/sub/c.py here")
    assert sorted(path.name for path in (work / "here").iterdir()) == ["b.py", "c.py"]
    shell.run("%board_rm -r demo-1 :magic :copied")
    assert "FileNotFoundError" in shell.run("%board_ls demo-1 :copied")


def test_completion_is_registered_and_unregistered(shell: Shell):  # noqa: F811
    assert shell.complete("%board_cp demo-2") == ["demo-2"]
    assert "--delete" in shell.complete("%board_sync demo-2 --d")
    shell.ip.run_line_magic("unload_ext", "cm_magics")
    assert "board_cp" not in shell.ip.magics_manager.magics["line"]
    assert "board_writefile" not in shell.ip.magics_manager.magics["cell"]


def test_words_may_be_quoted_and_options_may_be_anywhere():
    parsed = split_words(file_magics._SYNC_PARSER, "--dry-run lab-* & all 'my src' --delete :")
    assert (parsed.target, parsed.words) == ("lab-* & all", ["my src", ":"])
    assert parsed.options.delete
    assert parsed.options.dry_run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%board_cp demo-1 *.py :magic", ["a.py", "b.py"]),
        ("%board_cp demo-1 [a]*.py c.txt :magic", ["a.py", "c.txt"]),
        ("%board_cp demo-1 sub/*.py :magic", ["d.py"]),
        ("%board_cp demo-1 ? :magic/", ["?"]),
        ("%board_cp demo-1 ~/a.py :magic/", ["a.py"]),
        ("%board_cp demo-1 ~/*.txt :magic/", ["c.txt"]),
    ],
)
def test_local_patterns_are_expanded(shell: Shell, work: Path, monkeypatch, line, expected):  # noqa: F811
    monkeypatch.setenv("HOME", str(work))
    (work / "sub").mkdir()
    for name in ("a.py", "b.py", "c.txt", ".hidden.py", "sub/d.py", "?"):
        (work / name).write_text(name)
    shell.run(line)
    assert shell.error is None
    shell.run("r = %board_ls demo-1 :magic")
    assert [entry.name for entry in shell.ip.user_ns["r"].value] == expected
    shell.run("%board_rm -r demo-1 :magic")


def test_pattern_without_a_match_is_one_line(shell: Shell, work: Path):  # noqa: F811
    assert "No file matches: '*.py'" in shell.run("%board_cp demo-1 *.py :")
    assert "No file matches: 'demo-1:/*.nope'" in shell.run("%board_rm demo-1 :*.nope")


def test_patterns_of_boards_are_expanded(shell: Shell, work: Path):  # noqa: F811
    for name in ("a.log", "b.log", "c.txt", "sub/d.log"):
        shell.run(f"%%board_writefile demo-[1-2] :magic/{name}\nx")
    shell.run("%board_rm demo-2 :magic/b.log")
    shell.run("%board_cp demo-[1-2] :magic/*.log got")
    found = sorted(path.relative_to(work / "got").as_posix() for path in work.rglob("*.log"))
    assert found == ["demo-1/a.log", "demo-1/b.log", "demo-2/a.log"]
    shell.run("%board_rm demo-[1-2] :magic/*.log :magic/*/*.log")
    assert shell.error is None
    shown = shell.run("%board_ls -r demo-[1-2] :magic")
    assert ("log" in shown, "c.txt" in shown) == (False, True)
    shell.run("%board_rm -r demo-[1-2] :mag*")
    assert "magic" not in shell.run("%board_ls demo-[1-2]")


def test_mounted_folder_lasts_until_its_end(shell: Shell, work: Path):  # noqa: F811
    (work / "src").mkdir()
    (work / "src/hello.py").write_text("VALUE = 1")
    cell = "%%board demo-1\nimport hello\nhello.VALUE"
    assert "at :/remote on demo-1" in shell.run("%board_mount demo-1 src")
    assert "1" in shell.run(cell)
    (work / "src/hello.py").write_text("VALUE = 4711")
    assert "4711" in shell.run(cell)
    shell.run("%board_mount demo-1 src :other")
    shell.run("%board_mount demo-1 --end")
    shell.run(cell)
    assert "hello" in str(shell.error)
    shell.run("%board_mount demo-1")
    assert "TARGET FOLDER" in str(shell.error)
    shell.run("%board_mount demo-1 --end")
    assert str(shell.error) == "No folder is mounted on demo-1."
