"""Two Markov chains of known law, the quality of texts that are to follow one of them, and the
small masked model of a chain.

The studies of decoding (`joint_layer`, `energy`, `guided`, `decoders`) measure with these: what is
wrong with a text is then known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_text.context import Full
from diffusion_text.experiment.api import fit
from diffusion_text.experiment.registry import nearest
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.studies.measures import (
  mean_and_error,
  neighbours,
  pooled_entropy,
  total_variation,
)
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, DataFacts, Model, Params

SMOOTHING = 1e-3


class Chain(NamedTuple):
  """A Markov chain.

  Attributes:
    name: its name in tables.
    initial: float64 [V], the law of the first token.
    transition: float64 [V, V], the law of the next token; a line for each token before it.
    length: N, the tokens of a row.
  """

  name: str
  initial: Float[np.ndarray, " V"]
  transition: Float[np.ndarray, "V V"]
  length: int

  def sample(self, rng: np.random.Generator, rows: int) -> Int[np.ndarray, "B N"]:
    """int32 [B, N]: independent rows of the chain."""
    ids = [rng.choice(len(self.initial), rows, p=self.initial)]
    cumulative = np.cumsum(self.transition, axis=1)
    for _ in range(self.length - 1):
      u = rng.random((rows, 1))
      ids.append(np.minimum((u > cumulative[ids[-1]]).sum(1), len(self.initial) - 1))
    return np.stack(ids, axis=1).astype(np.int32)

  def invalid(self, ids: Int[np.ndarray, "B N"]) -> Bool[np.ndarray, " B"]:
    """bool [B]: True for a row with a step that the chain never makes."""
    return (self.transition[ids[:, :-1], ids[:, 1:]] == 0).any(1)

  def laws(self) -> Float[np.ndarray, "N V"]:
    """float64 [N, V]: the law of the token of each place, of which nothing else is known."""
    laws = [self.initial]
    for _ in range(self.length - 1):
      laws.append(laws[-1] @ self.transition)
    return np.stack(laws)

  def frequencies(self) -> Float[np.ndarray, " V"]:
    """float64 [V]: the probability of each token, averaged over places."""
    return self.laws().mean(axis=0)

  def bigrams(self) -> Float[np.ndarray, "V V"]:
    """float64 [V, V]: the probability of each pair of neighbours, averaged over places."""
    return self.laws()[:-1].mean(axis=0)[:, None] * self.transition

  def nll(self, ids: Int[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
    """float64 [B]: -log p of each row in nats, after initial and transition law were mixed with
    SMOOTHING of a uniform one, as an invalid row would cost infinitely much.
    """
    initial, step = (
      np.log((1 - SMOOTHING) * law + SMOOTHING / len(self.initial))
      for law in (self.initial, self.transition)
    )
    return -initial[ids[:, 0]] - step[ids[:, :-1], ids[:, 1:]].sum(1)


def branchy(seed: int = 0) -> Chain:
  """A chain of 8 tokens with 3 possible successors each, rows of 32."""
  rng = np.random.default_rng(seed)
  transition = np.zeros((8, 8))
  for row in transition:
    row[rng.choice(8, 3, replace=False)] = rng.dirichlet(np.ones(3))
  return Chain("branchy", rng.dirichlet(np.ones(8)), transition, 32)


def phrase() -> Chain:
  """A chain of 4 phrases of 6 tokens in any order, rows of 48 that begin anywhere in a phrase."""
  transition = np.zeros((24, 24))
  for token in range(24):
    if token % 6 < 5:
      transition[token, token + 1] = 1
    else:
      transition[token, ::6] = 1 / 4
  return Chain("phrase", np.full(24, 1 / 24), transition, 48)


CHAINS: dict[str, Callable[[], Chain]] = {"branchy": branchy, "phrase": phrase}


def chain_of(name: str) -> Chain:
  """The chain of a name. Raises ValueError for an unknown one."""
  if name not in CHAINS:
    known = ", ".join(CHAINS)
    raise ValueError(f"chain={name!r} is unknown{nearest(name, CHAINS)}; use one of {known}")
  return CHAINS[name]()


class Quality(NamedTuple):
  """What the texts of a sampler are like.

  Attributes:
    invalid, invalid_error: the share of invalid rows, and its standard error.
    nll, nll_error: `Chain.nll`, nats of a row, and its standard error.
    distance: the total variation between the pairs of neighbours of the texts and of the chain.
    entropy: of all tokens together, in nats.
  """

  invalid: float
  invalid_error: float
  nll: float
  nll_error: float
  distance: float
  entropy: float

  def cells(self) -> tuple[str, str, str, str]:
    """The cells of a table: invalid and NLL with their errors, distance and entropy (QUALITY)."""
    return (
      f"{self.invalid:.3f} ± {self.invalid_error:.3f}",
      f"{self.nll:.2f} ± {self.nll_error:.2f}",
      f"{self.distance:.3f}",
      f"{self.entropy:.3f}",
    )


QUALITY = ("invalid", "NLL, nats", "bigram TV", "token entropy, nats")  # the header of the cells


def quality(chain: Chain, ids: Int[np.ndarray, "B N"]) -> Quality:
  """The quality of rows that are to follow a chain."""
  distance = total_variation(neighbours(ids, len(chain.initial)), chain.bigrams())
  invalid, nll = mean_and_error(chain.invalid(ids)), mean_and_error(chain.nll(ids))
  return Quality(*invalid, *nll, distance, pooled_entropy(ids))


def as_dicts(lines: Sequence[Any]) -> list[dict[str, Any]]:
  """What JSON has of lines of a table: NamedTuples with a `quality`."""
  return [{**line._asdict(), "quality": line.quality._asdict()} for line in lines]


def network_of(process: Masked, layers: int, width: int, **options: Any) -> Transformer:
  """A transformer with heads of width 32."""
  sizes = {"input_sizes": process.input_sizes, "output_size": process.output_size}
  return Transformer(layers=layers, width=width, heads=max(width // 32, 1), **sizes, **options)


def batches(chain: Chain, rows: int, seed: int) -> Iterator[Batch]:
  """Endless batches of rows of a chain."""
  rng = np.random.default_rng(seed)
  while True:
    yield Batch(chain.sample(rng, rows))


def masked_model(
  chain: Chain, layers: int, width: int, steps: int, seed: int
) -> tuple[Model, Params]:
  """(the masked model of a chain, its parameters after `steps` updates of 64 rows)."""
  process = Masked(vocab_size=len(chain.initial))
  # The layers are scanned because the studies compile some twenty programs of this network.
  network = network_of(process, layers, width, scan_layers=True)
  model = Model(network, process, Shared(), Full(), chunk=512)
  facts = DataFacts(chain.length, process.vocab_size, steps=steps)
  rows = batches(chain, 64, seed)
  return model, fit(model, Bound(), rows, facts, learning_rate=3e-3, seed=seed)
