"""From the options of a config section to the object that they choose; what nobody reads is an error."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any


def construct(
  table: Mapping[str, Any], section: Mapping[str, Any], where: str, /, **given: Any
) -> Any:
  """`table[section["name"]]` with the section's options that are not None, and `given`.

  Raises ValueError, quoting the key and what the choice takes, for an unknown name, an option that is missing, of a wrong kind or not
  taken; those in `given` are not taken.
  """
  name = section["name"]
  if name not in table:
    raise ValueError(f"config.{where}={name!r} is unknown; use one of {', '.join(sorted(table))}")
  options = {key: value for key, value in section.items() if key != "name" and value is not None}
  return strict(table[name], options, where, what=f"{where}={name!r}", **given)


def strict(
  cls: Any, options: Mapping[str, Any], where: str, /, what: str | None = None, **given: Any
) -> Any:
  """cls(**options, **given) for a dataclass, after checking the keys; tuples from config files become tuples again."""
  fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
  what = what or f"config.{where}"
  for key, value in {**given, **options}.items():
    if key not in fields or (key in options and key in given):
      takes = sorted(fields.keys() - given.keys()) or "no option"
      raise ValueError(
        f"config.{where} has {key}={value!r}, which {what} does not read; it takes {takes}"
      )
  needed = [
    n
    for n, f in fields.items()
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
  ]
  if missing := [name for name in needed if name not in options and name not in given]:
    raise ValueError(
      f"{what} needs {', '.join(missing)}; set it with --config.{where.split('.')[0]}.{missing[0]}=…"
    )
  options = {
    key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
  }
  try:
    return cls(**options, **given)
  except TypeError as error:  # a string that is compared with a number, say
    raise ValueError(
      f"{what} cannot use {', '.join(f'{k}={v!r}' for k, v in options.items())}: {error}"
    ) from error


def named_value(text: str, section: str) -> tuple[str, Any]:
  """ "eta=0.02" -> ("sampler.eta", 0.02) for section "sampler"; what is no Python literal is a string. ValueError without a value."""
  key, given, value = text.partition("=")
  if not (key and given):
    raise ValueError(
      f"--{section}={text} has no value; use a key of config.{section} and its value, as in --{section}=eta=0.02"
    )
  try:
    return f"{section}.{key}", ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return f"{section}.{key}", value


def present(section: Mapping[str, Any]) -> dict[str, Any]:
  """The options of a section that are not None."""
  return {key: value for key, value in section.items() if value is not None}
