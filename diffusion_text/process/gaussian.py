"""Gaussian diffusion of vectors: a token is a vector x, and noise is added to it.

Diffusion-LM (arXiv 2205.14217), Plaid (arXiv 2305.18619), TESS (arXiv 2305.08379), SSD-LM (arXiv 2210.17432), flow matching and others
share this core. A subclass is the *codec*, the vector of each token (`embedding`, `simplex`); the *path* (`schedules.PATHS`) gives alpha
and sigma; k is the codec's unit of noise. Per token, with its own t:

  q(z_t | x)   = N(alpha_t x, (k sigma_t)² I) for t > 0, and x itself at t == 0
  p_v          = p(x_i = v | z_t), read off the logits; x̂ = Σ_v p_v x_v is the posterior mean
  rate         = -1/2 dSNR/dt |x - x̂|² / k², SNR = alpha² / sigma²                     (VDM, arXiv 2107.00630 eq. 17)
  ends         = KL(q(z_1 | x) || prior) + E[-log p(x | z_0+)]                          (VDM eq. 11)
  p(z_s | z_t) : z_s = alpha_s P + k sigma_s (√(1 - ρ²) ε̂ + ρ ε), ε̂ = (z_t - alpha_t P) / (k sigma_t)

P is the projection: x̂, or the vector of a token drawn from p, or of the likeliest one. ε̂ is taken about P, not about x̂. For a drawn P
and ρ_d = √(1 - SNR_t / SNR_s) the step is then exactly Σ_v p_v q(z_s | z_t, x_v), and for the others the DDPM posterior of a token at P, as
in Diffusion-LM's clamping. ρ = 0 is DDIM, and Euler's step where the path is linear; ρ = 1 is the re-noising of TESS. At s == 0 the
token is drawn from p.

z_0+ is the clearest view that noise allows: the path's SNR is finite at t -> 0+. The decoder there is p(x_i | z_i) ∝ q(z_i | x_i), of the
token's own vector alone. It costs no network call; and as it leans on no other token the bound holds for every timing, whichever token
becomes clean first. (With the network's p in its place it would hold for a shared time only.) It keeps embeddings apart, too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_text.draws import draw_categorical, fold
from diffusion_text.schedules import PATHS, Gain, LogSNR
from diffusion_text.types import Array, Denoise, Inputs, Key, Params, State, Time

HIGHEST = jax.lax.Precision.HIGHEST
PREDICTIONS = ("posterior", "leave_one_out")
PROJECTIONS = ("expectation", "sample", "argmax")


def draw_normal(keys: Key, width: int) -> Array:
  """Standard normals, one key per position: keys [...] -> float32 [..., width]."""
  flat = jax.vmap(lambda key: jax.random.normal(key, (width,)))(keys.reshape(-1))
  return flat.reshape(*keys.shape, width)


def by_position(fn, *arrays: Array) -> Array:
  """fn of [B, ...] slices, one position of [B, L, ...] at a time, so that [B, V] exists and [B, L, V] does not: [B, L, ...]."""
  first = [jnp.moveaxis(array, 1, 0) for array in arrays]
  return jnp.moveaxis(jax.lax.map(jax.checkpoint(lambda rows: fn(*rows)), tuple(first)), 0, 1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """What all codecs share. State: float32 [B, L, width].

  schedule: the path, one of `schedules.PATHS`. prediction: what the logits are, "posterior" log p(x_i | z), or "leave_one_out"
  log p(x_i | z without z_i), to which the exact evidence log q(z_i | x_i) is added (Plaid's output prior). projection: P in a step, one of
  PROJECTIONS. rho: share of fresh noise in a step, 0 to 1; None is ρ_d, the DDPM posterior.
  Raises ValueError for values out of range and for a schedule that is no path.
  """

  vocab_size: int
  schedule: LogSNR
  prediction: str = "posterior"
  projection: str = "expectation"
  rho: float | None = None

  schedules = PATHS  # what `config.schedule` chooses from for these processes

  def __post_init__(self):
    if self.vocab_size < 2:
      raise ValueError(f"vocab_size={self.vocab_size} must be at least 2; take it from the tokenizer")
    if not isinstance(self.schedule, LogSNR):
      raise ValueError(f"{type(self).__name__} needs a path, not {self.schedule}; use one of {', '.join(sorted(PATHS))}")
    if self.prediction not in PREDICTIONS:
      raise ValueError(f"process.prediction={self.prediction!r} is unknown to Gaussian processes; use one of {PREDICTIONS}")
    if self.projection not in PROJECTIONS:
      raise ValueError(f"process.projection={self.projection!r} is unknown; use one of {PROJECTIONS}")
    if self.rho is not None and not 0 <= self.rho <= 1:
      raise ValueError(f"process.rho={self.rho} must be in [0, 1]; 0 is DDIM, 1 noise anew, None the DDPM posterior")

  # The codec.

  @property
  def size(self) -> int:
    """Numbers in a token's vector."""
    raise NotImplementedError

  @property
  def noise_scale(self) -> float:
    """k: the standard deviation of the noise where sigma = 1."""
    return 1.0

  def encode(self, params: Params, ids: Array) -> Array:
    """The clean vectors x: ids [...] -> float32 [..., size]."""
    raise NotImplementedError

  def mean(self, params: Params, probabilities: Array) -> Array:
    """x̂ = Σ_v p_v x_v: [..., V] -> [..., size]."""
    raise NotImplementedError

  def products(self, params: Params, vectors: Array) -> tuple[Array, Array]:
    """(<z, x_v> [..., V], |x_v|² [V] or scalar), each up to a constant that does not depend on v."""
    raise NotImplementedError

  def centre(self, params: Params) -> Array | float:
    """m [size] or a scalar, somewhere in the middle of the tokens' vectors: the prior is N(alpha_1 m, (k sigma_1)² I)."""
    return 0.0

  # What the logits say.

  @property
  def input_size(self) -> int:
    return self.size

  def evidence(self, params: Params, state: State, t: Time) -> Array:
    """log q(z_i | x_i = v) + constant, [..., V]: (alpha <z, x_v> - alpha² |x_v|² / 2) / (k sigma)². At t == 0 that of t -> 0+."""
    alpha, sigma, _ = self.gain(t)
    inner, square = self.products(params, state)
    scale = (self.noise_scale * sigma) ** 2
    return alpha / scale * inner - alpha**2 / scale / 2 * square

  def posterior(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """Logits of p(x_i | z), own evidence included: [..., V]."""
    return logits if self.prediction == "posterior" else logits + self.evidence(params, state, t)

  def predicted(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """x̂ [..., size], the posterior mean of the clean vector."""
    return self.mean(params, jax.nn.softmax(self.posterior(params, state, t, logits), axis=-1))

  @property
  def estimate_size(self) -> int:
    return self.vocab_size

  def estimate(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """p [..., V], own evidence included."""
    return jax.nn.softmax(self.posterior(params, state, t, logits), axis=-1)

  def gain(self, t: Time) -> Gain:
    """The path's gain at t [...], with an axis for the vectors: [..., 1]. At t == 0 that of t -> 0+."""
    return self.schedule(t[..., None])

  def _noised(self, x: Array, t: Time, noise: Array) -> State:
    alpha, sigma, _ = self.gain(t)
    return jnp.where(t[..., None] > 0, alpha * x + self.noise_scale * sigma * noise, x)

  # The contract.

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    alpha, sigma, _ = self.schedule(jnp.float32(1))
    return alpha * self.centre(params) + self.noise_scale * sigma * jax.random.normal(key, (*shape, self.size))

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    x = self.encode(params, ids)
    return self._noised(x, jnp.broadcast_to(t, ids.shape), jax.random.normal(key, x.shape))

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    raise NotImplementedError

  def scored(self, params: Params, state: State, t: Time) -> Array:
    return jnp.broadcast_to(t > 0, state.shape[:-1])

  def squared_error(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    """|x - x̂|² / k²: [...] of ids [...]."""
    miss = self.encode(params, ids) - self.predicted(params, state, t, logits)
    return jnp.sum(miss**2, axis=-1) / self.noise_scale**2

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    rate = self.schedule.snr_rate(t) / 2 * self.squared_error(params, ids, state, t, logits)
    return jnp.where(t > 0, rate, 0.0)

  def prior_cost(self, params: Params, ids: Array) -> Array:
    """KL(q(z_1 | x) || prior) in nats, [...]: SNR_1 |x - m|² / 2k²."""
    away = (self.encode(params, ids) - self.centre(params)) / self.noise_scale
    return jnp.exp(self.schedule.log_snr(jnp.float32(1))) / 2 * jnp.sum(away**2, axis=-1)

  def reconstruction(self, params: Params, key: Key, ids: Array) -> Array:
    """One draw of E[-log p(x_i | z_i)] at t -> 0+ in nats: ids [B, L] -> [B, L]."""
    start = jnp.zeros(())
    x = self.encode(params, ids)
    alpha, sigma, _ = self.schedule(start)
    state = alpha * x + self.noise_scale * sigma * jax.random.normal(key, x.shape)

    def cost(state: Array, ids: Array) -> Array:
      logits = self.evidence(params, state, start)
      return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]

    return by_position(cost, state, ids)

  def ends(self, params: Params, key: Key, ids: Array, denoise: Denoise) -> Array:
    del denoise  # see the module: the decoder is of each token's own vector
    return self.prior_cost(params, ids) + self.reconstruction(params, key, ids)

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    return jnp.broadcast_to(t > s, state.shape[:-1])

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    t, s = (jnp.broadcast_to(time, state.shape[:-1]) for time in (t, s))
    logits = self.posterior(params, state, t, logits)
    drawn = self.encode(params, draw_categorical(fold(keys, 1), logits))
    if self.projection == "sample":
      target = drawn
    elif self.projection == "argmax":
      target = self.encode(params, jnp.argmax(logits, axis=-1))
    else:
      target = self.mean(params, jax.nn.softmax(logits, axis=-1))
    after = self.towards(target, state, t, s, draw_normal(fold(keys, 0), self.size))
    after = jnp.where(s[..., None] > 0, after, drawn)
    return jnp.where((t > s)[..., None], after, state)

  def towards(self, target: Array, state: State, t: Time, s: Time, noise: Array) -> State:
    """z_s [..., size] given the projected prediction and standard normal noise, both [..., size]."""
    here, there = self.gain(t), self.gain(s)
    residual = (state - here.alpha * target) / here.sigma
    # 1 - SNR_t / SNR_s, without forming the ratio: it is nearly 1 for small steps.
    fresh = jnp.maximum(-jnp.expm1(here.log_snr - there.log_snr), 0.0) if self.rho is None else jnp.float32(self.rho**2)
    noise = jnp.sqrt(1 - fresh) * residual + jnp.sqrt(fresh) * self.noise_scale * noise
    return there.alpha * target + there.sigma * noise

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """The clean tokens: a draw for each that is noisy, the token itself where t == 0."""
    logits = self.posterior(params, state, t, logits)
    clean = jnp.argmax(self.evidence(params, state, t), axis=-1)
    return jnp.where(t > 0, draw_categorical(fold(keys, 1), logits), clean).astype(jnp.int32)

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """As `corrupt`, with one key per position."""
    return self._noised(self.encode(params, ids), jnp.broadcast_to(t, ids.shape), draw_normal(fold(keys, 5), self.size))

  def decode(self, params: Params, state: State) -> Array:
    """The token whose vector is nearest."""

    def nearest(state: Array) -> Array:
      inner, square = self.products(params, state)
      return jnp.argmax(inner - square / 2, axis=-1).astype(jnp.int32)

    return by_position(nearest, state)
