"""Control: any sampler, steered by the gradient of a classifier, so that the text has an attribute
c that the generator was not trained on.

Bayes' rule for one token is log p(x_i = v | z, c) = log p(x_i = v | z) + log p(c | x_i = v, z) +
constant. The classifier is asked once, at the soft tokens p (the prediction itself), and its answer
is carried to every token to first order:

  log p(c | x_i = v, z) ~ constant + g_iv
  g_iv = d log p(c | p) / d p_iv = e_v · d log p(c | ē) / d ē_i,   ē_i = Σ_v p_iv e_v

`LogitControl` adds that to the logits; it needs a classifier of clean text only (any that reads
embeddings, SSD-LM, arXiv 2210.17432; TESS-2, arXiv 2502.13917) and serves every process whose
outputs are logits. `LatentControl` moves the noisy vectors of a Gaussian process; its classifier is
trained on them (Diffusion-LM, arXiv 2205.14217). Neither differentiates the generator: the network
calls are those of the sampler.

A controlled sampler is a sampler. In blocks, the classifier sees the block that is being drawn and
nothing else. What the classifier has learned lies in a group of `params`; a number there that
multiplies `log_prob` is a strength that can be changed without another compilation.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import expm1, select
from diffusion_text.core.options import member, option
from diffusion_text.sampler.grid import Turn
from diffusion_text.schedules.gaussian import Path
from diffusion_text.types import (
  Canvas,
  IdentityHead,
  Model,
  Params,
  Prediction,
  Query,
  SamplerState,
  State,
)


class TokenClassifier(Protocol):
  """log p(c | soft tokens); a frozen dataclass of options."""

  def log_prob(self, params: Params, soft: Float[Array, "B u V"]) -> Float[Array, " B"]:
    """Nats, differentiable in the rows of probabilities; each row for itself."""


class LatentClassifier(Protocol):
  """log p(c | z_t); a frozen dataclass of options, trained on noised vectors."""

  def log_prob(
    self, params: Params, vectors: Float[Array, "B u E"], t: Float[Array, "B u"]
  ) -> Float[Array, " B"]:
    """Nats, differentiable in the vectors; each row for itself."""


@member
class Controlled:
  """What both kinds of control share: everything but `step` is the sampler's own."""

  sampler: Any = option(..., "the sampler that is steered")
  classifier: Any = option(..., "a member with `log_prob`")
  strength: float = option(1.0, "0: no control; 1: Bayes' rule; negative: away from c")
  steps: int = option(1, "gradients per network call; 3 in Diffusion-LM", ge=1)
  group: str = option("classifier", "the group of `params` that the classifier reads")

  @property
  def extra_calls(self) -> int:
    """The sampler's own: the classifier is no call of the network."""
    return self.sampler.extra_calls

  def check(self, model: Model) -> None:
    """Raises ValueError where the sampler itself cannot serve the model."""
    self.sampler.check(model)

  def init(self, model: Model, params: Params, canvas: Canvas) -> SamplerState:
    """The sampler's own state."""
    return self.sampler.init(model, params, canvas)

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Bool[Array, "B u"]:
    """What the sampler needs."""
    return self.sampler.needs(model, params, canvas, state)

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """The sampler's times."""
    return self.sampler.times(model, params, canvas, state)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """What the sampler says."""
    return self.sampler.network_times(model, params, canvas, state)


@member
class LogitControl(Controlled):
  """Adds the gradient of log p(c | soft tokens) to the logits of every noisy token, before the
  sampler reads them.

  Each of the `steps` gradients has the weight strength / steps and is taken where the one before it
  led (TESS-2); 1 as in SSD-LM.

  "probabilities" adds g_iv: strength 1 is Bayes' rule to first order. It is exact where log p(c |
  ·) is linear in the soft tokens and tokens are independent given z; otherwise what c means for
  tokens that are still noisy is only seen as far as p sees it. "logits" adds d log p(c | p) / d
  logits = p_iv (g_iv - Σ_u p_iu g_iu), as published: a token without probability gets none, and
  published strengths are 100 to 2000.

  Logits of all positions of the window exist at once, [B, u, V] float32, as the soft tokens do.
  """

  wrt: Literal["probabilities", "logits"] = option("probabilities", "what the gradient is taken by")

  def check(self, model: Model) -> None:
    """Raises ValueError where the network's output is no law over tokens."""
    super().check(model)
    process = model.process
    meaning = process.reads_logits_as
    if meaning == "vector" or (meaning == "score" and process.mask_id is None):
      raise ValueError(
        f"control adds to logits of tokens, and what {type(process).__name__} reads is a {meaning};"
        " use prediction='leave_one_out'"
      )

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: SamplerState,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, SamplerState]:
    """The sampler's step, with the controlled logits in place of the network's."""
    if prediction.fresh is not None:
      raise ValueError(
        "control reads the answers of all positions, and this reader answers some of them;"
        " use reader.name='whole_row'"
      )
    t = jnp.where(canvas.active, self.times(model, params, canvas, state), 0.0)
    noisy = uncertain(model, params, canvas, t)
    of_classifier = params[self.group]

    def total(soft):
      return jnp.sum(self.classifier.log_prob(of_classifier, soft))

    def gradient(logits):
      if self.wrt == "probabilities":
        return jax.grad(total)(believed(model, params, canvas, t, logits))
      return jax.grad(lambda each: total(believed(model, params, canvas, t, each)))(logits)

    def climb(_, logits):
      return select(noisy, logits + self.strength / self.steps * gradient(logits), logits)

    logits = jax.lax.fori_loop(0, self.steps, climb, prediction.logits)
    steered = Prediction(logits, IdentityHead())
    return self.sampler.step(model, params, canvas, state, steered, query, needs)


