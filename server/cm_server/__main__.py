"""``python -m cm_server``: run the server in the foreground."""

from .app import main

main()
