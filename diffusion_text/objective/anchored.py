"""The anchored bound of a two-stage network (ADLM, arXiv 2505.18456): the first stage is taught the rare words of the text.

  loss = Σ_i speed_i · (rate_i(final) + anchor_weight · [x_i is rare] · rate_i(anchor))

with rate_i(p) the process's integrand of the bound for the prediction p: for masked diffusion -alpha'_t / (1 - alpha_t) · CE at the
masked positions. Both sums are bounds, so that up to the ends of the process (ANELBO, the paper's anchored bound)

  -log p(x) + anchor_weight · (-log of the anchor's probability of the rare tokens) <= E[loss].

A token is rare if its id occurs at most `threshold` times in its row, documents of a row counted apart and padding not at all.
The first term alone is the bound of the network as a whole, and the only one that is reported as a likelihood.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import sum_rows
from diffusion_text.objective.bound import (
  Chunks,
  fit_times,
  noised,
  scored_rows,
  scored_weights,
  weighted_ends,
  with_auxiliary,
)
from diffusion_text.types import (
  Array,
  Batch,
  FitsTimes,
  Key,
  Loss,
  Params,
  Predict,
  Process,
  Progress,
  Timing,
)


def occurrences(batch: Batch) -> Array:
  """int32 [B, L]: how often each token's id occurs in its row and document; padding is counted apart. O(L) memory, by sorting."""
  real = (scored_weights(dataclasses.replace(batch, given=None)) > 0).astype(jnp.int32)
  segment = jnp.zeros_like(batch.ids) if batch.segment is None else batch.segment
  place = jnp.broadcast_to(jnp.arange(batch.ids.shape[1], dtype=jnp.int32), batch.ids.shape)
  *keys, order = jax.lax.sort((real, segment, batch.ids, place), dimension=1, num_keys=3)
  differs = sum((key[:, 1:] != key[:, :-1]).astype(jnp.int32) for key in keys) > 0
  edge = jnp.ones((differs.shape[0], 1), bool)
  first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, differs], axis=1), place, 0), axis=1)
  last = jnp.where(jnp.concatenate([differs, edge], axis=1), place, place.shape[1])
  last = jax.lax.cummin(last, axis=1, reverse=True)
  return jax.lax.sort((order, last - first + 1), dimension=1, num_keys=1)[1]


@dataclasses.dataclass(frozen=True)
class Anchored:
  """The bound, and `anchor_weight` times the first stage's bound on the rare tokens; needs a network with `model.anchor_layers` > 0.

  threshold: the most occurrences of a rare token. 3e-3 and 5 are the published values. Reports "bound", of the final prediction, and
  "anchor", the first stage's share before weighting, both in nats per scored token.
  """

  process: Process
  timing: Timing
  chunks: Chunks = Chunks()
  anchor_weight: float = 3e-3
  threshold: int = 5

  def __post_init__(self):
    if not self.anchor_weight >= 0:
      raise ValueError(
        f"objective.anchor_weight={self.anchor_weight} must be at least 0; ADLM uses 3e-3"
      )
    if self.threshold < 1:
      raise ValueError(
        f"objective.threshold={self.threshold} must be at least 1 occurrence; ADLM uses 5"
      )
    if isinstance(self.process, FitsTimes):
      raise ValueError(
        f"objective 'anchored' is of masks and random tokens, and fits no path of {type(self.process).__name__}; use objective.name='bound'"
      )

  def __call__(
    self, params: Params, key: Key, batch: Batch, progress: Progress, predict: Predict
  ) -> Loss:
    """Raises ValueError, when traced, for a network of one stage."""
    noise = noised(self.process, self.timing, params, key, batch, progress, predict)
    final, anchor = noise.prediction, noise.prediction.anchor
    if anchor is None:
      raise ValueError(
        "objective.name='anchored' needs a network of two stages; set model.anchor_layers, as in configs/adlm.py"
      )
    rare = occurrences(batch) <= self.threshold
    features = anchor.features[
      :, : batch.ids.shape[1]
    ]  # of noisy ‖ clean rows the noisy half, as in `final`
    extra = rare.reshape(-1), features.reshape(-1, features.shape[-1])

    def score(both):
      rows, (rare, anchor_features) = both
      cost = lambda logits: (
        rows.speed * self.process.rate(params, rows.ids, rows.state, rows.t, logits)
      )
      bound = cost(final.unembed(rows.features))
      anchored = jnp.where(rare, cost(anchor.unembed(anchor_features)), 0.0)
      fit = fit_times(self.process, params, rows, bound)
      return rows.weight * (bound + self.anchor_weight * anchored + fit), (
        rows.weight * bound,
        rows.weight * anchored,
      )

    count, rows = scored_rows(noise, self.process, params, batch)
    total, (bound, anchored) = sum_rows(
      score, count, (rows, extra), chunk=self.chunks.size, shards=self.chunks.shards
    )
    ends = jnp.sum(weighted_ends(self.process, self.timing, params, key, batch, progress, predict))
    loss = Loss(
      total + ends, jnp.sum(scored_weights(batch)), {"bound": bound + ends, "anchor": anchored}
    )
    return with_auxiliary(loss, noise.prediction)
