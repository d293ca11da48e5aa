"""``python -m cloudmanager``: the same as ``mbm``."""

from .cli import main

main()
