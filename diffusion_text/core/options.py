"""Members as frozen dataclasses whose options are declared once, with type, range and meaning.

  @member
  class Shared:
    power: float = option(1.0, "t = τ^power; above 1 draws small times more often", gt=0)

A member is hashable, and equal to any other member with the same options. A value of a wrong type
or out of range raises `pydantic.ValidationError`, a ValueError, when the member is made.
`experiment.registry` turns this error into one line that quotes the config key. `__post_init__`
checks conditions between several options and raises ValueError with the fix.
"""

from __future__ import annotations

from typing import Any

import pydantic

# The limit of a number that declares none: beyond this, float32 no longer counts in ones, and sizes
# no longer fit.
LARGEST = 2**24

_CONFIG = pydantic.ConfigDict(
  strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
)


def member(cls: type) -> type:
  """The class as a frozen dataclass of checked options.

  Types are strict: a string is not a number, and a bool is not an int.
  """
  return pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)


def option(default: Any = ..., meaning: str = "", **limits: Any) -> Any:
  """A field with its default, its meaning in words and its limits.

  Args:
    default: The value of an option that is not set. `...`: the option must be set.
    meaning: One or two sentences, with unit and usual values. `experiments.inspect --options`
      prints them.
    **limits: ge, gt, le, lt, multiple_of, min_length, max_length or pattern, as in
      `pydantic.Field`. Floats may not be NaN or infinite unless `allow_inf_nan=True`. A number has
      a limit on both sides: where none is declared, `LARGEST` and its negative, or a default
      beyond them, such as infinity. (A default of None
      without any limit tells nothing of numbers, so such a number declares both.)
  """
  number = isinstance(default, int | float) and not isinstance(default, bool)
  if number or not limits.keys().isdisjoint(("ge", "gt", "le", "lt")):
    if limits.keys().isdisjoint(("le", "lt")):
      limits["le"] = max(default, LARGEST) if number else LARGEST
    if limits.keys().isdisjoint(("ge", "gt")):
      limits["ge"] = min(default, -LARGEST) if number else -LARGEST
  return pydantic.Field(default, description=meaning, **limits)


def internal(default: Any = ...) -> Any:
  """A field that build fills in, such as a size that follows from another member.

  No config sets it.
  """
  return pydantic.Field(default, json_schema_extra={"internal": True})


def part(table: Any, default: Any, meaning: str = "") -> Any:
  """A field for another member, the part of a combinator. A config chooses it by name from `table`.

  Args:
    table: name -> class, or a function without arguments that returns such a table (for tables that
      do not exist yet).
    default: The part if the option is not set. `...`: the option must be set.
    meaning: One or two sentences.
  """
  return pydantic.Field(default, description=meaning, json_schema_extra={"table": table})
