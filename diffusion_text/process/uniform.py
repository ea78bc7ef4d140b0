"""Uniform-state diffusion: noise is a uniformly drawn clean token; there is no mask.

UDLM (arXiv 2412.10193), Duo (arXiv 2506.10892), SEDD-uniform (arXiv 2310.16834), D3PM-uniform
(arXiv 2107.03006, with `time_steps`). The maths is that of `mixture` without masks; the rate there
is the Rao-Blackwellised bound of Duo (eq. 13) and the bound of UDLM (eq. 18).

Scores (`prediction` = "score", SEDD): the logits are y_v = log s(z, v), where s(z, v) is the
predicted q_t(v) / q_t(z), unconstrained but for s(z, z) = 1;

  nelbo_rate = rho_t(z) · Σ_{v ≠ z} [ s_v - r_v log s_v + r_v log r_v - r_v ],
  r_v = q_t(v | x) / q_t(z | x)                                                       (SEDD eq. 5)

a bound for any positive scores. A sampler reads scores as a law over clean tokens,
x̂ ∝ max(s / Σ s - uniform / V, 0): with it the step is the analytic ("Tweedie") one of SEDD, whose
negative entries are cut in the same way.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import internal, member, option, part
from diffusion_text.process.discrete import is_token
from diffusion_text.process.mixture import LEAST, Mixture, Shares
from diffusion_text.schedules.discrete import SCHEDULES, Linear, Schedule
from diffusion_text.types import Params


@member
class Uniform(Mixture):
  """Uniform noise over V tokens. State: ids int32, all below V."""

  vocab_size: int = internal()
  schedule: Schedule = part(SCHEDULES, Linear(), "how fast tokens are lost")
  prediction: Literal["leave_one_out", "posterior", "score"] = option(
    "leave_one_out",
    "what the logits are: log p(x_i | z without z_i), log p(x_i | z), or log-scores",
  )
  time_steps: int | None = option(
    None, "steps of a process in discrete time (D3PM: 1000); None: time is continuous", ge=1
  )

  def __post_init__(self):
    super().__post_init__()
    if self.prediction == "score" and self.time_steps is not None:
      raise ValueError(
        f"process.time_steps={self.time_steps} with prediction='score': scores are of continuous"
        " time; leave time_steps unset"
      )

  def shares(self, t: Float[Array, "*n"]) -> Shares:
    """Clean with probability alpha, else any token."""
    clean, noise = self.schedule(t)
    return Shares(clean, jnp.zeros_like(noise), noise)

  def leave_one_out(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised; of scores, the law above the noise floor."""
    if self.prediction != "score":
      return super().leave_one_out(params, state, t, output)
    own = is_token(state, self.vocab_size)
    law = jax.nn.softmax(jnp.where(own, 0.0, output), axis=-1)
    above = jnp.maximum(law - (self.shares(t).uniform / self.vocab_size)[..., None], 0.0)
    total = jnp.sum(above, axis=-1, keepdims=True)
    # Where no token is above the noise floor (a poor score near t = 1) the law itself is the guess.
    guess = jnp.where(total > 1e-6, above / jnp.maximum(total, 1e-6), law)
    return jnp.log(jnp.maximum(guess, LEAST))

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """The rate of `Mixture`; of scores, the denoising score entropy."""
    if self.prediction != "score":
      return super().nelbo_rate(params, clean_state, state, t, output)
    shares, arrivals = self._jumps(t)
    base = jnp.maximum(shares.uniform, LEAST) / self.vocab_size
    ratio = jnp.log1p(shares.clean / base)  # log of (the true token's share / another's)
    right = state == clean_state
    true = is_token(clean_state, self.vocab_size) & ~right[..., None]
    log_r = jnp.where(true, ratio[..., None], 0.0) - jnp.where(right, ratio, 0.0)[..., None]
    r = jnp.exp(log_r)
    others = ~is_token(state, self.vocab_size)
    # The token's own score is unconstrained: cut before exp, or its gradient may be 0 · inf.
    scores = jnp.where(others, output, 0.0)
    terms = jnp.where(others, jnp.exp(scores) - r + r * (log_r - scores), 0.0)
    total = jnp.sum(terms, axis=-1)
    return jnp.where(t > 0, arrivals.uniform / self.vocab_size * total, 0.0)
