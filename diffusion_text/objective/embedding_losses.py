"""The losses of embedding diffusion as named terms: a surrogate for any process of vectors, with
the bound of the same draw beside it.

  loss = mse + anchor_weight · anchor + rounding_weight · rounding + prior      per token, with

  term      what it sees                                                 its gradients reach
  mse       the token's vector x and x̂ = Σ_v p_v x_v, p the posterior:   network, embedding
            w(t) |x - x̂|² / (k² E), a mean over the vector's E numbers
  anchor    the answer at the same t, through the read-out               network, embedding
  rounding  the noised vector z_0+ and no network, by the read-out       embedding only
  prior     the clean vector: KL(q(z_1 | x) || prior)                    embedding only
            (tT_loss of Diffusion-LM)

Vectors that are all the same have no mse, so mse alone shrinks a learned table; rounding or anchor
keeps it apart. The read-out is how a vector becomes a distribution over tokens, of which the cost
is the cross-entropy:

  readout     anchor                                      rounding
  posterior   the network's p itself (CDCD's score        p ∝ q(z_0+ | x_v): t = 0 reconstruction,
              interpolation, arXiv 2211.15089, and TESS   with the prior the boundary terms of the
              have this term alone)                       bound
  inner       softmax_v <x̂, x_v>                          softmax_v <z_0+, x_v>
                                                          (Diffusion-LM, arXiv 2205.14217: lm_head
                                                          of x_start, tied to the embedding)
  scaled_     softmax_v <x̂, x_v> / √E                     softmax_v <z_0+, x_v> / √E
  inner       (Difformer, arXiv 2212.09412: its vectors
              are √E times the rows of its head)

The two readings of rounding are far apart. At z_0+ the posterior knows the token of any table of
usual size, so that rounding costs nothing and has no gradient; it begins to hold tokens apart where
they are as near to each other as z_0+ is to its own. Inner products ask more: that a token's vector
point away from the others and be long. (Of 821 tokens with 16 standard normal numbers each it costs
0.6 nats, and 5.3 if the numbers are 0.3 times as large; the posterior costs less than 0.01.)

With label smoothing s the anchor is (1 - s) times that and s times the mean over v of -log p(v).

w is what regression of another target amounts to, as all are linear in x - x̂ given z_t: "uniform"
of x (Diffusion-LM), "snr" of the noise, |ε - ε̂|² = SNR |x - x̂|² / k², "v" of v = alpha ε - sigma
x on variance-preserving paths, 1 + SNR. max_weight cuts it off: "snr" at 5 is min-SNR (arXiv
2303.09556). The published swap of the target at the chain's first level (the clean vector there,
z_0+ elsewhere) has nothing to do here: the target is the clean vector at all times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import TINY, smoothed_cross_entropy, steep_cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import position_keys, stream
from diffusion_text.objective import engine
from diffusion_text.objective.base import OneReading
from diffusion_text.types import (
  Batch,
  Key,
  Keys,
  Loss,
  Model,
  Params,
  Process,
  Progress,
  State,
  Times,
  TokenCosts,
)


def one_plus_snr(log_snr: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """1 + SNR."""
  return 1 + jnp.exp(log_snr)


WEIGHTINGS: dict[str, Callable[[Array], Array]] = {  # of the log-SNR
  "uniform": jnp.ones_like,
  "snr": jnp.exp,
  "v": one_plus_snr,
}


@runtime_checkable
class Vectors(Protocol):
  """What embedding losses ask of a process beyond `Process`: a token is a vector, and noise is
  added to it.

  Attributes:
    size: E, the numbers of a vector.
  """

  size: int

  def log_snr(self, params: Params, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The log signal-to-noise ratio that is trained at t."""

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n E"]:
    """x̂ = Σ_v p_v x_v."""

  def products(self, params: Params, vectors: Float[Array, "*n E"]) -> tuple[Array, Array]:
    """(<z, x_v> [*n, V], |x_v|² [V] or a scalar), each up to a constant that does not depend on
    v.
    """

  def squared_error(
    self,
    params: Params,
    clean_state: State,
    state: State,
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """|x - x̂|² / k²."""

  def prior_cost(self, params: Params, clean_state: State) -> Float[Array, "*n"]:
    """KL(q(z_1 | x) || prior) in nats."""

  def reconstruction(
    self, params: Params, keys: Keys, ids: Int[Array, "B L"], start: Any = 0.0
  ) -> Float[Array, "B L"]:
    """One draw of E[-log p(x_i | z_i)] at the time `start`, or at t -> 0+, in nats."""


@member
class EmbeddingLosses(OneReading):
  """The sum of the terms above. Reports each of them before its weight, and "bound", all in nats or
  units of mse per token.
  """

  weighting: Literal["uniform", "snr", "v"] = option(
    "uniform", "w, the weight of the mse at a log-SNR: as if x, the noise or v were regressed"
  )
  max_weight: float = option(
    math.inf,
    "where w is cut off; 5 is usual for 'snr', inf does not cut",
    gt=0,
    le=math.inf,
    allow_inf_nan=True,
  )
  rounding_weight: float = option(1.0, "weight of the rounding term; 1 is usual", ge=0)
  anchor_weight: float = option(0.0, "weight of the anchor term; 1 is usual", ge=0)
  readout: Literal["posterior", "inner", "scaled_inner"] = option(
    "posterior",
    "how a vector becomes a distribution over tokens: by the evidence of its noise, by inner"
    " products (Diffusion-LM), or by inner products over √E (Difformer)",
  )
  label_smoothing: float = option(
    0.0, "s, the share of the anchor's target that is spread evenly; 0.1 is usual", ge=0, lt=1
  )

  def check(self, model: Model) -> None:
    """Raises ValueError for a process that has no vectors."""
    super().check(model)
    require(
      model.process,
      Vectors,
      f"{type(self).__name__} is of vectors and",
      "use process.name='embedding', or objective.name='cross_entropy'",
    )

  def weight(self, process: Process, params: Params, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """w(t) of the mse."""
    return jnp.minimum(WEIGHTINGS[self.weighting](process.log_snr(params, t)), self.max_weight)

  def anchor(
    self,
    process: Process,
    params: Params,
    row: engine.TokenRow,
    output: Float[Array, "n V"],
    smoothing: float = 0.0,
  ) -> Float[Array, " n"]:
    """-log p of the true token in nats, p read out of the network's answer."""
    logits = engine.posterior_logits(process, params, row, output)
    if self.readout != "posterior":
      vectors = process.mean(params, jax.nn.softmax(logits, axis=-1))
      logits = self.inner_products(process, params, vectors)
    return smoothed_cross_entropy(logits, row.ids, smoothing)

  def inner_products(
    self, process: Process, params: Params, vectors: Float[Array, "*n E"]
  ) -> Float[Array, "*n V"]:
    """<vector, x_v> of each token, divided by √E for the readout "scaled_inner"."""
    logits = process.products(params, vectors)[0]
    return logits / math.sqrt(process.size) if self.readout == "scaled_inner" else logits

  def squared_error(
    self, process: Process, params: Params, row: engine.TokenRow, output: Float[Array, "n V"]
  ) -> Float[Array, " n"]:
    """|x - x̂|² / (k² E)."""
    token = row.clean, row.state, row.t
    return process.squared_error(params, *token, output) / process.size

  def rounding(
    self, model: Model, params: Params, keys: Keys, ids: Int[Array, "B L"], clean: State
  ) -> Float[Array, "B L"]:
    """One draw of -log p of the true token in nats, p read out of z_0+ by inner products."""
    process = model.process
    state = process.corrupt(params["process"], keys, clean, jnp.full(ids.shape, TINY))

    def cost(process_params, rows):
      state, ids = rows
      return steep_cross_entropy(self.inner_products(process, process_params, state), ids)

    everywhere = jnp.ones(ids.shape, bool)
    return engine.map_tokens(model, cost, params["process"], everywhere, (state, ids))

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    noised = engine.read(model, params, key, batch, times, progress)
    return self.losses(model, params, key, batch, noised, progress)

  def losses(
    self,
    model: Model,
    params: Params,
    key: Key,
    batch: Batch,
    noised: engine.Noised,
    progress: Progress,
  ) -> tuple[Loss, TokenCosts]:
    """The loss of a batch that was read, and what each token cost."""
    process = model.process

    def cost(consts, process_params, row, output, nats):
      del consts, nats
      weight = self.weight(process, process_params, row.t)
      mse = weight * self.squared_error(process, process_params, row, output)
      anchor = self.anchor(process, process_params, row, output, self.label_smoothing)
      at_time = mse + self.anchor_weight * anchor
      reported = {"mse": row.dt_dtau * mse, "anchor": row.dt_dtau * anchor}
      # Tokens whose time stands still, which no sampler asks for, cost nothing.
      return row.dt_dtau * at_time, at_time, reported

    loss, costs = engine.token_loss(model, params, batch, noised, cost)
    prior, reconstruction, rounding = self.ends(model, params, key, batch, noised, progress)
    bound = loss.sums["bound"] + prior + reconstruction
    sums = {**loss.sums, "rounding": rounding, "prior": prior, "bound": bound}
    total = loss.total + self.rounding_weight * rounding + prior
    return Loss(total, loss.count, sums), costs

  def ends(
    self,
    model: Model,
    params: Params,
    key: Key,
    batch: Batch,
    noised: engine.Noised,
    progress: Progress,
  ) -> tuple[Array, Array, Array]:
    """(prior, reconstruction, rounding), each summed with the weights of the tokens."""
    process, own = model.process, params["process"]
    weights = engine.scored_weights(process.in_positions(batch))
    keys = position_keys(stream(key, "boundary"), *weights.shape, progress)
    prior = jnp.sum(weights * process.prior_cost(own, noised.clean))
    reconstruction = jnp.sum(weights * process.reconstruction(own, keys, batch.ids))
    if self.readout == "posterior":
      return prior, reconstruction, reconstruction
    rounding = self.rounding(model, params, keys, batch.ids, noised.clean)
    return prior, reconstruction, jnp.sum(weights * rounding)
