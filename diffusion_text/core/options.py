"""Members as frozen dataclasses whose options are declared once, with type, range and meaning, and enforced by one checker.

  @member
  class Shared:
    power: float = option(1.0, "t = τ^power; above 1 draws small times more often", gt=0)

A member is hashable and equal to another one of the same options. Values of a wrong type or out of range raise
`pydantic.ValidationError`, a ValueError, when the member is made; `experiment.registry` turns it into one line that quotes the
config key. Conditions between several options are checked in `__post_init__`, which raises ValueError with the fix.
"""

from __future__ import annotations

from typing import Any

import pydantic

_CONFIG = pydantic.ConfigDict(
  strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
)


def member(cls: type) -> type:
  """The class as a frozen dataclass of checked options. Types are strict: a string is no number, a bool is no int."""
  return pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)


def option(default: Any = ..., meaning: str = "", **limits: Any) -> Any:
  """A field with its default (none: the option must be given), its meaning in words, and its limits.

  Args:
    default: the value of an option that is not set; `...` if there is none.
    meaning: one or two sentences, with unit and usual values; `experiments.inspect --options` prints them.
    **limits: ge, gt, le, lt, multiple_of, min_length, max_length or pattern, as `pydantic.Field` has them. Floats may not be NaN
      or infinite unless `allow_inf_nan=True`.
  """
  return pydantic.Field(default, description=meaning, **limits)


def internal(default: Any = ...) -> Any:
  """A field that build fills in (sizes that follow from other members), which no config sets."""
  return pydantic.Field(default, json_schema_extra={"internal": True})


def part(table: Any, default: Any, meaning: str = "") -> Any:
  """A field that holds another member, a combinator's part, which a config chooses by name from `table`.

  Args:
    table: name -> class, or a function without arguments that returns such a table (for tables that do not exist yet).
    default: the part that is used if the option is not set; `...` if there is none.
    meaning: in words.
  """
  return pydantic.Field(default, description=meaning, json_schema_extra={"table": table})
