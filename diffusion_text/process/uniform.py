"""Uniform-state diffusion: noise is a uniformly drawn clean token; there is no mask.

UDLM (arXiv 2412.10193), Duo (arXiv 2506.10892), SEDD-uniform (arXiv 2310.16834), D3PM-uniform
(arXiv 2107.03006, with `time_steps`). The maths is that of `mixture` without masks; the rate there
is the Rao-Blackwellised bound of Duo (eq. 13) and the bound of UDLM (eq. 18).

Scores (`prediction` = "score", SEDD): the logits are y_v = log s(z, v), where s(z, v) is the
predicted q_t(v) / q_t(z), unconstrained but for s(z, z) = 1;

  nelbo_rate = rho_t(z) · Σ_{v ≠ z} [ s_v - r_v log s_v + r_v log r_v - r_v ],
  r_v = q_t(v | x) / q_t(z | x)                                                       (SEDD eq. 5)

a bound for any positive scores. There are two steps by scores. They agree where the scores are
exact; for scores that are off by 5 % their laws are up to 0.24 of total variation apart in
tests/sampler/tau_test.py:

  `step`        reads them as a law over clean tokens, x̂ ∝ max(s / Σ s - (1 - alpha_t) / V, 0), and
                draws from q(z_s | z_t, x̂), so that it goes with every sampler
  `analytic`    draws v with probability ∝ max(s_v / Σ s - (1 - e) / V, 0) · ((1 - e) / V + e where
                v = z_t), e = alpha_t / alpha_s: the analytic ("Tweedie") step of SEDD
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import internal, member, option, part
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import is_token
from diffusion_text.process.mixture import LEAST, Mixture, Shares
from diffusion_text.process.scores import above, entropy_at_token
from diffusion_text.schedules.discrete import SCHEDULES, Linear, Schedule
from diffusion_text.types import Keys, Params


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
    guess = above(state, output, self.shares(t).uniform)
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
    total = entropy_at_token(shares, clean_state, state, output)
    return jnp.where(t > 0, arrivals.uniform / self.vocab_size * total, 0.0)

  # Reverse, by scores.

  def analytic_law(
    self,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Float[Array, "*n V"]:
    """log p(z_s = v) up to a constant, by the analytic step of SEDD (see the module)."""
    now, after = self.schedule(t), self.schedule(s)
    clean = jnp.maximum(after.alpha, LEAST)
    kept = jnp.minimum(now.alpha / clean, 1.0)
    # Of two small numbers, as 1 - alpha would have lost what alpha is near t = 1.
    less = jnp.where(after.alpha < 0.5, after.alpha - now.alpha, now.noise - after.noise)
    lost = jnp.clip(less / clean, 0.0, 1.0)
    arrives = (lost / self.vocab_size)[..., None]
    arrives = arrives + jnp.where(is_token(state, self.vocab_size), kept[..., None], 0.0)
    return jnp.log(above(state, output, lost)) + jnp.log(arrives)

  def analytic(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """A draw of the analytic step of SEDD; of scores only."""
    del params
    drawn = draw_categorical(fold(keys, 1), self.analytic_law(state, output, t, s))
    return jnp.where(t > s, drawn, state)

  def leap(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """One step of tau-leaping; by scores, to each v ≠ z with chance (t - s) · rho_t · s_v."""
    if self.prediction != "score":
      return super().leap(params, keys, state, output, t, s)
    _, arrivals = self._jumps(t)
    others = jnp.where(is_token(state, self.vocab_size), -jnp.inf, output)
    rate = arrivals.uniform / self.vocab_size * jnp.exp(jax.nn.logsumexp(others, axis=-1))
    jumps = draw_uniform(fold(keys, 0)) < (t - s) * rate
    return jnp.where(jumps, draw_categorical(fold(keys, 1), others), state)
