"""The quality of texts with candidates that a second model weighs: on a chain of known law, with a
small masked model, an autoregressive model of the same size, and controls.

Every pass of the autoregressive model counts as one call, as it has the same size. "exact" scorers
know the chain, "random" ones know another chain; "wrong sign" weighs with exp(+E) and "hidden only"
leaves visible tokens out of log p_AR, both as released. Plain steps at the same number of calls are
in the same table. NLL is `Chain.nll`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.context import Full, NextToken
from diffusion_text.contrib.energy import Energy
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.api import fit
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.studies.chains import (
  QUALITY,
  Chain,
  Quality,
  as_dicts,
  batches,
  chain_of,
  network_of,
  quality,
)
from diffusion_text.studies.measures import markdown, write
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import (
  DataFacts,
  IdentityHead,
  Model,
  Params,
  Prediction,
  Rows,
  Sampler,
)

AT_ONCE = 128  # rows that are drawn at a time
HEADER = ("sampler", "scorer", "k", "calls", "scorer's", *QUALITY)


@member
class BigramNetwork:
  """A network for context "next_token" that looks log p(token | token before) up in a table."""

  vocab_size: int = option(..., "V", ge=1)

  def apply(self, params: Params, rows: Rows, **_: Any) -> Prediction:
    """A line of the table per position; a mask is read before the first token."""
    return Prediction(params["table"][rows.inputs.ids], IdentityHead())


def bigram_table(chain: Chain) -> Float[Array, "V1 V"]:
  """float32 [V + 1, V]: log p(token | token before); the last line is the first token's law."""
  table = np.concatenate([chain.transition, chain.initial[None]])
  return jnp.log(jnp.asarray(np.maximum(table, 1e-9), jnp.float32))


@member
class WrongSign(Energy):
  """Candidates are weighed with exp(+E), as released: a control."""

  def log_weight(self, log_p: Float[Array, "k B"], log_q: Float[Array, "k B"]) -> Any:
    """The inverse of the ratio."""
    return (log_q - log_p) / self.energy_temperature


@member
class Settings:
  """How the study is run."""

  layers: int = option(2, "of both networks", ge=1)
  width: int = option(64, "of both networks", ge=2)
  steps: int = option(1200, "updates of each network, of 64 rows", ge=1)
  calls: int = option(4, "steps of a text", ge=1)
  candidates: tuple[int, ...] = option((2, 4, 8, 16), "k, candidates per step")
  rows: int = option(1024, "texts of each line, a multiple of 128", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Line(NamedTuple):
  """One line of the table.

  Attributes:
    name, scorer: the sampler, and the model that weighs.
    candidates: k.
    calls, scorer_calls: of the diffusion model and of the scorer.
    quality: of the texts.
  """

  name: str
  scorer: str
  candidates: int
  calls: int
  scorer_calls: int
  quality: Quality


class Pair(NamedTuple):
  """A masked model, the parameters of all models, and the scorers by name."""

  model: Model
  params: Params
  scorers: dict[str, Other]


def trained_pair(chain: Chain, settings: Settings) -> Pair:
  """Both models, fitted to the chain, and three scorers: the fitted model, one that knows the chain
  exactly, and one that knows another chain.
  """
  size = len(chain.initial)
  process = Masked(vocab_size=size)
  network = network_of(process, settings.layers, settings.width)
  facts = DataFacts(chain.length, size, steps=settings.steps)
  model = Model(network, process, Shared(), Full())
  ar = Model(network, process, AtNoise(), NextToken())
  how = {"facts": facts, "learning_rate": 2e-3, "seed": settings.seed}
  params = fit(model, Bound(), batches(chain, 64, settings.seed), **how)
  of_ar = fit(ar, Bound(), batches(chain, 64, settings.seed + 1), **how)
  shuffled = np.random.default_rng(settings.seed).permutation(size)
  table = bigram_table(chain)
  groups = {
    "trained": of_ar,
    "exact": {"network": {"table": table}, "process": {}},
    "random": {"network": {"table": table[:, shuffled]}, "process": {}},
  }
  exact = ar._replace(network=BigramNetwork(vocab_size=size))
  scorers = {
    name: Other(reader=WholeRow(), model=ar if name == "trained" else exact, group=name)
    for name in groups
  }
  return Pair(model, {**params, **groups}, scorers)


def texts(
  pair: Pair, sampler: Sampler, rows: int, length: int, seed: int
) -> Int[np.ndarray, "B N"]:
  """int32 [rows, length]: texts, drawn AT_ONCE rows at a time."""
  keys = row_keys(seed, rows)
  parts = [
    sample(pair.model, pair.params, sampler, keys[i : i + AT_ONCE], rows=AT_ONCE, length=length).ids
    for i in range(0, rows, AT_ONCE)
  ]
  return np.concatenate([np.asarray(part) for part in parts])[:rows]


def study(chain: Chain, settings: Settings) -> list[Line]:
  """The lines of the table."""
  pair, steps = trained_pair(chain, settings), settings.calls
  lines = []

  def add(name, scorer, sampler, candidates=0, weighing=None):
    ids = texts(pair, sampler, settings.rows, chain.length, settings.seed + 2)
    made = candidates * (steps if weighing is None else weighing)
    lines.append(Line(name, scorer, candidates, sampler.steps, made, quality(chain, ids)))

  def energy(kind, scorer, k, **options):
    return kind(steps=steps, scorer=pair.scorers[scorer], candidates=k, **options)

  data = chain.sample(np.random.default_rng(settings.seed + 3), settings.rows)
  lines.append(Line("data", "–", 0, 0, 0, quality(chain, data)))
  add("plain", "–", Grid(steps=steps))
  for k in settings.candidates:
    add("plain, as many calls", "–", Grid(steps=steps * (1 + k)))
  for scorer in ("exact", "trained"):
    for k in settings.candidates:
      add("energy", scorer, energy(Energy, scorer, k), k)
  k = settings.candidates[-1]
  half = steps - steps // 2  # of the steps, those at t > 1/2
  late = energy(Energy, "trained", k, low=0.5001 if steps % 2 == 0 else 0.5)
  add("energy, t > 1/2", "trained", late, k, half)
  early = energy(Energy, "trained", k, high=0.5)
  add("energy, t <= 1/2", "trained", early, k, steps // 2)
  add("energy, hidden only", "exact", energy(Energy, "exact", k, visible=False), k)
  add("energy, wrong sign", "exact", energy(WrongSign, "exact", k), k)
  add("energy", "random", energy(Energy, "random", k), k)
  return lines


def table(lines: Sequence[Line]) -> str:
  """The lines in Markdown."""
  rows = []
  for line in lines:
    calls = str(line.candidates or "–"), str(line.calls), str(line.scorer_calls)
    rows.append((line.name, line.scorer, *calls, *line.quality.cells()))
  return markdown(HEADER, rows, left=(0, 1))


def run(name: str, settings: Settings, workdir: pathlib.Path) -> str:
  """The table, which is also written to the workdir.

  Raises:
    ValueError: for a chain that is unknown.
  """
  chain = chain_of(name)
  with jax.default_matmul_precision("float32"):
    lines = study(chain, settings)
  text, kept = table(lines), {"chain": name, "settings": dataclasses.asdict(settings)}
  write(workdir, "energy", text, **kept, lines=as_dicts(lines))
  return text
