"""What samplers ask of a process that loses tokens by a schedule."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from diffusion_text.core.capability import require
from diffusion_text.schedules.discrete import Schedule
from diffusion_text.types import Process

# A log-ratio of evidence beyond which another token than the one shown is out of the question.
_CERTAIN = 60.0


@runtime_checkable
class LosesTokens(Protocol):
  """A process whose tokens are lost as a schedule alpha(t) says."""

  schedule: Schedule


def need_schedule(process: Process, who: str, fix: str) -> None:
  """Raises ValueError for a process whose tokens are not lost whole, by a schedule alpha(t)."""
  require(process, LosesTokens, who, fix)
  if process.input_sizes.vectors:
    raise ValueError(f"{type(process).__name__} keeps no tokens whole, as {who} asks; {fix}")


def visible_may_be_wrong(process: Process, t: float) -> bool:
  """True if a token that looks clean at time t may be another one, so that a network learns of it.

  For processes of ids.
  """
  token, time = jnp.zeros(1, jnp.int32), jnp.full(1, t, jnp.float32)
  if not np.asarray(process.has_loss({}, token, time))[0]:
    return False
  evidence = np.asarray(process.evidence({}, token, time))[0]
  return bool(evidence.max() - evidence.min() < _CERTAIN)
