"""The install helper runs on a board without the client, and is removed afterwards."""

import subprocess
import sys
from pathlib import Path

from cloudmanager.cable import install_helper

MICROPYTHON = str(Path(sys.executable).parent / "micropython")
LOOK = """
import sys
print(sorted(n for n in globals() if n.startswith("__cm_")), "cm.switch" in sys.modules)
"""


def test_helper_completes_an_install_and_is_removed():
    code = "\n".join(
        [
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
    assert during == "['__cm_m__'] True"
    assert after == "['__cm_n__'] False"  # a name that replfiles.py uses anyway
