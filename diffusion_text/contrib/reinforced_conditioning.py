"""Reinforced conditioning (TREC, arXiv 2402.14843): the network is rewarded for what
self-conditioning adds.

Self-conditioning degrades as training goes on: the first prediction gets good, the second copies
it, and what it adds vanishes. So, in addition to the losses of embedding diffusion, the second
reading, which is conditioned on the first prediction, is trained as a policy. Of each row

  ŵ ~ Π_i p(w_i | z_t, shown),  ŵ' ~ Π_i p(w_i | z_t)
  A = R(ŵ) - R(ŵ'), cut to ± advantage_clip
  gradient of  - reward_weight · n · A · Σ_i log p(ŵ_i | z_t, shown)

where ŵ and ŵ' are independent draws of the second and of the first reading, and R in [0, 1] says
how well the n tokens of a row agree with the text. The gradient is that of - reward_weight · n ·
E[R(ŵ)] without bias where nothing is cut and weights are 0 or 1: ŵ' knows nothing of ŵ, so R(ŵ') is
a baseline (REINFORCE, Williams 1992), and rows whose second draw is no better than the first are
pushed away from it. Per token that is reward_weight nats for all of R. No gradient reaches the
first reading.

The idea is the paper's as its abstract and reviews tell it; its formulas were not at hand. What R
is, where A is cut, the weight, and drawing both rows are ours.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import log_prob_of
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, position_keys, stream
from diffusion_text.objective import engine
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.objective.score_function import score_term
from diffusion_text.types import (
  Batch,
  Key,
  Keys,
  Loss,
  Model,
  Params,
  Prediction,
  Progress,
  Times,
  TokenCosts,
)

ORDER = 4  # longest n-gram of BLEU


def accuracy(
  ids: Int[Array, " L"],
  target: Int[Array, " L"],
  counts: Bool[Array, " L"],
  segment: Int[Array, " L"],
) -> Float[Array, ""]:
  """The share of the tokens that count which are the target's."""
  del segment
  return jnp.sum((ids == target) & counts) / jnp.maximum(jnp.sum(counts), 1)


def bleu(
  ids: Int[Array, " L"],
  target: Int[Array, " L"],
  counts: Bool[Array, " L"],
  segment: Int[Array, " L"],
) -> Float[Array, ""]:
  """Sentence BLEU, in [0, 1], of ids against target over runs of tokens that count within a
  document.

  One is added to matches and totals of 2- to 4-grams (Lin & Och 2004); the lengths are equal, so
  brevity costs nothing. An n-gram is numbered by its place in the order of all, which takes O(L log
  L) time and O(L) memory; numbers fit int32 up to L = 23,000.
  """
  length = len(ids)
  here = jnp.stack([counts, counts])
  there = jnp.stack([segment, segment])
  token = _numbers(jnp.concatenate([ids, target])).reshape(2, length)
  run, gram, total_log = here, token, 0.0
  for n in range(1, ORDER + 1):
    if n > 1:
      run = here & _later(run, False) & (there == _later(there, -1))
      gram = _numbers((token * 2 * length + _later(gram, 0)).reshape(-1)).reshape(2, length)
    none = jnp.zeros(2 * length, jnp.int32)
    seen, wanted = none.at[gram[0]].add(run[0]), none.at[gram[1]].add(run[1])
    smooth = 1.0 if n > 1 else 0.0
    matches = jnp.sum(jnp.minimum(seen, wanted)) + smooth
    total_log += jnp.log(matches / jnp.maximum(jnp.sum(seen) + smooth, 1))
  return jnp.exp(total_log / ORDER)


def _numbers(keys: Int[Array, " n"]) -> Int[Array, " n"]:
  """A number below n for each key, equal for equal keys."""
  return jnp.searchsorted(jnp.sort(keys), keys)


def _later(x: Array, fill: Array | float) -> Array:
  """[2, L]: what stands one token later."""
  return jnp.concatenate([x[:, 1:], jnp.full((2, 1), fill)], axis=1)


REWARDS = {"accuracy": accuracy, "bleu": bleu}


@member
class ReinforcedConditioning(EmbeddingLosses):
  """The losses of embedding diffusion and the reward above; needs a model that conditions on
  itself.

  Two more passes through the vocabulary, one of them with its gradient. The value is that of the
  losses: the reward adds to the gradient only. Reports "reward" and "reward_before" beside the
  terms: R of the two readings, summed over the tokens of the rows that are shown their first answer
  (whose share is `train.self_conditioning`) and divided by all.
  """

  reward: Literal["accuracy", "bleu"] = option("bleu", "R, how a row is rewarded")
  reward_weight: float = option(1.0, "nats per token that all of the reward is worth", gt=0)
  advantage_clip: float = option(
    1.0, "where the difference of two rewards is cut; 1 cuts nothing", gt=0, le=1
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a model that is read once."""
    super().check(model)
    if not model.self_conditioning:
      raise ValueError(
        "objective.name='reinforced_conditioning' rewards a second reading, and this network is"
        " read once; set model.self_conditioning='add' and train.self_conditioning=0.5"
      )

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    loss, costs = self.losses(model, params, key, batch, noised, progress)
    term, sums = self.rewards(model, params, stream(key, "reward"), batch, noised, progress)
    return Loss(loss.total + term, loss.count, {**loss.sums, **sums}), costs

  def rewards(
    self,
    model: Model,
    params: Params,
    key: Key,
    batch: Batch,
    noised: engine.Noised,
    progress: Progress,
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """(a scalar of value 0 whose gradient is the policy's, what is reported), of a batch that was
    read twice.
    """
    first, told = noised.first
    batch = model.process.in_positions(batch)
    weights = engine.scored_weights(batch)

    def drawn(name: str, prediction: Prediction) -> tuple[Array, Array]:
      keys = position_keys(stream(key, name), *weights.shape, progress)
      read = noised._replace(prediction=prediction)
      return draw_answers(model, params, keys, batch, read, told)

    before, _ = drawn("first", first)
    after, log_p = drawn("second", noised.prediction)
    segment = jnp.zeros_like(batch.ids) if batch.segment is None else batch.segment
    reward = jax.vmap(REWARDS[self.reward])
    before = reward(before, batch.ids, weights > 0, segment)
    after = reward(after, batch.ids, weights > 0, segment)
    advantage = jnp.clip(after - before, -self.advantage_clip, self.advantage_clip)
    count = jnp.where(told, jnp.sum(weights, axis=1), 0.0)
    term = score_term((count * advantage)[:, None] * weights, log_p)
    sums = {"reward": jnp.sum(count * after), "reward_before": jnp.sum(count * before)}
    return -self.reward_weight * term, sums


def draw_answers(
  model: Model,
  params: Params,
  keys: Keys,
  batch: Batch,
  noised: engine.Noised,
  told: Bool[Array, " B"],
) -> tuple[Int[Array, "B N"], Float[Array, "B N"]]:
  """(ids, their log p in nats): a draw of each token that has a loss, in the conditioned rows;
  the others are the text's, at 0.
  """
  process = model.process

  def draw(consts, row: engine.TokenRow):
    head, process_params = consts
    logits = engine.posterior_logits(process, process_params, row, head(row.features))
    ids = draw_categorical(row.extra, logits)
    return ids, log_prob_of(logits, ids)

  where, rows = engine.token_rows(model, params, batch, noised, extra=keys)
  where = where & told[:, None]
  consts = noised.prediction.head, params["process"]
  ids, log_p = engine.map_tokens(model, draw, consts, where, rows)
  return jnp.where(where, ids, batch.ids), log_p
