"""Optimizers by name with a learning-rate schedule, built from explicit keywords. Optax does the
mathematics.

  adamw          AdamW (arXiv:1711.05101)
  lion           Lion (arXiv:2302.06675), which moves by signs; a third to a tenth of AdamW's rate
  muon           matrices of the layers: momentum, orthogonalised by Newton-Schulz, times
                 sqrt(max(1, outputs / inputs)) (Jordan et al. 2024, optax.contrib.scale_by_muon);
                 all other parameters: AdamW
  schedule_free  AdamW without a schedule (arXiv:2405.15682): the gradient is taken between two
                 sequences of parameters, of which the averaged one is evaluated

A table of rates by width (arXiv:2203.03466, table 3, for Adam), with m = width / base_width:

  parameter                          optimizer        learning rate    weight decay
  matrices of the layers, head       adamw, lion …    × 1 / m          × m
  matrices of the layers             muon             × 1              × 1
  tables, biases, norm scales        all              × 1              × 1

An update of size `rate` in every entry of a matrix moves a sum over D inputs by rate · D, so the
rate falls as 1 / D; an orthogonalised update moves it by the same amount at every width. The
product of rate and decay stays, so that what is forgotten per update does not depend on the width.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_text.train.sharding import path_names
from diffusion_text.types import Array, Params

Path = tuple[str, ...]  # names of the nested dicts, e.g. ("layers", "mlp", "kernel")
Shape = tuple[int, ...]
# (path, shape) -> (axes that are summed over, axes of the result) of a matrix of the layers, or
# None; all other axes count matrices.
Matrices = Callable[[Path, Shape], tuple[Shape, Shape] | None]
# (path, shape) -> the width of the network, if the sums of this linear map grow with it, or None.
Widths = Callable[[Path, Shape], int | None]


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` with its learning rate, gradient norm and evaluation weights.

  Attributes:
    init: As in optax.
    update: As in optax.
    learning_rate: int32 step -> float32, the rate of the update from `step` to `step + 1`.
    norm: gradient -> float32, the global norm, before clipping, of the gradients that are clipped.
    evaluated: (state of the optimizer, parameters) -> the parameters for evaluation, of an
      optimizer that averages them itself. None: the trainer keeps an average, or none.
  """

  init: Callable
  update: Callable
  learning_rate: Callable[[Array | int], Array]
  norm: Callable[[Params], Array] = optax.tree.norm
  evaluated: Callable[[Any, Params], Params] | None = None


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


OPTIMIZERS = ("adamw", "lion", "muon", "schedule_free")
SCHEDULES = ("constant", "cosine", "wsd")


