"""Control: any policy, steered by the gradient of a classifier, so that the text has an attribute c that the generator never heard of.

Bayes' rule for one token is log p(x_i = v | z, c) = log p(x_i = v | z) + log p(c | x_i = v, z) + constant. The classifier is asked once, at
the soft tokens p (the prediction itself), and its answer is carried to every token to first order:

  log p(c | x_i = v, z) ~ constant + g_iv,   g_iv = d log p(c | p) / d p_iv = e_v · d log p(c | ē) / d ē_i, ē_i = Σ_v p_iv e_v

`LogitControl` adds that to the logits; it needs a classifier of clean text only (any that reads embeddings, SSD-LM, arXiv 2210.17432;
TESS-2, arXiv 2502.13917) and serves every process. `LatentControl` moves the noisy vectors of a Gaussian process; its classifier is
trained on them (Diffusion-LM, arXiv 2205.14217). Neither differentiates the generator: network calls are those of the policy.

A controlled policy is a policy. In blocks, the classifier sees the block that is being drawn and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.process.gaussian import Gaussian
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.correct import PredictorCorrector
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import Canvas, Policy, select
from diffusion_text.types import Array, Params, Prediction, Process, Reveals, State, Time

WRT = ("probabilities", "logits")


def believed(process: Process, params: Params, canvas: Canvas, t: Time, logits: Array) -> Array:
  """The clean tokens as far as they are known, float32 [B, L, V]: the posterior at noisy open positions, the token itself elsewhere.

  logits: [B, L, V], what the network answers, or anything put in its place.
  """
  if hasattr(process, "posterior"):  # whatever the logits mean, the state's own evidence is counted
    logits = process.posterior(params, canvas.state, t, logits)
  known = jax.nn.one_hot(process.decode(params, canvas.state), process.vocab_size)
  return select(uncertain(process, params, canvas, t), jax.nn.softmax(logits, axis=-1), known)


def uncertain(process: Process, params: Params, canvas: Canvas, t: Time) -> Array:
  """bool [B, L]: open positions whose token the state does not tell."""
  return canvas.open & (t > 0) & process.scored(params, canvas.state, t)


@dataclasses.dataclass(frozen=True)
class Controlled:
  """What both kinds of control share: everything but `advance` is the policy's own."""

  policy: Policy
  log_prob: Callable[..., Array]
  strength: float | Array
  steps: int = 1

  def __post_init__(self):
    if isinstance(self.strength, int | float) and not math.isfinite(self.strength):
      raise ValueError(
        f"strength={self.strength} must be finite; 0 is no control, 1 is Bayes' rule"
      )
    if self.steps < 1:
      raise ValueError(
        f"steps={self.steps} must be at least 1 gradient per network call; Diffusion-LM takes 3"
      )

  @property
  def innermost(self) -> Policy:
    """The policy that is controlled, whatever the number of controls around it."""
    return self.policy.innermost if isinstance(self.policy, Controlled) else self.policy

  @property
  def guidance(self) -> Guidance:
    """The policy's own, which reads the controlled logits."""
    return self.policy.guidance

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    return self.policy.plan(process, params, canvas)

  def unfinished(self, process: Process, params: Params, canvas: Canvas) -> Array:
    return self.policy.unfinished(process, params, canvas)

  def times(self, process: Process, params: Params, canvas: Canvas) -> Time:
    return self.policy.times(process, params, canvas)


