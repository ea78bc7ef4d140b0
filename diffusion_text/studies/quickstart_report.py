"""A finished run shown to a person: the bound beside simple models, samples, one infilling, and the
report that holds them all.
"""

from __future__ import annotations

import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from diffusion_text import train
from diffusion_text.data.tokenizers import pieces
from diffusion_text.evaluate.text_metrics import NGramModel, token_entropy, xz_bits_per_char
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import Experiment
from diffusion_text.experiment.run import Trained, generate, open_rows, score
from diffusion_text.studies.report import Film, write_report
from diffusion_text.types import Batch


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


def show(
  trained: Trained,
  path: pathlib.Path,
  *,
  rows: Sequence[Mapping[str, float]],
  infill: str,
  seconds: float,
) -> str:
  """Scores the test split, samples, writes the report to `path`; returns what to print."""
  experiment = trained.experiment
  likelihood = score(experiment, trained.params, split="test", num_draws=2)
  table = baselines(experiment, "test")
  texts, result = generate(
    trained, open_rows(experiment.tokenizer, 4, experiment.data.length), num=4, seed=1
  )
  filled, _ = generate(
    trained, open_rows(experiment.tokenizer, 1, None, infills=[infill]), num=1, seed=1
  )
  samples = {f"sample {number + 1}": text for number, text in enumerate(texts)} | {
    f"infilling of “{infill}”": filled[0]
  }
  film = Film(
    pieces(experiment.tokenizer, result.ids[0]), result.committed[0].tolist(), int(result.calls)
  )
  parameters, entropy = plan.count_parameters(experiment), token_entropy(list(result.ids))
  device = jax.devices()[0].device_kind
  cores = f"{os.cpu_count()} cores of {platform.machine()}"
  hardware = f"{cores}, {device}, jax {jax.__version__}"
  facts = {
    "config": f"{experiment.config.process.name} diffusion, {parameters:,} parameters",
    "training": f"{trained.step:,} steps in {seconds:.0f} s, seed {experiment.config.seed}",
    "hardware": hardware,
    "samples": f"{int(result.calls)} network calls each, token entropy {entropy:.2f} nats",
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
  for caption, text in samples.items():
    lines += ["", f"--- {caption}", text]
  return "\n".join([*lines, "", f"report: {path}"])
