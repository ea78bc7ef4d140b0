"""Uniform-state diffusion: noise is a uniformly drawn clean token; there is no mask.

UDLM (arXiv 2412.10193), Duo (arXiv 2506.10892), SEDD-uniform (arXiv 2310.16834), D3PM-uniform (arXiv 2107.03006, with `grid`). All the
maths is `mixed`'s with no mask; the rate there is the Rao-Blackwellised bound of Duo (its eq. 13) and the bound of UDLM (its eq. 18).

Scores (`prediction` = "score", SEDD): the logits are y_v = log s(z, v), the predicted q_t(v) / q_t(z) with s(z, z) = 1, unconstrained;

  rate = rho_t(z) · Σ_{v ≠ z} [ s_v - r_v log s_v + r_v log r_v - r_v ],  r_v = q_t(v | x) / q_t(z | x)      (SEDD eq. 5)

a bound for any positive scores. A sampler reads them as a law over clean tokens, x̂ ∝ max(s / Σ s - uniform / V, 0): with it the step is
SEDD's analytic ("Tweedie") one, whose negative entries are cut in the same way.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.process.mixed import LEAST, Mixed, Shares
from diffusion_text.types import Array, Params, State, Time


@dataclasses.dataclass(frozen=True)
class Uniform(Mixed):
  """Uniform noise over `vocab_size` tokens. State: ids int32, all below V. prediction: "leave_one_out", "posterior" or "score"."""

  predictions: ClassVar[tuple[str, ...]] = (*Mixed.predictions, "score")

  mixing: str = dataclasses.field(default="constant", init=False)
  share: float = dataclasses.field(default=1.0, init=False)

  def __post_init__(self):
    super().__post_init__()
    if self.prediction == "score" and self.grid is not None:
      raise ValueError(
        f"process.grid={self.grid} with prediction='score': scores are of continuous time; leave grid unset"
      )

  @property
  def input_size(self) -> int:
    return self.vocab_size

  def shares(self, t: Time) -> Shares:
    clean, noise = self.schedule(t)
    return Shares(clean, jnp.zeros_like(noise), noise)

  def leave_one_out(self, state: State, t: Time, logits: Array) -> Array:
    if self.prediction != "score":
      return super().leave_one_out(state, t, logits)
    own = state[..., None] == jnp.arange(self.vocab_size)
    law = jax.nn.softmax(jnp.where(own, 0.0, logits), axis=-1)
    base = jnp.broadcast_to(self.shares(t).uniform / self.vocab_size, state.shape)[..., None]
    # Where no token is above the noise floor (a poor score near t = 1) the law itself is the guess.
    above = jnp.maximum(law - base, 0.0)
    total = jnp.sum(above, axis=-1, keepdims=True)
    return jnp.log(
      jnp.maximum(jnp.where(total > 1e-6, above / jnp.maximum(total, 1e-6), law), LEAST)
    )

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    if self.prediction != "score":
      return super().rate(params, ids, state, t, logits)
    shares, arrivals = self._moving(jnp.broadcast_to(t, ids.shape))
    base = jnp.maximum(shares.uniform, LEAST) / self.vocab_size
    ratio = jnp.log1p(shares.clean / base)  # log of (true token's share / another's)
    right = state == ids
    log_r = jnp.where(
      (ids[..., None] == jnp.arange(self.vocab_size)) & ~right[..., None], ratio[..., None], 0.0
    )
    log_r = log_r - jnp.where(right, ratio, 0.0)[..., None]
    r = jnp.exp(log_r)
    others = state[..., None] != jnp.arange(self.vocab_size)
    logits = jnp.where(
      others, logits, 0.0
    )  # the token's own is unconstrained: before exp, or its gradient may be 0 · inf
    total = jnp.sum(jnp.where(others, jnp.exp(logits) - r + r * (log_r - logits), 0.0), axis=-1)
    return jnp.where(t > 0, arrivals.uniform / self.vocab_size * total, 0.0)
