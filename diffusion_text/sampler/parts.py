"""What scores, budgets and revisions have in common: a memory from call to call, and calls of their
own.
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffusion_text.types import Canvas, Model, Params


class Part:
  """The base of the parts of `Reveal`, for a part that remembers nothing and asks no network.

  The memory of a part is a pytree of arrays of fixed shapes, one entry per token [B, u, …] or per
  row [B, …]. `()` costs nothing.

  Attributes:
    extra_calls: network calls that the part makes itself at each step (a scorer, a second reading).
  """

  extra_calls: ClassVar[int] = 0

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that the part does not work with."""

  def init(self, model: Model, params: Params, canvas: Canvas) -> Any:
    """The memory before the first call of a window."""
    return ()
