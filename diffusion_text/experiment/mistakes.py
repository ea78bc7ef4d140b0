"""Mistakes on a command line, each told in one line that quotes what was typed and what is nearest.

absl tells them with its usage text, and ml_collections with the traceback of a config file.
"""

import difflib
import pathlib
from collections.abc import Iterable

from absl import flags
from ml_collections import ConfigDict

CONFIGS = "configs"  # the folder of the files that --config names
IN_CONFIG_FILE = "Error whilst parsing config file"  # what ml_collections writes before a traceback

# What Python says of a text that is no number, and what it means.
NUMBERS = {
  "invalid literal for int()": "must be a whole number",
  "could not convert string to float": "must be a number",
}
CHOICES = "value should be one of <"  # what absl says of a value that is not among them
# Packages of the extras of setup.py, by the name that they are imported with.
EXTRAS = {
  **dict.fromkeys(("gguf", "jinja2", "safetensors", "tokenizers"), "pretrained"),
  **dict.fromkeys(("sacrebleu", "rouge_score"), "metrics"),
  **{"libtpu": "tpu", "gcsfs": "tpu", "lm_eval": "lm_eval", "wandb": "wandb"},
}
UNSET = "must have a value other than None"  # what absl says of a required flag


class Mistake(Exception):
  """What is wrong on the command line, in one line."""


def parse(
  argv: list[str], configs: Iterable[str], values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """The arguments of a command line that are no flags; the flags are set.

  Args:
    argv: The command line.
    configs: Names of the flags that take a config file.
    values: The flags.

  Raises:
    Mistake: for a config file that is not there, a flag that is unknown, and a value that a flag
      refuses.
  """
  configs = tuple(configs)
  for name in configs:
    check_file(name, typed(argv, name))
  try:
    return values(argv)
  except flags.UnrecognizedFlagError as error:
    raise Mistake(unknown_flag(error.flagname, configs, values)) from error
  except flags.Error as error:
    raise Mistake(refused_value(str(error))) from error
  except AttributeError as error:  # of a file without get_config, and of a misspelt section
    raise Mistake(unknown_section(error, argv, configs)) from error
  except KeyError as error:
    raise Mistake(override(error)) from error


def one_line(text: object) -> str:
  """A text without line breaks."""
  return " ".join(str(text).split())


def override(error: AttributeError | KeyError) -> str:
  """The message for a key that a config lacks.

  The text of a KeyError is its argument with quotes around it, so the argument is read.
  """
  key, *hint = str(error.args[0]).splitlines()
  said = "".join(f"; {one_line(line)}" for line in hint)
  return f"the config has no {key}{said}; its sections are in configs/base.py"


def typed(argv: list[str], name: str) -> str | None:
  """The last value of the flag `name` on a command line; None if it was not given."""
  found = None
  for place, word in enumerate(argv):
    if word in (f"--{name}", f"-{name}") and place + 1 < len(argv):
      found = argv[place + 1]
    elif word.startswith((f"--{name}=", f"-{name}=")):
      found = word.partition("=")[2]
  return found


def check_file(name: str, value: str | None) -> None:
  """Raises Mistake if the value names a config file that is not there."""
  path = pathlib.Path((value or "").partition(":")[0])
  if not value or path.is_file():
    return
  known = {file.stem: str(file) for file in sorted(pathlib.Path(CONFIGS).glob("[!_]*.py"))}
  known.pop("base", None)
  if not known:
    raise Mistake(f"--{name}={value}: there is no folder {CONFIGS}/ here; run it in the repository")
  near = difflib.get_close_matches(path.stem, known, n=1)
  size = value.partition(":")[2]
  hint = (
    f"did you mean --{name}={known[near[0]]}{size and f':{size}'}"
    if near
    else f"use one of {', '.join(known)}, as in --{name}={next(iter(known.values()))}"
  )
  raise Mistake(f"--{name}={value}: there is no file {path}; {hint}")


def unknown_flag(flag: str, configs: Iterable[str], values: flags.FlagValues) -> str:
  """The message for a flag that no file defines, with the nearest flag or key of a config."""
  known = {}
  for module, defined in values.flags_by_module_dict().items():
    if module.startswith("experiments.") or module.endswith(".py"):  # not those of absl and others
      known.update({item.name: f"--{item.name}" for item in defined if "." not in item.name})
  for config in configs:
    for section, options in config_items(values[config].value):
      known.setdefault(section, f"--{config}.{section}")
      for name, _ in config_items(options):
        known.setdefault(name, f"--{config}.{section}.{name}")
  near = difflib.get_close_matches(flag.rpartition(".")[2], known, n=1)
  hint = f"did you mean {known[near[0]]}, or see --help" if near else "see --help"
  return f"--{flag} is no flag of this command; {hint}"


def config_items(section: object) -> list[tuple[str, object]]:
  """The keys and values of a section of a config; none for a value, and for no config."""
  return list(section.items()) if isinstance(section, ConfigDict) else []


def refused_value(text: str) -> str:
  """The message for a value that a flag refuses.

  The error of a config file holds the traceback of that file, whose last line says what is wrong.
  """
  if IN_CONFIG_FILE in text:
    place = one_line(text.partition(IN_CONFIG_FILE)[0]).removeprefix("flag ")
    said = text.strip().splitlines()[-1]
    return f"{place} {said.partition(': ')[2] or said}"
  place, _, said = one_line(text).removeprefix("flag ").partition(": ")
  if UNSET in said:
    name = place.partition("=")[0]
    return f"{name} is not set; give {name}=…, which --help explains"
  for begins, plain in NUMBERS.items():
    if said.startswith(begins):
      said = plain
  if said.startswith(CHOICES):
    choices = said.removeprefix(CHOICES).removesuffix(">").split("|")
    near = difflib.get_close_matches(place.partition("=")[2], choices, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{place}: {hint}use one of {', '.join(choices)}"
  return f"{place}: {said}"


def told(error: Exception, values: flags.FlagValues = flags.FLAGS) -> tuple[str, int] | None:
  """(message, exit code) of an error that a user can mend: the package of an extra is missing, or a
  list of numbers has an entry that is no number. None for any other error.
  """
  missing = error.name if isinstance(error, ModuleNotFoundError) else None
  if missing in EXTRAS:
    return f"this needs the package {missing}; pip install -e '.[{EXTRAS[missing]}]'", 2
  return not_a_number(error, values)


def not_a_number(
  error: Exception, values: flags.FlagValues = flags.FLAGS
) -> tuple[str, int] | None:
  """(message, exit code) of an error about a list of numbers with an entry that is no number; the
  message names the flag. None for any other error.
  """
  text = str(error)
  plain = next((said for begins, said in NUMBERS.items() if text.startswith(begins)), None)
  for name in values if plain else ():
    typed_in = values[name].value
    if isinstance(typed_in, list) and any(text.endswith(repr(each)) for each in typed_in):
      return f"--{name}={','.join(map(str, typed_in))}: each {plain}", 2
  return None


def unknown_section(error: AttributeError, argv: list[str], configs: Iterable[str]) -> str:
  """The message for a section that the config lacks, or a file that holds no config."""
  if "get_config" in str(error):
    files = [f"--{name}={typed(argv, name)}" for name in configs if typed(argv, name)]
    return (
      f"{' '.join(files)}: the file has no function get_config; a config is one of"
      f" {CONFIGS}/*.py beside base.py"
    )
  return override(error)
