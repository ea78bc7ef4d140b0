"""Gaussian diffusion of vectors: a token is a vector x, and noise is added to it.

Diffusion-LM (arXiv 2205.14217), Plaid (arXiv 2305.18619), TESS (arXiv 2305.08379), SSD-LM (arXiv
2210.17432), flow matching and others share this core. A subclass is the *codec*, the vector of
each token (`embedding`, `simplex`, `distance`); the *path* (`schedules.gaussian.PATHS`) gives alpha
and sigma; k is the codec's unit of noise. Per token, with its own t:

  q(z_t | x)     = N(alpha_t x, (k sigma_t)² I) for t > 0, and x itself at t == 0
  p_v            = p(x_i = v | z_t), read off the logits; x̂ = Σ_v p_v x_v is the posterior mean
  nelbo_rate     = -1/2 dSNR/dt |x - x̂|² / k², SNR = alpha² / sigma²
                   (VDM, arXiv 2107.00630 eq. 17)
  boundary_terms = KL(q(z_1 | x) || prior) + E[-log p(x | z_0+)]                     (VDM eq. 11)
  p(z_s | z_t)   : z_s = alpha_s P + k sigma_s (√(1 - ρ²) ε̂ + ρ ε),
                   with ε̂ = (z_t - alpha_t P) / (k sigma_t)

P is the projection: x̂, or the vector of a token drawn from p, or of the likeliest one, or of the
one nearest to x̂. ε̂ is taken about P, not about x̂. For a drawn P and ρ_d = √(1 - SNR_t / SNR_s)
the step is then exactly Σ_v p_v q(z_s | z_t, x_v), and for the others the DDPM posterior of a token
at P, as in Diffusion-LM's clamping. ρ = 0 is DDIM, and Euler's step where the path is linear;
ρ = 1 is the re-noising of TESS. At s == 0 the token is drawn from p.

Two published habits leave the marginals, and are off unless asked for. `StepOptions.fixed_large`
scales the fresh noise by sigma_t in place of sigma_s, the variance of the forward step in place of
the posterior's (DiffuSeq, arXiv 2210.08933; GENIE, arXiv 2212.11685). A `training_schedule` of its
own corrupts along another path than steps walk, so that the network reads a noisier time than it
sees (Difformer, arXiv 2212.09412: `schedules.gaussian.Noisier`): the bound is that of what is
trained.

z_0+ is the clearest view that noise allows: the path's SNR is finite at t -> 0+. The decoder there
is p(x_i | z_i) ∝ q(z_i | x_i), of the token's own vector alone. It costs no network call; and as it
leans on no other token the bound holds for every timing, whichever token becomes clean first. (With
the network's p in its place it would hold for a shared time only.) It keeps embeddings apart, too.

`boundary_terms(…, start)` sets where the bound starts: each token is decoded from its own vector at
the time `start`; the clearer times cost nothing, because q(z_s | z_t, x) is known once x is. Every
start gives a valid bound, and each network has a best one: at high SNR the rate multiplies
prediction errors that only training on the bound removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import expm1, steep_cross_entropy
from diffusion_text.core.options import internal, member, option, part
from diffusion_text.core.prng import draw_categorical, draw_normal, fold, wrap_keys
from diffusion_text.process.base import PerToken, by_position
from diffusion_text.schedules.gaussian import PATHS, Gain, LogSNR, Path
from diffusion_text.types import InputSizes, Keys, Params

HIGHEST = jax.lax.Precision.HIGHEST


@member
class StepOptions:
  """How `Gaussian.step_towards` makes a step; options of samplers."""

  projection: Literal["expectation", "sample", "argmax", "nearest", "multi_hot"] = option(
    "expectation",
    "P: the posterior mean, a drawn token, the likeliest, the one nearest to the mean, or (simplex"
    " only) all tokens that top_p leaves",
  )
  rho: float | None = option(
    None, "share of fresh noise: 0 is DDIM, 1 all fresh; None: eta · ρ_d", ge=0, le=1
  )
  eta: float = option(1.0, "of ρ_d where rho is not set; 1 is the DDPM posterior", ge=0, le=1)
  score_temperature: float = option(
    1.0,
    "τ divides the predicted noise about the posterior mean, x̂ + (1 - 1/τ) (z / alpha - x̂) in"
    " place of x̂; Plaid (arXiv 2305.18619) has 0.9",
    gt=0,
  )
  fixed_large: bool = option(False, "the fresh noise is of sigma_t in place of sigma_s")

  def __post_init__(self):
    if self.rho is not None and self.eta != 1:
      raise ValueError(
        f"eta={self.eta} must be 1 where rho={self.rho} is set, as they both set ρ; leave one unset"
      )
    if self.fixed_large and (self.rho is not None or self.eta != 1):
      raise ValueError(
        f"fixed_large is of the DDPM posterior, not of rho={self.rho}, eta={self.eta}; leave these"
        " at None and 1"
      )
    if self.score_temperature != 1 and self.projection != "expectation":
      raise ValueError(
        f"score_temperature={self.score_temperature} scales the noise about the posterior mean, not"
        f" about projection={self.projection!r}; use 'expectation'"
      )


@member
class Gaussian(PerToken):
  """What all codecs share. State: float32 [*n, size].

  A subclass defines `size`, `encode`, `mean`, `products` and `inputs`, and may define `noise_scale`
  and `centre`.
  """

  projections: ClassVar[tuple[str, ...]] = ("expectation", "sample", "argmax", "nearest")

  vocab_size: int = internal()
  schedule: Path = part(PATHS, LogSNR(), "the path that steps walk")
  training_schedule: Path | None = part(
    PATHS, None, "the path of `corrupt`, and so of training and of the bound; None: the same"
  )
  prediction: Literal["posterior", "leave_one_out"] = option(
    "posterior",
    "what the logits are: log p(x_i | z), or log p(x_i | z without z_i), to which the exact"
    " evidence log q(z_i | x_i) is added (the output prior of Plaid)",
  )

  def __post_init__(self):
    if self.vocab_size < 2:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 2; take it from the tokenizer"
      )
    if self.training_schedule is not None and self.prediction == "leave_one_out":
      raise ValueError(
        f"process.training_schedule={self.training_schedule}: steps see other noise than was"
        " trained, so prediction='leave_one_out' would add other evidence than the bound does; use"
        " 'posterior'"
      )

  @property
  def reads_logits_as(self) -> Literal["posterior", "leave_one_out"]:
    """What the option `prediction` says."""
    return self.prediction

  @property
  def input_sizes(self) -> InputSizes:
    """The network reads vectors of as many numbers as the state has."""
    return InputSizes(vectors=self.size)

  @property
  def estimate_size(self) -> int:
    """V."""
    return self.vocab_size

  # The codec.

  @property
  def size(self) -> int:
    """E, the numbers of a token's vector."""
    raise NotImplementedError

  @property
  def noise_scale(self) -> float:
    """k: the standard deviation of the noise where sigma = 1."""
    return 1.0

  @property
  def apart(self) -> float | None:
    """The average of |x_v - x_w|² / k² over two different tokens; None if it is not known."""
    return None

  def encode(self, params: Params, ids: Int[Array, "*n"]) -> Float[Array, "*n E"]:
    """The clean vectors x."""
    raise NotImplementedError

  def mean(self, params: Params, probabilities: Float[Array, "*n V"]) -> Float[Array, "*n E"]:
    """x̂ = Σ_v p_v x_v."""
    raise NotImplementedError

  def products(self, params: Params, vectors: Float[Array, "*n E"]) -> tuple[Array, Array]:
    """(<z, x_v> [*n, V], |x_v|² [V] or a scalar), up to constants that do not depend on v."""
    raise NotImplementedError

  def centre(self, params: Params) -> Float[Array, " E"] | float:
    """m, in the middle of the tokens' vectors: the prior is N(alpha_1 m, (k sigma_1)² I)."""
    del params
    return 0.0

  def clean(self, params: Params, ids: Int[Array, "*b L"]) -> Float[Array, "*b L E"]:
    """The vectors of the tokens."""
    return self.encode(params, ids)

  def decode(self, params: Params, state: Float[Array, "*b L E"]) -> Int[Array, "*b L"]:
    """The token whose vector is nearest."""

    def nearest(vectors):
      return self._nearest(params, vectors)

    return nearest(state) if state.ndim < 3 else by_position(nearest, state)

  def _nearest(self, params: Params, vectors: Float[Array, "*n E"]) -> Int[Array, "*n"]:
    inner, square = self.products(params, vectors)
    return jnp.argmax(inner - square / 2, axis=-1).astype(jnp.int32)

  # The path.

  @property
  def path(self) -> Path:
    """The path of `corrupt`, and so of training and of the bound."""
    return self.schedule if self.training_schedule is None else self.training_schedule

  def log_snr(self, params: Params, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The log signal-to-noise ratio that is trained at t."""
    del params
    return self.path.log_snr(t)

  def time_of(self, log_snr: float | Array) -> Float[Array, ""]:
    """The time at which what is trained has this log-SNR; 0 if it lies above the path.

    Raises ValueError if it does not lie above the path's end.
    """
    return self.path.time_of(log_snr)

  def bound_times(self) -> Mapping[str, float]:
    """Times about the one at which a token can just be told from the V - 1 others, where most of
    the bound is paid: SNR · `apart` / 8 = log V. Half of the draws are within about two log-SNRs
    of it.
    """
    if self.apart is None:
      return {}
    time, width = self.path.around(math.log(8 * math.log(self.vocab_size) / self.apart))
    return {"power": 1.0, "about": time, "width": width}

  def log_snr_range(self) -> tuple[float, float]:
    """The log-SNR that is trained at t -> 0+, and at t = 1."""
    return float(self.path.log_snr(jnp.float32(0))), float(self.path.log_snr(jnp.float32(1)))

  # Noise.

  def prior(self, params: Params, keys: Keys) -> Float[Array, "*n E"]:
    """Noise about the centre, as the path that steps walk ends."""
    alpha, sigma, _ = self.schedule(jnp.float32(1))
    noise = draw_normal(fold(keys, 5), self.size)
    return alpha * self.centre(params) + self.noise_scale * sigma * noise

  def corrupt(
    self,
    params: Params,
    keys: Keys,
    clean_state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
  ) -> Float[Array, "*n E"]:
    """alpha x + k sigma ε along the path that is trained."""
    del params
    return self._noised(self.path, keys, clean_state, t)

  def renoise(
    self, params: Params, keys: Keys, vectors: Float[Array, "*n E"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n E"]:
    """As `corrupt`, along the path that steps walk: for samplers that add noise to a prediction."""
    del params
    return self._noised(self.schedule, keys, vectors, t)

  def _noised(
    self, path: Path, keys: Keys, x: Float[Array, "*n E"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n E"]:
    alpha, sigma, _ = path(t[..., None])
    noise = draw_normal(fold(keys, 5), self.size)
    return jnp.where(t[..., None] > 0, alpha * x + self.noise_scale * sigma * noise, x)

  # What the network's output says.

  def evidence(
    self, params: Params, state: Float[Array, "*n E"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n V"]:
    """log q(z_i | x_i = v) up to a constant: (alpha <z, x_v> - alpha² |x_v|² / 2) / (k sigma)².

    At t == 0 that of t -> 0+.
    """
    return self._evidence(params, state, self.path(t[..., None]))

  def _evidence(
    self, params: Params, state: Float[Array, "*n E"], gain: Gain
  ) -> Float[Array, "*n V"]:
    inner, square = self.products(params, state)
    scale = (self.noise_scale * gain.sigma) ** 2
    return gain.alpha / scale * inner - gain.alpha**2 / scale / 2 * square

  def _with_evidence(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """Logits of p(x_i | z), own evidence included."""
    if self.prediction == "posterior":
      return output
    return output + self.evidence(params, state, t)

  def posterior(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z), own evidence included, normalised."""
    return jax.nn.log_softmax(self._with_evidence(params, state, t, output), axis=-1)

  def leave_one_out(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised."""
    if self.prediction == "posterior":
      output = output - self.evidence(params, state, t)
    return jax.nn.log_softmax(output, axis=-1)

  def predicted(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n E"]:
    """x̂, the posterior mean of the clean vector."""
    logits = self._with_evidence(params, state, t, output)
    return self.mean(params, jax.nn.softmax(logits, axis=-1))

  def estimate(
    self,
    params: Params,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """p, own evidence included."""
    return jax.nn.softmax(self._with_evidence(params, state, t, output), axis=-1)

  # Likelihood.

  def has_loss(
    self, params: Params, state: Float[Array, "*n E"], t: Float[Array, "*n"]
  ) -> Bool[Array, "*n"]:
    """True wherever there is noise."""
    del params, state
    return t > 0

  def squared_error(
    self,
    params: Params,
    clean_state: Float[Array, "*n E"],
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """|x - x̂|² / k²."""
    miss = clean_state - self.predicted(params, state, t, output)
    return jnp.sum(miss**2, axis=-1) / self.noise_scale**2

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Float[Array, "*n E"],
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """-1/2 dSNR/dt · |x - x̂|² / k²."""
    rate = self.path.snr_rate(t) / 2
    rate = rate * self.squared_error(params, clean_state, state, t, output)
    return jnp.where(t > 0, rate, 0.0)

  def prior_cost(self, params: Params, clean_state: Float[Array, "*n E"]) -> Float[Array, "*n"]:
    """KL(q(z_1 | x) || prior) in nats: SNR_1 |x - m|² / 2k²."""
    away = (clean_state - self.centre(params)) / self.noise_scale
    return jnp.exp(self.path.log_snr(jnp.float32(1))) / 2 * jnp.sum(away**2, axis=-1)

  def reconstruction(
    self,
    params: Params,
    keys: Keys,
    ids: Int[Array, "*n"],
    start: float | Float[Array, ""] = 0.0,
  ) -> Float[Array, "*n"]:
    """One draw of E[-log p(x_i | z_i)] at the time `start`, or at t -> 0+, in nats."""
    gain = self.path(jnp.asarray(start, jnp.float32))

    def cost(ids, key_data):
      noise = draw_normal(fold(wrap_keys(key_data), 5), self.size)
      state = gain.alpha * self.encode(params, ids) + self.noise_scale * gain.sigma * noise
      return steep_cross_entropy(self._evidence(params, state, gain), ids)

    return by_position(cost, ids, jax.random.key_data(keys))

  def boundary_terms(
    self,
    params: Params,
    keys: Keys,
    ids: Int[Array, "B L"],
    start: float | Float[Array, ""] = 0.0,
  ) -> Float[Array, "B L"]:
    """The prior's cost and one draw of the reconstruction, decoded at the time `start`."""
    prior = self.prior_cost(params, self.encode(params, ids))
    return prior + self.reconstruction(params, keys, ids, start)

  # Reverse.

  def may_change(
    self,
    params: Params,
    keys: Keys,
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Bool[Array, "*n"]:
    """True wherever time goes on."""
    del params, keys, state
    return t > s

  def step(
    self,
    params: Params,
    keys: Keys,
    state: Float[Array, "*n E"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Float[Array, "*n E"]:
    """A draw of the DDPM posterior of a token at the posterior mean; a token at s == 0."""
    return self.step_towards(params, keys, state, output, t, s, StepOptions())

  def check_step(self, options: StepOptions) -> None:
    """Raises ValueError, with the fix, for a projection that this process does not have."""
    if options.projection not in self.projections:
      raise ValueError(
        f"projection={options.projection!r} is unknown to {type(self).__name__}; use one of"
        f" {', '.join(self.projections)}"
      )

  def step_towards(
    self,
    params: Params,
    keys: Keys,
    state: Float[Array, "*n E"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
    options: StepOptions,
  ) -> Float[Array, "*n E"]:
    """z_s, aimed at the projection that the options name; a token drawn from p where s == 0."""
    self.check_step(options)
    logits = self._with_evidence(params, state, t, output)
    ends = (s == 0) & (t > s)
    target, drawn = self._aims(params, keys, logits, ends, options)
    if options.score_temperature != 1:
      alpha = self.schedule(t[..., None]).alpha
      target = target + (1 - 1 / options.score_temperature) * (state / alpha - target)
    noise = draw_normal(fold(keys, 0), self.size)
    after = self.towards(params, target, state, t, s, noise, options)
    after = jnp.where(ends[..., None], drawn, after)
    return jnp.where((t > s)[..., None], after, state)

  def _aims(
    self,
    params: Params,
    keys: Keys,
    logits: Float[Array, "*n V"],
    ends: Bool[Array, "*n"],
    options: StepOptions,
  ) -> tuple[Float[Array, "*n E"], Float[Array, "*n E"]]:
    """(P, the vector of a token drawn from p): where steps are bound for, and where they end."""

    def draw():
      return self.encode(params, draw_categorical(fold(keys, 1), logits))

    if options.projection == "sample":
      drawn = draw()
      return drawn, drawn
    target = self.project(params, logits, options.projection)

    def nothing():
      return jnp.zeros_like(target)

    # A draw over the vocabulary costs as much as the step: it is made where a token ends.
    return target, jax.lax.cond(jnp.any(ends), draw, nothing)

  def project(
    self, params: Params, logits: Float[Array, "*n V"], projection: str
  ) -> Float[Array, "*n E"]:
    """P of the posterior's logits, for the projections that draw nothing."""
    if projection == "argmax":
      return self.encode(params, jnp.argmax(logits, axis=-1))
    mean = self.mean(params, jax.nn.softmax(logits, axis=-1))
    return self.encode(params, self._nearest(params, mean)) if projection == "nearest" else mean

  def towards(
    self,
    params: Params,
    target: Float[Array, "*n E"],
    state: Float[Array, "*n E"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
    noise: Float[Array, "*n E"],
    options: StepOptions,
  ) -> Float[Array, "*n E"]:
    """z_s, s > 0, given the projected prediction and standard normal noise."""
    del params
    here = self.schedule(t[..., None])
    there = self.schedule(s[..., None])
    residual = (state - here.alpha * target) / here.sigma
    # ρ_d² = 1 - SNR_t / SNR_s, without forming the ratio: it is nearly 1 for small steps.
    posterior = jnp.maximum(-expm1(here.log_snr - there.log_snr), 0.0)
    fresh = jnp.float32(options.eta**2) * posterior
    if options.rho is not None:
      fresh = jnp.float32(options.rho**2)
    scale = here.sigma if options.fixed_large else there.sigma
    noise = jnp.sqrt(fresh) * scale * self.noise_scale * noise
    return there.alpha * target + there.sigma * jnp.sqrt(1 - fresh) * residual + noise
