"""Masks and random tokens together: the noise is a mixture of the mask and a uniformly drawn clean token.

GIDD (arXiv 2503.04482), the hybrids of hyperschedules (arXiv 2504.06416) and, as limits, masked and uniform diffusion. With clean_t,
mask_t and uniform_t the shares of a token's law at time t (they sum to 1),

  q(z_t | x) = clean_t · x + mask_t · mask + uniform_t · Uniform(V)

`mixing` says how the shares follow from the schedule (alpha, noise) and one number `share` = p:

  constant   clean = alpha, mask = (1 - p) noise, uniform = p noise; p = 0 is masked, p = 1 uniform diffusion
  gidd       clean : mask : uniform = alpha : noise : c, c = 2 p / (1 - p) · sqrt(alpha · noise): uniform noise peaks at p midway, the
             ends are clean text and all masks (GIDD with gamma = 1)
  gamma      the mask absorbs, and what survives is scrambled: generator (1 - p) · absorbing + p · uniform among clean tokens, so
             mask = 1 - alpha^(1-p), clean = alpha; p = 1 is uniform diffusion (γ-hybrid)
  epsilon    the mask absorbs, and of what survives a share p · noise is scrambled (ε-hybrid; published with a share p that does not
             vanish at t = 0, where our contract wants clean text)

*Which posterior.* The bound compares q with q̂ = clean · x̂ + …, and that is tight only if x̂ is the **leave-one-out** posterior
p(x_i | z without z_i): the ordinary posterior has read z_i already and would count it twice (3.38 instead of 2.11 nats on toy B). A
network trained on this bound learns the leave-one-out posterior by itself; for one trained by cross-entropy say prediction =
"posterior", and its logits are converted: they differ at one token only, log LOO(z_i) = log post(z_i) - log(1 + V clean / uniform).

*Rate.* z jumps to value z at a rate rho(z) that does not depend on where it comes from, so the bound of jump processes is

  rate = rho_t(z) / q_t(z | x) · [ KL(q_t(·|x) ‖ q_t(·|x̂)) + r - log r - 1 ],   r = q_t(z | x) / q_t(z | x̂)       (GIDD theorem 3.2)

(the last terms only where z is a clean token), and every summand below is non-negative, so float32 cannot turn it negative.
In discrete time (`grid` = T) it is T · KL(q(z_s | z_t, x) ‖ q(z_s | z_t, x̂)) with t rounded up to the grid.

*Step.* q(z_s | z_t, x̂) is a mixture: keep z_t, or draw afresh from q_s(· | x̂) with probability c_ts(z_t) / q_t(z_t | x̂).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import WithMask
from diffusion_text.schedules.discrete import Level, Schedule, on_grid
from diffusion_text.types import Array, Key, Params, State, Time

LEAST = 1e-30  # below every share that matters; keeps quotients of shares finite where one is zero
# Rates are formed at times in between. GIDD's uniform noise rises like the root of t: what lies below t costs about its root.
EARLIEST, LATEST = 1e-12, 1 - 2**-20  # a float32 number: its complement is exact
MIXINGS = ("constant", "gidd", "gamma", "epsilon")


class Shares(NamedTuple):
  """The law of one token at a time: it is still clean, the mask, or a uniformly drawn token."""

  clean: Array
  mask: Array
  uniform: Array


def mix(mixing: str, share: float, level: Level) -> Shares:
  """The shares of a mixing (module docstring), accurate in float32 at both ends."""
  alpha, noise = level
  if mixing == "constant":
    return Shares(alpha, (1 - share) * noise, share * noise)
  if mixing == "gidd":
    bump = 2 * share / (1 - share) * jnp.sqrt(alpha * noise) if share else jnp.zeros_like(alpha)
    return Shares(alpha / (1 + bump), noise / (1 + bump), bump / (1 + bump))
  if mixing == "epsilon":
    return Shares(alpha * (1 - share * noise), noise, alpha * share * noise)
  log_alpha = jnp.where(
    noise < 0.5, jnp.log1p(-jnp.minimum(noise, 0.5)), jnp.log(jnp.maximum(alpha, LEAST))
  )
  lost = -jnp.expm1((1 - share) * log_alpha)  # gamma
  lost = jnp.where(alpha > 0, lost, float(share < 1))
  return Shares(
    alpha,
    lost,
    jnp.where(
      alpha > 0, -jnp.exp((1 - share) * log_alpha) * jnp.expm1(share * log_alpha), 1 - lost
    ),
  )


def phi(log_ratio: Array) -> Array:
  """e^a - 1 - a >= 0, to full relative precision near a = 0: what a wrong ratio e^a costs."""
  small = jnp.abs(log_ratio) < 0.03
  near = jnp.where(small, log_ratio, 0.0)
  far = jnp.where(small, 1.0, log_ratio)
  return jnp.where(small, near**2 / 2 * (1 + near / 3 * (1 + near / 4)), jnp.expm1(far) - far)


class Against(NamedTuple):
  """log(q̂ / q) of every state but the mask, whose law is known: other [N, V] (of the tokens that are not the true one), true [N]."""

  other: Array
  true: Array


def compare(shares: Shares, logp: Array, logp_true: Array) -> Against:
  """How the law of a token under the prediction exp(logp) [N, V] differs from its law given the true token [N]."""
  vocab_size = logp.shape[-1]
  base = jnp.maximum(shares.uniform, LEAST) / vocab_size
  other = jnp.log1p((shares.clean / base)[..., None] * jnp.exp(logp))
  true = shares.clean + base
  shift = shares.clean * jnp.expm1(logp_true) / true  # q̂ / q - 1 at the true token, in (-1, 0]
  far = jnp.logaddexp(
    jnp.log(jnp.maximum(shares.clean, LEAST)) + logp_true, jnp.log(base)
  ) - jnp.log(true)
  return Against(other, jnp.where(shift > -0.5, jnp.log1p(jnp.maximum(shift, -0.5)), far))


@dataclasses.dataclass(frozen=True)
class Mixed(WithMask):
  """Mask and uniform noise over `vocab_size` clean tokens; see the module for the choices. State: ids int32, where V is the mask.

  mixing, share: how much of the noise is uniform. prediction: what the logits mean, "leave_one_out" or "posterior".
  grid: T of a discrete-time process; None is continuous time. Raises ValueError for values out of range.
  """

  predictions: ClassVar[tuple[str, ...]] = ("leave_one_out", "posterior")

  vocab_size: int
  schedule: Schedule
  mixing: str = "gidd"
  share: float = 0.1
  prediction: str = "leave_one_out"
  grid: int | None = None

  def __post_init__(self):
    if self.vocab_size < 2:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 2: uniform noise needs another token to go to"
      )
    if self.mixing not in MIXINGS:
      raise ValueError(f"process.mixing={self.mixing!r} is unknown; use one of {MIXINGS}")
    if not 0 <= self.share <= 1 or (self.share == 1 and self.mixing in ("gidd", "epsilon")):
      raise ValueError(
        f"process.share={self.share} must lie in [0, 1], and below 1 for gidd and epsilon; 0.1 and 0.2 are GIDD's, and"
        " process.name='uniform' has no mask at all"
      )
    if self.prediction not in self.predictions:
      raise ValueError(
        f"process.prediction={self.prediction!r} is unknown here; use one of {self.predictions}"
      )
    if self.grid is not None and self.grid < 1:
      raise ValueError(f"process.grid={self.grid} must be at least 1 step; None is continuous time")

  @property
  def absorbing(self) -> bool:
    """Whether a masked token stays masked; if not, it may become a random token, as a clean one may."""
    return self.mixing in ("gamma", "epsilon")

  def shares(self, t: Time) -> Shares:
    """The law of a token at time t."""
    return mix(self.mixing, self.share, self.schedule(t))

  def _moving(self, t: Time) -> tuple[Shares, Shares]:
    """The law that clean-looking tokens compete under (survivors of an absorbing mask: normalised), and the rates of arrival:
    `uniform` at all clean tokens together, `mask` at the mask; `clean` is unused."""
    t = jnp.clip(t, EARLIEST, LATEST)
    level, slope = jax.jvp(self.shares, (t,), (jnp.ones_like(t),))
    if self.absorbing:
      level, slope = jax.jvp(self._survivors, (t,), (jnp.ones_like(t),))
    loss = -slope.clean / jnp.maximum(level.clean, LEAST)
    arrivals = Shares(
      loss,
      slope.mask if self.absorbing else slope.mask + loss * level.mask,
      slope.uniform + loss * level.uniform,
    )
    return level, arrivals

  def _survivors(self, t: Time) -> Shares:
    """Shares with the clean-looking ones normalised among themselves if the mask absorbs; as they are if not."""
    clean, mask, uniform = self.shares(t)
    alive = clean + uniform if self.absorbing else jnp.ones_like(clean)
    safe = jnp.maximum(alive, LEAST)
    return Shares(
      jnp.where(alive > 0, clean / safe, 0.0), mask, jnp.where(alive > 0, uniform / safe, 1.0)
    )

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    return self.corrupt(params, key, jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.float32))

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    del params
    key_kind, key_token = jax.random.split(key)
    token = jax.random.randint(key_token, ids.shape, 0, self.vocab_size)
    return self._noised(jax.random.uniform(key_kind, ids.shape), token, ids, on_grid(t, self.grid))

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """As `corrupt`, with one key per position."""
    return self._noised(
      draw_uniform(fold(keys, 5)), self._any_token(keys), ids, on_grid(t, self.grid)
    )

  def _noised(self, u: Array, token: Array, ids: Array, t: Time) -> State:
    _, mask, uniform = self.shares(t)
    return jnp.where(u < mask, self.mask_id, jnp.where(u < mask + uniform, token, ids)).astype(
      jnp.int32
    )

  def _any_token(self, keys: Key) -> Array:
    return jnp.minimum(
      (draw_uniform(fold(keys, 7)) * self.vocab_size).astype(jnp.int32), self.vocab_size - 1
    )

  def scored(self, params: Params, state: State, t: Time) -> Array:
    del params
    return jnp.broadcast_to(t > 0, state.shape)

  def leave_one_out(self, state: State, t: Time, logits: Array) -> Array:
    """log p(x_i | z without z_i), normalised: [N, V]."""
    if self.prediction == "posterior":
      logits = logits - self._own_evidence(state, t, logits.shape[-1])
    return jax.nn.log_softmax(logits, axis=-1)

  def posterior(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """log p(x_i | z) up to a constant, the evidence of z_i itself included: [..., V]."""
    del params
    return self.leave_one_out(state, t, logits) + self._own_evidence(state, t, self.vocab_size)

  def _own_evidence(self, state: State, t: Time, vocab_size: int) -> Array:
    """log q_t(z | x = v) up to a constant, [N, V]: not zero only at v = z; zero where z is the mask."""
    shares = self.shares(t)
    gain = jnp.log1p(vocab_size * shares.clean / jnp.maximum(shares.uniform, LEAST))
    return jnp.where(
      state[..., None] == jnp.arange(vocab_size),
      jnp.broadcast_to(gain, state.shape)[..., None],
      0.0,
    )

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    if self.grid is not None:
      return jnp.where(
        t > 0, self.grid * self._step_divergence(ids, state, on_grid(t, self.grid), logits), 0.0
      )
    return jnp.where(
      t > 0,
      self.bound_weight(params, ids, state, t) * self.divergence(params, ids, state, t, logits),
      0.0,
    )

  def bound_weight(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    """rho_t(z) / q_t(z | x), per unit time: what `divergence` is multiplied by to give the rate."""
    del params
    shares, arrivals = self._moving(t)
    held = shares.clean * (state == ids) + shares.uniform / self.vocab_size
    clean = arrivals.uniform / self.vocab_size / jnp.maximum(held, LEAST)
    return jnp.where(state == self.mask_id, arrivals.mask / jnp.maximum(shares.mask, LEAST), clean)

  def divergence(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    """KL(q ‖ q̂) + r - log r - 1 >= 0 in nats (without r at the mask): the bracket of the rate."""
    del params
    logp = self.leave_one_out(state, t, logits)
    shares, _ = self._moving(jnp.broadcast_to(t, ids.shape))
    against, true, own = self._against(shares, ids, state, logp)
    base = jnp.maximum(shares.uniform, LEAST) / self.vocab_size
    spread = base * jnp.sum(jnp.where(true, 0.0, phi(against.other)), axis=-1)
    divergence = spread + (shares.clean + base) * phi(against.true)
    return divergence + jnp.where(state == self.mask_id, 0.0, phi(-own))

  def _against(
    self, shares: Shares, ids: Array, state: State, logp: Array
  ) -> tuple[Against, Array, Array]:
    """`compare`; bool [N, V], the true token; log(q̂ / q) at the state's own token (nothing meant where it is the mask)."""
    at = lambda values, which: jnp.take_along_axis(values, which[..., None], axis=-1)[..., 0]
    against = compare(shares, logp, at(logp, ids))
    own = jnp.where(
      state == ids, against.true, at(against.other, jnp.minimum(state, self.vocab_size - 1))
    )
    return against, ids[..., None] == jnp.arange(self.vocab_size), own

  def _step_divergence(self, ids: Array, state: State, t: Time, logits: Array) -> Array:
    """KL(q(z_s | z_t, x) ‖ q(z_s | z_t, x̂)) of one step of the grid, nats."""
    t = jnp.broadcast_to(t, ids.shape)
    s = jnp.maximum(t - 1 / self.grid, 0.0)
    logp = self.leave_one_out(state, t, logits)
    now, before = self._survivors(t), self._survivors(s)
    against, true, own_before = self._against(before, ids, state, logp)
    log_more = -self._against(now, ids, state, logp)[
      2
    ]  # log of (chance of a fresh draw under x̂ / given x)
    base = jnp.maximum(before.uniform, LEAST) / self.vocab_size
    mask = jnp.zeros_like(t) if self.absorbing else before.mask
    held_now = now.clean * (state == ids) + now.uniform / self.vocab_size
    fresh = self._fresh(now, before, state, held_now)
    masked = state == self.mask_id
    log_more = jnp.where(masked, 0.0, log_more)
    own = (state[..., None] == jnp.arange(self.vocab_size)) & ~masked[..., None]
    spread = base * jnp.sum(
      jnp.where(true | own, 0.0, phi(against.other + log_more[..., None])), axis=-1
    )
    spread = (
      spread
      + jnp.where(state == ids, 0.0, (before.clean + base) * phi(against.true + log_more))
      + mask * phi(log_more)
    )
    # The token stays. By Bayes q(stay) = q(z_t | z_t) q_s(z_t) / q_t(z_t), and the first factor does not depend on x.
    held = before.clean * (state == ids) + base
    stays = held * (
      fresh + now.clean / jnp.maximum(before.clean, LEAST) / jnp.maximum(held_now, LEAST)
    )
    stays_cost = stays * phi(own_before + log_more)
    return fresh * spread + jnp.where(masked, 0.0, stays_cost)

  def _fresh(self, now: Shares, before: Shares, state: State, held: Array) -> Array:
    """The chance that z_s is a fresh draw rather than z_t; held: q_t(z_t), of which `before` tells what was there already."""
    kept = now.clean / jnp.maximum(before.clean, LEAST)
    clean = (now.uniform - kept * before.uniform) / self.vocab_size / jnp.maximum(held, LEAST)
    stay = before.mask / jnp.maximum(now.mask, LEAST)
    masked = 1 - jnp.where(self.absorbing, stay, kept * stay)
    return jnp.clip(jnp.where(state == self.mask_id, masked, clean), 0.0, 1.0)

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    del params
    now, before = self._survivors(t), self._survivors(s)
    most = self._fresh(now, before, state, now.uniform / self.vocab_size)  # if x̂ gave z_t no chance
    return (t > s) & (draw_uniform(fold(keys, 0)) < most)

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    now, before = self._survivors(t), self._survivors(s)
    fresh = self._fresh(now, before, state, self._predicted(now, state, t, logits))
    moves = (t > s) & (draw_uniform(fold(keys, 0)) < fresh)
    return jnp.where(moves, self._drawn(keys, state, t, logits, before), state)

  def leap(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    """Tau-leaping (arXiv 2205.14987, SEDD's Euler sampler): a fresh draw from q_t(· | x̂) with probability (t - s) · rho / q_t(z | x̂)."""
    shares, arrivals = self._moving(t)
    into = jnp.where(state == self.mask_id, arrivals.mask, arrivals.uniform / self.vocab_size)
    held = jnp.where(state == self.mask_id, shares.mask, self._predicted(shares, state, t, logits))
    moves = draw_uniform(fold(keys, 0)) < (t - s) * into / jnp.maximum(held, LEAST)
    return jnp.where(moves, self._drawn(keys, state, t, logits, shares), state)

  def _predicted(self, shares: Shares, state: State, t: Time, logits: Array) -> Array:
    """q_t(z | x̂) at the state's own token; nothing meant where it is the mask."""
    own = jnp.minimum(state, self.vocab_size - 1)[..., None]
    chance = jnp.exp(
      jnp.take_along_axis(self.leave_one_out(state, t, logits), own, axis=-1)[..., 0]
    )
    return shares.clean * chance + shares.uniform / self.vocab_size

  def _drawn(self, keys: Key, state: State, t: Time, logits: Array, shares: Shares) -> State:
    """A draw of the mixture of x̂, uniform and mask; without the mask where it absorbs."""
    clean, mask, uniform = shares
    mask = jnp.zeros_like(mask) if self.absorbing else mask
    u = draw_uniform(fold(keys, 6)) * (clean + mask + uniform)
    token = draw_categorical(fold(keys, 1), self.leave_one_out(state, t, logits))
    return jnp.where(
      u < clean, token, jnp.where(u < clean + uniform, self._any_token(keys), self.mask_id)
    ).astype(jnp.int32)

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """The clean tokens, drawn from the ordinary posterior: leave-one-out times the evidence of z itself."""
    return draw_categorical(fold(keys, 1), self.posterior(params, state, t, logits))

  def dynamic_weight(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    """GIDD's training weights of the divergence (its section 3.3): 2 at masks, 1 at wrong tokens, small at right ones."""
    del params
    right = 2 * self.share / (1 - self.share) / self.vocab_size * jnp.exp(jax.nn.sigmoid(-t) / 2)
    return jnp.where(state == self.mask_id, 2.0, jnp.where(state == ids, right, 1.0))
