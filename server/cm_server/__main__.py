"""``python -m cm_server``: run the server in the foreground."""

import sys

from cloudmanager.config import require_posix
from cloudmanager.protocol.errors import CloudmanagerError

try:
    require_posix("The server needs")
except CloudmanagerError as error:
    sys.exit(str(error))

from .process import main

main()
