"""``python -m cm_kernel -f FILE`` runs the kernel; ``… install`` installs its kernelspec."""

from __future__ import annotations

import os
import sys

# As in ipykernel's launcher: a user's own logging.py must not hide Python's. When the kernel runs,
# IPython adds the working directory again, after the standard library.
if sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - pathlib may be the user's
    del sys.path[0]

if sys.argv[1:2] == ["install"]:
    from .install import main

    sys.exit(main(sys.argv[2:]))

from ipykernel.kernelapp import IPKernelApp

from .kernel import BoardKernel

IPKernelApp.launch_instance(kernel_class=BoardKernel, outstream_class="cm_kernel.streams.Stream")
