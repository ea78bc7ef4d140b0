"""What training moves on the devices, and where its random keys come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_text.core.prng import stream
from diffusion_text.core.trees import merge
from diffusion_text.types import Array, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that an update changes. It holds no random key: keys come from `named_key`.

  Attributes:
    step: int32 scalar, the updates done so far.
    params: nested dict of arrays, the parameters that move.
    ema: like params, or None when no average is kept.
    opt_state: whatever the optimizer keeps.
    frozen: nested dict of arrays, the parameters that do not move (a teacher, the trunk under an adapter); saved and sharded
      like the others. A group may be split between params and frozen, leaf by leaf.
  """

  step: Array
  params: Params
  ema: Params | None
  opt_state: Any
  frozen: Params = dataclasses.field(default_factory=dict)

  @property
  def eval_params(self) -> Params:
    """The parameters to evaluate and sample with, as one tree: the average if there is one, and what is frozen."""
    return merge(self.params if self.ema is None else self.ema, self.frozen)


def create_state(
  init: Callable[[], tuple[Params, Params]],
  optimizer: optax.GradientTransformation,
  *,
  ema: bool = True,
) -> TrainState:
  """The state at step 0. Pure, so that `jax.eval_shape` gives its shapes and `jax.jit(…, out_shardings=…)` builds it sharded.

  Args:
    init: () -> (params, frozen), see `core.trees.split`.
    optimizer: anything with `init(params)`; see `optimizer.make_optimizer`.
    ema: keep an average of the parameters, which starts at the parameters.
  """
  params, frozen = init()
  # A copy: the train step donates its state, and one buffer cannot be donated twice.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), frozen)


def named_key(seed: int, name: str, step: Array | int) -> Key:
  """The key of stream `name` at `step`: the same on every host, after every restart, in every process order.

  Args:
    seed: of the run, 0 <= seed < 2**32.
    name: of the stream, such as "loss"; streams of different names are independent.
    step: int32 scalar, may be traced.
  """
  return jax.random.fold_in(stream(jax.random.key(seed), name), step)
