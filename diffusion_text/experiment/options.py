"""What can be chosen in a config, as text: names of a section, and the options of a choice."""

from __future__ import annotations

import textwrap

from diffusion_text.experiment import registry
from diffusion_text.experiment.build import SETTINGS


def options_table(chosen: str) -> str:
  """The names of a section ("process"), or the options of a choice ("process.embedding") or of a
  section without a name ("train"), each with type and range, default and meaning.

  Raises:
    ValueError: for a section or a name that is unknown.
  """
  section, _, name = chosen.partition(".")
  if section in SETTINGS:
    return _options(f"config.{section}", SETTINGS[section])
  known = (*registry.TABLES, *SETTINGS)
  if section not in registry.TABLES:
    hint = registry.nearest(section, known)
    raise ValueError(f"--options={chosen} is unknown{hint}; use one of {', '.join(known)}")
  if name:
    return _options(f"config.{section}.name={name}", registry.find(section, name))
  lines = [f"config.{section}.name is one of (or package.module:Class):"]
  for each in registry.names(section):
    lines.append(f"  {each:<24}{_first_sentence(registry.find(section, each))}")
  return "\n".join(lines)


def _options(title: str, cls: type) -> str:
  lines = [f"{title}: {_first_sentence(cls)}"]
  for option, kind, default, meaning in registry.describe(cls):
    lines.append(f"  {option}: {kind} = {default}")
    if meaning:
      lines.extend(textwrap.wrap(meaning, 90, initial_indent="      ", subsequent_indent="      "))
  if len(lines) == 1:
    lines.append("  (no options)")
  return "\n".join(lines)


def _first_sentence(cls: type) -> str:
  text = " ".join((cls.__doc__ or "").split())
  return text.split(". ")[0].rstrip(".")
