"""What a self-conditioned network remembers of its last prediction: one function for training and
for sampling.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import flatten_tokens, unflatten_tokens
from diffusion_text.types import Model, Params, Prediction, State


def remembered(
  model: Model,
  params: Params,
  prediction: Prediction,
  state: State,
  t: Float[Array, "B N"],
  where: Bool[Array, "B N"],
  *,
  shards: int = 1,
) -> Float[Array, "B N D"]:
  """The memory of each token: of the estimate that `prediction` gives of it, and `no_memory` where
  `where` does not hold.

  Estimates exist for a chunk of positions at a time. Gradients reach the network's map from
  estimates to memories, and the prediction, unless that is stopped.

  Args:
    model: says how many estimates exist at a time.
    params: the whole tree.
    prediction: of the N positions.
    state: what was read, [B, N, …].
    t: the times that were read.
    where: tokens of which there is an estimate.
    shards: as in `core.chunked.map_rows`.
  """

  def one(consts, rows):
    head, of_network, of_process = consts
    features, state, t = rows
    estimate = jax.lax.stop_gradient(model.process.estimate(of_process, state, t, head(features)))
    return model.network.remember(of_network, estimate)

  consts = (prediction.head, params["network"], params["process"])
  rows = flatten_tokens((prediction.features, state, t))
  flat = map_rows(one, consts, where.reshape(-1), rows, chunk=model.chunk, shards=shards)
  empty = model.network.no_memory(params["network"]).astype(flat.dtype)
  return jnp.where(where[..., None], unflatten_tokens(flat, where.shape), empty)
