"""Languages small enough to know everything about: exact denoisers, so that bounds, samplers and layouts can be tested untrained.

`Enumerable` lists every sequence; `MarkovChain` uses forward-backward. Both turn the evidence that a noisy state gives about each
token, log q(z_i | x_i = v), into the exact posterior of every clean token, so they serve any process.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.types import Array, Prediction

NEVER = -1e30  # log of zero that survives subtraction


def masked_evidence(ids_BxL: Array, vocab_size: int) -> Array:
  """log q(z_i | x_i = v) up to a constant for masked diffusion: 0 wherever z_i is the mask or v, else NEVER. [B, L, V]."""
  fits = (ids_BxL[..., None] == jnp.arange(vocab_size)) | (ids_BxL[..., None] == vocab_size)
  return jnp.where(fits, 0.0, NEVER)


def exact_prediction(logits_BxLxV: Array) -> Prediction:
  """Wraps exact posteriors as a network's answer: the logits are the features."""
  return Prediction(logits_BxLxV, lambda features: features)


@dataclasses.dataclass(frozen=True)
class Enumerable:
  """A language given by the probability of each of its sequences. sequences int32 [M, L], probabilities [M], V tokens."""

  sequences: np.ndarray
  probabilities: np.ndarray
  vocab_size: int

  @staticmethod
  def dirichlet(seed: int, concentration: float, vocab_size: int, length: int) -> Enumerable:
    """All V^L sequences with Dirichlet-drawn probabilities; (0, 0.5, 3, 4) is toy A of the golden numbers, (1, 0.7, 4, 2) toy B."""
    grid = np.indices((vocab_size,) * length).reshape(length, -1).T
    weights = np.random.default_rng(seed).dirichlet(np.full(len(grid), concentration))
    return Enumerable(grid.astype(np.int32), weights, vocab_size)

  @property
  def entropy(self) -> float:
    """Nats per sequence."""
    p = self.probabilities[self.probabilities > 0]
    return float(-(p * np.log(p)).sum())

  def sample(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """int32 [rows, L]."""
    return self.sequences[rng.choice(len(self.sequences), size=rows, p=self.probabilities)]

  def posterior(self, evidence_BxLxV: Array) -> Array:
    """log p(x_i = v | all evidence), exact: [B, L, V]."""
    sequences = jnp.asarray(self.sequences)
    place = jnp.arange(sequences.shape[1])
    joint_BxM = jnp.sum(evidence_BxLxV[:, place, sequences], axis=-1) + jnp.log(
      jnp.asarray(self.probabilities, jnp.float32)
    )
    has_MxLxV = sequences[..., None] == jnp.arange(self.vocab_size)
    joint_BxM = joint_BxM - jax.nn.logsumexp(joint_BxM, axis=1, keepdims=True)
    return jnp.maximum(
      jnp.log(jnp.einsum("bm,mlv->blv", jnp.exp(joint_BxM), has_MxLxV.astype(jnp.float32))), NEVER
    )

  def histogram(self, ids_BxL: np.ndarray) -> np.ndarray:
    """Empirical probability of each sequence among the rows: [M], for a language that lists all V^L sequences in order."""
    place = self.vocab_size ** np.arange(ids_BxL.shape[1])[::-1]
    return np.bincount((np.asarray(ids_BxL) * place).sum(1), minlength=len(self.sequences)) / len(
      ids_BxL
    )

  def total_variation(self, law: np.ndarray) -> float:
    """TV distance between a law over the sequences [M] and this language."""
    return float(0.5 * np.abs(law - self.probabilities).sum())


@dataclasses.dataclass(frozen=True)
class MarkovChain:
  """A Markov chain over V tokens: initial [V], transition [V, V] (row = from), rows of `length` tokens."""

  initial: np.ndarray
  transition: np.ndarray
  length: int

  @staticmethod
  def branchy(seed: int, vocab_size: int = 8, length: int = 32, successors: int = 3) -> MarkovChain:
    """Each token has a few possible successors, Dirichlet-weighted, so that many sequences are impossible."""
    rng = np.random.default_rng(seed)
    transition = np.zeros((vocab_size, vocab_size))
    for row in transition:
      row[rng.choice(vocab_size, successors, replace=False)] = rng.dirichlet(np.ones(successors))
    return MarkovChain(rng.dirichlet(np.ones(vocab_size)), transition, length)

  @property
  def vocab_size(self) -> int:
    return len(self.initial)

  @property
  def entropy(self) -> float:
    """Nats per sequence: H(first) + Σ_i E[H(next | current)]."""
    plogp = lambda p: np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
    total, law = -plogp(self.initial).sum(), self.initial
    for _ in range(self.length - 1):
      total -= law @ plogp(self.transition).sum(1)
      law = law @ self.transition
    return float(total)

  def sample(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """int32 [rows, L]."""
    u = rng.random((self.length, rows))
    cumulative = np.cumsum(self.transition, axis=1)
    ids = [np.minimum((u[0][:, None] > np.cumsum(self.initial)).sum(1), self.vocab_size - 1)]
    for step in u[1:]:
      ids.append(np.minimum((step[:, None] > cumulative[ids[-1]]).sum(1), self.vocab_size - 1))
    return np.stack(ids, axis=1).astype(np.int32)

  def log_likelihood(self, ids_BxL: np.ndarray) -> np.ndarray:
    """log p(row) in nats [B]; -inf for a row that uses an impossible transition."""
    with np.errstate(divide="ignore"):
      initial, transition = np.log(self.initial), np.log(self.transition)
    return initial[ids_BxL[:, 0]] + transition[ids_BxL[:, :-1], ids_BxL[:, 1:]].sum(1)

  def posterior(self, evidence_BxLxV: Array) -> Array:
    """log p(x_i = v | all evidence) by forward-backward in log space: [B, L, V]."""
    log_transition = jnp.maximum(jnp.log(jnp.asarray(self.transition, jnp.float32)), NEVER)
    steps_LxBxV = jnp.swapaxes(evidence_BxLxV, 0, 1)

    def forward(alpha, evidence):
      ahead = jax.nn.logsumexp(alpha[:, :, None] + log_transition, axis=1) + evidence
      return ahead, ahead

    def backward(beta, evidence):
      behind = jax.nn.logsumexp(log_transition + (beta + evidence)[:, None, :], axis=2)
      return behind, behind

    first = jnp.maximum(jnp.log(jnp.asarray(self.initial, jnp.float32)), NEVER) + steps_LxBxV[0]
    _, alphas = jax.lax.scan(forward, first, steps_LxBxV[1:])
    last = jnp.zeros_like(first)
    _, betas = jax.lax.scan(backward, last, steps_LxBxV[1:], reverse=True)
    both = jnp.concatenate([first[None], alphas]) + jnp.concatenate([betas, last[None]])
    return jnp.swapaxes(jax.nn.log_softmax(both, axis=-1), 0, 1)
