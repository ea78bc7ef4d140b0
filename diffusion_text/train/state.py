"""What training moves on the devices, and where its random keys come from."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_text.types import Array, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that an update changes. It holds no random key: keys come from `named_key`.

  step: int32 scalar, the updates done so far. params: nested dict of arrays. ema: like params, or None when no average is
  kept. opt_state: whatever the optimizer keeps.
  """

  step: Array
  params: Params
  ema: Params | None
  opt_state: Any

  @property
  def eval_params(self) -> Params:
    """The parameters to evaluate and sample with: the average if there is one."""
    return self.params if self.ema is None else self.ema


def create_state(
  init_params: Callable[[], Params], optimizer: optax.GradientTransformation, *, ema: bool = True
) -> TrainState:
  """The state at step 0. Pure, so that `jax.eval_shape` gives its shapes and `jax.jit(…, out_shardings=…)` builds it sharded.

  Args:
    init_params: () -> params.
    optimizer: anything with `init(params)`; see `optimizer.make_optimizer`.
    ema: keep an average of the parameters, which starts at the parameters.
  """
  params = init_params()
  # A copy: the train step donates its state, and one buffer cannot be donated twice.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(
    step=jnp.zeros((), jnp.int32), params=params, ema=average, opt_state=optimizer.init(params)
  )


def named_key(seed: int, name: str, step: Array | int) -> Key:
  """The key of stream `name` at `step`: the same on every host, after every restart, in every process order.

  Args:
    seed: of the run, 0 <= seed < 2**32.
    name: of the stream, such as "loss"; streams of different names are independent.
    step: int32 scalar, may be traced.
  """
  # crc32 because Python's own `hash` of a string differs from one process to the next.
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step
  )
