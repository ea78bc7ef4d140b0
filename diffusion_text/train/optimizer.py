"""AdamW with a learning-rate schedule, built from explicit keywords. Optax does the mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from diffusion_text.train.sharding import path_names
from diffusion_text.types import Array, Params

Path = tuple[str, ...]  # names of the nested dicts, e.g. ("layers", "mlp", "kernel")


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` with its learning rate and its gradient norm.

  Attributes:
    init: As in optax.
    update: As in optax.
    learning_rate: int32 step -> float32, the rate of the update from `step` to `step + 1`.
    norm: gradient -> float32, the global norm, before clipping, of the gradients that are clipped.
  """

  init: Callable
  update: Callable
  learning_rate: Callable[[Array | int], Array]
  norm: Callable[[Params], Array] = optax.tree.norm


def is_kernel(path: Path) -> bool:
  """True if a parameter decays by default: matrices, but not norm scales, biases and embeddings.

  The name decides and not the rank: layers are stacked for `lax.scan`, so the scale of a norm is
  also a matrix [layers, D].
  """
  return path[-1] == "kernel"


def by_path(test: Callable[[Path], bool]) -> Callable[[Params], Params]:
  """A function from parameters to a tree of bools, `test` of the path of each parameter."""
  return lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: test(path_names(path)), params
  )


SCHEDULES = ("constant", "cosine", "wsd")


def make_schedule(
  *,
  learning_rate: float,
  steps: int,
  schedule: str = "cosine",
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  final_fraction: float = 0.1,
) -> optax.Schedule:
  """The learning rate as a function of the step: linear warm-up from 0, then `schedule`.

  Args:
    learning_rate: The peak, reached at `warmup_steps`.
    steps: Number of updates of the whole run. Afterwards the rate is constant.
    schedule: "constant"; "cosine" (to `final_fraction` of the peak at `steps`); or "wsd", which is
      warm-up, stable, then a linear decay over the last `decay_steps` (arXiv:2404.06395). The
      stable part of "wsd" can be continued without knowing the end.
    warmup_steps: 0 means that the first update already has the full rate.
    decay_steps: For "wsd" only. None means the last tenth of the run.
    final_fraction: The rate at the end, as a fraction of the peak. Unused by "constant".

  Raises:
    ValueError: For an unknown schedule or values that do not fit each other.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"schedule={schedule!r} is unknown; use one of {SCHEDULES}")
  if not learning_rate > 0:
    raise ValueError(f"learning_rate={learning_rate} must be above 0, e.g. 3e-4")
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1")
  if not 0 <= warmup_steps <= steps:
    raise ValueError(
      f"warmup_steps={warmup_steps} must lie between 0 and steps={steps}; use e.g. "
      f"{max(steps // 20, 1)}"
    )
  if not 0 <= final_fraction <= 1:
    raise ValueError(
      f"final_fraction={final_fraction} is a fraction of the peak: it must lie between 0 and 1"
    )
  if decay_steps is not None and schedule != "wsd":
    raise ValueError(
      f"decay_steps={decay_steps} is read by schedule='wsd' only, not by {schedule!r}; "
      "leave it None"
    )
  decay = max(steps // 10, 1) if decay_steps is None else decay_steps
  if schedule == "wsd" and not (decay >= 1 and warmup_steps + decay <= steps):
    raise ValueError(
      f"decay_steps={decay} must be at least 1 and fit after warmup_steps={warmup_steps} in "
      f"steps={steps}"
    )
  flat = optax.constant_schedule(learning_rate)
  after = {
    "constant": flat,
    "cosine": optax.cosine_decay_schedule(
      learning_rate, max(steps - warmup_steps, 1), alpha=final_fraction
    ),
    "wsd": optax.join_schedules(
      [flat, optax.linear_schedule(learning_rate, learning_rate * final_fraction, decay)],
      [steps - decay - warmup_steps],
    ),
  }[schedule]
  # Without warmup_steps this schedule is never used.
  warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
  return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
  *,
  learning_rate: float,
  steps: int,
  schedule: str = "cosine",
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  final_fraction: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  clip_norm: float | None = 1.0,
  decays: Callable[[Path], bool] = is_kernel,
  clips: Callable[[Path], bool] = lambda path: True,
) -> Optimizer:
  """AdamW (arXiv:1711.05101) after clipping of the global gradient norm.

  Args:
    learning_rate, steps, schedule, warmup_steps, decay_steps, final_fraction: See `make_schedule`.
    b1, b2, eps: Constants of Adam. b2 = 0.95 is the usual choice for transformers on text, and
      0.999 for small batches.
    weight_decay: Each update multiplies decaying parameters by 1 - rate · weight_decay.
    clip_norm: Gradients of a larger global norm are scaled down to this norm. None: no clipping.
    decays: Path of a parameter -> True if the parameter decays; see `is_kernel` for the default and
      its reason.
    clips: Path of a parameter -> True if its gradient counts in the global norm and is scaled down.

  Raises:
    ValueError: For values outside their range.
  """
  rate = make_schedule(
    learning_rate=learning_rate,
    steps=steps,
    schedule=schedule,
    warmup_steps=warmup_steps,
    decay_steps=decay_steps,
    final_fraction=final_fraction,
  )
  for name, value in (("b1", b1), ("b2", b2)):
    if not 0 <= value < 1:
      raise ValueError(f"{name}={value} must lie in [0, 1), e.g. b1=0.9, b2=0.95")
  if not eps > 0:
    raise ValueError(f"eps={eps} must be above 0, e.g. 1e-8")
  if weight_decay < 0:
    raise ValueError(f"weight_decay={weight_decay} must not be negative; 0 turns it off")
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(f"clip_norm={clip_norm} must be above 0; None turns it off")

  chain = optax.chain(
    optax.identity()
    if clip_norm is None
    else optax.masked(optax.clip_by_global_norm(clip_norm), by_path(clips)),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay, by_path(decays)),
    optax.scale_by_learning_rate(rate),
  )
  chosen = by_path(clips)

  def norm(gradient):
    kept = jax.tree.map(lambda leaf, counts: leaf if counts else None, gradient, chosen(gradient))
    return optax.tree.norm(kept)

  return Optimizer(chain.init, chain.update, rate, norm)
