"""Gaussian diffusion of vectors: a token is a vector x, and noise is added to it.

Diffusion-LM (arXiv 2205.14217), Plaid (arXiv 2305.18619), TESS (arXiv 2305.08379), SSD-LM (arXiv 2210.17432), flow matching and others
share this core. A subclass is the *codec*, the vector of each token (`embedding`, `simplex`); the *path* (`schedules.PATHS`) gives alpha
and sigma; k is the codec's unit of noise. Per token, with its own t:

  q(z_t | x)   = N(alpha_t x, (k sigma_t)² I) for t > 0, and x itself at t == 0
  p_v          = p(x_i = v | z_t), read off the logits; x̂ = Σ_v p_v x_v is the posterior mean
  rate         = -1/2 dSNR/dt |x - x̂|² / k², SNR = alpha² / sigma²                     (VDM, arXiv 2107.00630 eq. 17)
  ends         = KL(q(z_1 | x) || prior) + E[-log p(x | z_0+)]                          (VDM eq. 11)
  p(z_s | z_t) : z_s = alpha_s P + k sigma_s (√(1 - ρ²) ε̂ + ρ ε), ε̂ = (z_t - alpha_t P) / (k sigma_t)

P is the projection: x̂, or the vector of a token drawn from p, or of the likeliest one, or of the one nearest to x̂. ε̂ is taken about P,
not about x̂. For a drawn P and ρ_d = √(1 - SNR_t / SNR_s) the step is then exactly Σ_v p_v q(z_s | z_t, x_v), and for the others the DDPM
posterior of a token at P, as in Diffusion-LM's clamping. ρ = 0 is DDIM, and Euler's step where the path is linear; ρ = 1 is the re-noising
of TESS. At s == 0 the token is drawn from p.

Two published habits leave the marginals, and are off unless asked for. `fixed_large` scales the fresh noise by sigma_t in place of
sigma_s, the variance of the forward step in place of the posterior's (DiffuSeq, GENIE). `noise_factor` F corrupts at SNR / F² while steps
walk the path itself, so that the network is told a noisier time than it sees (Difformer, NeoDiff): the bound is that of what is trained.
`noise_growth` G makes it F + G t (TREC, as recalled; see configs/trec.py).

z_0+ is the clearest view that noise allows: the path's SNR is finite at t -> 0+. The decoder there is p(x_i | z_i) ∝ q(z_i | x_i), of the
token's own vector alone. It costs no network call; and as it leans on no other token the bound holds for every timing, whichever token
becomes clean first. (With the network's p in its place it would hold for a shared time only.) It keeps embeddings apart, too.

`decode_at`, a log-SNR, moves that end of the bound: a token is decoded there, out of its own vector, and its clearer views, which others
may see, follow from it at no cost, q(z_s | z_t, x) being known. So it is a bound for every value, and each network has a best one: where
a vector already tells its token, SNR multiplies errors of x̂ that a network not trained on the bound never learns to avoid.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_categorical, fold
from diffusion_text.schedules.gaussian import PATHS, Gain, Learned, LogSNR, Noisier
from diffusion_text.types import Array, Denoise, Inputs, Key, Params, Process, State, Time

HIGHEST = jax.lax.Precision.HIGHEST
PREDICTIONS = ("posterior", "leave_one_out")
PROJECTIONS = ("expectation", "sample", "argmax", "nearest")


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
  the class's `projections`. rho: share of fresh noise in a step, 0 to 1; None is eta · ρ_d, of which eta = 1 is the DDPM posterior.
  score_temperature: τ divides ε̂ about x̂, x̂ + (1 - 1/τ) (z / alpha - x̂) in place of x̂ (Plaid: 0.9).
  fixed_large, noise_factor, noise_growth, decode_at: see the module; decode_at None, or above the path, is the path's own end.
  Raises ValueError for values out of range or that do not fit together, and for a schedule that is no path.
  """

  vocab_size: int
  schedule: LogSNR
  prediction: str = "posterior"
  projection: str = "expectation"
  rho: float | None = None
  eta: float = 1.0
  score_temperature: float = 1.0
  fixed_large: bool = False
  noise_factor: float = 1.0
  noise_growth: float = 0.0
  decode_at: float | Array | None = None

  schedules = PATHS  # what `config.schedule` chooses from for these processes
  projections = PROJECTIONS

  def __post_init__(self):
    if self.vocab_size < 2:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 2; take it from the tokenizer"
      )
    if not isinstance(self.schedule, LogSNR):
      raise ValueError(
        f"{type(self).__name__} needs a path, not {self.schedule}; use one of {', '.join(sorted(PATHS))}"
      )
    if self.prediction not in PREDICTIONS:
      raise ValueError(
        f"process.prediction={self.prediction!r} is unknown to Gaussian processes; use one of {PREDICTIONS}"
      )
    if self.projection not in self.projections:
      raise ValueError(
        f"process.projection={self.projection!r} is unknown to {type(self).__name__}; use one of {', '.join(self.projections)}"
      )
    self._check_step()

  def _check_step(self):
    if self.rho is not None and not 0 <= self.rho <= 1:
      raise ValueError(
        f"process.rho={self.rho} must be in [0, 1]; 0 is DDIM, 1 noise anew, None the DDPM posterior"
      )
    if not 0 <= self.eta <= 1 or (self.rho is not None and self.eta != 1):
      raise ValueError(
        f"process.eta={self.eta} must be in [0, 1], and 1 where process.rho={self.rho} is set; they both set ρ"
      )
    if self.fixed_large and (self.rho, self.eta) != (None, 1.0):
      raise ValueError(
        f"process.fixed_large is of the DDPM posterior, not of rho={self.rho}, eta={self.eta}; leave these at None and 1"
      )
    if not self.score_temperature > 0:
      raise ValueError(
        f"process.score_temperature={self.score_temperature} must be positive; 1 changes nothing, Plaid uses 0.9"
      )
    if self.score_temperature != 1 and self.projection != "expectation":
      raise ValueError(
        f"process.score_temperature={self.score_temperature} scales the noise about the posterior mean, not about"
        f" projection={self.projection!r}; use 'expectation'"
      )
    if not self.noise_factor >= 1:
      raise ValueError(
        f"process.noise_factor={self.noise_factor} must be at least 1; Difformer uses 4, 1 is none"
      )
    if not self.noise_growth >= 0:
      raise ValueError(
        f"process.noise_growth={self.noise_growth} must be at least 0, which lets the factor stay what it is"
      )
    if self.noise_growth and isinstance(self.schedule, Learned):
      raise ValueError(
        f"process.noise_growth={self.noise_growth} makes what a stretch of log-SNR costs depend on when it is crossed, which"
        " schedule.name='learned' takes to be fixed; use another path, or noise_factor alone"
      )
    if self.noisier and self.prediction == "leave_one_out":
      raise ValueError(
        f"process.noise_factor={self.noise_factor} and noise_growth={self.noise_growth}: steps see less noise than was trained, so"
        " prediction='leave_one_out' would add other evidence than the bound does; use 'posterior'"
      )

  @property
  def noisier(self) -> bool:
    """Whether training sees more noise than steps do."""
    return (self.noise_factor, self.noise_growth) != (1, 0)

  # The codec.

  @property
  def size(self) -> int:
    """Numbers in a token's vector."""
    raise NotImplementedError

  @property
  def noise_scale(self) -> float:
    """k: the standard deviation of the noise where sigma = 1."""
    return 1.0

  def init_codec(self, key: Key) -> Params:
    """What the codec learns; {} if nothing."""
    del key
    return {}

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
    return self._evidence(params, state, self.gain(params, t))

  def _evidence(self, params: Params, state: State, gain: Gain) -> Array:
    inner, square = self.products(params, state)
    scale = (self.noise_scale * gain.sigma) ** 2
    return gain.alpha / scale * inner - gain.alpha**2 / scale / 2 * square

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

  # The path.

  def init(self, key: Key) -> Params:
    """What the codec learns, and {"schedule": …} where the path is learned."""
    learned = self.init_codec(key)
    return (
      {**learned, "schedule": self.schedule.init()}
      if isinstance(self.schedule, Learned)
      else learned
    )

  def walk(self, params: Params) -> LogSNR:
    """The path of steps. A learned one is bound to its parameters, and no gradient reaches them through it."""
    return (
      self.schedule.bind(params["schedule"])
      if isinstance(self.schedule, Learned)
      else self.schedule
    )

  def path(self, params: Params) -> LogSNR:
    """The path of `corrupt`, and so of training and of the bound: `walk` at SNR / (noise_factor + noise_growth · t)²."""
    walk = self.walk(params)
    return (
      Noisier(base=walk, factor=self.noise_factor, growth=self.noise_growth)
      if self.noisier
      else walk
    )

  def fit_times(self, params: Params, t: Time, rate: Array) -> Array:
    """Zeros [...] whose gradient fits a learned path to where the bound is paid (`paths.Learned.fit`): add them to any loss of t [...]."""
    if not isinstance(self.schedule, Learned):
      return jnp.zeros_like(rate)
    return self.schedule.fit(params["schedule"], t, rate, unit=math.log(self.vocab_size))

  def gain(self, params: Params, t: Time) -> Gain:
    """The gain of `path` at t [...], with an axis for the vectors: [..., 1]. At t == 0 that of t -> 0+."""
    return self.path(params)(t[..., None])

  def _noised(self, path: LogSNR, x: Array, t: Time, noise: Array) -> State:
    alpha, sigma, _ = path(t[..., None])
    return jnp.where(t[..., None] > 0, alpha * x + self.noise_scale * sigma * noise, x)

  # The contract.

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    alpha, sigma, _ = self.walk(params)(jnp.float32(1))
    return alpha * self.centre(params) + self.noise_scale * sigma * jax.random.normal(
      key, (*shape, self.size)
    )

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    x = self.encode(params, ids)
    return self._noised(
      self.path(params), x, jnp.broadcast_to(t, ids.shape), jax.random.normal(key, x.shape)
    )

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    raise NotImplementedError

  def scored(self, params: Params, state: State, t: Time) -> Array:
    return jnp.broadcast_to(t > 0, state.shape[:-1])

  def squared_error(
    self, params: Params, ids: Array, state: State, t: Time, logits: Array
  ) -> Array:
    """|x - x̂|² / k²: [...] of ids [...]."""
    miss = self.encode(params, ids) - self.predicted(params, state, t, logits)
    return jnp.sum(miss**2, axis=-1) / self.noise_scale**2

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    path = self.path(params)
    rate = path.snr_rate(t) / 2 * self.squared_error(params, ids, state, t, logits)
    counts = t > 0
    return jnp.where(
      counts if self.decode_at is None else counts & (path.log_snr(t) < self.decode_at), rate, 0.0
    )

  def prior_cost(self, params: Params, ids: Array) -> Array:
    """KL(q(z_1 | x) || prior) in nats, [...]: SNR_1 |x - m|² / 2k²."""
    away = (self.encode(params, ids) - self.centre(params)) / self.noise_scale
    return jnp.exp(self.path(params).log_snr(jnp.float32(1))) / 2 * jnp.sum(away**2, axis=-1)

  def reconstruction(self, params: Params, key: Key, ids: Array) -> Array:
    """One draw of E[-log p(x_i | z_i)] at t -> 0+, or at `decode_at`, in nats: ids [B, L] -> [B, L]."""
    path = self.path(params)
    clearest = path.log_snr(jnp.zeros(()))
    gain = path.gain(clearest if self.decode_at is None else jnp.minimum(clearest, self.decode_at))

    def cost(ids: Array, key_data: Array) -> Array:
      noise = draw_normal(jax.random.wrap_key_data(key_data), self.size)
      state = gain.alpha * self.encode(params, ids) + self.noise_scale * gain.sigma * noise
      logits = self._evidence(params, state, gain)
      return (
        jax.nn.logsumexp(logits, axis=-1)
        - jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
      )

    return by_position(cost, ids, jax.random.key_data(jax.random.split(key, ids.shape)))

  def ends(self, params: Params, key: Key, ids: Array, denoise: Denoise) -> Array:
    del denoise  # see the module: the decoder is of each token's own vector
    return self.prior_cost(params, ids) + self.reconstruction(params, key, ids)

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    return jnp.broadcast_to(t > s, state.shape[:-1])

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    t, s = (jnp.broadcast_to(time, state.shape[:-1]) for time in (t, s))
    target, drawn = self.aimed(params, keys, state, logits, t)
    after = self.towards(params, target, state, t, s, draw_normal(fold(keys, 0), self.size))
    after = jnp.where(s[..., None] > 0, after, drawn)
    return jnp.where((t > s)[..., None], after, state)

  def aimed(
    self, params: Params, keys: Key, state: State, logits: Array, t: Time
  ) -> tuple[Array, Array]:
    """(P, the vector of a token drawn from p), [..., size] each: where a step from t is bound for, and where the last one ends."""
    logits = self.posterior(params, state, t, logits)
    drawn = self.encode(params, draw_categorical(fold(keys, 1), logits))
    target = drawn if self.projection == "sample" else self.project(params, logits)
    if self.score_temperature != 1:
      alpha = self.walk(params)(t[..., None]).alpha
      target = target + (1 - 1 / self.score_temperature) * (state / alpha - target)
    return target, drawn

  def project(self, params: Params, logits: Array) -> Array:
    """P [..., size] of logits [..., V] of the posterior, for the projections that draw nothing."""
    if self.projection == "argmax":
      return self.encode(params, jnp.argmax(logits, axis=-1))
    mean = self.mean(params, jax.nn.softmax(logits, axis=-1))
    return (
      self.encode(params, self._nearest(params, mean)) if self.projection == "nearest" else mean
    )

  def towards(
    self, params: Params, target: Array, state: State, t: Time, s: Time, noise: Array
  ) -> State:
    """z_s [..., size] given the projected prediction and standard normal noise, both [..., size]."""
    path = self.walk(params)
    here, there = path(t[..., None]), path(s[..., None])
    residual = (state - here.alpha * target) / here.sigma
    # ρ_d² = 1 - SNR_t / SNR_s, without forming the ratio: it is nearly 1 for small steps.
    posterior = jnp.maximum(-jnp.expm1(here.log_snr - there.log_snr), 0.0)
    fresh = self.eta**2 * posterior if self.rho is None else jnp.float32(self.rho**2)
    noise = (
      jnp.sqrt(fresh) * (here.sigma if self.fixed_large else there.sigma) * self.noise_scale * noise
    )
    return there.alpha * target + there.sigma * jnp.sqrt(1 - fresh) * residual + noise

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """The clean tokens: a draw for each that is noisy, the token itself where t == 0."""
    logits = self.posterior(params, state, t, logits)
    clean = self._nearest(params, state)
    return jnp.where(t > 0, draw_categorical(fold(keys, 1), logits), clean).astype(jnp.int32)

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """As `corrupt`, with one key per position."""
    return self.renoise_vectors(params, fold(keys, 5), self.encode(params, ids), t)

  def renoise_vectors(self, params: Params, keys: Key, vectors: Array, t: Time) -> State:
    """A draw of q(z_t | x = vectors [..., size]), one key per position; the vectors themselves where t == 0."""
    return self._noised(
      self.walk(params),
      vectors,
      jnp.broadcast_to(t, vectors.shape[:-1]),
      draw_normal(keys, self.size),
    )

  def decode(self, params: Params, state: State) -> Array:
    """The token whose vector is nearest."""
    return by_position(lambda vectors: self._nearest(params, vectors), state)

  def _nearest(self, params: Params, vectors: Array) -> Array:
    inner, square = self.products(params, vectors)
    return jnp.argmax(inner - square / 2, axis=-1).astype(jnp.int32)


def decoded_at(process: Process, log_snr: float | Array) -> Process:
  """The process whose bound decodes tokens at this log-SNR. Raises ValueError for one that is not Gaussian, or below its path."""
  if not isinstance(process, Gaussian):
    raise ValueError(
      f"evaluate.decode_at={log_snr} is a log-SNR, which {type(process).__name__} has none of; leave it None, or use a Gaussian process"
    )
  lowest = process.schedule.log_snr_min - 2 * math.log(process.noise_factor + process.noise_growth)
  if isinstance(log_snr, float | int) and not log_snr > lowest:
    raise ValueError(
      f"evaluate.decode_at={log_snr} must be above the path's end, log-SNR {lowest:.3g}: there is nothing left to see there;"
      " experiments.evaluate --decoding finds a good one"
    )
  return dataclasses.replace(process, decode_at=log_snr)
