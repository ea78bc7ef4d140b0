"""What the network is told in training besides the noisy tokens: its own first answer, and the given tokens. Each by a coin per row.

Self-conditioning (Analog Bits, arXiv 2208.04202). The network is read twice at the same state and time: without an answer, then, in rows
whose coin says so, told the estimate that follows from the first answer, which is held constant (no gradient reaches the first reading,
in either its own parameters or the process's; the map by which the second reads it, `Prediction.recall`, is trained). A step costs one
forward pass more, whatever the probability: 4/3 of the time.

*Scoring.* The bound holds for whatever is computed from z_t and t. Reading twice is such a function, so the bound with probability 1
is the bound of the model whose every step reads twice at its own state; with probability 0, of the one that is never told. A coin that does
not look at the text gives a mean of the two. None is the likelihood of a sampler that hands on the answer of its *previous* step, as
`sampler.loop` does at half of the cost: that answer is a function of the states before z_t, which one draw of (t, z_t) does not hold.

Dropping (classifier-free guidance, arXiv 2207.12598). In rows whose coin says so all given tokens are hidden: the network sees the prior at
t = 1 in their place, as the sampler's unconditional reading does (`sampler.asking`). They are scored in neither case.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.types import (
  Array,
  Batch,
  Inputs,
  Key,
  Layout,
  Params,
  Predict,
  Prediction,
  Process,
  Progress,
  State,
  Time,
  Timing,
)


def row_coins(key: Key, rows: int, progress: Progress, probability: float) -> Array:
  """bool [rows]: a coin per example, from its number in the step's global batch; whatever the devices and microbatches."""
  number = jnp.asarray(progress.part) * rows + jnp.arange(rows)
  return jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), probability))(
    number
  )


@dataclasses.dataclass(frozen=True)
class TwoReadings:
  """A `Predict` which `objective.bound.read` calls twice, the second time with what `told` makes of the first answer.

  coins: bool [B], the rows that are told. chunk, shards: positions whose logits exist at a time, devices (`Chunks`).
  """

  predict: Predict
  coins: Array
  chunk: int
  shards: int

  def __call__(self, inputs: Inputs, t: Time, layout: Layout) -> Prediction:
    return self.predict(inputs, t, layout)

  def told(
    self, process: Process, params: Params, state: State, t: Time, answer: Prediction
  ) -> tuple[Array, Array]:
    """(recalled [B, L, D], recalls bool [B, L]), of `Inputs`; nothing is told of tokens that the process does not score."""
    shape = answer.features.shape[:2]
    t = jnp.broadcast_to(t, shape)
    recalls = process.scored(params, state, t) & self.coins[:, None]

    def one(rows):
      features, state, t = rows
      estimate = process.estimate(params, state, t, answer.unembed(features))
      return answer.recall(jax.lax.stop_gradient(estimate))

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (answer.features, state, t))
    recalled = map_rows(
      one, recalls.reshape(-1), jax.lax.stop_gradient(flat), chunk=self.chunk, shards=self.shards
    )
    return recalled.reshape(*shape, -1), recalls


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """Probabilities, per row, that the network is told its own first answer, and that the given tokens are hidden from it.

  Raises ValueError for values out of range, and for timings whose rows hold clean tokens that would have to be hidden twice, or none
  that are noisy.
  """

  timing: Timing
  self_conditioning: float = 0.0
  drop_given: float = 0.0
  chunk: int = 256
  shards: int = 1

  def __post_init__(self):
    for name in ("self_conditioning", "drop_given"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"objective.{name}={getattr(self, name)} is a probability, in [0, 1]; 0.5 and 0.1 are usual"
        )
    if self.self_conditioning and self.timing.shifted:
      raise ValueError(
        f"objective.self_conditioning={self.self_conditioning} with {self.timing}: a network that reads clean tokens alone gives no answer"
        " on noisy ones to be told of; use another timing"
      )
    if self.drop_given and self.timing.sampled_in_blocks is not None:
      raise ValueError(
        f"objective.drop_given={self.drop_given} with {self.timing}: given tokens would still be read in the clean copy beside the noisy"
        " blocks; use timing.name='shared'"
      )

  def predict(self, predict: Predict, key: Key, batch: Batch, progress: Progress) -> Predict:
    """The network as the objective is to read it."""
    if not self.self_conditioning:
      return predict
    coins = row_coins(
      jax.random.fold_in(key, 4), batch.ids.shape[0], progress, self.self_conditioning
    )
    return TwoReadings(predict, coins, self.chunk, self.shards)

  def batch(self, key: Key, batch: Batch, progress: Progress) -> Batch:
    """The batch, with the given tokens of some rows hidden. Raises ValueError, when traced, where none are given."""
    if not self.drop_given:
      return batch
    if batch.given is None:
      raise ValueError(
        f"objective.drop_given={self.drop_given} hides given tokens, and these rows have none; leave it unset"
      )
    coins = row_coins(jax.random.fold_in(key, 5), batch.ids.shape[0], progress, self.drop_given)
    return dataclasses.replace(batch, hidden=batch.given & coins[:, None])


def conditionings(
  options: dict[str, Any], mode: str, scored: float | None, timing: Timing, chunks: Any
) -> tuple[Conditioning, Conditioning]:
  """What the network is told in training, and where it is scored. options: of `config.objective`, out of which its keys are taken;
  mode: the network's `self_conditioning`; scored: `config.evaluate.self_conditioning`; chunks: `bound.Chunks`.

  Raises ValueError for a probability that the network has no use for, and for one that it misses.
  """
  probability, drop = options.pop("self_conditioning", None), options.pop("drop_given", None)
  if (mode == "none") != (probability is None) or (mode == "none" and scored is not None):
    raise ValueError(
      f"model.self_conditioning={mode!r} with objective.self_conditioning={probability} and evaluate.self_conditioning={scored}: a"
      " network that reads its own answer needs the second, another takes neither; 'add' with 0.5 is usual"
    )
  sizes = {"timing": timing, "chunk": chunks.size, "shards": chunks.shards}
  always = 0.0 if probability is None else 1.0
  return (
    Conditioning(self_conditioning=probability or 0.0, drop_given=drop or 0.0, **sizes),
    Conditioning(self_conditioning=always if scored is None else scored, **sizes),
  )
