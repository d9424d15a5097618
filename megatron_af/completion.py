"""What a shell completes behind ``tools/*.py``: options, subcommands and choices, configuration files and keys.

    print(script(Path("tools")))                 # tools/complete.py; the shell evaluates it

The script holds all words, so that a TAB starts no Python. Options are read from the tools' source, without importing
them; keys come from the schema. Where a key's values are named (``precision=``), they are completed as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from megatron_af.config.keys import schema_keys

WRAPPERS = {"pretrain_clap.py": "pretrain_af.py"}
"""Tool -> the one whose arguments it takes."""


def words(tool: Path) -> list[str]:
    """Options, subcommands and choices that a tool's parser knows, in their order."""
    found = []
    for node in ast.walk(ast.parse(tool.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if node.func.attr == "add_argument":
                options = [text for text in texts if text.startswith("--")]
                found += options or [*_choices(node)]
            elif node.func.attr == "add_parser":
                found += texts[:1]
    return list(dict.fromkeys(found))


def script(tools: Path) -> str:
    """For bash, and for zsh, which runs it as bash would."""
    programs = sorted(path for path in tools.glob("*.py") if path.name != "__init__.py")
    known = {path.name: words(tools / WRAPPERS.get(path.name, path.name)) for path in programs}
    cases = "\n".join(f'    {name}) known="{" ".join([*found, "--help"])}" ;;' for name, found in known.items())
    keys, values = [], []
    for key, kind in schema_keys():
        if "<name>" not in key:
            keys.append(f"{key}=")
            named = get_args(kind) if get_origin(kind) is Literal else ()
            values += [f"{key}={value}" for value in named if value != ""]
    return SCRIPT.format(cases=cases, keys=" ".join(keys), values=" ".join(map(str, values)))


def _choices(call: ast.Call) -> Iterator[str]:
    """Of a positional argument."""
    for keyword in call.keywords:
        if keyword.arg == "choices" and isinstance(keyword.value, ast.List | ast.Tuple):
            yield from (str(entry.value) for entry in keyword.value.elts if isinstance(entry, ast.Constant))


SCRIPT = """\
if [ -n "${{ZSH_VERSION-}}" ]; then autoload -U +X compinit bashcompinit && compinit -u && bashcompinit; fi
_megatron_af() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" word tool="" known=""
  local current="${{line##*[[:space:]]}}"
  for word in $line; do
    case "$word" in tools/*.py|*/tools/*.py) tool="${{word##*/}}" ;; esac
  done
  COMPREPLY=()
  case "$tool" in
{cases}
    *) return 0 ;;
  esac
  case "$line" in *" --config "|*" --config $current") return 0 ;; esac
  case "$current" in
    *=*) known="{values}" ;;
    *.*) known="{keys}" ;;
    -*|"") ;;
    *) known="$known {keys}" ;;
  esac
  for word in $known; do
    case "$word" in
      "$current"*)
        # bash breaks words at = and :, and wants what stands behind the last one
        case "$current" in *=*) [ -n "${{ZSH_VERSION-}}" ] || word="${{word#*=}}" ;; esac
        # zsh has one choice for all words: they bring their own space, where one belongs behind them
        if [ -n "${{ZSH_VERSION-}}" ]; then case "$word" in *=) ;; *) word="$word " ;; esac
        else case "$word" in *=) compopt -o nospace 2>/dev/null || true ;; esac; fi
        COMPREPLY[${{#COMPREPLY[@]}}]="$word" ;;
    esac
  done
}}
complete -o default -o bashdefault ${{ZSH_VERSION:+-o}} ${{ZSH_VERSION:+nospace}} \\
  -F _megatron_af python python3 torchrun
"""