@dataclasses.dataclass(frozen=True)
class LogitControl(Controlled):
  """Adds the gradient of log p(c | soft tokens) to the logits of every noisy token, before the policy reads them.

  log_prob: float32 [B, L, V], rows of probabilities -> [B], log p(c | ·) in nats, differentiable; each row for itself.
  strength: a float, or a traced scalar (one compilation for a sweep). Negative steers away from c.
  steps: gradients per call, each of strength / steps, taken where the one before it led (TESS-2); 1 as in SSD-LM.
  wrt: "probabilities" adds g_iv: strength 1 is Bayes' rule to first order. It is exact where log p(c | ·) is linear in the soft tokens
  and tokens are independent given z; otherwise what c means for the tokens still open is only seen as far as p sees it.
  "logits" adds d log p(c | p) / d logits = p_iv (g_iv - Σ_u p_iu g_iu), as published: a token without probability gets none, and published
  strengths are 100 to 2000.

  Logits of all positions exist at once, [B, L, V] float32, besides the soft tokens. Per network call: `steps` gradients of the
  classifier. Raises ValueError for an unknown wrt, and where logits are scores that are no law over tokens.
  """

  wrt: str = "probabilities"

  def __post_init__(self):
    super().__post_init__()
    if self.wrt not in WRT:
      raise ValueError(f"wrt={self.wrt!r} is unknown; use one of {WRT}")

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    if getattr(process, "prediction", "") == "score" and not isinstance(process, Reveals):
      raise ValueError(
        f"{type(process).__name__} with prediction='score' has logits that are ratios to the token shown, which control cannot read;"
        " use prediction='leave_one_out'"
      )
    return super().plan(process, params, canvas)

  def advance(
    self, process: Process, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State | Canvas:
    t = jnp.where(canvas.open, self.times(process, params, canvas), 0.0)
    noisy = uncertain(process, params, canvas, t)
    soft = lambda logits: believed(process, params, canvas, t, logits)
    total = lambda probabilities: jnp.sum(self.log_prob(probabilities))

    def gradient(logits: Array) -> Array:
      if self.wrt == "logits":
        return jax.grad(lambda logits: total(soft(logits)))(logits)
      return jax.grad(total)(soft(logits))

    def climb(_, logits: Array) -> Array:
      return select(noisy, logits + self.strength / self.steps * gradient(logits), logits)

    logits = jax.lax.fori_loop(0, self.steps, climb, prediction.logits)
    return self.policy.advance(
      process, params, canvas, prediction._replace(features=logits, unembed=lambda rows: rows)
    )


@dataclasses.dataclass(frozen=True)
class LatentControl(Controlled):
  """Moves the vectors z_s that a step has drawn towards c, held by where the step put them: Gaussian processes only.

  A step draws z from about N(z̄, v), v = k² sigma_s² (1 - SNR_t / SNR_s), and p(z | z_t, c) is that times p(c | z): for small v the same
  normal with its mean shifted by v · d log p(c | z) / dz (arXiv 2105.05233, section 4.1). `steps` gradients look for the shift that agrees
  with the place it leads to,

    z <- z_s + v · strength · (mean of the gradients so far),

  which ascends strength · log p(c | z) - |z - z_s|² / 2v. So v is the fluency term: Diffusion-LM's weight lambda of |z - z̄|² / v is
  strength 1 / (2 lambda), and its 3 Adagrad steps are `steps` = 3. At strength 1 the law tends to p(x | c) as the policy's steps grow,
  if the process steps by the DDPM posterior (rho None, eta 1); the noiseless step (0) needs half of it.

  log_prob: (z float32 [B, L, E], t float32 [B, L]) -> [B], log p(c | z_t) in nats, of a classifier trained on noised vectors.
  Nothing is moved at s = 0, where tokens are drawn. Per network call: `steps` gradients. Raises ValueError for other processes, and for
  policies that do not leave the state at the time of their grid.
  """

  def __post_init__(self):
    super().__post_init__()
    inner = self.innermost
    if type(inner) not in (Ancestral, PredictorCorrector):
      raise ValueError(
        f"control of latents needs the time of the state, which {type(inner).__name__} decides itself; use Ancestral"
      )

  def plan(self, process: Process, params: Params, canvas: Canvas) -> Any:
    if not isinstance(process, Gaussian):
      raise ValueError(
        f"{type(process).__name__} has no vectors to move; use LogitControl, which serves every process"
      )
    return super().plan(process, params, canvas)

  def advance(
    self, process: Gaussian, params: Params, canvas: Canvas, prediction: Prediction
  ) -> State | Canvas:
    after = self.policy.advance(process, params, canvas, prediction)
    start = after.state if isinstance(after, Canvas) else after
    _, t, s = self.innermost.turn(canvas)
    path = process.walk(params)
    here, there = path(t[..., None]), path(s[..., None])
    variance = (process.noise_scale * there.sigma) ** 2 * -jnp.expm1(
      jnp.minimum(here.log_snr - there.log_snr, 0.0)
    )
    time = jnp.where(canvas.open, s, 0.0)
    moves = canvas.open & (s > 0) & (t > s)
    gradient = jax.grad(lambda state: jnp.sum(self.log_prob(state, time)))

    def climb(number, carry: tuple[State, State]) -> tuple[State, State]:
      state, total = carry
      total = total + gradient(state)
      return select(moves, start + variance * self.strength * total / (number + 1), start), total

    state, _ = jax.lax.fori_loop(0, self.steps, climb, (start, jnp.zeros_like(start)))
    return after._replace(state=state) if isinstance(after, Canvas) else state
