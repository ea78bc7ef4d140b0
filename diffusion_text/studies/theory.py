"""Two predictions of theory on Markov chains, with the exact denoiser: how many calls the samples
of masked diffusion need.

*Few for perplexity, many for whole texts* (arXiv 2502.09622): at a fixed number of calls T, which
does not depend on the length L of a row, the excess cost per token does not grow with L; for a
given share of impossible texts T must grow as L.

*Convergence* (arXiv 2505.21400): the divergence of samples from data is at most C / T times
Σ_i I(X_i; X_-i), plus the error of the denoiser, and there is a lower bound of that form. The curve
here is the cost gap E[log p(x) - Σ_i log p(x_i | tokens of earlier calls)], which bounds the
divergence from above.

All is computed exactly (`opened_chains`), but for one control: the shares of impossible texts that
the sampler itself draws.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.studies.chains import Chain, branchy
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.studies.opened_chains import (
  costs_by_distance,
  entropy,
  even_calls,
  given_calls,
  informations,
  possible_shares,
  uniform_calls,
)

LENGTHS = ("tokens L", "excess, nats/token", "in runs (control)", "calls", "calls / L")
LENGTHS = (*LENGTHS, "impossible, exact", "impossible, sampled", "token entropy, nats")
ZERO = 1e-9  # nats of a row, below which a gap is rounding
GAPS = ("chain", "denoiser", "order", "Σ I, nats")

# (a process, a chain) -> (a model whose network knows the chain, its parameters); the main passes
# it in, as studies must not import `testing`.
Exact = Callable[[Any, Chain], tuple[Any, Any]]


@member
class Settings:
  """How the study is run."""

  lengths: tuple[int, ...] = option((16, 32, 64, 128), "tokens of a row")
  calls: int = option(8, "T of the excess by length", ge=1)
  impossible: float = option(
    0.3, "share of impossible texts that calls must reach", ge=0.001, le=0.9
  )
  gap_length: int = option(64, "tokens of a row of the cost gap", ge=8, le=256)
  gap_calls: tuple[int, ...] = option((4, 8, 16, 32, 64), "T of the cost gap")
  couplings: tuple[float, ...] = option((0.3, 0.6, 1.0), "strengths of the chains of the cost gap")
  unigram: float = option(0.05, "the share of frequencies in the wrong denoiser", ge=0, le=1)
  rows: int = option(1024, "texts that the sampler draws", ge=2)
  seed: int = option(0, "of the chain and of the texts", ge=0)


def check(settings: Settings) -> None:
  """Raises ValueError for settings that no slope can be fitted to, or that are no numbers of calls
  and no strengths.
  """
  lengths, gap_calls = set(settings.lengths), set(settings.gap_calls)
  longer = [length for length in lengths if length > settings.calls]
  if len(longer) < 2 or len(gap_calls) < 2 or min(lengths | gap_calls) < 1:
    raise ValueError(
      f"lengths={settings.lengths}, calls={settings.calls}, gap_calls={settings.gap_calls}: a slope"
      " needs two lengths above the calls, and two numbers of calls from 1 on; lengths=16,32,64 and"
      " calls=8 are usual"
    )
  if not settings.couplings or not all(0 < each <= 1 for each in settings.couplings):
    raise ValueError(
      f"couplings={settings.couplings} must be above 0 and at most 1; 0.3,1 is usual"
    )


def coupled(chain: Chain, strength: float) -> Chain:
  """The chain with the share 1 - strength of its steps taken to any token: 0 has no neighbours."""
  step = strength * chain.transition + (1 - strength) / len(chain.initial)
  return chain._replace(name=f"coupling {strength:g}", transition=step)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
  """The slope of log y over log x, by least squares, where y is not 0."""
  log_x, log_y = np.log([pair for pair in zip(x, y, strict=True) if pair[1] > ZERO]).T
  return float(np.polyfit(log_x, log_y, 1)[0])


def in_runs(costs: Float[np.ndarray, "L L L"], calls: int) -> float:
  """The expected cost of a row, nats, whose calls each open a run of neighbours, from left to
  right: the control to opening tokens at random.
  """
  length = len(costs)
  return float(given_calls(costs, (np.arange(length) * calls // length)[None])[0])


class Length(NamedTuple):
  """What a row of some length needs.

  Attributes:
    length: L.
    excess, runs: of the cost per token at a fixed number of calls, opened at random and in runs.
    needed: the fewest calls after which at most the given share of texts is impossible.
    impossible: that share, at `needed` calls.
  """

  length: int
  excess: float
  runs: float
  needed: int
  impossible: float


def by_length(settings: Settings, chain: Chain) -> list[Length]:
  """The lines of the first table. Calls are tried up to twice the longest row.

  Raises:
    ValueError: where so many calls are not enough.
  """
  longest = max(settings.lengths)
  shares = 1 - possible_shares(chain._replace(length=longest), 2 * longest, settings.impossible)
  lines = []
  for length in settings.lengths:
    costs = costs_by_distance(chain._replace(length=length))
    least = entropy(costs)
    excess = uniform_calls(costs, settings.calls).sum() - least
    runs = in_runs(costs, settings.calls) - least
    enough = np.flatnonzero(shares[:, length - 1] <= settings.impossible)
    if not enough.size:
      raise ValueError(
        f"impossible={settings.impossible}: {2 * longest} calls leave more than that of texts of"
        f" {length} tokens; use a larger share, such as 0.3"
      )
    found = float(shares[enough[0], length - 1])
    lines.append(Length(length, excess / length, runs / length, int(enough[0]) + 1, found))
  return lines


class Gap(NamedTuple):
  """A curve of the cost gap.

  Attributes:
    chain, denoiser, order: what is opened, by whom, and how.
    information: Σ_i I(X_i; X_-i) of a row, nats.
    nats: the gap of a row at each of the numbers of calls.
    error: the error of the denoiser in training, nats of a row: its cost in a random order, one
      token after the other, less the entropy of the chain.
  """

  chain: str
  denoiser: str
  order: str
  information: float
  nats: tuple[float, ...]
  error: float


def gaps(settings: Settings, chain: Chain) -> list[Gap]:
  """The curves of the second table."""
  chain = chain._replace(length=settings.gap_length)
  lines = []
  for strength in settings.couplings:
    weaker = coupled(chain, strength)
    exact = costs_by_distance(weaker)
    least, known = entropy(exact), float(informations(exact).sum())

    def curve(costs, denoiser, order, cost_of, weaker=weaker, least=least, known=known):
      nats = tuple(float(cost_of(costs, calls)) - least for calls in settings.gap_calls)
      error = float(even_calls(costs, len(costs)).sum()) - least
      return Gap(weaker.name, denoiser, order, known, nats, error)

    def at_random(costs, calls):
      return uniform_calls(costs, calls).sum()

    lines.append(curve(exact, "exact", "random calls", at_random))
    if strength != max(settings.couplings):
      continue
    if all(settings.gap_length % calls == 0 for calls in settings.gap_calls):
      even = curve(exact, "exact", "random, L / T per call", lambda *a: even_calls(*a).sum())
      lines.append(even)
    lines.append(curve(exact, "exact", "runs (control)", in_runs))
    wrong = costs_by_distance(weaker, settings.unigram)
    lines.append(curve(wrong, f"{settings.unigram:g} unigram", "random calls", at_random))
  return lines


def sampled(
  chain: Chain, calls: int, exact: Exact, settings: Settings
) -> tuple[tuple[float, float], float]:
  """((the share of impossible texts that the sampler draws in as many calls, its standard error),
  the entropy of their tokens).
  """
  model, params = exact(Masked(vocab_size=len(chain.initial)), chain)
  keys = row_keys(settings.seed, settings.rows)
  made = sample(model, params, Grid(steps=calls), keys, rows=settings.rows, length=chain.length)
  ids = np.asarray(made.ids)
  return mean_and_error(chain.invalid(ids)), pooled_entropy(ids)


def table(
  settings: Settings, lengths: Sequence[Length], drawn: Sequence[Any], found: list[Gap]
) -> str:
  """Both tables in Markdown, with the slopes below them."""
  rows = []
  for line, ((share, error), tokens) in zip(lengths, drawn, strict=True):
    counted = (str(line.needed), f"{line.needed / line.length:.2f}", f"{line.impossible:.3f}")
    excess = (f"{line.excess:.4f}", f"{line.runs:.4f}")
    rows.append(
      (str(line.length), *excess, *counted, f"{share:.3f} ± {error:.3f}", f"{tokens:.3f}")
    )
  size = [line.length for line in lengths]
  slopes = [slope(size, [line[k] for line in lengths]) for k in (1, 2, 3)]
  said = (
    f"Slopes over L: excess at {settings.calls} calls {slopes[0]:.3f}, in runs {slopes[1]:.3f};"
    f" calls for {settings.impossible:g} impossible texts {slopes[2]:.3f}."
  )
  header = (*GAPS, *(f"T = {calls}" for calls in settings.gap_calls), "slope", "T · gap / Σ I")
  lines = [_cells(gap, settings.gap_calls) for gap in found]
  gap_table = markdown((*header, "training error"), lines, left=(0, 1, 2))
  return "\n\n".join((markdown(LENGTHS, rows), said, gap_table))


def _cells(gap: Gap, calls: Sequence[int]) -> tuple[str, ...]:
  """The cells of a curve."""
  pairs = zip(calls, gap.nats, strict=True)
  ratio = [number * nats / gap.information for number, nats in pairs if nats > ZERO]
  cells = [gap.chain, gap.denoiser, gap.order, f"{gap.information:.2f}"]
  cells += [f"{nats:.3f}" for nats in gap.nats]
  cells += [f"{slope(calls, gap.nats):.2f}", f"{min(ratio):.2f} … {max(ratio):.2f}"]
  return (*cells, f"{abs(gap.error):.3f}")


def run(settings: Settings, exact: Exact, workdir: pathlib.Path) -> str:
  """Both tables, written as theory.md and, with the numbers, theory.json."""
  check(settings)
  chain = branchy(settings.seed)
  lengths, found = by_length(settings, chain), gaps(settings, chain)
  drawn = [
    sampled(chain._replace(length=line.length), line.needed, exact, settings) for line in lengths
  ]
  text = table(settings, lengths, drawn, found)
  kept = {"lengths": [line._asdict() for line in lengths], "gaps": [x._asdict() for x in found]}
  write(workdir, "theory", text, settings=dataclasses.asdict(settings), drawn=drawn, **kept)
  return text
