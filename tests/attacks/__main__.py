"""Takes each defence out of a copy of the code, one at a time, and shows that its tests notice.

    python -m tests.attacks            # all of them
    python -m tests.attacks token      # those with that word in their name

First the tests must pass as the code is; those of each folder run together, and once more, alone,
if one of them fails. How long they took then is what a test may take without its defence: on a busy
machine all of them take longer. The copies are found by PYTHONPATH, which goes before what an
editable install maps; nothing is installed, and nothing here is changed.
"""

from __future__ import annotations

import collections
import compileall
import concurrent.futures
import contextlib
import os
import py_compile
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from .defence import Defence
from .defences import DEFENCES

T = TypeVar("T")


class Limits(NamedTuple):
    """How long tests may take, in seconds.

    Attributes:
        test: each of them.
        run: all of them together.
    """

    test: float
    run: float

    def times(self, factor: float) -> Limits:
        """Return limits that are so many times as long."""
        return Limits(factor * self.test, factor * self.run)


ROOT: Final = Path(__file__).parent.parent.parent
COPIES: Final = (os.cpu_count() or 1) + 1  # that are attacked at the same time; many tests wait
#: Of a test, and of a folder's tests, where nothing is taken out.
WHOLE: Final = Limits(90.0, 600.0)
#: The least of a test without its defence, and of all tests of a defence. A test that hangs has
#: noticed, too.
LEAST: Final = Limits(10.0, 60.0)
PATIENCE: Final = 2.0  # by what the times of the tests as the code is are multiplied
HUNG: Final = "Timeout (>"  # as pytest-timeout says it
DURATION: Final = re.compile(r"^([\d.]+)s (?:setup|call|teardown) +(\S.*)$", re.MULTILINE)
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

    def run(self, tests: Iterable[str], limits: Limits, *options: str) -> tuple[int, str]:
        """Run tests; return pytest's status, and what it said: FAILED and a name, line by line."""
        options = ("-q", "-rfE", f"--timeout={limits.test:.0f}", "-W", "default", *options)
        command = [sys.executable, "-B", "-m", "pytest", *PLUGINS, *options, *dict.fromkeys(tests)]
        environment = {**os.environ, "PYTHONPATH": self._path, "TMPDIR": str(self.folder)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        environment["COLUMNS"] = "400"  # pytest cuts the reason of a failure off behind them
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
                said, _ = pytest.communicate(timeout=limits.run)
            except subprocess.TimeoutExpired:
                return 1, "".join(f"FAILED {test} - {HUNG}\n" for test in tests)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pytest.pid, signal.SIGKILL)  # with what its tests had started
        return pytest.returncode, said

    def whole(self, tests: Iterable[str]) -> Whole:
        """Run tests as the code is."""
        began = time.monotonic()
        status, said = self.run(tests, WHOLE, "--tb=short", "--durations=0")
        slowest: dict[str, float] = collections.defaultdict(float)
        for seconds, test in DURATION.findall(said):
            slowest[test] += float(seconds)
        most = max(slowest.values(), default=0.0)
        said = DURATION.sub("", said).strip()
        return Whole(status == 0, said, Limits(most, time.monotonic() - began))

    def without(self, defence: Defence, limits: Limits) -> Outcome:
        """Take a defence out, run its tests, and put it back."""
        began = time.monotonic()
        whole = {place.file: (self.folder / place.file).read_text() for place in defence.places}
        for place in defence.places:
            path = self.folder / place.file
            source = path.read_text()
            path.write_text(f"{source}\n\n{place.code}\n")
        try:
            status, said = self.run(defence.tests, limits, "--tb=no")
            if "\nERROR " in said:  # in its set-up, for which a busy machine may need longer
                status, said = self.run(defence.tests, limits.times(PATIENCE**2), "--tb=no")
        finally:
            for file, text in whole.items():
                (self.folder / file).write_text(text)
        missed = [test for test in defence.tests if f"FAILED {test}" not in said]
        took = time.monotonic() - began
        if status not in (0, 1):
            return Outcome(defence, False, f"pytest ended with {status}: {said[-300:]}", took)
        if missed:
            errors = "".join(f"; {line}" for line in said.splitlines() if line.startswith("ERROR"))
            return Outcome(defence, False, f"not noticed by {', '.join(missed)}{errors}", took)
        hung = ", hung" if HUNG in said else ""
        return Outcome(defence, True, f"noticed by {len(defence.tests)}{hung}", took)


