"""The wheel's contents, the imports of pure modules, the changelog, workflows, forbidden texts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cloudmanager import __version__

from .wheel import ROOT, build, build_sdist, build_wheel, pip, tracked

SOURCES = {"cloudmanager": ROOT / "cloudmanager", "cm_server": ROOT / "server/cm_server"}
#: Modules that import the standard library and each other only.
PURE = {
    "cloudmanager.client.cell_scanner",
    "cloudmanager.client.cell_syntax",
    "cloudmanager.client.package_manifests",
    "cloudmanager.protocol.errors",
    "cloudmanager.protocol.facts",
    "cloudmanager.protocol.file_ops",
    "cloudmanager.protocol.frames",
    "cloudmanager.protocol.names",
    "cloudmanager.protocol.option_info",
    "cloudmanager.protocol.package_references",
    "cloudmanager.protocol.proofs",
    "cloudmanager.protocol.run_options",
    "cloudmanager.protocol.start_times",
    "cloudmanager.protocol.spans",
    "cloudmanager.protocol.targets",
    "cloudmanager.protocol.text",
    "cloudmanager.protocol.wire",
    "cloudmanager.results.board_values",
    "cm_server.limits",
    "cm_server.packages.archives",
    "cm_server.packages.dependencies",
    "cm_server.packages.documents",
    "cm_server.packages.source_settings",
    "cm_server.packages.install_paths",
    "cm_server.packages.lock",
    "cm_server.packages.plan",
    "cm_server.packages.release",
    "cm_server.packages.requirement",
}


def path_of(module: str) -> Path:
    """Return the file of a module, given by its dotted name."""
    top, _, rest = module.partition(".")
    return SOURCES[top] / (rest.replace(".", "/") + ".py")


def test_pure_modules_import_the_standard_library_and_each_other_only():
    foreign = {module: sorted(outside) for module in PURE if (outside := imported(module) - PURE)}
    assert foreign == {}


def imported(module: str) -> set[str]:
    """Return the modules outside the standard library that a module imports, in functions too."""
    found: set[str] = set()
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, [package if node.level else "", node.module]))
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                is_module = full.partition(".")[0] in SOURCES and path_of(full).exists()
                found.add(full if is_module else origin)
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of this machine", rf"(?<![\w.:/-])(?:/root|/work|{re.escape(str(ROOT))})/\w"),
        ("a package registry's host", r"(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b"),
    ],
)
def test_no_tracked_file_contains(what: str, pattern: str):
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if (match := re.search(pattern, path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert found == [], what


def test_changelog_lists_the_packaged_version_first_after_unreleased_changes():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == __version__
    assert "Unreleased" not in headings[1:]


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_name_actions_by_commit_and_can_do_little(workflow: Path):
    text = workflow.read_text(encoding="utf-8")
    actions = re.findall(r"^ *- uses: (.+)$", text, flags=re.M)
    pinned = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert actions
    assert [each for each in actions if not pinned.fullmatch(each)] == []
    # A tag can be moved, and a token that checkout leaves behind can be read by what runs later.
    checkouts = re.findall(
        r"uses: actions/checkout@.*\n( +with:\n +persist-credentials: false\n)?", text
    )
    assert checkouts.count("") == 0
    assert re.search(r"^permissions:\n  contents: read\n\n", text, flags=re.M)
    # What a branch or a title is called must not be part of a script.
    scripts = re.findall(r"^ +(?:- )?run: (.+(?:\n {10,}.+)*)", text, flags=re.M)
    assert scripts
    assert [each for each in scripts if "${{" in each] == []
    # Only the job that publishes may ask for an identity, and it runs no script.
    writers = re.findall(r"^ +([\w-]+): write\b", text, flags=re.M)
    assert writers == (["id-token"] if workflow.name == "release.yml" else [])
    if writers:
        assert "run:" not in text[text.index("id-token") :]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_wheel_contains_the_board_code_the_server_and_the_command(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    board = {f"cm_board/cm/{path.name}" for path in (ROOT / "mpy_client/cm").glob("*.py")}
    server = {
        f"cm_server/{path.relative_to(SOURCES['cm_server'])}"
        for path in SOURCES["cm_server"].rglob("*.py")
    }
    assert board | server <= names
    page = ("dashboard.js", "dashboard.css", "plot.js", "table.js", "rollouts.js")
    assert {f"cm_magics/{name}" for name in page} <= names
    assert board
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "server/"))]
    scripts = zipfile.ZipFile(wheel).read(f"cloudmanager-{__version__}.dist-info/entry_points.txt")
    assert b"mbm = cloudmanager.cli:main" in scripts


def test_wheel_of_the_source_archive_is_that_of_the_repository(wheel: Path, tmp_path: Path):
    from_archive = build_wheel(build_sdist(tmp_path), tmp_path / "again")
    assert from_archive.name == wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert zipfile.ZipFile(from_archive).namelist() == names
    assert {"cloudmanager/py.typed", "cm_magics/py.typed"} <= set(names)


def test_version_of_the_package_is_that_of_the_module(wheel: Path):
    metadata = zipfile.ZipFile(wheel).read(f"cloudmanager-{__version__}.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in metadata.decode()
    command = [sys.executable, "-c", "from cloudmanager.cli import main; main()", "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown == f"mbm {__version__}\n"


def test_installed_wheel_imports_and_finds_the_board_code(wheel: Path, tmp_path: Path):
    pip("install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    program = """
import importlib.resources, cloudmanager, cm_server
board = importlib.resources.files("cm_board")
print(cloudmanager.__file__, cm_server.__file__, board / "cm", *(board / "cm").iterdir(), sep="\\n")
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    found = ran.stdout.splitlines()
    assert all(line.startswith(str(tmp_path)) for line in found)
    assert {Path(line).name for line in found} >= {"link.py", "run.py"}