def uncertain(
  model: Model, params: Params, canvas: Canvas, t: Float[Array, "B u"]
) -> Bool[Array, "B u"]:
  """True at the active tokens that the state does not tell."""
  return canvas.active & (t > 0) & model.process.has_loss(params["process"], canvas.state, t)


def believed(
  model: Model,
  params: Params,
  canvas: Canvas,
  t: Float[Array, "B u"],
  output: Float[Array, "B u V"],
) -> Float[Array, "B u V"]:
  """The clean tokens as far as they are known: the posterior where the state is noisy, the token
  itself elsewhere.

  output: what the network answers, or anything put in its place.
  """
  process, of_process = model.process, params["process"]
  known = jax.nn.one_hot(process.decode(of_process, canvas.state), process.vocab_size)
  posterior = jnp.exp(process.posterior(of_process, canvas.state, t, output))
  return select(uncertain(model, params, canvas, t), posterior, known)


@runtime_checkable
class NoisesVectors(Protocol):
  """A process that adds noise to vectors: z_t = alpha x + noise_scale · sigma ε along its path."""

  noise_scale: float
  schedule: Path

  def encode(self, params: Params, ids: Int[Array, "*n"]) -> Float[Array, "*n E"]:
    """The clean vectors of tokens."""


@runtime_checkable
class WalksTimes(Protocol):
  """A sampler that leaves the state at the times of its steps.

  Attributes:
    on_grid: True if these are the times at which tokens stand.
  """

  on_grid: bool

  def turn(self, canvas: Canvas, state: SamplerState) -> Turn:
    """The times t -> s of the step that each row is at."""


@member
class LatentControl(Controlled):
  """Moves the vectors z_s that a step has drawn towards c, held by where the step put them.

  A step draws z from about N(z̄, v), v = k² sigma_s² (1 - SNR_t / SNR_s), and p(z | z_t, c) is that
  times p(c | z): for small v the same normal with its mean shifted by v · d log p(c | z) / dz
  (arXiv 2105.05233, section 4.1). `steps` gradients look for the shift that agrees with the place
  it leads to,

    z <- z_s + v · strength · (mean of the gradients so far),

  which ascends strength · log p(c | z) - |z - z_s|² / 2v. So v is the fluency term: the weight
  lambda of |z - z̄|² / v in Diffusion-LM is strength 1 / (2 lambda), and its 3 Adagrad steps are
  `steps` = 3. At strength 1 the law tends to p(x | c) as the sampler's steps grow, if the sampler
  steps by the DDPM posterior (rho None, eta 1); the noiseless step (rho 0) needs half of it.

  The classifier is a `LatentClassifier`. Nothing is moved at s = 0, where tokens are drawn.
  """

  def check(self, model: Model) -> None:
    """Refuses processes without vectors, and samplers whose steps have no times of their own."""
    super().check(model)
    fix = "use LogitControl, which serves every process"
    require(model.process, NoisesVectors, "control of latents", fix)
    fix = "control sampler.name='grid' or 'gaussian'"
    require(self.sampler, WalksTimes, "control of latents", fix)
    if not self.sampler.on_grid:
      raise ValueError(
        f"control of latents moves them by the noise of a step, and those of {self.sampler} go"
        f" between times that follow from what it predicts; {fix}"
      )

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: SamplerState,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, SamplerState]:
    """The sampler's step, and the vectors moved from where it put them."""
    turn = self.sampler.turn(canvas, state)
    start, state = self.sampler.step(model, params, canvas, state, prediction, query, needs)
    process, of_classifier = model.process, params[self.group]
    here, there = process.schedule(turn.t[..., None]), process.schedule(turn.s[..., None])
    less = -expm1(jnp.minimum(here.log_snr - there.log_snr, 0.0))
    variance = (process.noise_scale * there.sigma) ** 2 * less
    time = jnp.where(canvas.active, turn.s, 0.0)
    moves = canvas.active & needs & (turn.s > 0) & (turn.t > turn.s)

    def total(vectors):
      return jnp.sum(self.classifier.log_prob(of_classifier, vectors, time))

    def climb(number, carry):
      vectors, gradients = carry
      gradients = gradients + jax.grad(total)(vectors)
      shift = variance * self.strength * gradients / (number + 1)
      return select(moves, start + shift, start), gradients

    nothing = jnp.zeros_like(start)
    vectors, _ = jax.lax.fori_loop(0, self.steps, climb, (start, nothing))
    return vectors, state
