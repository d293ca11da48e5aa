"""``python -m cm_server``: run the server in the foreground."""

import gc
import sys

from cloudmanager.config import require_posix
from cloudmanager.protocol.errors import CloudmanagerError

from .net.certificate_creation import start_creating


def _main() -> None:
    """Start what takes long beside the imports of the server, then run it."""
    try:
        require_posix("The server needs")
    except CloudmanagerError as error:
        sys.exit(str(error))
    gc.disable()  # until the server listens: most of what is made until then lives until the end
    start_creating()
    from .process import main

    main()


_main()
