"""``python -m cm_server``: run the server in the foreground."""

from .process import main

main()
