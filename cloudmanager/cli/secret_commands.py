"""The verbs of ``mbm`` for secrets in boards' settings."""

from __future__ import annotations

import argparse
import getpass
import sys

from cloudmanager.client.fleet import Fleet
from cloudmanager.display.text_tables import secret_table
from cloudmanager.protocol.targets import ALL, target_text
from cloudmanager.protocol.text_encodings import decode_text

from .commands import AddVerb, print_outcome


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    setter = add_verb(
        "secret-set",
        secret_set,
        "store a secret for boards' settings; its value is asked for, or read from standard input",
    )
    setter.add_argument("name", metavar="NAME", help="its name, to which settings refer")
    setter.add_argument(
        "--target", default=ALL, metavar="TARGET", help="boards that may get it (default: all)"
    )
    add_verb("secret-list", secret_list, "list secrets: their names, not their values")
    remove = add_verb("secret-remove", secret_remove, "delete a secret; boards keep its value")
    remove.add_argument("name", metavar="NAME", help="name of the secret")


def secret_set(options: argparse.Namespace) -> int:
    """Store a secret."""
    value = _read_value(options.name)
    with Fleet() as fleet:
        info = fleet.set_secret(options.name, value, options.target)
    use = f'`mbm board TARGET set KEY \'{{"secret": "{info["name"]}"}}\'`'
    return print_outcome(
        options,
        info,
        f"Stored the secret {info['name']} for {target_text(info['target'])}. "
        f"{use} writes it to boards.",
    )


def _read_value(name: str) -> str:
    """Return the value: typed twice without being shown, or all of standard input.

    Without its last line end, which ``echo`` and editors add.

    Raises:
        ValueError: it is not UTF-8, or two different values were typed.
    """
    if sys.stdin.isatty():
        value = getpass.getpass(f"Value of {name} (it is not shown): ")
        if getpass.getpass("The same again: ") != value:
            raise ValueError("The two values differ; nothing was stored.")
        return value
    try:
        text = decode_text(sys.stdin.buffer.read())
    except UnicodeDecodeError:  # its message would show the value
        raise ValueError("Standard input is not UTF-8 text.") from None
    return text.removesuffix("\n").removesuffix("\r")


def secret_list(options: argparse.Namespace) -> int:
    """List secrets."""
    with Fleet() as fleet:
        secrets = fleet.secrets()
    return print_outcome(options, secrets, secret_table(secrets))


def secret_remove(options: argparse.Namespace) -> int:
    """Delete a secret."""
    with Fleet() as fleet:
        name = fleet.remove_secret(options.name)
    return print_outcome(
        options, {"name": name}, f"Removed the secret {name}; boards that have its value keep it."
    )
