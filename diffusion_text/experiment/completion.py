"""Completion of commands, flags and config keys for bash, as the text of a shell script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from diffusion_text.contrib.decoders import DECODERS
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import SETTINGS

SCRIPT = r"""# bash completion for python -m experiments.…, made by python -m experiments.complete
_diffusion_text() {
  local line="${COMP_LINE:0:COMP_POINT}"
  local typed="${line##* }" command="" words=""
  [[ "$line" == *"-m experiments"* ]] || return
  [[ "$line" =~ experiments\.([a-z_]+)\  ]] && command="${BASH_REMATCH[1]}"
  case "$typed" in
    experiments*) words="@COMMANDS@" ;;
    --config=*) words="@CONFIGS@" ;;
    --decoder=*) words="@DECODERS@" ;;
@VALUES@
    --config.*) words="@KEYS@" ;;
    -*)
      case "$command" in
@FLAGS@
      esac ;;
  esac
  local found kept="${typed%"${typed##*[=:]}"}"  # bash replaces what comes after the last = or :
  COMPREPLY=()
  while IFS= read -r found; do
    [[ -n "$found" ]] && COMPREPLY+=("${found#"$kept"}")
  done < <(compgen -W "$words" -- "$typed")
  [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2> /dev/null
}
complete -o default -F _diffusion_text python python3
"""


def config_keys() -> list[str]:
  """All keys of a config, as in train.steps and process.name, with the options of all choices."""
  keys = {f"{name}.{row[0]}" for name, cls in SETTINGS.items() for row in registry.describe(cls)}
  for kind in registry.TABLES:
    keys.add(f"{kind}.name")
    for name in registry.names(kind):
      keys.update(f"{kind}.{row[0]}" for row in registry.describe(registry.find(kind, name)))
  return sorted(keys | {"seed"})


def script(commands: Mapping[str, Iterable[str]], configs: Iterable[str]) -> str:
  """The text of the script.

  Args:
    commands: Flags by command, as they are typed: --steps= and --dry_run.
    configs: Files with sizes, as in configs/NAME.py:tiny.
  """

  def joined(words: Iterable[str]) -> str:
    return " ".join(words)

  values = [
    f'    --config.{kind}.name=*) words="'
    + joined(f"--config.{kind}.name={name}" for name in registry.names(kind))
    + '" ;;'
    for kind in registry.TABLES
  ]
  flags = [f'        {name}) words="{joined(given)}" ;;' for name, given in commands.items()]
  parts = {
    "COMMANDS": joined(f"experiments.{name}" for name in commands),
    "CONFIGS": joined(f"--config={name}" for name in configs),
    "DECODERS": joined(f"--decoder={name}" for name in DECODERS),
    "VALUES": "\n".join(values),
    "KEYS": joined(f"--config.{key}=" for key in config_keys()),
    "FLAGS": "\n".join(flags),
  }
  text = SCRIPT
  for name, words in parts.items():
    text = text.replace(f"@{name}@", words)
  return text
