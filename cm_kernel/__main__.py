"""``python -m cm_kernel -f FILE`` runs the kernel; ``… install`` installs its kernelspec."""

from __future__ import annotations

import sys

if sys.argv[1:2] == ["install"]:
    from .install import main

    sys.exit(main(sys.argv[2:]))

from ipykernel.kernelapp import IPKernelApp

from .kernel import BoardKernel

IPKernelApp.launch_instance(kernel_class=BoardKernel, outstream_class="cm_kernel.streams.Stream")
