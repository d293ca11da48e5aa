"""``mbm completion``: scripts that complete the command line in bash, zsh and fish.

The scripts are static: shtab makes them from the parser. The names and labels of boards come from
a file in ``CM_HOME`` that the running server writes, so that Tab starts no Python.
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Iterator
from typing import Any, Final

from cloudmanager import config

from .board_commands import MACROS
from .commands import OK, AddVerb, print_json

SHELLS: Final = ("bash", "zsh", "fish")
_USAGE: Final = """\
Install it, then open a new shell:
  bash   mbm completion bash >~/.local/share/bash-completion/completions/mbm
         (without the package bash-completion: source that file in ~/.bashrc)
  zsh    mbm completion zsh >FOLDER/_mbm, where FOLDER is in $fpath before compinit runs
  fish   mbm completion fish >~/.config/fish/completions/mbm.fish

Names and labels of boards come from a file that the local server keeps up to date."""
#: Metavars of arguments that are targets or names of boards.
_BOARDS: Final = ("TARGET", "PORT|TARGET", "BOARD")
_FILES: Final = ("FILE", "SOURCE", "DEST", "FILE|URL|VERSION")
_FOLDERS: Final = ("FOLDER", "DIR")
_COMPLETE_BOARDS: Final = {
    "bash": "_mbm_boards",
    "zsh": "_mbm_boards",
    "fish": "(__mbm_boards)",
}
#: In a target, what follows the last comma is completed.
_BASH_BOARDS: Final = r"""
_mbm_boards() {
  local file="${CM_HOME:-HOME_FOLDER}/completion.txt" lead="" word="$1" words IFS=$'\n'
  [[ -r "$file" ]] && words="$(<"$file")" || return
  [[ "$words" == *[!A-Za-z0-9_.=+@$'\n'-]* ]] && return  # compgen would expand it
  case "$word" in *,*) lead="${word%,*},"; word="${word##*,}" ;; esac
  compgen -P "$lead" -W "$words" -- "$word"
}
"""
_ZSH_BOARDS: Final = r"""
_mbm_boards() {
  local file="${CM_HOME:-HOME_FOLDER}/completion.txt"
  local -a words
  [[ -r "$file" ]] && words=(${(f)"$(<$file)"}) && _sequence compadd - $words
}
"""
_FISH_BOARDS: Final = r"""
function __mbm_boards
  set -l folder HOME_FOLDER
  set -q CM_HOME; and set folder $CM_HOME
  set -l lead (string replace -r '[^,]*$' '' -- (commandline -ct))
  test -r "$folder/completion.txt"; and string replace -r '^' -- "$lead" <"$folder/completion.txt"
end
"""
#: Bash takes ":" and "=" for the ends of words (COMP_WORDBREAKS), mbm does not. This joins what
#: bash has split, except an option and its value, and cuts off again what bash keeps.
_BASH_WORDS: Final = r"""
_mbm_words() {
  local rest="$COMP_LINE" word last="" kept="" index breaks=""
  local -a joined=()
  for ((index = 0; index <= COMP_CWORD; index++)); do
    word="${COMP_WORDS[index]}"
    if [[ ${#joined[@]} -eq 0 || -z "$rest" || "$rest" == [[:space:]]* ]]; then
      joined+=("$word")
    else
      joined[${#joined[@]}-1]+="$word"
    fi
    rest="${rest#"${rest%%[![:space:]]*}"}"
    rest="${rest#"$word"}"
  done
  last="${joined[${#joined[@]}-1]}"
  if [[ "$last" == --*=* ]]; then
    joined[${#joined[@]}-1]="${last%%=*}"
    last="${last#*=}"
    joined+=("$last")
  fi
  [[ "$COMP_WORDBREAKS" == *:* ]] && breaks+=":"
  [[ "$COMP_WORDBREAKS" == *=* ]] && breaks+="="
  [[ -n "$breaks" && "$last" == *[$breaks]* ]] && kept="${last%"${last##*[$breaks]}"}"
  local -a COMP_WORDS=("${joined[@]}")
  local COMP_CWORD=$((${#joined[@]} - 1))
  _shtab_mbm
  COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}
complete -o bashdefault -F _mbm_words mbm
"""


def add_verbs(add_verb: AddVerb, parser: argparse.ArgumentParser) -> None:
    """Add the verb ``completion`` to the parser of ``mbm``."""
    verb = add_verb(
        "completion",
        functools.partial(print_script, parser),
        "print the script that completes mbm's verbs, options and boards in a shell",
    )
    verb.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))
    verb.epilog = _USAGE
    verb.formatter_class = argparse.RawDescriptionHelpFormatter


def print_script(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    script = make_script(parser, options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": script})
    else:
        print(script)
    return OK


def make_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell.

    Args:
        parser: the parser of ``mbm``, with all its verbs.
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    import shtab

    for action in _all_actions(parser):
        if completer := _completer(action, shtab):
            action.complete = completer  # type: ignore[attr-defined]
        elif action.metavar == "MACRO":
            action.choices = list(MACROS)
    script: str = shtab.complete(parser, shell, preamble=_boards_function(shell))
    return script + (_BASH_WORDS if shell == "bash" else "")


def _boards_function(shell: str) -> str:
    """Return the shell's function that completes names and labels of boards."""
    folder = str(config.home_folder())
    if shell == "fish":
        return _FISH_BOARDS.replace("HOME_FOLDER", shlex.quote(folder))
    in_braces = "".join(f"\\{each}" if each in '\\"$`}' else each for each in folder)
    return (_BASH_BOARDS if shell == "bash" else _ZSH_BOARDS).replace("HOME_FOLDER", in_braces)


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb_parser in action.choices.values():
                yield from _all_actions(verb_parser)


def _completer(action: argparse.Action, shtab: Any) -> Any:
    """Return what completes an argument; None where there is nothing but its choices."""
    name = str(action.metavar or action.dest.upper())
    if name in _BOARDS:
        return _COMPLETE_BOARDS
    if name in _FILES:
        return shtab.FILE
    return shtab.DIRECTORY if name in _FOLDERS else None
