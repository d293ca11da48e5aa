"""``python -m cloudmanager``: the same as ``mbm``."""

from .cli.main import main

main()
