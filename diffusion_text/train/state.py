"""The train state on the devices, and the random keys of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Int

from diffusion_text.core.prng import make_key, stream
from diffusion_text.core.trees import merge
from diffusion_text.types import Array, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that training keeps on the devices. Random keys come from `named_key` instead.

  Attributes:
    step: int32 scalar, the number of updates done.
    params: Nested dict of arrays, the parameters that are trained.
    ema: The average of the parameters, a tree like params, or None if no average is kept.
    opt_state: The state of the optimizer.
    frozen: Nested dict of arrays, the parameters that are not trained (a teacher, the trunk under
      an adapter), saved and sharded like the others. A group may be split between params and
      frozen, leaf by leaf.
  """

  step: Array
  params: Params
  ema: Params | None
  opt_state: Any
  frozen: Params = dataclasses.field(default_factory=dict)

  @property
  def eval_params(self) -> Params:
    """The parameters for evaluation and sampling, as one tree.

    These are the average if there is one, otherwise the trained parameters, and the frozen ones.
    """
    return merge(self.params if self.ema is None else self.ema, self.frozen)


def create_state(
  init: Callable[[], tuple[Params, Params]],
  optimizer: optax.GradientTransformation,
  *,
  ema: bool = True,
) -> TrainState:
  """The state at step 0.

  The function is pure: `jax.eval_shape` gives the shapes of the state and
  `jax.jit(…, out_shardings=…)` builds it sharded.

  Args:
    init: () -> (params, frozen), see `core.trees.split`.
    optimizer: Any object with `init(params)`; see `optimizer.make_optimizer`.
    ema: True to keep an average of the parameters, which starts at the parameters.
  """
  params, frozen = init()
  # A copy: the train step donates its state, and one buffer cannot be donated twice.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), frozen)


def named_key(seed: int, name: str, step: Int[Array, ""] | int) -> Key:
  """The key of stream `name` at `step`, equal on every host and after every restart.

  Args:
    seed: The seed of the run, 0 <= seed < 2**32.
    name: The name of the stream, such as "loss". Streams of different names are independent.
    step: int32 scalar, may be traced.
  """
  return jax.random.fold_in(stream(make_key(seed), name), step)
