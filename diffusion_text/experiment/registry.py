"""From a section of a config to the member that it chooses. What nobody reads is an error.

A section is {"name": …} and the options of the class with that name; a part of a combinator (the
schedule of a process, the reader inside another reader) is a section again. A name is one of the
room's table, one of `contrib.CONTRIB`, or `package.module:Class`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import pydantic
from pydantic.dataclasses import is_pydantic_dataclass

from diffusion_text.context import CONTEXTS
from diffusion_text.contrib import CONTRIB
from diffusion_text.core.options import LARGEST
from diffusion_text.model import MODELS
from diffusion_text.objective import OBJECTIVES
from diffusion_text.process import PROCESSES
from diffusion_text.reader import READERS
from diffusion_text.sampler import SAMPLERS
from diffusion_text.timing import TIMINGS

TABLES = {
  "process": PROCESSES,
  "timing": TIMINGS,
  "context": CONTEXTS,
  "objective": OBJECTIVES,
  "model": MODELS,
  "reader": READERS,
  "sampler": SAMPLERS,
}


def construct(
  kind: str, section: Mapping[str, Any], *, where: str | None = None, **sizes: Any
) -> Any:
  """The member that a section chooses.

  Args:
    kind: the choice: a key of `TABLES`.
    section: {"name": …} and options; those that are None are not set.
    where: the section's place in the config, for messages; None: config.<kind>.
    **sizes: what build adds; a config must not set these.

  Raises:
    ValueError: in one line that quotes the key, the value and the fix, for an unknown name, an
      option that is unknown, missing, of a wrong type or out of range, and options that do not fit
      together.
  """
  table = {**TABLES[kind], **CONTRIB.get(kind, {})}
  return _member(table, section, where or f"config.{kind}", sizes)


def settings(cls: type, section: Mapping[str, Any], where: str) -> Any:
  """`cls` made of a section without a name (`config.data`, `config.train` …). Raises ValueError as
  `construct` does.
  """
  if not isinstance(section, Mapping):
    first = next(iter(cls.__pydantic_fields__))
    raise ValueError(f"{where}={section!r} must be a section, as in {where}.{first}=…")
  return _make(cls, section, where, {}, where)


def find(kind: str, name: str) -> type:
  """The class called `name` in a room. Raises ValueError, with the nearest name, for one that is
  unknown.
  """
  return _class({**TABLES[kind], **CONTRIB.get(kind, {})}, name, f"config.{kind}.name")


def names(kind: str) -> list[str]:
  """All names of a section, those of the rooms and those of contrib."""
  return sorted({**TABLES[kind], **CONTRIB.get(kind, {})})


def describe(cls: type) -> list[tuple[str, str, str, str]]:
  """(option, type and range, default, meaning) of every option of a class that a config may set."""
  rows = []
  for name, info in cls.__pydantic_fields__.items():
    if not _internal(info):
      usual = (f"Ge(ge={-LARGEST})", f"Le(le={LARGEST})")
      limits = ", ".join(str(limit) for limit in info.metadata if str(limit) not in usual)
      default = "required" if info.is_required() else repr(info.default)
      kind = str(info.annotation).replace("typing.", "")
      kind = info.annotation.__name__ if isinstance(info.annotation, type) else kind
      rows.append((name, f"{kind} {limits}".strip(), default, info.description or ""))
  return rows


def with_steps(kind: str, section: Mapping[str, Any], steps: int) -> dict[str, Any]:
  """The section with another number of steps: of the member itself, or of the part that counts them
  (a budget, or the budgets of `any_of`).

  Raises:
    ValueError: for a member that has no steps.
  """
  section = dict(section)
  if "steps" in find(kind, section["name"]).__pydantic_fields__:
    return {**section, "steps": steps}
  counted = _with_steps_inside(section, steps)
  if counted is not None:
    return counted
  options = ", ".join(row[0] for row in describe(find(kind, section["name"])))
  raise ValueError(
    f"config.{kind}.name={section['name']!r} has no steps to set, so leave them out; its options"
    f" are {options}"
  )


def counts_steps(kind: str, section: Mapping[str, Any]) -> bool:
  """True if a number of steps can be set for the member of a section, or for a part of it."""
  own = "steps" in find(kind, section["name"]).__pydantic_fields__
  return own or _with_steps_inside(section, 1) is not None


def _with_steps_inside(section: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
  """The section with another number of steps in its first part that counts them, at any depth, or
  in all of a list of parts that do (`any_of`); None if no part does.
  """

  def changed_part(part: Any) -> Any:
    if not isinstance(part, Mapping):
      return None
    return {**part, "steps": steps} if "steps" in part else _with_steps_inside(part, steps)

  for key, value in section.items():
    if isinstance(value, list | tuple):
      parts = [changed_part(each) for each in value]
      found = any(part is not None for part in parts)
      kept = zip(parts, value, strict=True)
      inner = type(value)(old if new is None else new for new, old in kept) if found else None
    else:
      inner = changed_part(value)
    if inner is not None:
      return {**section, key: inner}
  return None


def changed(
  kind: str, section: Mapping[str, Any], changes: Iterable[tuple[str, Any]]
) -> dict[str, Any]:
  """The section after (dotted option, value) changes, in order. Another name drops the options of
  the old one, steps apart.

  Raises:
    ValueError: for a name that is unknown, and for an option below something that is no section.
  """
  section = dict(section)
  for key, value in changes:
    if key == "name" and value != section["name"]:
      steps = section.get("steps")
      kept = steps is not None and "steps" in find(kind, value).__pydantic_fields__
      section = {"name": value, **({"steps": steps} if kept else {})}
      continue
    *parents, last = key.split(".")
    place = section
    for parent in parents:
      inner = place.get(parent, {})
      if isinstance(inner, str):  # a part without options of its own
        inner = {"name": inner}
      if not isinstance(inner, Mapping):
        raise ValueError(f"config.{kind}.{key}={value!r}: {parent}={inner!r} is no section")
      place[parent] = dict(inner)
      place = place[parent]
    place[last] = value
  return section


def named_value(text: str, section: str) -> tuple[str, Any]:
  """("eta", 0.02) of the text "eta=0.02", an option of `section`; what is no Python literal is a
  string.

  Raises:
    ValueError: for a text without a value.
  """
  key, given, value = text.partition("=")
  if not (key and given):
    raise ValueError(
      f"--{section}={text} has no value; use an option of config.{section} and its value, as in"
      f" --{section}={key or 'OPTION'}=VALUE"
    )
  try:
    return key, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return key, value


def nearest(word: str, words: Iterable[str]) -> str:
  """ "; did you mean 'x'?" for the nearest of the words, or an empty string if none is near."""
  close = difflib.get_close_matches(str(word), list(words), n=1)
  return f"; did you mean {close[0]!r}?" if close else ""


def check_names(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
  """Raises ValueError for the first name that is not known, with the nearest."""
  known = list(known)
  for name in names:
    if name not in known:
      raise ValueError(
        f"{flag}={name} is unknown{nearest(name, known)}; use some of {', '.join(known)}"
      )


def _class(table: Mapping[str, Any], name: Any, where: str) -> type:
  """The class behind a name: a class of the table, or one that is imported now."""
  chosen = table.get(name) if isinstance(name, str) else None
  if chosen is None and isinstance(name, str) and ":" in name:
    chosen = name
  if chosen is None:
    known = ", ".join(sorted(table))
    raise ValueError(
      f"{where}={name!r} is unknown{nearest(name, table)}; use one of {known}, or"
      " package.module:Class"
    )
  if not isinstance(chosen, str):
    return chosen
  module, _, attribute = chosen.partition(":")
  try:
    cls = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"{where}={name!r} cannot be imported: {error}") from error
  if not is_pydantic_dataclass(cls):
    raise ValueError(f"{where}={name!r} is no class made by diffusion_text.core.options.member")
  return cls


def _member(table: Any, section: Any, where: str, sizes: Mapping[str, Any]) -> Any:
  table = table() if callable(table) else table
  if not isinstance(section, Mapping) or "name" not in section:
    raise ValueError(f"{where}={section!r} must be a section with a name, as in {where}.name=…")
  options = {key: value for key, value in section.items() if key != "name"}
  name = section["name"]
  cls = _class(table, name, f"{where}.name")
  return _make(cls, options, where, sizes, f"{where}.name={name!r}")


def _make(cls: type, options: Mapping[str, Any], where: str, sizes: Mapping[str, Any], what: str):
  fields = cls.__pydantic_fields__
  options = {key: value for key, value in options.items() if value is not None}
  takes = sorted(name for name, info in fields.items() if not _internal(info) and name not in sizes)
  for key, value in options.items():
    if key not in takes:
      listed = ", ".join(takes) or "no option"
      raise ValueError(
        f"{where}.{key}={value!r} is not read by {what}{nearest(key, takes)}; it takes {listed}"
      )
  # A size that a class does not have is one that it has no use for.
  sizes = {key: value for key, value in sizes.items() if key in fields}
  missing = [key for key in takes if fields[key].is_required() and key not in options]
  if missing:
    raise ValueError(f"{what} needs {', '.join(missing)}; set it with --{where}.{missing[0]}=…")
  made = {key: _value(fields[key], value, f"{where}.{key}") for key, value in options.items()}
  try:
    return cls(**made, **sizes)
  except pydantic.ValidationError as error:
    raise ValueError(_one_line(error, fields, where)) from None


def _value(info: Any, value: Any, where: str) -> Any:
  """An option's value: the member that a section stands for, and tuples for the lists that config
  files hold.
  """
  table = (info.json_schema_extra or {}).get("table")
  if table is None:
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    alike = [choice for choice in choices if choice == value and repr(choice) != repr(value)]
    if alike:  # Python counts True and 1.0 among the choices 0 and 1
      raise ValueError(f"{where}={value!r} is not valid: write {alike[0]!r}")
    return _tuples(value)
  if get_origin(info.annotation) is tuple:
    if not isinstance(value, list | tuple):
      raise ValueError(f"{where}={value!r} must be a list of sections with a name each")
    return tuple(_part(table, one, f"{where}[{i}]") for i, one in enumerate(value))
  return _part(table, value, where)


def _part(table: Any, value: Any, where: str) -> Any:
  """A member of a combinator; one without options of its own may be given by its name alone, and
  the only one of its table by its options alone."""
  table = table() if callable(table) else table
  section = {"name": value} if isinstance(value, str) else value
  if len(table) == 1 and isinstance(section, Mapping):
    section = {"name": next(iter(table)), **section}
  return _member(table, section, where, {})


def _tuples(value: Any) -> Any:
  return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def _internal(info: Any) -> bool:
  return bool((info.json_schema_extra or {}).get("internal"))


def _one_line(error: pydantic.ValidationError, fields: Mapping[str, Any], where: str) -> str:
  """The first complaint of a checker in one line: key, value, what is wrong, what is usual."""
  first = error.errors()[0]
  if not first["loc"]:  # of several options together: the class has said all that there is to say
    return f"{where}: {str(first['msg']).removeprefix('Value error, ')}"
  name = str(first["loc"][0])
  usual = fields[name].description if name in fields else None
  text = str(first["msg"]).removeprefix("Value error, ")
  value = first["input"] if dataclasses.is_dataclass(first["input"]) else repr(first["input"])
  return f"{where}.{name}={value} is not valid: {text}" + (f" ({usual})" if usual else "")
