"""A finished run shown to a person: the bound beside simple models, samples, one infilling, and the
report that holds them all.
"""

from __future__ import annotations

import os
import pathlib
import platform
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from diffusion_text import train
from diffusion_text.data.tokenizers import pieces
from diffusion_text.evaluate.text_metrics import NGramModel, token_entropy, xz_bits_per_char
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.decoding import Decoding, decoding_of
from diffusion_text.experiment.player import as_committed
from diffusion_text.experiment.run import Trained, generate, held_out, open_rows, score
from diffusion_text.sampler.loop import Sample
from diffusion_text.studies.report import write_report
from diffusion_text.types import Batch

# The decoder of the samples that are to be read, beside plain ancestral ones.
DECODER = "left_to_right"
TEMPERATURE = 0.8


def steps_in(experiment: Experiment, seconds: float, trial: int = 24) -> int:
  """How many training steps this machine does in `seconds`: timed on `trial` steps of random
  tokens, compilation left out.
  """
  settings, mesh = experiment.train, experiment.mesh
  with jax.set_mesh(mesh):
    state, step = experiment.fresh_state(), experiment.jitted_step(experiment.loss_fn(1.0))
    ids = np.random.default_rng(0).integers(
      0, experiment.facts.vocab_size, (settings.batch_size, experiment.data.length)
    )
    batch = train.global_batch(Batch(ids.astype(np.int32)), mesh)
    times = []
    for _ in range(trial + 1):
      started = time.monotonic()
      state, metrics = step(state, batch)
      jax.block_until_ready(metrics)
      times.append(time.monotonic() - started)
  return max(20, int(seconds / float(np.median(times[1:]))))


def baselines(experiment: Experiment, split: str) -> Mapping[str, float]:
  """Bits per character of a split's text under character n-grams trained on the training split, and
  under xz alone.
  """
  corpus = experiment.data.make_corpus()
  text = {
    name: "".join(document + "\n" for document in corpus.documents(name))
    for name in ("train", split)
  }
  table = {
    f"character {name} (interpolated)": NGramModel.train(text["train"], order).bits_per_char(
      text[split]
    )
    for name, order in (("unigram", 1), ("5-gram", 5))
  }
  return table | {"xz -9 (of the text alone)": xz_bits_per_char(text[split])}


class Drawn(NamedTuple):
  """Samples of one decoder.

  Attributes:
    how: The decoder and its cost, in a line.
    texts: One per row.
    sample: The rows themselves.
  """

  how: str
  texts: list[str]
  sample: Sample


def drawn(trained: Trained, how: str, decoder: Decoding, num: int = 2, seed: int = 1) -> Drawn:
  """`num` rows of the length of training by a decoder, and what they cost. `how`: its name."""
  experiment = trained.experiment
  rows = open_rows(experiment.tokenizer, num, experiment.data.length)
  texts, sample = generate(
    trained, rows, num=num, seed=seed, sampler=decoder.sampler, reader=decoder.reader
  )
  entropy = token_entropy(list(sample.ids))
  cost = f"{int(sample.calls)} network calls, token entropy {entropy:.2f} nats"
  return Drawn(f"{how}: {cost}", texts, sample)


REMARK = (
  "The samples below are written by a network that has learned for {seconds:.0f} seconds. Most"
  " words are spelt right, as tokens are words and pieces of words. Neighbours fit each other,"
  " few sentences hold to their end, and no sample is about anything. The plain ones follow the"
  " law that the network has learned, and fill in several tokens a call without looking at one"
  " another, hence the joints that do not fit. The others take the next token at each call and"
  " prefer likely ones, which reads better and varies less. Token entropy tells how much: that"
  " of held-out text is {entropy:.2f} nats, and a text that repeats itself has far less."
)


def remark(experiment: Experiment, seconds: float) -> str:
  """What a newcomer should know before reading the samples of a network that learned so long."""
  rows, _ = next(iter(held_out(experiment, "test", 1)))
  return REMARK.format(seconds=seconds, entropy=token_entropy(list(np.asarray(rows.ids))))


def captioned(trained: Trained, infill: str) -> tuple[dict[str, str], Drawn]:
  """(caption -> sample, plain samples first; the plain samples)."""
  experiment = trained.experiment
  plain = drawn(trained, "plain ancestral", decoding_of(experiment))
  choice = decoding_of(experiment, decoder=DECODER, temperature=TEMPERATURE)
  how = f"{DECODER}, temperature {TEMPERATURE}"
  read = drawn(trained, how, choice)
  samples = {}
  for each in (plain, read):
    for text in each.texts:
      samples[f"sample {len(samples) + 1} ({each.how})"] = text
  rows = open_rows(experiment.tokenizer, 1, None, infills=[infill])
  filled, result = generate(
    trained, rows, num=1, seed=1, sampler=choice.sampler, reader=choice.reader
  )
  caption = f"infilling of “{infill}” ({how}: {int(result.calls)} network calls)"
  return samples | {caption: filled[0]}, plain


def show(
  trained: Trained,
  path: pathlib.Path,
  *,
  rows: Sequence[Mapping[str, float]],
  infill: str,
  seconds: float,
  num_draws: int,
) -> str:
  """Scores the test split, samples, writes the report to `path`; returns what to print.

  Args:
    trained: a finished run.
    path: of the report.
    rows: the metrics of the run.
    infill: a text with holes.
    seconds: that the training took.
    num_draws: draws of time and noise for each row that is scored.
  """
  experiment = trained.experiment
  likelihood = score(experiment, trained.params, split="test", num_draws=num_draws)
  table = baselines(experiment, "test")
  samples, plain = captioned(trained, infill)
  ids, committed = plain.sample.ids[0], plain.sample.committed[0].tolist()
  film = as_committed(pieces(experiment.tokenizer, ids), committed, int(plain.sample.calls))
  parameters, said = plan.count_parameters(experiment), remark(experiment, seconds)
  device = jax.devices()[0].device_kind
  cores = f"{os.cpu_count()} cores of {platform.machine()}"
  hardware = f"{cores}, {device}, jax {jax.__version__}"
  facts = {
    "config": f"{experiment.config.process.name} diffusion, {parameters:,} parameters",
    "training": f"{trained.step:,} steps in {seconds:.0f} s, seed {experiment.config.seed}",
    "hardware": hardware,
    "samples": said,
  }
  write_report(
    path,
    title=f"diffusion_text: a run on {experiment.data.corpus}",
    facts=facts,
    rows=rows,
    likelihood=likelihood,
    baselines=table,
    samples=samples,
    film=film,
  )
  width = max(map(len, table))
  lines = [
    f"held-out text: {likelihood}",
    "",
    f"  {'this model (upper bound)':<{width}}  {likelihood.bits_per_char:.3f} bits/char",
  ]
  lines += [f"  {name:<{width}}  {value:.3f} bits/char" for name, value in table.items()]
  lines += ["", textwrap.fill(said, 100)]
  for caption, text in samples.items():
    lines += ["", f"--- {caption}", text]
  return "\n".join([*lines, "", f"report: {path}"])
