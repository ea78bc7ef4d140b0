"""Timings by token: each token has an intrinsic time, drawn about the row's clock or set by how
much the token tells.

Both are surrogates. A bound needs a law of times that can be known without the tokens, and times
that sweep [0, 1] along one path; `Poisson` lacks the second, `ByInformation` the first.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import position_keys
from diffusion_text.core.segments import run_lengths
from diffusion_text.timing.clock import Even, low_discrepancy
from diffusion_text.types import Batch, DataFacts, Key, Params, Progress, Times


@member
class Poisson(Even):
  """Intrinsic times that count events (NeoDiff, arXiv 2505.22165, whose extrinsic time is the clock
  τ of the row).

  Of M = levels - 1 and λ = 2 M τ, each token draws its own k ~ Poisson(λ), and its level is λ +
  spread · λ (k - λ) / √λ, rounded and cut to 0 … M; t = level / M. Before the cut, the mean is λ
  and the standard deviation spread · λ. λ passes M at τ = 1/2, so that more than half of the draws
  are noise alone.

  A surrogate like `Independent`: times of a row are independent given τ and follow no path. Levels
  at 0 cost nothing. The grid is even, the same for all tokens.
  """

  levels: int = option(100, "how many intrinsic times there are; 100 is published", ge=2)
  spread: float = option(1.0, "standard deviation of a level over its mean; 1 is published", ge=0)

  path: ClassVar[Literal["none"]] = "none"

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """A count of its own for each token, about the row's clock."""
    del params
    rows, length = batch.ids.shape
    key_clock, key_count = jax.random.split(key)
    tau = low_discrepancy(key_clock, rows, progress)[:, None]
    keys = position_keys(key_count, rows, length, progress)
    one_row = jax.vmap(jax.random.poisson, in_axes=(0, None))
    count = jax.vmap(one_row)(keys, self._mean(tau)[:, 0])
    t = self._time(tau, count.astype(jnp.float32))
    return Times(t, (t > 0).astype(jnp.float32), tau, t)

  def labels(
    self,
    tau: Float[Array, "B 1"],
    cost: Float[Array, "B N"],
    counts: Bool[Array, "B N"],
    segment: Int[Array, "B N"] | None,
  ) -> Float[Array, "B N"]:
    """[B, N] in [0, 1]: the time that a token's rank by cost gives it at clock τ, among those that
    count in its document.

    The token of the r-th lowest of n costs has the time that the law of `draw` gives to the
    quantile (r - 1/2) / n: tokens that are hard keep more noise.
    """
    rank, total = ranks(cost, counts, segment)
    count = poisson_quantile((rank + 0.5) / total, self._mean(tau), 2 * (self.levels - 1))
    return self._time(tau, count)

  def _mean(self, tau: Array) -> Array:
    return 2 * (self.levels - 1) * tau

  def _time(self, tau: Array, count: Array) -> Array:
    """t of counts [B, N] at clock τ [B, 1]."""
    most, mean = self.levels - 1, self._mean(tau)
    level = jnp.round(mean + self.spread * jnp.sqrt(mean) * (count - mean))
    return jnp.clip(level, 0, most) / most


