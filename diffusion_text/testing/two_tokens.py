"""The bound of two-token languages without randomness: quadrature over time, a sum over all states.

A process over ids is described by its law, a function of times [K] that gives q(z_t = z | x = v) as
float64 [K, V, S], written apart from the process. The exact network follows from law and language
in closed form, in numpy. The process is called eagerly on flat lists of all (time, state, place,
token) of 200 times, whatever the quadrature, so that nothing is compiled for one bound alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Params, Process

Law = Callable[[np.ndarray], np.ndarray]  # times [K] -> [K, V, S]
Answers = Callable[[np.ndarray], np.ndarray]  # log leave-one-out [..., V] -> what is said instead
LEAST = 1e-37  # below every probability that matters
TIMES = 200  # of a call


class Nodes(NamedTuple):
  """Times [K] and their weights [K]."""

  t: np.ndarray
  weight: np.ndarray


def smooth_nodes(low: float = 0.0, high: float = 1.0, count: int = TIMES) -> Nodes:
  """Gauss-Legendre nodes that are dense at both ends, so that no pole of any rate is left there."""
  points, weights = np.polynomial.legendre.leggauss(count)
  u = (points + 1) / 2
  t = u**2 * (3 - 2 * u)
  return Nodes(low + (high - low) * t, (high - low) * 3 * u * (1 - u) * weights)


def step_nodes(steps: int) -> Nodes:
  """The middles of the steps: exact for a rate that is constant within each."""
  return Nodes((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps))


def mixture_law(shares: Callable, vocab_size: int, masks: bool) -> Law:
  """The law of noise that is a mixture of the mask and a uniform token.

  Args:
    shares: t -> (clean, mask, uniform).
    vocab_size: V.
    masks: whether the mask is a state, with the id V.
  """

  def law(t):
    clean, mask, uniform = (
      np.asarray(share, np.float64)[..., None, None]
      for share in shares(jnp.asarray(t, jnp.float32))
    )
    tokens = np.eye(vocab_size) * clean + uniform / vocab_size
    lost = np.broadcast_to(mask, (*mask.shape[:-2], vocab_size, 1))
    return np.concatenate([tokens, lost], axis=-1) if masks else tokens

  return law


def joint(language: Enumerable, table: np.ndarray) -> np.ndarray:
  """p(x_i = v, the other token's state) as [..., V, S, 2]: the last axis is the place i."""
  size = language.vocab_size
  p = language.probabilities.reshape(size, size)
  return np.stack([p @ table, p.T @ table], axis=-1)


def output_of(
  process: Process, log_p: np.ndarray, table: np.ndarray, state: np.ndarray
) -> np.ndarray:
  """The logits by which a process says the leave-one-out law log_p.

  Args:
    process: `reads_logits_as` says what is meant.
    log_p: [..., V].
    table: the law of the same times, [..., V, S].
    state: the position's own state, [...].
  """
  own = np.take_along_axis(table, state[..., None, None], axis=-1)[..., 0]
  if process.reads_logits_as == "posterior":
    return log_p + np.log(np.maximum(own, LEAST))
  if process.reads_logits_as == "leave_one_out":
    return log_p
  if process.mask_id is not None:
    return log_p + np.log(process.vocab_size)
  chance = np.einsum("...v,...vz->...z", np.exp(log_p), table)
  held = np.take_along_axis(chance, state[..., None], axis=-1)
  return np.log(np.maximum(chance, LEAST)) - np.log(np.maximum(held, LEAST))


def two_token_bound(
  process: Process,
  law: Law,
  language: Enumerable,
  *,
  params: Params | None = None,
  nodes: Nodes | None = None,
  says: Answers | None = None,
  network_law: Law | None = None,
) -> float:
  """∫ E[nelbo_rate] dt in nats per sequence.

  Args:
    process: over ids.
    law: of its corruption.
    language: of two tokens.
    params: of the process.
    nodes: of the quadrature; None: smooth ones.
    says: what the network says in place of the leave-one-out law; None: the exact law.
    network_law: the law that the network believes in; None: the right one.
  """
  nodes = smooth_nodes() if nodes is None else nodes
  short = -len(nodes.t) % TIMES
  t = np.pad(nodes.t, (0, short), mode="edge").reshape(-1, TIMES)
  weight = np.pad(nodes.weight, (0, short)).reshape(-1, TIMES)
  parts = [Nodes(*part) for part in zip(t, weight, strict=True)]
  return sum(_part(process, law, language, params, part, says, network_law) for part in parts)


def _part(process, law, language, params, nodes, says, network_law) -> float:
  """The part of these 200 nodes in the bound."""
  t = np.asarray(nodes.t, np.float32)
  rounded = np.asarray(process.round_time(jnp.asarray(t)))
  table = law(rounded)
  believed = table if network_law is None else network_law(rounded)
  known = np.maximum(joint(language, believed), LEAST)
  log_p = np.log(known) - np.log(known.sum(1, keepdims=True))  # [K, V, S of the other, 2]
  count, size, states = table.shape
  # One entry per (time, own state, other's state, place, token).
  shape = (count, states, states, 2, size)
  log_p = np.broadcast_to(np.moveaxis(log_p, 1, -1)[:, None], shape)
  log_p = log_p if says is None else says(log_p)
  own = np.broadcast_to(np.arange(states)[:, None, None], shape[:-1])
  wide = np.broadcast_to(believed[:, None, None, None], (*shape[:-1], size, states))
  output = output_of(process, log_p, wide, own)

  def flat(values):
    return jnp.asarray(np.broadcast_to(values, shape).reshape(-1))

  output = np.broadcast_to(output[..., None, :], (*shape, size)).reshape(-1, size)
  rates = process.nelbo_rate(
    {} if params is None else params,
    flat(np.arange(size, dtype=np.int32)),
    flat(np.arange(states, dtype=np.int32)[:, None, None, None]),
    flat(t[:, None, None, None, None]),
    jnp.asarray(output, jnp.float32),
  )
  rates = np.asarray(rates, np.float64).reshape(shape)
  chance = np.moveaxis(joint(language, table), 1, -1)[:, None]  # of the other's state and the token
  chance = chance * np.swapaxes(table, 1, 2)[:, :, None, None]
  return float(
    (nodes.weight[:, None, None, None, None] * chance * np.where(chance > 0, rates, 0)).sum()
  )
