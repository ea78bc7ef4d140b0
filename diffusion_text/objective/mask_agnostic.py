"""Predictions that do not depend on how many masks follow the text (the mask-agnostic loss of arXiv 2511.21338).

A masked token means "unknown", and masks appended to a row say nothing about it; yet they distract the network, whose answers get worse
with their number. The row is therefore read twice, as it is and followed by masks, and the two predictions are drawn together:

  loss = Σ over scored tokens of w(t) · (CE + agreement · TV) / Σ over all tokens,   TV = 1/2 Σ_v |p_v - p'_v|

with p of the row as it is and p' of the row with its masks. As in the paper the tokens and their noise are the same in both readings,
and the number of masks is drawn afresh; ours is how that keeps one shape: there are always `appended` positions, and those beyond the
number that was drawn are a segment of their own, which no token sees. (Two noise levels of one row would be no substitute: there the
right predictions differ, and their TV would be paid for using what is known.)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import sum_rows
from diffusion_text.objective.bound import (
  fit_times,
  noise_key,
  noised,
  scored_rows,
  scored_weights,
  with_auxiliary,
)
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.types import (
  Array,
  Batch,
  Inputs,
  Key,
  Layout,
  Loss,
  Params,
  Predict,
  Prediction,
  Progress,
  Times,
)


def total_variation(logits: Array, others: Array) -> Array:
  """1/2 Σ |softmax(logits) - softmax(others)| in [0, 1]: [..., V], [..., V] -> [...]."""
  return (
    jnp.sum(jnp.abs(jax.nn.softmax(logits, axis=-1) - jax.nn.softmax(others, axis=-1)), axis=-1) / 2
  )


@dataclasses.dataclass(frozen=True)
class MaskAgnostic(CrossEntropy):
  """Cross-entropy and its options, and the agreement of two readings. Two network calls per step; reports the bound of the first.

  agreement: λ, the weight of the total variation. appended: the most masks that follow a row; their number is uniform on 1 … appended,
  per row. They come after the last token that counts, in its document. Raises ValueError for a process without masks.
  """

  reads: ClassVar[int] = 2  # network calls per step

  agreement: float = 1.0
  appended: int = 64

  def __post_init__(self):
    super().__post_init__()
    if self.process.input_size == self.process.vocab_size or not hasattr(self.process, "mask_id"):
      raise ValueError(
        f"objective 'mask_agnostic' appends masks, and {type(self.process).__name__} has none; use 'masked' or 'mixed'"
      )
    if self.timing.shifted or self.timing.sampled_in_blocks is not None:
      raise ValueError(
        f"objective 'mask_agnostic' reads rows of one bidirectional block, not {self.timing}; use timing.name='shared'"
      )
    if not self.agreement >= 0 or self.appended < 1:
      raise ValueError(
        f"objective needs agreement >= 0 and appended >= 1, got agreement={self.agreement} and appended={self.appended}"
      )

  def read_longer(
    self, params: Params, key: Key, batch: Batch, inputs: Inputs, times: Times, predict: Predict
  ) -> Prediction:
    """The prediction for the row's own tokens, [B, L, …], with masks after them."""
    B, L = batch.ids.shape
    counts = jnp.ones((B, L), bool) if batch.weights is None else batch.weights > 0
    end = jnp.max(jnp.where(counts, jnp.arange(L), 0), axis=1, keepdims=True)
    segment = jnp.zeros((B, L), jnp.int32) if batch.segment is None else batch.segment
    place = jnp.arange(self.appended)
    seen = place < jax.random.randint(key, (B, 1), 1, self.appended + 1)
    hidden = jnp.min(segment, axis=1, keepdims=True) - 1
    masks = jnp.where(seen, jnp.take_along_axis(segment, end, axis=1), hidden)
    ones = jnp.ones((B, self.appended), jnp.float32)
    tail = self.process.inputs(params, self.process.prior(params, key, ones.shape), ones)
    ids = jnp.concatenate([inputs.ids, tail.ids], axis=1)
    position = jnp.concatenate([jnp.broadcast_to(jnp.arange(L), (B, L)), end + 1 + place], axis=1)
    told = times.t if times.told is None else times.told
    t = jnp.concatenate([jnp.broadcast_to(told, (B, L)), ones], axis=1)
    prediction = predict(
      Inputs(ids, position), t, Layout(segment=jnp.concatenate([segment, masks], axis=1))
    )
    return prediction._replace(features=prediction.features[:, :L])

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    """Raises ValueError, when traced, for a timing whose rows are not one bidirectional block."""
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    if noise.times.shifted or noise.times.layout.block is not None:
      raise ValueError(
        f"objective 'mask_agnostic' reads rows of one bidirectional block, not {self.timing}; use timing.name='shared'"
      )
    inputs = self.process.inputs(params, noise.state, noise.times.t)
    key_masks = jax.random.fold_in(noise_key(key, progress), 1)
    longer = self.read_longer(params, key_masks, batch, inputs, noise.times, predict)

    def score(both):
      features, rows = both
      logits = noise.prediction.unembed(rows.features)
      cost = self.cost(logits, rows.ids) + self.agreement * total_variation(
        logits, longer.unembed(features)
      )
      rate = rows.speed * self.process.rate(params, rows.ids, rows.state, rows.t, logits)
      fit = fit_times(self.process, params, rows, rate)
      return rows.weight * (rows.speed * self.weight(rows.t) * cost + fit), rows.weight * rate

    count, rows = scored_rows(noise, self.process, params, batch)
    both = longer.features.reshape(rows.features.shape), rows
    total, bound = sum_rows(score, count, both, chunk=self.chunks.size, shards=self.chunks.shards)
    return with_auxiliary(
      Loss(total, jnp.sum(scored_weights(batch)), {"bound": bound}), noise.prediction
    )
