"""The install helper runs on a board without the client, and is removed afterwards."""

import subprocess
import sys
from pathlib import Path

from cloudmanager.cable import install_helper

MICROPYTHON = str(Path(sys.executable).parent / "micropython")
PRELUDE = "__cm_i__ = __import__\n__cm_o__ = open"  # the names that repl_jobs.py defines
LOOK = """
import sys
print(sorted(n for n in globals() if n.startswith("__cm_")), "cm.switch" in sys.modules)
"""


def test_helper_completes_an_install_and_is_removed():
    code = "\n".join(
        [
            PRELUDE,
            install_helper.make_install_code(),
            install_helper.FINISH_CODE,
            "import sys",
            LOOK,
            install_helper.REMOVE_CODE,
            LOOK,
        ]
    )
    done = subprocess.run([MICROPYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    during, after = done.stdout.splitlines()
    assert during == "['__cm_i__', '__cm_m__', '__cm_o__'] True"
    assert after == "['__cm_i__', '__cm_n__', '__cm_o__'] False"
