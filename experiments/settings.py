"""Flags for the settings of a study: every option of its class `Settings` is one."""

import ast
from collections.abc import Callable
from typing import Any

from absl import flags

from diffusion_text.experiment import catalogue

flags.disclaim_key_flags()  # --help shows them with those of the main that asks for them

DEFINES = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float, "str": flags.DEFINE_string}
NUMBERS = {"int": int, "float": float}
BOUNDS = {"ge": "lower_bound", "le": "upper_bound"}


def settings_flags(
  study: str, values: flags.FlagValues = flags.FLAGS
) -> Callable[[], dict[str, Any]]:
  """A function that returns the settings as they were typed: option -> value.

  Types, defaults, meanings and limits of the flags are those of the options.
  """
  made = [(option, _flag(option, values)) for option in catalogue.settings(study)]
  return lambda: {option.name: _value(option, flag.value) for option, flag in made}


def _flag(option: catalogue.Option, values: flags.FlagValues):
  """The flag of an option."""
  kind, default = option.kind.removesuffix(" | None"), option.default
  how: dict[str, Any] = {"help": option.meaning, "flag_values": values}
  if kind.startswith("tuple["):
    return flags.DEFINE_list(option.name, [f"{each:g}" for each in default], **how)
  if kind.startswith("Literal["):
    choices = ast.literal_eval(kind.removeprefix("Literal"))
    return flags.DEFINE_enum(option.name, default, choices, **how)
  bounds = {BOUNDS[key]: limit for key, limit in option.limits.items() if key in BOUNDS}
  return DEFINES[kind](option.name, default, **how, **bounds)


def _value(option: catalogue.Option, typed: Any) -> Any:
  """The value of a flag; texts of a list as the numbers that they stand for."""
  if not option.kind.startswith("tuple["):
    return typed
  kind = option.kind.removeprefix("tuple[").partition(",")[0]
  try:
    return tuple(NUMBERS[kind](text) for text in typed)
  except ValueError as error:
    usual = ",".join(f"{each:g}" for each in option.default)
    said = f"--{option.name}={','.join(typed)} must be numbers ({kind}) between commas"
    raise ValueError(f"{said}, as in --{option.name}={usual}") from error
