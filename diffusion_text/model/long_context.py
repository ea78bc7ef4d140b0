"""Rows longer than those of training, by a larger base of the rotary positions (LongLLaDA,
arXiv 2506.14429, recalled; NTK-aware scaling of RoPE).

A pair of numbers of a head that turns slowly makes less than one turn within the trained length, so
the network has not seen all of its angles. The new base is such that the slowest pair that made a
turn in training makes one turn within the new length:

  d_ext = 2 · ceil(d / 2 · log_base(T / 2π))     numbers of a head that have seen all their angles
  λ     = (L / 2π)^(d / d_ext) / base

for heads of d numbers, T trained and L new positions. Nothing is trained, and parameters do not
depend on it: `model.rope_scaling` may be set when a trained model is sampled or scored.
"""

from __future__ import annotations

import math


def ntk_factor(base: float, trained_length: int, length: int, head_width: int) -> float:
  """λ, the factor of the rotary base (`model.rope_scaling`); 1 for rows no longer than those of
  training.

  For 5e5, 4096 positions and heads of 128: 3.40 at 8192 and 54.40 at 32768 (LongLLaDA rounds up).

  Raises:
    ValueError: if the trained length is below one turn of the fastest pair (7 positions).
  """
  if length <= trained_length:
    return 1.0
  turned = turned_dimensions(base, trained_length, head_width)
  return max((length / (2 * math.pi)) ** (head_width / turned) / base, 1.0)


def turned_dimensions(base: float, trained_length: int, head_width: int) -> int:
  """d_ext, the numbers of a head that made a whole turn in training. Print it beside λ, which holds
  for this base only.

  Raises:
    ValueError: if the trained length is below one turn of the fastest pair (7 positions).
  """
  turns = trained_length / (2 * math.pi)
  if turns <= 1:
    raise ValueError(
      f"trained_length={trained_length} is less than one turn of the fastest pair; no scaling is"
      " known for models of less than 7 positions"
    )
  return 2 * min(math.ceil(head_width / 2 * math.log(turns, base)), head_width // 2)
