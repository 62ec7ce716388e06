"""Shell completion of ``vit``: a script for bash or zsh, generated from each command's --help."""

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.errors import UserError

_OPTION = re.compile(r"^[│ ] (?:-h, )?(--.*?)(?: [A-Z{\[]|  |$)", re.M)  # options at the left edge of tyro's frame
_RECIPE = re.compile(r"^  (\w+) ", re.M)


@dataclass(frozen=True)
class Words:
    """The words that may follow a command."""

    recipes: tuple[str, ...]  # first word
    options: tuple[str, ...]


def script(modules: Mapping[str, str], shell: str) -> str:
    """The completion script for ``modules`` (command -> module). Raises UserError for other shells."""
    if shell not in ("bash", "zsh"):
        raise UserError(f"vit completion {shell or '(nothing)'}: name your shell, bash or zsh")
    found = {command: words_of(module) for command, module in modules.items()}
    return _bash(found) if shell == "bash" else _zsh(found)


def words_of(module: str) -> Words:
    """A command's recipes and options, parsed from its help."""
    text = _help(module)
    recipes = tuple(_RECIPE.findall(text.partition("Recipes:\n")[2].partition("\n\n")[0]))
    listed = _OPTION.findall(_help(module, recipes[0]) if recipes else text)
    options = {name for line in listed for name in re.findall(r"--[\w.-]+", line)}
    return Words(recipes, tuple(sorted(options | {"--help", "--version"})))


def _help(module: str, *words: str) -> str:
    """Output of ``python -m MODULE WORDS --help``, in this process: an interpreter per command takes longer."""
    printed, before = io.StringIO(), (sys.argv, os.environ.get("COLUMNS"))
    sys.argv = [module, *words, "--help"]
    os.environ["COLUMNS"] = "100"  # in wider terminals tyro puts two frames side by side
    sys.modules.pop(module, None)  # runpy warns if another command has imported the module
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before[1]
    return printed.getvalue()


def _cases(found: Mapping[str, Words], how: str) -> tuple[str, str]:
    """The branches of two ``case`` statements by command, for recipes and for options, formatted with ``how``."""
    recipes = [f"{name}) {how.format(shlex.join(words.recipes))} ;;" for name, words in found.items() if words.recipes]
    options = [f"{name}) {how.format(shlex.join(words.options))} ;;" for name, words in found.items()]
    return "\n      ".join(recipes), "\n      ".join(options)


def _bash(found: Mapping[str, Words]) -> str:
    recipes, options = _cases(found, "words='{}'")
    return f"""# bash completion of vit
_vit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  if [ "$COMP_CWORD" = 1 ]; then
    words='{shlex.join(found)} completion --help --version'
  elif [[ $word == -* ]]; then
    case ${{COMP_WORDS[1]}} in
      {options}
    esac
  elif [ "$COMP_CWORD" = 2 ]; then
    case ${{COMP_WORDS[1]}} in
      completion) words='bash zsh' ;;
      {recipes}
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o default -o bashdefault -F _vit vit"""


def _zsh(found: Mapping[str, Words]) -> str:
    recipes, options = _cases(found, "compadd -- {}")
    return f"""#compdef vit
# zsh completion of vit
if (( CURRENT == 2 )); then
  compadd -- {shlex.join(found)} completion --help --version
elif [[ $words[CURRENT] == -* ]]; then
  case $words[2] in
      {options}
  esac
else
  if (( CURRENT == 3 )); then
    case $words[2] in
      completion) compadd -- bash zsh ;;
      {recipes}
    esac
  fi
  _files
fi"""
