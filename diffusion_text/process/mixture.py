"""Noise of masks and random tokens, given their shares: what `mixed` and `uniform` have in common.

With clean_t, mask_t and uniform_t the shares of a token's law at time t (they sum to 1),

  q(z_t | x) = clean_t · x + mask_t · mask + uniform_t · Uniform(V)

*Which posterior.* The bound compares q with q̂ = clean · x̂ + …, and is tight only if x̂ is the
**leave-one-out** posterior p(x_i | z without z_i): the ordinary posterior has read z_i already and
would count it twice (3.38 instead of 2.11 nats on toy language B of golden_test.py). A network that
is trained on this bound learns the leave-one-out posterior by itself. For one that is trained by
cross-entropy set prediction = "posterior", and its logits are converted: the two differ at one
token only, log LOO(z_i) = log post(z_i) - log(1 + V clean / uniform).

*Rate.* z jumps to value z at a rate rho(z) that does not depend on where it comes from, so the
bound of jump processes is (GIDD, arXiv 2503.04482, theorem 3.2)

  nelbo_rate = rho_t(z) / q_t(z | x) · [ KL(q_t(·|x) ‖ q_t(·|x̂)) + r - log r - 1 ],
  r = q_t(z | x) / q_t(z | x̂)

(the last terms only where z is a clean token), and every summand below is non-negative, so float32
cannot turn the rate negative. In discrete time (`time_steps` = T) the rate is
T · KL(q(z_s | z_t, x) ‖ q(z_s | z_t, x̂)), with t rounded up to the grid.

*Step.* q(z_s | z_t, x̂) is a mixture: keep z_t, or draw afresh from q_s(· | x̂) with probability
c_ts(z_t) / q_t(z_t | x̂).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import LEAST as TINIEST
from diffusion_text.core.numerics import NEVER, at_ids, expm1
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.discrete import Discrete, is_token
from diffusion_text.schedules.discrete import Schedule, on_grid
from diffusion_text.types import Keys, Params

# The least divisor, below every share that matters.
LEAST = 1e-30
# Rates are formed at times in between. GIDD's uniform noise rises like the root of t: what lies
# below t costs about its root. The complement of LATEST is a float32 number.
EARLIEST = 1e-12
LATEST = 1 - 2**-20
_LARGE = 40.0  # of a log-ratio that is put into exp; the largest float32 is e^88
# The largest log(q / q̂) that is kept: the true one is at most log(1 + V / uniform), less than this
# wherever a token can be random.
_LARGEST = 69.0


class Shares(NamedTuple):
  """The law of one token at a time: it is still clean, the mask, or a uniformly drawn token."""

  clean: Float[Array, "*n"]
  mask: Float[Array, "*n"]
  uniform: Float[Array, "*n"]


def excess(log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """e^a - 1 - a >= 0, what a wrong ratio e^a costs, to full relative precision near a = 0."""
  small = jnp.abs(log_ratio) < 0.03
  near = jnp.where(small, log_ratio, 0.0)
  far = jnp.where(small, 1.0, log_ratio)
  return jnp.where(small, near**2 / 2 * (1 + near / 3 * (1 + near / 4)), expm1(far) - far)


def log_share(share: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """log of a share; NEVER for 0."""
  return jnp.where(share > 0, jnp.log(jnp.maximum(share, TINIEST)), NEVER)


def weighted_excess(
  weight: Float[Array, "*#n"], log_ratio: Float[Array, "*n"], log_other: Float[Array, "*n"]
) -> Float[Array, "*n"]:
  """q̂ - q - q log(q̂ / q) = weight · excess(log_ratio), finite also where q = 0 and q̂ > 0.

  weight: q. log_ratio: log(q̂ / q). log_other: log q̂, used where e^log_ratio would overflow.
  """
  large = log_ratio > _LARGE
  plain = weight * excess(jnp.minimum(log_ratio, _LARGE))
  far = jnp.where(large, log_ratio, _LARGE)
  return jnp.where(large, jnp.exp(log_other) - weight * (1 + far), plain)


class Comparison(NamedTuple):
  """log(q̂ / q) of tokens: the prediction's law against the law given the true token.

  Attributes:
    other: log(q̂ / q) of each token v, as if v were not the true one.
    predicted: log q̂ of each token.
    true: log(q̂ / q) of the true token.
    own: log(q̂ / q) of the state's own token; without meaning where the state is the mask.
  """

  other: Float[Array, "*n V"]
  predicted: Float[Array, "*n V"]
  true: Float[Array, "*n"]
  own: Float[Array, "*n"]


def compare(
  shares: Shares,
  clean_state: Int[Array, "*n"],
  state: Int[Array, "*n"],
  log_p: Float[Array, "*n V"],
) -> Comparison:
  """How the law of a token under the prediction exp(log_p) differs from its law given the token."""
  vocab_size = log_p.shape[-1]
  base = shares.uniform / vocab_size
  log_base = log_share(shares.uniform) - math.log(vocab_size)
  log_p_true = at_ids(log_p, clean_state)
  log_clean = log_share(shares.clean)
  clean = log_clean[..., None] + log_p
  other = jax.nn.softplus(clean - log_base[..., None])
  predicted = jnp.logaddexp(clean, log_base[..., None])
  true = jnp.maximum(shares.clean + base, LEAST)
  shift = shares.clean * expm1(log_p_true) / true  # q̂ / q - 1 at the true token, in (-1, 0]
  far = jnp.logaddexp(log_clean + log_p_true, log_base) - jnp.log(true)
  true = jnp.where(shift > -0.5, jnp.log1p(jnp.maximum(shift, -0.5)), far)
  own = jnp.where(state == clean_state, true, at_ids(other, jnp.minimum(state, vocab_size - 1)))
  return Comparison(other, predicted, true, own)


class Mixture(Discrete):
  """Noise of masks and random tokens, given their shares. State: ids int32.

  A subclass has the options `schedule`, `prediction`, `time_steps`, and says what the shares are.

  Attributes:
    mask_is_final: True if the mask absorbs: a masked token stays masked at all later times. False
      if it may become a random token.
  """

  schedule: Schedule
  prediction: str
  time_steps: int | None

  @property
  def mask_is_final(self) -> bool:
    """False, unless a mixing says otherwise."""
    return False

  def shares(self, t: Float[Array, "*n"]) -> Shares:
    """The law of a token at time t."""
    raise NotImplementedError

  def __post_init__(self):
    if self.vocab_size < 2:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 2, as uniform noise needs other"
        " tokens to go to; take it from the tokenizer"
      )

  @property
  def reads_logits_as(self) -> Literal["posterior", "leave_one_out", "score"]:
    """What the option `prediction` says."""
    return self.prediction

  def bound_times(self) -> Mapping[str, float]:
    """t = τ³. A token that is random at a small time t has a chance of about t, or of its root, and
    a rate of about 1 / t, so that at even times the second moment of the rates is infinite. With
    t = τ^p it is finite for p > 1, or p > 2.
    """
    return {"power": 3.0}

  def round_time(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """t rounded up to the next of the times k / time_steps."""
    return on_grid(t, self.time_steps)

  # Noise.

  def prior(self, params: Params, keys: Keys) -> Int[Array, "*n"]:
    """What `corrupt` gives at t = 1, whatever the token."""
    zeros = jnp.zeros(keys.shape, jnp.int32)
    return self.corrupt(params, keys, zeros, jnp.ones(keys.shape, jnp.float32))

  def corrupt(
    self, params: Params, keys: Keys, clean_state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Int[Array, "*n"]:
    """A draw of the mixture: the token, the mask, or any token."""
    del params
    _, mask, uniform = self.shares(self.round_time(t))
    u = draw_uniform(fold(keys, 5))
    noisy = jnp.where(u < mask + uniform, self._any_token(keys), clean_state)
    return jnp.where(u < mask, self.vocab_size, noisy).astype(jnp.int32)

  def _any_token(self, keys: Keys) -> Int[Array, "*n"]:
    drawn = (draw_uniform(fold(keys, 7)) * self.vocab_size).astype(jnp.int32)
    return jnp.minimum(drawn, self.vocab_size - 1)

  # What the network's output says.

  def evidence(
    self, params: Params, state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Float[Array, "*n V"]:
    """log q(z_i | x_i = v) up to a constant: not zero only at v = z_i, and zero at a mask.

    At t = 0 it is a large number, about 70, in place of infinity.
    """
    del params
    return self._own_evidence(state, t)

  def _own_evidence(self, state: Int[Array, "*n"], t: Float[Array, "*n"]) -> Float[Array, "*n V"]:
    shares = self.shares(t)
    gain = jnp.log1p(self.vocab_size * shares.clean / jnp.maximum(shares.uniform, LEAST))
    return jnp.where(is_token(state, self.vocab_size), gain[..., None], 0.0)

  def leave_one_out(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised."""
    del params
    if self.prediction == "posterior":
      output = output - self._own_evidence(state, t)
    return jax.nn.log_softmax(output, axis=-1)

  def posterior(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z), normalised, the evidence of z_i itself included."""
    if self.prediction == "posterior":
      return jax.nn.log_softmax(output, axis=-1)
    log_p = self.leave_one_out(params, state, t, output)
    return jax.nn.log_softmax(log_p + self._own_evidence(state, t), axis=-1)

  # Likelihood.

  def has_loss(
    self, params: Params, state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Bool[Array, "*n"]:
    """True wherever there is noise: any token may be a random one."""
    del params, state
    return t > 0

  def nelbo_rate(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """`bound_weight` times `divergence`; in discrete time, that of one step spread over it."""
    if self.time_steps is not None:
      step = self._step_divergence(params, clean_state, state, self.round_time(t), output)
      return jnp.where(t > 0, self.time_steps * step, 0.0)
    weight = self.bound_weight(params, clean_state, state, t)
    return jnp.where(t > 0, weight * self.divergence(params, clean_state, state, t, output), 0.0)

  def bound_weight(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
  ) -> Float[Array, "*n"]:
    """rho_t(z) / q_t(z | x) per unit of time: what `divergence` is multiplied by."""
    del params
    shares, arrivals = self._jumps(t)
    held = shares.clean * (state == clean_state) + shares.uniform / self.vocab_size
    clean = arrivals.uniform / self.vocab_size / jnp.maximum(held, LEAST)
    masked = arrivals.mask / jnp.maximum(shares.mask, LEAST)
    return jnp.where(self._masked(state), masked, clean)

  def divergence(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """KL(q ‖ q̂) + r - log r - 1 >= 0 in nats (without r at the mask): the bracket of the rate."""
    log_p = self.leave_one_out(params, state, t, output)
    shares, _ = self._jumps(t)
    against = compare(shares, clean_state, state, log_p)
    true = is_token(clean_state, self.vocab_size)
    base = shares.uniform / self.vocab_size
    others = weighted_excess(base[..., None], against.other, against.predicted)
    spread = jnp.sum(jnp.where(true, 0.0, others), axis=-1)
    divergence = spread + (shares.clean + base) * excess(against.true)
    ratio = jnp.minimum(-against.own, _LARGEST)
    return divergence + jnp.where(self._masked(state), 0.0, excess(ratio))

  def _masked(self, state: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """True at masks; nowhere for a process that has none."""
    return state == self.vocab_size

  def _survivors(self, t: Float[Array, "*n"]) -> Shares:
    """The shares; if masks are final, the clean-looking ones normalised among themselves."""
    clean, mask, uniform = self.shares(t)
    alive = clean + uniform if self.mask_is_final else jnp.ones_like(clean)
    safe = jnp.maximum(alive, LEAST)
    clean = jnp.where(alive > 0, clean / safe, 0.0)
    return Shares(clean, mask, jnp.where(alive > 0, uniform / safe, 1.0))

  def _jumps(self, t: Float[Array, "*n"]) -> tuple[Shares, Shares]:
    """The law under which clean-looking tokens compete, and the rates of arrival.

    Of the rates, `uniform` is at all clean tokens together, `mask` at the mask; `clean` is unused.
    """
    t = jnp.clip(t, EARLIEST, LATEST)
    level, slope = jax.jvp(self.shares, (t,), (jnp.ones_like(t),))
    if self.mask_is_final:
      level, slope = jax.jvp(self._survivors, (t,), (jnp.ones_like(t),))
    loss = -slope.clean / jnp.maximum(level.clean, LEAST)
    mask = slope.mask if self.mask_is_final else slope.mask + loss * level.mask
    return level, Shares(loss, mask, slope.uniform + loss * level.uniform)

  def _step_divergence(
    self,
    params: Params,
    clean_state: Int[Array, "*n"],
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """KL(q(z_s | z_t, x) ‖ q(z_s | z_t, x̂)) of one step in discrete time, nats."""
    log_p = self.leave_one_out(params, state, t, output)
    now = self._survivors(t)
    before = self._survivors(jnp.maximum(t - 1 / self.time_steps, 0.0))
    against = compare(before, clean_state, state, log_p)
    masked = self._masked(state)
    right = state == clean_state
    # log of (chance of a fresh draw under x̂ / given x)
    log_more = jnp.where(masked, 0.0, -compare(now, clean_state, state, log_p).own)
    base = before.uniform / self.vocab_size
    held_now = now.clean * right + now.uniform / self.vocab_size
    fresh = self._fresh(now, before, state, held_now)
    # Of a fresh draw under x̂: never above 0, however large `log_more` is.
    log_fresh = jnp.where(fresh > 0, jnp.log(jnp.maximum(fresh, TINIEST)), -jnp.inf) + log_more

    apart = is_token(clean_state, self.vocab_size) | is_token(state, self.vocab_size)
    others = weighted_excess(
      (fresh * base)[..., None],
      against.other + log_more[..., None],
      against.predicted + log_fresh[..., None],
    )
    spread = jnp.sum(jnp.where(apart, 0.0, others), axis=-1)
    predicted = at_ids(against.predicted, clean_state) + log_fresh
    weight = fresh * (before.clean + base)
    to_true = weighted_excess(weight, against.true + log_more, predicted)
    to_mask = jnp.zeros_like(t) if self.mask_is_final else before.mask
    predicted = log_share(to_mask) + log_fresh
    to_mask = weighted_excess(fresh * to_mask, log_more, predicted)
    moves = spread + jnp.where(right, 0.0, to_true) + to_mask

    # The token stays. By Bayes q(stay) = q(z_t | z_t) q_s(z_t) / q_t(z_t), and the first factor
    # does not depend on x.
    held = before.clean * right + base
    kept = now.clean / jnp.maximum(before.clean, LEAST) / jnp.maximum(held_now, LEAST)
    own = at_ids(against.predicted, jnp.minimum(state, self.vocab_size - 1))
    predicted = own + log_more + log_share(fresh + kept)
    stays = weighted_excess(held * (fresh + kept), against.own + log_more, predicted)
    return moves + jnp.where(masked, 0.0, stays)

  # Reverse.

  def _fresh(
    self, now: Shares, before: Shares, state: Int[Array, "*n"], held: Float[Array, "*n"]
  ) -> Float[Array, "*n"]:
    """The chance that z_s is a fresh draw rather than z_t.

    held: q_t(z_t), of which `before` says what was there already.
    """
    kept = now.clean / jnp.maximum(before.clean, LEAST)
    clean = (now.uniform - kept * before.uniform) / self.vocab_size / jnp.maximum(held, LEAST)
    stay = before.mask / jnp.maximum(now.mask, LEAST)
    masked = 1 - jnp.where(self.mask_is_final, stay, kept * stay)
    return jnp.clip(jnp.where(self._masked(state), masked, clean), 0.0, 1.0)

  def may_change(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Bool[Array, "*n"]:
    """True where `step` would draw afresh if the prediction gave z_t no chance at all."""
    del params
    now = self._survivors(t)
    most = self._fresh(now, self._survivors(s), state, now.uniform / self.vocab_size)
    return (t > s) & (draw_uniform(fold(keys, 0)) < most)

  def step(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """A fresh draw of q_s(· | x̂), or z_t."""
    log_p = self.leave_one_out(params, state, t, output)
    now = self._survivors(t)
    before = self._survivors(s)
    fresh = self._fresh(now, before, state, self._predicted(now, state, log_p))
    changes = (t > s) & (draw_uniform(fold(keys, 0)) < fresh)
    return jnp.where(changes, self._drawn(keys, log_p, before), state)

  def leap(
    self,
    params: Params,
    keys: Keys,
    state: Int[Array, "*n"],
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> Int[Array, "*n"]:
    """One step of tau-leaping: a fresh draw of q_t(· | x̂) with chance (t - s) · rho / q_t(z | x̂).

    arXiv 2205.14987; the Euler sampler of SEDD (arXiv 2310.16834).
    """
    log_p = self.leave_one_out(params, state, t, output)
    shares, arrivals = self._jumps(t)
    masked = self._masked(state)
    into = jnp.where(masked, arrivals.mask, arrivals.uniform / self.vocab_size)
    held = jnp.where(masked, shares.mask, self._predicted(shares, state, log_p))
    due = draw_uniform(fold(keys, 0)) < (t - s) * into / jnp.maximum(held, LEAST)
    return jnp.where(due, self._drawn(keys, log_p, shares), state)

  def _predicted(
    self, shares: Shares, state: Int[Array, "*n"], log_p: Float[Array, "*n V"]
  ) -> Float[Array, "*n"]:
    """q_t(z | x̂) of the state's own token; without meaning where the state is the mask."""
    chance = jnp.exp(at_ids(log_p, jnp.minimum(state, self.vocab_size - 1)))
    return shares.clean * chance + shares.uniform / self.vocab_size

  def _drawn(self, keys: Keys, log_p: Float[Array, "*n V"], shares: Shares) -> Int[Array, "*n"]:
    """A draw of the mixture of x̂, uniform and mask; without the mask if masks are final."""
    clean, mask, uniform = shares
    mask = jnp.zeros_like(mask) if self.mask_is_final else mask
    u = draw_uniform(fold(keys, 6)) * (clean + mask + uniform)
    noisy = jnp.where(u < clean + uniform, self._any_token(keys), self.vocab_size)
    token = draw_categorical(fold(keys, 1), log_p)
    return jnp.where(u < clean, token, noisy).astype(jnp.int32)
