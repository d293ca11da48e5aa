"""Takes each defence out of a copy of the code, one at a time, and shows that its tests notice.

    python -m tests.attacks            # all of them
    python -m tests.attacks token      # those with that word in their name

First the tests must pass as the code is. The copies are found by PYTHONPATH, which goes before
what an editable install maps; nothing is installed, and nothing here is changed.
"""

from __future__ import annotations

import compileall
import concurrent.futures
import contextlib
import os
import py_compile
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .defence import Defence
from .defences import DEFENCES

ROOT: Final = Path(__file__).parent.parent.parent
COPIES: Final = os.cpu_count() or 1  # that are attacked at the same time
SECONDS: Final = 60  # that the tests of one defence may take; a test that hangs has noticed, too
ALL_SECONDS: Final = 240  # that all of them may take, where nothing is taken out
#: Import name -> folder, as setup.cfg says it.
PACKAGES: Final = {
    "cloudmanager": "cloudmanager",
    "cm_server": "server/cm_server",
    "cm_magics": "cm_magics",
    "cm_board": "mpy_client",
}
#: Of pytest; the others of this environment would take longer to import than tests to run.
PLUGINS: Final = (
    *("-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"),
    *("-p", "cloudmanager.testing.plugin"),
)


class Copy:
    """The code, in a folder of its own, where it may be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in names.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        places = folder / ".packages"
        places.mkdir()
        for name, place in PACKAGES.items():
            if (folder / place).is_dir():
                (places / name).symlink_to(folder / place)
        self._path = str(places)
        # By hash: a defence that is out must not be hidden by bytecode of the same second.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(str(folder), quiet=1, invalidation_mode=checked)

    def run(self, tests: Iterable[str], seconds: float) -> tuple[int, str]:
        """Run tests; return pytest's status, and what it said: FAILED and a name, line by line."""
        options = ["-q", "--tb=no", "-rf", "--timeout=10", "-W", "default", *PLUGINS]
        command = [sys.executable, "-B", "-m", "pytest", *options, *dict.fromkeys(tests)]
        environment = {**os.environ, "PYTHONPATH": self._path, "TMPDIR": str(self.folder)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as pytest:
            try:
                said, _ = pytest.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                return 1, "".join(f"FAILED {test}\n" for test in tests)  # it hung: that is noticed
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pytest.pid, signal.SIGKILL)  # with what its tests had started
        return pytest.returncode, said

    def without(self, defence: Defence) -> Outcome:
        """Take a defence out, run its tests, and put it back."""
        began = time.monotonic()
        whole = {place.file: (self.folder / place.file).read_text() for place in defence.places}
        for place in defence.places:
            path = self.folder / place.file
            source = path.read_text()
            path.write_text(f"{source}\n\n{place.code}\n")
        try:
            status, said = self.run(defence.tests, SECONDS)
        finally:
            for file, text in whole.items():
                (self.folder / file).write_text(text)
        missed = [test for test in defence.tests if f"FAILED {test}" not in said]
        took = time.monotonic() - began
        if status not in (0, 1):
            return Outcome(defence, False, f"pytest ended with {status}: {said[-300:]}", took)
        if missed:
            return Outcome(defence, False, f"not noticed by {', '.join(missed)}", took)
        return Outcome(defence, True, f"noticed by {len(defence.tests)}", took)


class Outcome(NamedTuple):
    """What became of one defence that was taken out."""

    defence: Defence
    noticed: bool
    why: str
    seconds: float

    def __str__(self) -> str:
        """Show it in one line."""
        mark = "ok  " if self.noticed else "MISS"
        return f"{mark} {self.defence.name:<62} {self.why}  ({self.seconds:.1f} s)"


def attack(folder: Path, defences: Sequence[Defence]) -> bool:
    """Take each out of a copy; print a table; return whether all were noticed."""
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    made = [Copy(folder / str(number)) for number in range(COPIES)]
    status, said = made[0].run((t for d in defences for t in d.tests), ALL_SECONDS)
    if status:
        print(f"These fail as the code is:\n{said[-2000:]}")
        return False
    for copy in made:
        copies.put(copy)

    def one(defence: Defence) -> Outcome:
        copy = copies.get()
        try:
            return copy.without(defence)
        finally:
            copies.put(copy)

    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(COPIES) as pool:
        for outcome in pool.map(one, defences):
            outcomes.append(outcome)
            print(outcome, flush=True)
    return all(outcome.noticed for outcome in outcomes)


def main() -> None:
    """Attack; exit status 1 where a defence can be taken out and nobody notices."""
    words = sys.argv[1:]
    chosen = [each for each in DEFENCES if all(word in each.name for word in words)]
    if not chosen:
        sys.exit(f"no defence has {' '.join(words)} in its name")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        well = attack(Path(folder), chosen)
    print(f"{len(chosen)} defences in {time.monotonic() - began:.0f} s")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
