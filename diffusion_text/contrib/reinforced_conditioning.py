"""Reinforced conditioning (TREC, arXiv 2402.14843): the network is rewarded for what being told its
own last answer is good for.

Self-conditioning degrades as training goes on: the first answer gets good, the second copies it,
and what it adds vanishes. So beside the losses of embedding diffusion the second reading, which is
told the first one's answer, is a policy. Of each row

  ŵ ~ Π_i p(w_i | z_t, told),  ŵ' ~ Π_i p(w_i | z_t)      draws of the second and of the first
  reading, independent of each other A = R(ŵ) - R(ŵ'), cut to ± advantage_clip                  R:
  how well the n tokens of a row agree with the text, in [0, 1] gradient of  - reward_weight · n · A
  · Σ_i log p(ŵ_i | z_t, told)

which is that of - reward_weight · n · E[R(ŵ)] without bias where nothing is cut and weights are 0
or 1: ŵ' knows nothing of ŵ, so R(ŵ') is a baseline (REINFORCE, Williams 1992), and rows whose
second answer is no better than the first are pushed away from it. Per token that is reward_weight
nats for all of R. No gradient reaches the first reading.

The idea is the paper's as its abstract and reviews tell it; its formulas were not at hand. What R
is, where A is cut, the weight, and drawing both rows are ours.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_categorical
from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.objective.bound import Noised, noise_key, noised, scored_rows, scored_weights
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.types import Array, Batch, Key, Loss, Params, Predict, Progress

ORDER = 4  # longest n-gram of BLEU


def accuracy(ids: Array, target: Array, counts: Array, segment: Array) -> Array:
  """float32 scalar: the share of the tokens that count which are the target's, [L] each."""
  del segment
  return jnp.sum((ids == target) & counts) / jnp.maximum(jnp.sum(counts), 1)


def bleu(ids: Array, target: Array, counts: Array, segment: Array) -> Array:
  """float32 scalar in [0, 1]: sentence BLEU of ids against target, [L] each, over runs of tokens
  that count within a document.

  One is added to matches and totals of 2- to 4-grams (Lin & Och 2004); the lengths are equal, so
  brevity costs nothing. An n-gram is numbered by its place in the order of all, which takes O(L log
  L) time and O(L) memory; numbers fit int32 up to L = 23,000.
  """
  length, total_log = len(ids), 0.0
  number = lambda keys: jnp.searchsorted(jnp.sort(keys), keys)  # equal for equals, below 2 L
  later = lambda x, fill: jnp.concatenate(
    [x[:, 1:], jnp.full((2, 1), fill)], axis=1
  )  # what begins one token later
  here, there = jnp.stack([counts, counts]), jnp.stack([segment, segment])
  token = gram = number(jnp.concatenate([ids, target])).reshape(2, length)
  run = here
  for n in range(1, ORDER + 1):
    if n > 1:
      run = here & later(run, False) & (there == later(there, -1))
      gram = number((token * 2 * length + later(gram, 0)).reshape(-1)).reshape(2, length)
    seen, wanted = (jnp.zeros(2 * length, jnp.int32).at[gram[i]].add(run[i]) for i in (0, 1))
    smooth = 1.0 if n > 1 else 0.0
    total_log += jnp.log(
      (jnp.sum(jnp.minimum(seen, wanted)) + smooth) / jnp.maximum(jnp.sum(seen) + smooth, 1)
    )
  return jnp.exp(total_log / ORDER)


REWARDS = {"accuracy": accuracy, "bleu": bleu}


@dataclasses.dataclass(frozen=True)
class ReinforcedConditioning(EmbeddingLosses):
  """`mse_rounding` and the reward above; needs a network that conditions on itself. Two more passes
  through the vocabulary, one of them with its gradient.

  Its value is that of `mse_rounding`: the reward adds to the gradient only. Reports "reward" and
  "reward_before" beside the terms: R of the two readings, summed over the tokens of the rows that
  are told (whose share is objective.self_conditioning) and divided by all. Raises ValueError for
  values out of range, and, when traced, for a network that is not read twice.
  """

  reward: str = "bleu"
  reward_weight: float = 1.0
  advantage_clip: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.reward not in REWARDS:
      raise ValueError(
        f"objective.reward={self.reward!r} is unknown; use one of {', '.join(REWARDS)}"
      )
    if not self.reward_weight > 0:
      raise ValueError(
        f"objective.reward_weight={self.reward_weight} must be positive; use objective.name='mse_rounding' without a reward"
      )
    if not 0 < self.advantage_clip <= 1:
      raise ValueError(
        f"objective.advantage_clip={self.advantage_clip} must be in (0, 1]; rewards differ by 1 at most"
      )

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    if noise.prediction.before is None:
      raise ValueError(
        "objective.name='reinforced_conditioning' rewards a second reading, and this network is read once; set"
        " model.self_conditioning='add' and objective.self_conditioning=0.5"
      )
    key = noise_key(key, progress)
    loss = self.losses(params, key, batch, noise)
    surrogate, sums = self.rewards(params, jax.random.fold_in(key, 4), batch, noise)
    total = loss.total + surrogate - jax.lax.stop_gradient(surrogate)
    return loss._replace(total=total, sums={**loss.sums, **sums})

  def rewards(
    self, params: Params, key: Key, batch: Batch, noise: Noised
  ) -> tuple[Array, dict[str, Array]]:
    """(the sum whose gradient is the policy's, what is reported): of all rows of a batch that was
    read twice.
    """
    first, told = noise.prediction.before
    key_first, key_second = jax.random.split(key)
    before, _ = self._drawn(params, key_first, batch, noise._replace(prediction=first), told)
    after, log_p = self._drawn(params, key_second, batch, noise, told)
    weights = scored_weights(batch)
    segment = jnp.zeros_like(batch.ids) if batch.segment is None else batch.segment
    rate = jax.vmap(REWARDS[self.reward])
    before, after = (rate(ids, batch.ids, weights > 0, segment) for ids in (before, after))
    advantage = jnp.clip(after - before, -self.advantage_clip, self.advantage_clip)
    count = jnp.where(told, jnp.sum(weights, axis=1), 0.0)
    advantage = jax.lax.stop_gradient(count * advantage)
    sums = {"reward": jnp.sum(count * after), "reward_before": jnp.sum(count * before)}
    return -self.reward_weight * jnp.sum(advantage[:, None] * weights * log_p), sums

  def _drawn(
    self, params: Params, key: Key, batch: Batch, noise: Noised, told: Array
  ) -> tuple[Array, Array]:
    """(ids [B, L], their log p [B, L] in nats): a draw of each scored token of the rows that are
    told; the others are the text's, at 0.
    """

    def one(both):
      rows, key_data = both
      logits = self.process.posterior(
        params, rows.state, rows.t, noise.prediction.unembed(rows.features)
      )
      ids = draw_categorical(jax.random.wrap_key_data(key_data), logits)
      return ids, jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), ids[:, None], axis=-1)[
        :, 0
      ]

    count, rows = scored_rows(noise, self.process, params, batch)
    count = count & jnp.repeat(told, batch.ids.shape[1])
    keys = jax.random.key_data(jax.random.split(key, count.shape[0]))
    ids, log_p = map_rows(
      one, count, (rows, keys), chunk=self.chunks.size, shards=self.chunks.shards
    )
    shape = batch.ids.shape
    return jnp.where(count.reshape(shape), ids.reshape(shape), batch.ids), log_p.reshape(shape)
