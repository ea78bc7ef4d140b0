"""Small shared numerics: log-probabilities of tokens, per-token choice, flat lists of positions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

TINY = 1e-7  # the smallest time of a weight, so that 1 / t stays finite in float32
NEVER = -1e30  # the logarithm of 0, finite so that differences are not NaN
LEAST = float(jnp.finfo(jnp.float32).tiny)


@jax.custom_jvp
def expm1(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """e^x - 1, accurate near 0, whose derivative is e^x.

  JAX 0.10 differentiates its own as (e^x - 1) + 1, of which little is left where e^x is small: at
  e^x = 1e-6 the derivative is wrong by up to 6 %.
  """
  return jnp.expm1(x)


@expm1.defjvp
def _expm1_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  (x,), (tangent,) = primals, tangents
  return expm1(x), jnp.exp(x) * tangent


def cross_entropy(logits: Float[Array, "*n V"], ids: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """-log softmax(logits)[ids] in nats, from a gather and a log-sum-exp (no one-hot)."""
  return jax.nn.logsumexp(logits, axis=-1) - at_ids(logits, ids)


def steep_cross_entropy(logits: Float[Array, "*n V"], ids: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """-log softmax(logits)[ids] in nats, of logits that are far larger than a nat.

  It is log(1 + sum over the other tokens of e^difference), which is never below 0. `cross_entropy`
  subtracts two numbers of the size of the logits, and programs round these at two places.
  """
  ahead = logits - at_ids(logits, ids)[..., None]
  others = jnp.where(jnp.arange(logits.shape[-1]) == ids[..., None], NEVER, ahead)
  return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1))


def log_prob_of(logits: Float[Array, "*n V"], ids: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """log softmax(logits)[ids] in nats."""
  return -cross_entropy(logits, ids)


def at_ids(values: Float[Array, "*n V"], ids: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """The value of each id: values[..., ids]."""
  return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def likeliest(values: Float[Array, "*n V"]) -> Int[Array, "*n"]:
  """int32 [*n]: the id of the largest value, the first of several.

  It is `jnp.argmax` as two plain reductions. XLA's argmax on CPU computes one value at a time, and
  all that its values are made of (logarithms, random bits) with it: 3 to 9 times the processor time
  at V = 512 … 8192.
  """
  ids, largest = jnp.arange(values.shape[-1]), jnp.max(values, axis=-1, keepdims=True)
  return jnp.min(jnp.where(values == largest, ids, values.shape[-1] - 1), axis=-1)


def smoothed_cross_entropy(
  logits: Float[Array, "*n V"], ids: Int[Array, "*n"], smoothing: float
) -> Float[Array, "*n"]:
  """(1 - smoothing) · (-log p(ids)) + smoothing · (mean over v of -log p(v)), in nats."""
  cost = cross_entropy(logits, ids)
  if not smoothing:
    return cost
  return (1 - smoothing) * cost + smoothing * mean_cross_entropy(logits)


def mean_cross_entropy(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
  """The mean over v of -log softmax(logits)[v], in nats."""
  return jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)


def entropy(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
  """The entropy of softmax(logits) in nats."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  return -jnp.sum(jnp.where(log_p > NEVER, jnp.exp(log_p) * log_p, 0.0), axis=-1)


def select(where: Bool[Array, "*n"], yes: Any, no: Any) -> Any:
  """For each token `yes` if `where` is True and else `no`, also in trees with trailing axes."""

  def one(a, b):
    widened = where.reshape(*where.shape, *(1,) * (max(jnp.ndim(a), jnp.ndim(b)) - where.ndim))
    return jnp.where(widened, a, b)

  return jax.tree.map(one, yes, no)


def flatten_tokens(tree: Any) -> Any:
  """Every leaf [B, N, …] as a flat list of positions [B · N, …]."""
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def unflatten_tokens(tree: Any, shape: tuple[int, int]) -> Any:
  """Every leaf [B · N, …] as [B, N, …]."""
  return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), tree)


def differs(a: Any, b: Any, dims: int = 2) -> Bool[Array, "..."]:
  """True for each token (the first `dims` axes) where any number of any leaf differs."""

  def one(x, y):
    return jnp.any((x != y).reshape(*x.shape[:dims], -1), axis=-1)

  return jax.tree.reduce(jnp.logical_or, jax.tree.map(one, a, b))