def ranks(
  cost: Float[Array, "B N"], counts: Bool[Array, "B N"], segment: Int[Array, "B N"] | None
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
  """(rank from 0, how many there are), int32 [B, N] each: of cost, among the tokens of a document
  that count.

  The tokens that do not count are ranked among themselves.
  """
  segment = jnp.zeros(cost.shape, jnp.int32) if segment is None else segment
  return run_lengths([jnp.asarray(counts).astype(jnp.int32), jnp.asarray(segment)], [cost])


def poisson_quantile(
  share: Float[Array, "B N"], mean: Float[Array, "B 1"], most: float
) -> Float[Array, "B N"]:
  """The smallest k with P(Poisson(mean) <= k) >= share, for shares in (0, 1) and means up to
  `most`.

  Counts end 10 standard deviations above `most`, where less than 1e-20 of the law is left.
  """
  counts = jnp.arange(int(most + 10 * most**0.5 + 20), dtype=jnp.float32)
  below = jax.scipy.special.gammaincc(counts + 1, mean)  # P(count <= k), [B, K]
  return jax.vmap(jnp.searchsorted)(below, share).astype(jnp.float32)


def place(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """float32 [V] in [0, 1]: the share of a corpus whose tokens have a lower value, equal ones
  counting half.

  Spread evenly over the corpus, whatever the values are: the mean there is 1/2.

  Args:
    values: of each token, [V].
    counts: how often each token occurs, [V].
  """
  counts = np.asarray(counts, np.float64)
  _, order = np.unique(np.asarray(values, np.float64), return_inverse=True)
  mass = np.bincount(order, weights=counts) / max(counts.sum(), 1.0)  # of tokens of one value
  return (np.cumsum(mass) - mass / 2)[order].astype(np.float32)


def rarity(counts: np.ndarray) -> np.ndarray:
  """float32 [V] in [0, 1]: the share of a corpus that is commoner than each token, equally common
  ones counting half.

  A token's place in the order of -log frequency, which is its information.

  Args:
    counts: how often each token occurs, [V].
  """
  return place(-np.asarray(counts, np.float64), counts)


def tf_idf_entropy(counts: np.ndarray, documents: np.ndarray) -> np.ndarray:
  """float64 [V]: tf-idf n/d · log((1 + D)/(1 + d)) and entropy -p log p, each over its mean in the
  corpus, added.

  Of tokens that occur n times, a share p of the corpus, in d documents; D is the largest d. So tf
  is the mean over the documents that have the token.

  Args:
    counts: how often each token occurs, [V].
    documents: in how many documents each token occurs, [V].
  """
  counts, documents = np.asarray(counts, np.float64), np.asarray(documents, np.float64)
  share = counts / max(counts.sum(), 1.0)
  special = np.log((1 + documents.max()) / (1 + documents))
  tf_idf = counts / np.maximum(documents, 1) * special
  entropy = -share * np.log(np.where(share > 0, share, 1.0))
  return sum(value / max(share @ value, 1e-30) for value in (tf_idf, entropy))


def of_words(values: np.ndarray, words: Any, vocab_size: int) -> np.ndarray:
  """float64 [V]: for each token the mean value of the words that hold it, over its occurrences; 0
  for tokens that do not occur.

  Args:
    values: of each word, [W].
    words: `data.words.Words`.
    vocab_size: V.
  """
  weight = np.asarray(words.times, np.float64)
  total = np.bincount(words.tokens, weight * values[words.words], minlength=vocab_size)
  return total / np.maximum(np.bincount(words.tokens, weight, minlength=vocab_size), 1.0)


@member
class ByInformation(Even):
  """Tokens that tell more fall first, or last: InfoDiffusion (arXiv 2310.11976), Masked-Diffuse LM
  (arXiv 2304.04746).

  As `Slanted`, along information instead of place: while the clock falls, a token falls from 1 to 0
  on a stretch 1 / (1 + spread) long, which is the earlier the more of the training tokens tell less
  (`place`). The papers give information to words, and tf-idf to a word in its sentence. Here every
  token has one value wherever it stands, so that a guessed token has a time: its own information,
  or, with `of` = "words", the mean information of the words of the corpus that it is a piece of.

  A surrogate: each token does sweep [0, 1] once, but its times depend on what the token is. A
  network that reads its own times can infer the token from them, and the cost of the token then
  bounds nothing. So the network reads the clock, as the published networks do, which also makes
  training and sampling alike. A bound would have to pay for the order. The grid is one that all
  tokens share, as nobody knows the tokens that are about to be written; the sampler "guessed_times"
  asks for the times of those that it guesses.
  """

  spread: float = option(1.0, "how much earlier tokens lead; 0 is one time for all", ge=0)
  informative_first: bool = option(
    True, "True: generation writes telling tokens first (key information first); False: last"
  )
  information: Literal["rarity", "tf_idf_entropy"] = option(
    "rarity",
    "how much a token tells: -log frequency, or tf-idf and entropy, which needs a corpus of"
    " several documents",
  )

  of: Literal["tokens", "words"] = option(
    "tokens",
    "what information is of: tokens, or the words that a token is a piece of, for tokenizers that"
    " tell words (sentencepiece)",
  )

  path: ClassVar[Literal["none"]] = "none"

  def init(self, key: Key, facts: DataFacts) -> Params:
    """{"rarity": float32 [V]}, fixed: the place of each token by information. Raises ValueError for
    data without the counts, or the words, that are needed.
    """
    del key
    if facts.token_counts is None:
      raise ValueError(
        "timing 'by_information' needs the token counts of the training split; pass"
        " DataFacts.token_counts"
      )
    counts = facts.token_counts()
    if self.of == "words":
      return {"rarity": jnp.asarray(place(self._of_words(facts, counts), counts))}
    if self.information == "rarity":
      return {"rarity": jnp.asarray(rarity(counts))}
    if facts.document_counts is None:
      raise ValueError(
        "timing.information='tf_idf_entropy' needs the document counts of the training split; pass"
        " DataFacts.document_counts, or use information='rarity'"
      )
    told = tf_idf_entropy(counts, facts.document_counts())
    return {"rarity": jnp.asarray(place(told, counts))}

  def _of_words(self, facts: DataFacts, counts: np.ndarray) -> np.ndarray:
    """[V], the mean information of the words that each token is a piece of. A token that does not
    occur counts as rarer than all others; its tf-idf is 0.
    """
    if facts.words is None:
      raise ValueError(
        "timing.of='words' needs to know words, which tokens that are characters or bytes do not"
        " tell; use data.tokenizer='sentencepiece' (in Python: pass DataFacts.words), or"
        " of='tokens'"
      )
    words = facts.words()
    if self.information == "tf_idf_entropy":
      told = tf_idf_entropy(words.counts, words.documents)
      return of_words(told, words, facts.vocab_size)
    told = of_words(-np.log(words.counts / words.counts.sum()), words, facts.vocab_size)
    return np.where(np.asarray(counts) > 0, told, told.max() + 1)

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times by rarity about the row's clock, and the clock for the network."""
    tau = low_discrepancy(key, batch.ids.shape[0], progress)[:, None]
    rare = jax.lax.stop_gradient(params["rarity"])[batch.ids]
    t, speed = self.times(tau, rare)
    return Times(t, speed, tau, network_time=tau)

  def token_times(
    self,
    params: Params,
    ids: Int[Array, "*n"],
    tau: Float[Array, "*n"],
    counts: Bool[Array, "*n"],
  ) -> Float[Array, "*n"]:
    """The times of tokens `ids` at clock τ, for samplers that guess which tokens they write."""
    del counts  # each has its times, whatever stands beside it
    return self.times(tau, params["rarity"][ids])[0]

  def times(
    self, tau: Float[Array, "*#n"], rare: Float[Array, "*n"]
  ) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(t, dt/dτ) of tokens of this rarity at clock τ."""
    early = rare if self.informative_first else 1 - rare
    line = (1 + self.spread) * tau - self.spread * early
    inside = (line > 0) & (line <= 1)
    return jnp.clip(line, 0.0, 1.0), jnp.where(inside, 1 + self.spread, 0.0)
