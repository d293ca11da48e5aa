"""``python -m cm_server``: run the service in the foreground."""

from .app import main

main()
