"""Calls beside quality of decoders over their options: a chain of known law, a small masked model.

Every decoder of `contrib.decoders` that serves masks without a second model draws at temperature 1
and top_p 1, whatever its own values are, so that all should have the law of the chain. An order by
the probability of the *drawn* token, the published rule of several decoders, is the control: it is
biased for any number of calls. NLL is `Chain.nll`. A decoder that seeks modes has a lower entropy
of tokens than the data.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from diffusion_text.contrib.decoders import DECODERS
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment import registry
from diffusion_text.sampler.accounting import cost_report
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Proposal, Reveal, View
from diffusion_text.sampler.score import MaxProb
from diffusion_text.studies.chains import (
  QUALITY,
  Chain,
  Quality,
  as_dicts,
  chain_of,
  masked_model,
  quality,
)
from diffusion_text.studies.measures import markdown, write
from diffusion_text.types import Model, Params, Reader, Sampler

HEADER = ("decoder", "options", "calls", "tokens per call", "token-layers", *QUALITY)
DRAWN = "order of drawn tokens (control)"

# name -> the options of its sampler, one line of the table each.
KNOBS: dict[str, Sequence[Mapping[str, Any]]] = {
  "ancestral": [{"steps": 8}, {"steps": 16}, {"steps": 48}, {"steps": 192}],
  "first_hitting": [{"steps": 1000}],
  "psi": [{"steps": 48}, {"steps": 192}],
  "remdm_cap": [{"steps": 48}, {"steps": 192}],
  "remdm_rescale": [{"steps": 192}],
  "remdm_conf": [{"steps": 192}],
  "remdm_loop": [{"steps": 48}, {"steps": 192}],
  "one_by_one": [{}],
  "left_to_right": [{}],
  "maskgit": [{"budget.steps": 8}, {"budget.steps": 16}],
  "confidence": [{"budget.steps": 8}, {"budget.steps": 16}],
  "dream": [{"budget.steps": 8}, {"budget.steps": 16}],
  "margin": [{"budget.steps": 8}, {"budget.steps": 16}],
  "pc_sampler": [{"budget.steps": 16}],
  "density": [{"budget.steps": 16}],
  "ccd": [{"budget.steps": 16}, {"budget.steps": 16, "score.calls": 3}],
  "ccd_adaptive": [{}],
  "fast_dllm": [{"budget.least": 0.5}, {"budget.least": 0.7}, {"budget.least": 0.9}],
  "fast_dllm_factor": [{"budget.factor": 0.5}, {"budget.factor": 1.0}],
  "entropy_bound": [{"budget.gamma": each} for each in (0.001, 0.01, 0.1, 0.5, 1.0)],
  "klass": [{}],
  "hierarchy": [{}],
  "rcr": [{"revise.steps": 8}, {"revise.steps": 16}],
  "wino": [{}],
  "fast_dllm_prefix": [{}],
  "fast_dllm_dual": [{}],
}


@member
class Settings:
  """How the study is run."""

  layers: int = option(2, "of the network", ge=1)
  width: int = option(64, "of the network", ge=2)
  steps: int = option(1500, "updates of the network, of 64 rows", ge=1)
  rows: int = option(512, "texts of each line", ge=2)
  block: int = option(12, "positions of a window, for decoders in blocks", ge=1)
  seed: int = option(0, "of everything", ge=0)


class Line(NamedTuple):
  """One line of the table.

  Attributes:
    name, options: of the decoder.
    calls: of the network, mean over rows.
    tokens: generated tokens per call.
    layers: positions read by the layers, as a share of those of whole rows at every call.
    quality: of the texts.
  """

  name: str
  options: str
  calls: float
  tokens: float
  layers: float
  quality: Quality


class OfTheDraw(Reveal):
  """The control: `Reveal` whose order is the probability of the drawn token."""

  draws_all: ClassVar[bool] = True

  def propose(self, view: View, t: Any) -> Proposal:
    """The score is the log-probability of the drawn token."""
    proposal = super().propose(view, t)
    return proposal._replace(score=proposal.log_prob)


def decoders(settings: Settings) -> Iterator[tuple[str, str, Sampler, Reader | None, int | None]]:
  """(name, options as text, sampler, reader, block) of every line."""
  for name, each in KNOBS.items():
    decoder = DECODERS[name]
    for options in each:
      section = {**decoder.sampler, "temperature": 1.0, "top_p": 1.0}
      section = registry.changed("sampler", section, options.items())
      sampler = registry.construct("sampler", section)
      reader = None if decoder.reader is None else registry.construct("reader", decoder.reader)
      said = ", ".join(f"{key.split('.')[-1]} {value:g}" for key, value in options.items())
      yield name, said, sampler, reader, settings.block if decoder.block else None
  for calls in (16, 48):
    sampler = OfTheDraw(score=MaxProb(), budget=EvenShare(steps=calls))
    yield DRAWN, f"steps {calls}", sampler, None, None


def line_of(
  model: Model,
  params: Params,
  chain: Chain,
  settings: Settings,
  each: tuple[str, str, Sampler, Reader | None, int | None],
) -> Line:
  """The line of a decoder."""
  name, options, sampler, reader, block = each
  keys = row_keys(settings.seed + 1, settings.rows)
  shape = {"rows": settings.rows, "length": chain.length}
  made = sample(model, params, sampler, keys, reader=reader, block=block, **shape)
  cost = cost_report(made, model)
  found = quality(chain, np.asarray(made.ids))
  return Line(name, options, cost.calls, cost.tokens_per_call, cost.relative_layers, found)


def table(lines: Sequence[Line]) -> str:
  """The lines in Markdown."""
  rows = []
  for line in lines:
    calls = ("–", "–", "–")
    if line.calls:
      calls = (f"{line.calls:.1f}", f"{line.tokens:.2f}", f"{line.layers:.3f}")
    rows.append((line.name, line.options or "–", *calls, *line.quality.cells()))
  return markdown(HEADER, rows, left=(0, 1))


def run(name: str, settings: Settings, workdir: pathlib.Path) -> str:
  """The table of a chain, which is also written to the workdir, line by line.

  Raises:
    ValueError: for a chain that is unknown.
  """
  chain = chain_of(name)
  sizes = settings.layers, settings.width, settings.steps
  model, params = masked_model(chain, *sizes, settings.seed)
  data = chain.sample(np.random.default_rng(settings.seed + 2), settings.rows)
  lines = [Line("data", "", 0.0, 0.0, 0.0, quality(chain, data))]
  for each in decoders(settings):
    lines.append(line_of(model, params, chain, settings, each))
    text, kept = table(lines), {"chain": name, "settings": dataclasses.asdict(settings)}
    write(workdir, name, text, **kept, lines=as_dicts(lines))
    jax.clear_caches()
  return text
