"""The time of a mixture of experts in which a token passes its own experts only, beside the time of
every expert on every token, in one process. Companion of `experiments.benchmark --what=experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.kernels.grouped import tile_rows, tiles_of
from diffusion_text.model.experts import own_experts
from diffusion_text.studies.benchmark import hardware
from diffusion_text.studies.speed import compile_for, interleaved


def every_expert(
  x: Float[Array, "T D"],
  share: Float[Array, "T k"],
  expert: Int[Array, "T k"],
  up: Float[Array, "N D F"],
  gate: Float[Array, "N D F"],
  down: Float[Array, "N F D"],
) -> Float[Array, "T D"]:
  """The result of `own_experts`, from every expert on every token: N / k times the work."""

  def one(total, each):
    number, up, gate, down = each
    mine = jnp.sum(jnp.where(expert == number, share, 0), axis=1)[:, None]
    return total + mine * ((jax.nn.silu(x @ gate) * (x @ up)) @ down), None

  # Hidden layers are computed again in the backward pass: kept, those of all experts together would
  # take N / k times the memory of the hidden layers of `own_experts`.
  weights = (jnp.arange(up.shape[0]), up, gate, down)
  return jax.lax.scan(jax.checkpoint(one), jnp.zeros_like(x), weights)[0]


def measure_config(config: Any, rounds: int) -> Iterator[dict[str, Any]]:
  """The dicts of `measure_experts` for the sizes of a config and the tokens of a batch of training.

  Raises:
    ValueError: For a config without experts.
  """
  experts = config.model.get("experts")
  if not experts:
    raise ValueError(
      "--what=experts needs a config with model.experts, which this one lacks; use"
      " --config=configs/llada_moe.py:tiny"
    )
  tokens = config.train.batch_size * config.data.length
  sizes = (config.model.width, config.model.expert_width, experts)
  return measure_experts(tokens, *sizes, rounds)


def measure_experts(
  tokens: int, width: int, hidden: int, experts: int, rounds: int
) -> Iterator[dict[str, Any]]:
  """One dict per number of experts that a token passes: milliseconds of forward and backward, and
  the rows of each product, beside those of every expert on every token.

  Args:
    tokens: Tokens of the batch.
    width: The width of the network.
    hidden: The hidden width of an expert.
    experts: The number of experts; each token passes 1, 2, 4 … of them.
    rounds: Timed rounds.
  """
  random = np.random.default_rng(0)

  def draw(*shape, std=1.0):
    return (std * random.normal(size=shape)).astype(np.float32)

  x = draw(tokens, width)
  up, gate = (draw(experts, width, hidden, std=width**-0.5) for _ in range(2))
  down = draw(experts, hidden, width, std=hidden**-0.5)
  best = np.argsort(draw(tokens, experts), axis=1).astype(np.int32)
  ways = {"own": own_experts, "every": every_expert}
  per_token = 1
  while per_token <= experts:
    chosen = best[:, :per_token]
    share = np.full(chosen.shape, 1 / per_token, np.float32)
    args = jax.device_put((x, share, chosen, up, gate, down))
    calls = {name: _call(way, args) for name, way in ways.items()}
    seconds = interleaved(calls, rounds)
    sizes = np.bincount(chosen.reshape(-1), minlength=experts).astype(np.int32)
    rows = int(tiles_of(sizes, chosen.size)) * tile_rows(chosen.size, experts)
    yield {
      "what": "experts",
      **{"tokens": tokens, "width": width, "hidden": hidden, "experts": experts},
      "per_token": per_token,
      "forward_backward_ms": round(1e3 * seconds["own"], 2),
      "time_of_every_expert": round(seconds["every"] / seconds["own"], 2),
      "rows_per_choice": round(rows / chosen.size, 3),  # of each product; 1 without half-full tiles
      "work_of_every_expert": round(tokens * experts / rows, 2),
      **hardware(),
    }
    per_token *= 2


def _call(way: Callable[..., Array], args: Sequence[Array]) -> Callable[[], Any]:
  """A call without arguments of the compiled gradient of `way` in all arguments but the choice of
  experts.
  """

  def loss(*args):
    return jnp.sum(way(*args) ** 2)

  run = compile_for(jax.grad(loss, (0, 1, 3, 4, 5)), *args).call
  return lambda: run(*args)
