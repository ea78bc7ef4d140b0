"""Languages small enough to know everything about: laws are tested without training.

`Enumerable` lists its sequences, `MarkovChain` is solved by forward and backward sums. Both turn
the evidence that a noisy state gives about each token, log q(z_i | x_i = v), into the exact
posterior of every clean token, and so serve any process. `arrays` hands a language over as a tree
of arrays: what `testing.ExactNetwork` keeps in its parameters.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import LEAST, NEVER

_HIGHEST = jax.lax.Precision.HIGHEST


def enumerated_law(
  sequences: Array, log_p: Float[Array, " M"], evidence: Float[Array, "*n L V"]
) -> Float[Array, "*n L V"]:
  """log p(x_i = v | all evidence) of a language that lists its sequences [M, L].

  Two matrix products.
  """
  size = evidence.shape[-1]
  has = (sequences[..., None] == jnp.arange(size)).reshape(sequences.shape[0], -1)
  has = has.astype(jnp.float32)
  flat = evidence.reshape(*evidence.shape[:-2], -1)
  joint = jnp.matmul(flat, has.T, precision=_HIGHEST) + log_p
  law = jnp.matmul(jax.nn.softmax(joint, axis=-1), has, precision=_HIGHEST)
  return jnp.log(jnp.maximum(law, LEAST)).reshape(evidence.shape)


def chain_law(
  log_initial: Float[Array, " V"],
  log_transition: Float[Array, "V V"],
  evidence: Float[Array, "*n L V"],
) -> Float[Array, "*n L V"]:
  """log p(x_i = v | all evidence) of a Markov chain, by forward and backward sums."""
  places = jnp.moveaxis(evidence, -2, 0)

  def forward(alpha, here):
    ahead = jax.nn.logsumexp(alpha[..., :, None] + log_transition, axis=-2) + here
    return ahead, ahead

  def backward(beta, here):
    behind = jax.nn.logsumexp(log_transition + (beta + here)[..., None, :], axis=-1)
    return behind, behind

  first = log_initial + places[0]
  _, alphas = jax.lax.scan(forward, first, places[1:])
  last = jnp.zeros_like(first)
  _, betas = jax.lax.scan(backward, last, places[1:], reverse=True)
  both = jnp.concatenate([first[None], alphas]) + jnp.concatenate([betas, last[None]])
  return jnp.moveaxis(jax.nn.log_softmax(both, axis=-1), 0, -2)


def _log(probabilities: np.ndarray) -> np.ndarray:
  with np.errstate(divide="ignore"):
    return np.maximum(np.log(probabilities), NEVER).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Enumerable:
  """A language given by the probability of each of its sequences.

  Attributes:
    sequences: int32 [M, L].
    probabilities: float64 [M], which sum to 1.
    vocab_size: V.
  """

  sequences: np.ndarray
  probabilities: np.ndarray
  vocab_size: int

  @staticmethod
  def dirichlet(seed: int, concentration: float, vocab_size: int, length: int) -> Enumerable:
    """All V^L sequences, with probabilities drawn from a Dirichlet law.

    (0, 0.5, 3, 4) has the entropy 3.7085873970 nats, (1, 0.7, 4, 2) has 2.1112697.
    """
    sequences = every_sequence(vocab_size, length)
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(len(sequences), concentration))
    return Enumerable(sequences, weights, vocab_size)

  @staticmethod
  def independent(vocab_size: int, length: int) -> Enumerable:
    """All V^L sequences, equally probable: the language of a network that knows nothing."""
    sequences = every_sequence(vocab_size, length)
    return Enumerable(sequences, np.full(len(sequences), 1 / len(sequences)), vocab_size)

  @property
  def length(self) -> int:
    """L."""
    return self.sequences.shape[1]

  @property
  def entropy(self) -> float:
    """Nats per sequence."""
    p = self.probabilities[self.probabilities > 0]
    return float(-(p * np.log(p)).sum())

  def arrays(self) -> dict[str, np.ndarray]:
    """The language as parameters: sequences [M, L] and log_p [M].

    Both are float32, because gradients are taken with respect to every parameter.
    """
    return {
      "sequences": self.sequences.astype(np.float32),
      "log_p": _log(self.probabilities),
    }

  def sample(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """int32 [rows, L], independent draws."""
    return self.sequences[rng.choice(len(self.sequences), size=rows, p=self.probabilities)]

  def systematic(self, rows: int, seed: int = 0) -> np.ndarray:
    """int32 [rows, L]: each sequence as often as its probability says, to within one.

    The order is drawn with `seed`, so that it has nothing to do with low-discrepancy times.
    """
    quantiles = (np.arange(rows) + 0.5) / rows
    which = np.searchsorted(np.cumsum(self.probabilities), quantiles)
    which = np.minimum(which, len(self.sequences) - 1)
    return self.sequences[np.random.default_rng(seed).permutation(which)]

  def numbers(self, ids: Int[np.ndarray, "B L"]) -> Int[np.ndarray, " B"]:
    """The place of each row in the list of sequences, which must hold all V^L of them in order."""
    if len(self.sequences) != self.vocab_size**self.length:
      raise ValueError(
        f"this language lists {len(self.sequences)} of {self.vocab_size}^{self.length} sequences;"
        " numbers are known of those that list all of them in order"
      )
    place = self.vocab_size ** np.arange(self.length)[::-1]
    return (np.asarray(ids) * place).sum(1)

  def log_likelihood(self, ids: Int[np.ndarray, "B L"]) -> Float[np.ndarray, " B"]:
    """log p(row) in nats; -inf where the row is impossible."""
    with np.errstate(divide="ignore"):
      return np.log(self.probabilities)[self.numbers(ids)]

  def posterior(self, evidence: Float[Array, "*n L V"]) -> Float[Array, "*n L V"]:
    """log p(x_i = v | all evidence), exact."""
    return enumerated_law(jnp.asarray(self.sequences), _log(self.probabilities), evidence)

  def histogram(self, ids: Int[np.ndarray, "B L"]) -> Float[np.ndarray, " M"]:
    """The share of each sequence among the rows."""
    return np.bincount(self.numbers(ids), minlength=len(self.sequences)) / len(ids)

  def total_variation(self, law: Float[np.ndarray, " M"]) -> float:
    """The total variation distance between a law over the sequences and this language."""
    return float(0.5 * np.abs(law - self.probabilities).sum())

  def chance_distance(self, rows: int) -> float:
    """The total variation that so many exact draws show on average, as a perfect sampler does."""
    p = self.probabilities
    return float(0.5 * np.sqrt(2 * p * (1 - p) / (np.pi * rows)).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovChain:
  """A Markov chain over V tokens.

  Attributes:
    initial: float64 [V].
    transition: float64 [V, V], row = from.
    length: L, tokens of a row.
  """

  initial: np.ndarray
  transition: np.ndarray
  length: int

  @staticmethod
  def branchy(seed: int, vocab_size: int = 8, length: int = 32, successors: int = 3) -> MarkovChain:
    """Each token has a few possible successors, so that many sequences are impossible."""
    rng = np.random.default_rng(seed)
    transition = np.zeros((vocab_size, vocab_size))
    for row in transition:
      row[rng.choice(vocab_size, successors, replace=False)] = rng.dirichlet(np.ones(successors))
    return MarkovChain(rng.dirichlet(np.ones(vocab_size)), transition, length)

  @staticmethod
  def phrases(seed: int, count: int = 4, words: int = 6, length: int = 48) -> MarkovChain:
    """Text of a few fixed phrases without a token in common, so that most tokens follow from one
    other; `count` · `words` tokens.

    Rows begin anywhere in a phrase, and each phrase has its own law of the next.
    """
    rng = np.random.default_rng(seed)
    size = count * words
    transition = np.eye(size, k=1)
    transition[words - 1 :: words] = 0
    transition[words - 1 :: words, ::words] = rng.dirichlet(np.ones(count), size=count)
    return MarkovChain(np.full(size, 1 / size), transition, length)

  @property
  def vocab_size(self) -> int:
    """V."""
    return len(self.initial)

  @property
  def entropy(self) -> float:
    """Nats per sequence: H(first) + Σ_i E[H(next | current)]."""
    total, law = _plogp(self.initial), self.initial
    per_token = np.array([_plogp(row) for row in self.transition])
    for _ in range(self.length - 1):
      total += law @ per_token
      law = law @ self.transition
    return float(-total)

  def arrays(self) -> dict[str, np.ndarray]:
    """The language as parameters: log_initial [V], log_transition [V, V] and places [L].

    Of places only the number is read.
    """
    return {
      "log_initial": _log(self.initial),
      "log_transition": _log(self.transition),
      "places": np.zeros(self.length, np.float32),
    }

  def enumerated(self) -> Enumerable:
    """The same language as a list of all V^L sequences."""
    sequences = every_sequence(self.vocab_size, self.length)
    return Enumerable(sequences, np.exp(self.log_likelihood(sequences)), self.vocab_size)

  def sample(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """int32 [rows, L], independent draws."""
    u = rng.random((self.length, rows))
    cumulative = np.cumsum(self.transition, axis=1)
    first = (u[0][:, None] > np.cumsum(self.initial)).sum(1)
    ids = [np.minimum(first, self.vocab_size - 1)]
    for step in u[1:]:
      following = (step[:, None] > cumulative[ids[-1]]).sum(1)
      ids.append(np.minimum(following, self.vocab_size - 1))
    return np.stack(ids, axis=1).astype(np.int32)

  def log_likelihood(self, ids: Int[np.ndarray, "B L"]) -> Float[np.ndarray, " B"]:
    """log p(row) in nats; -inf for a row that uses an impossible transition."""
    with np.errstate(divide="ignore"):
      initial, transition = np.log(self.initial), np.log(self.transition)
    return initial[ids[:, 0]] + transition[ids[:, :-1], ids[:, 1:]].sum(1)

  def posterior(self, evidence: Float[Array, "*n L V"]) -> Float[Array, "*n L V"]:
    """log p(x_i = v | all evidence), exact."""
    return chain_law(_log(self.initial), _log(self.transition), evidence)


@functools.cache
def every_sequence(vocab_size: int, length: int) -> np.ndarray:
  """int32 [V^L, L], in the order of numbers written in base V."""
  grid = np.indices((vocab_size,) * length).reshape(length, -1).T
  return grid.astype(np.int32)


def _plogp(p: np.ndarray) -> float:
  p = p[p > 0]
  return float((p * np.log(p)).sum())
