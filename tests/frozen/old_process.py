"""Functions of a process of commit 3aad1fc, and the exact laws of its draws.

What is drawn cannot be compared once streams have other names, but its law can: the probabilities
of `corrupt` and of `step` for discrete processes, their means and standard deviations for Gaussian
ones. `step` and `may_change` are drawn with stored keys, for as long as those give the same draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from inputs import VOCABULARY

from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import LEAST, TokenMasked
from diffusion_text.schedules import on_grid, reveal_probability

Named = dict[str, jax.Array]


class At(NamedTuple):
  """The arguments of the functions: ids, times and a state, each of B rows and L tokens."""

  ids: jax.Array
  state: jax.Array
  t: jax.Array
  s: jax.Array
  logits: jax.Array


def functions(process: Any, params: Any, inputs: list[jax.Array], keys: Any) -> Named:
  """name -> value of each function that the process has, at `inputs`, the fields of `At`."""
  at = At(*inputs)
  ids, state, t, s, logits = at

  def rate(logits):
    return process.rate(params, ids, state, t, logits)

  def total(logits):
    return jnp.sum(rate(logits))

  slope = jax.grad(total)(logits)
  out = {
    "nelbo_rate": rate(logits),
    "nelbo_rate_slope": jnp.linalg.norm(slope, axis=-1),
    "has_loss": process.scored(params, state, t),
    "may_change": process.moves(params, keys, state, t, s),
    "step": process.step(params, keys, state, logits, t, s),
    "estimate": process.estimate(params, state, t, logits),
    "decoded": process.decode(params, state),
  }
  out |= _optional(process, params, at)
  laws = _gaussian_laws if hasattr(process, "prior_cost") else _discrete_laws
  return out | laws(process, params, at)


def _optional(process: Any, params: Any, at: At) -> Named:
  """What some processes have."""
  ids, state, t, _, logits = at
  out = {}
  if hasattr(process, "posterior"):
    out["posterior"] = jax.nn.log_softmax(process.posterior(params, state, t, logits), axis=-1)
  elif hasattr(process, "mask_id"):  # where masked; a clean token is itself
    out["posterior"] = jax.nn.log_softmax(logits, axis=-1)
  if hasattr(process, "leave_one_out"):
    out["leave_one_out"] = process.leave_one_out(state, t, logits)
  if hasattr(process, "log_corruption"):
    out["log_corruption"] = process.log_corruption(params, ids, state, t)
  if hasattr(process, "divergence") and process.mixing == "gidd" and process.grid is None:
    out["divergence"] = process.divergence(params, ids, state, t, logits)
    out["dynamic_weight"] = process.dynamic_weight(params, ids, state, t)
  inputs = process.inputs(params, state, t)
  if inputs.vectors is not None:
    out["input_vectors"] = inputs.vectors
  return out


def _padded(process: Any, p: jax.Array) -> jax.Array:
  """Probabilities of tokens as those of ids, which a mask may be among."""
  return jnp.pad(p, ((0, 0), (0, 0), (0, process.input_size - VOCABULARY)))


def _discrete_laws(process: Any, params: Any, at: At) -> Named:
  """corrupt_law and step_law, [B, L, V] or [B, L, V + 1]."""
  if isinstance(process, Mixed):
    return _mixed_laws(process, at)
  return _masked_laws(process, params, at)


def _mixed_laws(process: Mixed, at: At) -> Named:
  """Those of masks and random tokens."""
  ids, state, t, s, logits = at
  size = process.input_size
  at_mask = jax.nn.one_hot(VOCABULARY, size)
  flat = _padded(process, jnp.full((*ids.shape, VOCABULARY), 1 / VOCABULARY))
  grid_t = on_grid(t, process.grid)
  clean, mask, uniform = (share[..., None] for share in process.shares(grid_t))
  corrupt = clean * jax.nn.one_hot(ids, size) + mask * at_mask + uniform * flat
  now, before = process._survivors(t), process._survivors(s)
  fresh = process._fresh(now, before, state, process._predicted(now, state, t, logits))
  clean, mask, uniform = (share[..., None] for share in before)
  mask = jnp.zeros_like(mask) if process.absorbing else mask
  others = _padded(process, jnp.exp(process.leave_one_out(state, t, logits)))
  law = clean * others + mask * at_mask + uniform * flat
  chance = jnp.where(t > s, fresh, 0.0)[..., None]
  law = chance * law / (clean + mask + uniform)
  return {"corrupt_law": corrupt, "step_law": law + (1 - chance) * jax.nn.one_hot(state, size)}


def _masked_laws(process: Any, params: Any, at: At) -> Named:
  """Those of masks alone."""
  ids, state, t, s, logits = at
  size = process.input_size
  if isinstance(process, TokenMasked):
    shape = process._shape(params)
    noise = jnp.exp(process._log_noise(shape[ids], process.schedule(t)))[..., None]
    chance = process._reveal(shape, t[..., None], s[..., None])
    total = jnp.sum(jax.nn.softmax(logits) * chance, axis=-1, keepdims=True)
    least, most = chance.min(axis=-1, keepdims=True), chance.max(axis=-1, keepdims=True)
    total = jnp.clip(total, least, most)
    token = jax.nn.softmax(logits + jnp.log(jnp.maximum(chance, LEAST)), axis=-1)
  else:
    noise = process.schedule(on_grid(t, process.grid)).noise[..., None]
    total = reveal_probability(process.schedule, t, s)[..., None]
    token = jax.nn.softmax(logits, axis=-1)
  at_mask = jax.nn.one_hot(VOCABULARY, size)
  corrupt = noise * at_mask + (1 - noise) * jax.nn.one_hot(ids, size)
  revealed = total * _padded(process, token) + (1 - total) * at_mask
  masked = (state == VOCABULARY)[..., None]
  step = jnp.where(masked, revealed, jax.nn.one_hot(state, size))
  return {"corrupt_law": corrupt, "step_law": step}


def _gaussian_laws(process: Any, params: Any, at: At) -> Named:
  """The path at t, terms of the losses, and the mean [B, L, E] and standard deviation of a step."""
  ids, state, t, _, logits = at
  gain = process.gain(params, t)
  noisy = (t > 0)[..., None]
  out = {
    "prior_cost": process.prior_cost(params, ids),
    "squared_error": process.squared_error(params, ids, state, t, logits),
    "predicted": process.predicted(params, state, t, logits),
    "signal": jnp.where(noisy, gain.alpha, 1.0)[..., 0],
    "noise_std": jnp.where(noisy, process.noise_scale * gain.sigma, 0.0)[..., 0],
    "log_snr": gain.log_snr[..., 0],
  }
  out["step_mean"], out["step_std"] = _gaussian_step(process, params, at)
  return out


def _gaussian_step(process: Any, params: Any, at: At) -> tuple[jax.Array, jax.Array]:
  """The mean of a step, and the root of its mean variance over the numbers of a vector.

  At s = 0 a token is drawn from the posterior.
  """
  _, state, t, s, logits = at
  shape = (*t.shape, process.size)
  law = process.posterior(params, state, t, logits)
  p = jax.nn.softmax(law, axis=-1)
  table = process.encode(params, jnp.arange(VOCABULARY))
  after = jnp.maximum(s, 1e-3)  # where s = 0 another law is put in its place, below
  zeros = jnp.zeros(shape)

  def mean_of(of_token):
    of_token = jnp.broadcast_to(of_token, (*t.shape, VOCABULARY, process.size))
    return jnp.einsum("blv,blve->ble", p, of_token)

  def towards(target, noise):
    return process.towards(params, target, state, t, after, noise)

  if process.projection == "sample":
    rows = [towards(jnp.broadcast_to(row, shape), zeros) for row in table]
    each = jnp.stack(rows, axis=2)
    spread = towards(zeros, zeros + 1) - towards(zeros, zeros)
    mean = mean_of(each)
    variance = mean_of((each - mean[:, :, None]) ** 2) + spread**2
  else:
    target = process.project(params, law)
    if process.score_temperature != 1:
      alpha = process.walk(params)(t[..., None]).alpha
      target = target + (1 - 1 / process.score_temperature) * (state / alpha - target)
    mean = towards(target, zeros)
    variance = (towards(target, zeros + 1) - towards(target, zeros)) ** 2
  last = mean_of(table)
  drawn = mean_of((table - last[:, :, None]) ** 2)
  mean = jnp.where(s[..., None] > 0, mean, last)
  variance = jnp.where(s[..., None] > 0, variance, drawn)
  moves = (t > s)[..., None]
  variance = jnp.mean(jnp.where(moves, variance, 0.0), axis=-1)
  return jnp.where(moves, mean, state), jnp.sqrt(variance)