class Whole(NamedTuple):
    """What became of a folder's tests as the code is.

    Attributes:
        passed: whether all passed.
        said: by pytest.
        took: the slowest test, and all of them.
    """

    passed: bool
    said: str
    took: Limits

    def has_failed(self, test: str) -> bool:
        """Return whether a test is among those that failed."""
        return any(f"\n{word} {test}" in self.said for word in ("FAILED", "ERROR"))


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


class Attackers:
    """Copies of the code, each of which does one thing at a time."""

    def __init__(self, folder: Path) -> None:
        self._copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(COPIES):
            self._copies.put(Copy(folder / str(number)))

    def attack(self, defences: Sequence[Defence]) -> bool:
        """Take each defence out of a copy; print a table; return whether all were noticed."""
        whole = self._run_whole(defences)
        failed = [each for each in whole.values() if not each.passed]
        for each in failed:
            print(f"These fail as the code is:\n{each.said[-8000:]}", flush=True)
        outcomes = []
        with concurrent.futures.ThreadPoolExecutor(COPIES) as pool:
            for outcome in pool.map(lambda each: self._without(each, whole), defences):
                outcomes.append(outcome)
                print(outcome, flush=True)
        return not failed and all(outcome.noticed for outcome in outcomes)

    def _run_whole(self, defences: Sequence[Defence]) -> dict[Path, Whole]:
        """Run all tests as the code is, folder by folder; once more, alone, what fails."""
        tests: dict[Path, list[str]] = {}
        for test in (test for defence in defences for test in defence.tests):
            tests.setdefault(folder_of(test), []).append(test)
        with concurrent.futures.ThreadPoolExecutor(COPIES) as pool:
            whole = dict(zip(tests, pool.map(self._whole, tests.values()), strict=True))
        for folder in [folder for folder, each in whole.items() if not each.passed]:
            print(f"Tests of {folder} run once more, because of:\n{whole[folder].said[-2000:]}")
            whole[folder] = self._whole(tests[folder])
        return whole

    def _whole(self, tests: Sequence[str]) -> Whole:
        return self._in_copy(lambda copy: copy.whole(tests))

    def _without(self, defence: Defence, whole: dict[Path, Whole]) -> Outcome:
        broken = [test for test in defence.tests if whole[folder_of(test)].has_failed(test)]
        if broken:
            return Outcome(defence, False, f"not tried: {', '.join(broken)} fails", 0.0)
        took = [whole[folder_of(test)].took for test in defence.tests]
        limits = Limits(
            max(LEAST.test, PATIENCE * max(each.test for each in took)),
            max(LEAST.run, PATIENCE * max(each.run for each in took)),
        )
        return self._in_copy(lambda copy: copy.without(defence, limits))

    def _in_copy(self, act: Callable[[Copy], T]) -> T:
        copy = self._copies.get()
        try:
            return act(copy)
        finally:
            self._copies.put(copy)


def folder_of(test: str) -> Path:
    """Return the folder of a test, by its name for pytest."""
    return Path(test.partition("::")[0]).parent


def main() -> None:
    """Attack; exit status 1 where a defence can be taken out and nobody notices."""
    words = sys.argv[1:]
    chosen = [each for each in DEFENCES if all(word in each.name for word in words)]
    if not chosen:
        sys.exit(f"no defence has {' '.join(words)} in its name")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        well = Attackers(Path(folder)).attack(chosen)
    print(f"{len(chosen)} defences in {time.monotonic() - began:.0f} s")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
