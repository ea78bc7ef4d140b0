"""Rotary positions in rows longer than those of training.

A pair i of the d/2 pairs of a head turns by base^(-2i/d) per position. A pair that makes less than
one turn within the trained length T has not shown all of its angles, so it is slowed:
`model.rope_kind`, as published checkpoints have it (and config.json of the library transformers,
whose formulas these are: read for the formulas, the last two recalled from their papers too).

  linear    every pair by the factor: positions are divided by it (arXiv 2306.15595)
  dynamic   the base grows with the row: for L > T positions it is times
            (factor · L / T - (factor - 1))^(d / (d - 2)) ("dynamic NTK"). L is one more than the
            largest position of the row in the call, so a longer row is another model
  llama3    pairs below `rope_slow_turns` turns in T by the factor, those above `rope_fast_turns`
            not at all, and between the rate is mixed in proportion to the turns (arXiv 2407.21783)
  yarn      the same two bounds, with the mixture in proportion to the number of the pair, and
            cosines and sines times `rope_gain`, 0.1 log(factor) + 1 (arXiv 2309.00071)

With kept = 1 for a pair that is not slowed and 0 for one that is in full:

  rate = base^(-2i/d) · (kept + (1 - kept) / factor)

Another way is a larger base (LongLLaDA, arXiv 2506.14429, recalled; NTK-aware scaling): such that
the slowest pair that made a turn in training makes one turn within the new length L:

  d_ext = 2 · ceil(d / 2 · log_base(T / 2π))     numbers of a head that have seen all their angles
  λ     = (L / 2π)^(d / d_ext) / base

Nothing is trained, and parameters depend on none of this: `model.rope_scaling` (λ) and the options
of `model.rope_kind` may be set when a trained model is sampled or scored.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.model.options import TransformerOptions


def rotary_rates(
  options: TransformerOptions, position: Int[Array, "B L"]
) -> Float[Array, "#B 1 1 K2"]:
  """How far each pair turns per position, in radians, float32; per row only if
  `rope_kind` is "dynamic".

  Args:
    options: of the transformer.
    position: of the tokens of the call.
  """
  width = options.sizes.head_width
  base = options.rope_base * options.rope_scaling
  pairs = np.arange(width // 2)
  kept = _kept(options, base)
  plain = base ** (-2.0 * pairs / width) * (kept + (1 - kept) / options.rope_factor)
  result = jnp.asarray(plain, jnp.float32)[None, None, None]
  if options.rope_kind != "dynamic":
    return result
  factor = options.rope_factor
  longer = (1 + jnp.max(position, axis=1)) / options.rope_trained_length
  grown = jnp.maximum(factor * longer - (factor - 1), 1.0)[:, None, None, None]
  # (base · grown^(d / (d - 2)))^(-2i / d) over base^(-2i / d).
  return result * grown ** jnp.asarray(-2.0 * pairs / (width - 2), jnp.float32)


def _kept(options: TransformerOptions, base: float) -> np.ndarray:
  """float64 [K2], 1 for pairs that are not slowed, 0 for those that are slowed in full."""
  width, kind = options.sizes.head_width, options.rope_kind
  pairs = np.arange(width // 2)
  if kind == "llama3":
    turns = options.rope_trained_length / (2 * math.pi) * base ** (-2.0 * pairs / width)
    slow, fast = options.rope_slow_turns, options.rope_fast_turns
    return np.clip((turns - slow) / (fast - slow), 0.0, 1.0)
  if kind == "yarn":
    first, last = (
      pair_that_turns(turns, base, options.rope_trained_length, width)
      for turns in (options.rope_fast_turns, options.rope_slow_turns)
    )
    if options.rope_whole_pairs:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last  # as published: no division by 0
    return 1 - np.clip((pairs - first) / (last - first), 0.0, 1.0)
  return np.zeros(len(pairs)) if kind == "linear" else np.ones(len(pairs))


def pair_that_turns(turns: float, base: float, trained_length: int, head_width: int) -> float:
  """The number of the pair, mostly between two pairs, that makes so many turns in the trained
  length. Later pairs make fewer. `turns` is positive."""
  return head_width / 2 * math.log(trained_length / (2 * math.pi * turns), base)


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
  if trained_length / (2 * math.pi) <= 1:
    raise ValueError(
      f"trained_length={trained_length} is less than one turn of the fastest pair; no scaling is"
      " known for models of less than 7 positions"
    )
  pair = pair_that_turns(1.0, base, trained_length, head_width)
  return 2 * min(math.ceil(pair), head_width // 2)