def check_known(key: str, value: str, known: tuple[str, ...]) -> None:
  """Raises ValueError, with the nearest, for a name that is unknown."""
  if value not in known:
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{key}={value!r} is unknown{hint}; use one of {', '.join(known)}")


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
  check_known("schedule", schedule, SCHEDULES)
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
  name: str = "adamw",
  schedule: str | None = None,
  warmup_steps: int = 0,
  decay_steps: int | None = None,
  final_fraction: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  clip_norm: float | None = 1.0,
  matrix_learning_rate: float = 0.02,
  momentum: float = 0.95,
  base_width: int | None = None,
  decays: Callable[[Path], bool] = is_kernel,
  clips: Callable[[Path], bool] = lambda path: True,
  matrices: Matrices | None = None,
  widths: Widths | None = None,
) -> Optimizer:
  """An optimizer by name, after clipping of the global gradient norm.

  Args:
    learning_rate, steps, warmup_steps, decay_steps, final_fraction: See `make_schedule`.
    name: One of OPTIMIZERS.
    schedule: See `make_schedule`. None: "constant" for "schedule_free", which takes no other, and
      otherwise "cosine".
    b1, b2, eps: Constants of Adam. b2 = 0.95 is the usual choice for transformers on text, and
      0.999 for small batches. "lion" reads b1 and b2; for "schedule_free", b1 says how near the
      averaged parameters the gradient is taken.
    weight_decay: Each update multiplies decaying parameters by 1 - rate · weight_decay.
    clip_norm: Gradients of a larger global norm are scaled down to this norm. None: no clipping.
    matrix_learning_rate, momentum: For "muon": the peak of the rate of the matrices, whose schedule
      is that of the others, and their momentum (Nesterov's).
    base_width: The width of the network for which the rates were chosen; see the table above. None:
      the same rates at every width.
    decays: Path of a parameter -> True if the parameter decays; see `is_kernel` for the default and
      its reason.
    clips: Path of a parameter -> True if its gradient counts in the global norm and is scaled down.
    matrices: For "muon".
    widths: For base_width.

  Raises:
    ValueError: For an unknown name, and for values outside their range or without use.
  """
  check_known("name", name, OPTIMIZERS)
  constants = {"b1": b1, "b2": b2, "momentum": momentum}
  _check(constants, eps, weight_decay, clip_norm, matrix_learning_rate)
  _check_parts(name, schedule, b1, base_width, matrices, widths)
  plan = {
    "steps": steps,
    "schedule": schedule or ("constant" if name == "schedule_free" else "cosine"),
    "warmup_steps": warmup_steps,
    "decay_steps": decay_steps,
    "final_fraction": final_fraction,
  }
  rate = make_schedule(learning_rate=learning_rate, **plan)
  decay = optax.add_decayed_weights(weight_decay, by_path(decays))
  clip = (
    optax.identity()
    if clip_norm is None
    else optax.masked(optax.clip_by_global_norm(clip_norm), by_path(clips))
  )
  scaled = () if base_width is None else (_scale_by_width(base_width, widths),)
  directions = {
    "lion": optax.scale_by_lion(b1=b1, b2=b2),
    # Adam without momentum, which the interpolation takes the place of.
    "schedule_free": optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True),
  }
  direction = directions.get(name, optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
  parts = (direction, *scaled, decay, optax.scale_by_learning_rate(rate))
  evaluated = None
  if name == "muon":
    matrix_rate = make_schedule(learning_rate=matrix_learning_rate, **plan)
    chain = optax.chain(clip, _with_muon(parts, matrices, momentum, decay, matrix_rate))
  elif name == "schedule_free":
    chain = _schedule_free(optax.chain(clip, *parts), rate, b1)
    evaluated = optax.contrib.schedule_free_eval_params
  else:
    chain = optax.chain(clip, *parts)
  chosen = by_path(clips)

  def norm(gradient):
    kept = jax.tree.map(lambda leaf, counts: leaf if counts else None, gradient, chosen(gradient))
    return optax.tree.norm(kept)

  return Optimizer(chain.init, chain.update, rate, norm, evaluated)


def _check(
  constants: dict[str, float],
  eps: float,
  weight_decay: float,
  clip_norm: float | None,
  matrix_learning_rate: float,
) -> None:
  """Raises ValueError for a number outside its range."""
  for name, value in constants.items():
    if not 0 <= value < 1:
      raise ValueError(f"{name}={value} must lie in [0, 1), e.g. b1=0.9, b2=0.95, momentum=0.95")
  if not eps > 0:
    raise ValueError(f"eps={eps} must be above 0, e.g. 1e-8")
  if weight_decay < 0:
    raise ValueError(f"weight_decay={weight_decay} must not be negative; 0 turns it off")
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(f"clip_norm={clip_norm} must be above 0; None turns it off")
  if not matrix_learning_rate > 0:
    raise ValueError(f"matrix_learning_rate={matrix_learning_rate} must be above 0, e.g. 0.02")


def _check_parts(
  name: str,
  schedule: str | None,
  b1: float,
  base_width: int | None,
  matrices: Matrices | None,
  widths: Widths | None,
) -> None:
  """Raises ValueError for choices that do not fit each other."""
  if name == "schedule_free" and schedule not in (None, "constant"):
    raise ValueError(
      f"schedule={schedule!r} with name='schedule_free', whose average takes the place of a"
      " falling rate; use schedule='constant', or leave it unset"
    )
  if name == "schedule_free" and b1 == 0:
    raise ValueError("b1=0.0 with name='schedule_free' must be above 0, e.g. 0.9")
  if name == "muon" and matrices is None:
    raise ValueError("name='muon' needs matrices=, which says which parameters are matrices")
  if base_width is not None and (base_width < 1 or widths is None):
    raise ValueError(
      f"base_width={base_width} must be at least 1 and needs widths=, which says whose sums grow"
      " with the width; None keeps the rates"
    )


def _shape_map(rule: Callable[[Path, Shape], Any], tree: Params) -> Any:
  """`rule` of the path and shape of each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: rule(path_names(path), tuple(leaf.shape)), tree
  )


def _scale_by_width(base_width: int, widths: Widths) -> optax.GradientTransformation:
  """Updates times base_width / width, where `widths` gives a width.

  The decay that is added afterwards is not divided, which is the table's weight decay × m.
  """

  def factor(path, shape):
    width = widths(path, shape)
    return 1.0 if width is None else base_width / width

  return optax.stateless(
    lambda updates, params: jax.tree.map(
      lambda leaf, by: leaf * by, updates, _shape_map(factor, updates)
    )
  )


def _with_muon(
  parts: tuple[optax.GradientTransformation, ...],
  matrices: Matrices,
  momentum: float,
  decay: optax.GradientTransformation,
  rate: optax.Schedule,
) -> optax.GradientTransformation:
  """Muon for what `matrices` names, and the chain of `parts` for all else."""

  def numbers(path, shape):
    return optax.contrib.MuonDimensionNumbers(*matrices(path, shape))

  def grown(path, shape):
    inputs, outputs = (math.prod(shape[axis] for axis in side) for side in matrices(path, shape))
    return math.sqrt(max(1.0, outputs / inputs))

  def label(path, shape):
    return "other" if matrices(path, shape) is None else "matrix"

  shaped = optax.stateless(
    lambda updates, params: jax.tree.map(
      lambda leaf, by: leaf * by, updates, _shape_map(grown, updates)
    )
  )
  muon = optax.contrib.scale_by_muon(
    beta=momentum, weight_dimension_numbers=lambda updates: _shape_map(numbers, updates)
  )
  chains = {
    "matrix": optax.chain(muon, shaped, decay, optax.scale_by_learning_rate(rate)),
    "other": optax.chain(*parts),
  }
  return optax.partition(chains, lambda params: _shape_map(label, params))


def _schedule_free(
  base: optax.GradientTransformation, rate: optax.Schedule, b1: float
) -> optax.GradientTransformation:
  """`optax.contrib.schedule_free`, whose second sequence begins at the parameters of the first
  update.

  Parameters may be replaced after `init` (by those of another run), and optax would go on from
  those of `init`.
  """
  free = optax.contrib.schedule_free(base, learning_rate=rate, b1=b1)

  def update(updates, state, params):
    fresh = state.step_count == 1
    z = jax.tree.map(lambda held, now: jnp.where(fresh, now, held), state.z, params)
    return free.update(updates, state._replace(z=z), params)

  return optax.GradientTransformation(free.init, update)
