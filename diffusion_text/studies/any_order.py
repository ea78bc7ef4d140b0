"""The calls that speculative sampling saves on text: a small any-subset model of the bundled
novels, rows of which a random half or a twentieth is observed, and k drafts per step.

The model itself scores the texts: -log p(hidden tokens | observed ones), which is exact. One token
per call and speculative sampling have the same law, so their scores agree up to chance (the column
z); as many drafts per call without a check are the control. Drafts of bigrams of the row cost no
call of their own. "drafts trained" is the share of
training rows in which the remaining tokens see the observed ones alone.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from diffusion_text.contrib.any_order import AnyOrder, Given
from diffusion_text.contrib.context_bigrams import ContextBigrams, Unread
from diffusion_text.contrib.speculative import Speculative
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key, row_keys
from diffusion_text.data import tokenizers
from diffusion_text.data.corpora import Austen
from diffusion_text.experiment.api import TextData, fit
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight
from diffusion_text.studies.measures import markdown, mean_and_error, pooled_entropy, write
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Model, Params, Progress, Reader, Sampler

HEADER = ("drafts trained", "hidden", "decoder", "calls per token", "tokens per step")
HEADER = (*HEADER, "NLL, nats per token", "z", "token entropy, nats")


@member
class Settings:
  """How the study is run."""

  layers: int = option(2, "of the network", ge=1)
  width: int = option(128, "of the network", ge=2)
  length: int = option(64, "tokens (characters) of a row", ge=2)
  steps: int = option(800, "updates, of 32 rows", ge=1)
  trained: tuple[float, ...] = option((0.0, 0.5), "shares of training rows that are drafts")
  hidden: tuple[float, ...] = option((0.5, 0.95), "shares of the tokens that are to be drawn")
  drafts: tuple[int, ...] = option((5, 10), "k, drafts per step")
  rows: int = option(256, "texts of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Drawn(NamedTuple):
  """Texts of one decoder: ids, calls and steps of each row, and -log p of each row."""

  ids: Int[np.ndarray, "B L"]
  calls: Float[np.ndarray, " B"]
  steps: Float[np.ndarray, " B"]
  nats: Float[np.ndarray, " B"]


def text_of(settings: Settings) -> TextData:
  """The bundled novels, in characters."""
  corpus = Austen()
  tokenizer = tokenizers.build_tokenizer("characters", None, corpus.documents("train"))
  return TextData(corpus, tokenizer, settings.length)


def trained(data: TextData, settings: Settings, drafts: float) -> tuple[Model, Params]:
  """(the model as it is sampled and scored, its parameters)."""
  process = Masked(vocab_size=data.vocab_size)
  network = Transformer(
    layers=settings.layers,
    width=settings.width,
    heads=max(settings.width // 32, 1),
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  model = Model(network, process, Given(), AnyOrder(drafts=drafts), chunk=1024)
  batches = data.batches(32, seed=settings.seed)
  facts = data.facts(settings.steps)
  params = fit(model, Bound(), batches, facts, learning_rate=2e-3, seed=settings.seed)
  return model._replace(timing=AtNoise(), context=AnyOrder()), params


def problem(ids: Int[np.ndarray, "B L"], hidden: float, seed: int) -> Batch:
  """The rows with so large a share hidden, equally many tokens of each."""
  count = max(round(hidden * ids.shape[1]), 1)
  order = np.random.default_rng(seed).random(ids.shape).argsort(axis=1).argsort(axis=1)
  return Batch(ids, order >= count)


cost_of = functools.partial(jax.jit, static_argnums=0)(engine.nats)


def drawn(
  model: Model,
  params: Params,
  sampler: Sampler,
  batch: Batch,
  seed: int,
  reader: Reader | None = None,
) -> Drawn:
  """The texts of a decoder, scored."""
  reader = WholeRow() if reader is None else reader
  keys = row_keys(seed, len(batch.ids))
  result = jax.device_get(sample(model, params, sampler, keys, batch=batch, reader=reader))
  scored = dataclasses.replace(batch, ids=result.ids)
  nats = cost_of(model, params, make_key(0), scored, Progress())
  calls = np.asarray(result.row_calls, np.float64)
  return Drawn(
    np.asarray(result.ids),
    calls,
    calls / (reader.calls + sampler.extra_calls),
    np.asarray(nats).sum(1),
  )


def study(settings: Settings) -> list[tuple[str, ...]]:
  """The lines of the table."""
  data, seed = text_of(settings), settings.seed
  held_out, _ = next(data.held_out("test", settings.rows))
  lines = []
  for share in settings.trained:
    model, params = trained(data, settings, share)
    for hidden in settings.hidden:
      batch = problem(np.asarray(held_out.ids), hidden, seed)
      count = int((~np.asarray(batch.observed)).sum(1)[0])
      lines += decoders(model, params, batch, count, settings, (f"{share:g}", f"{hidden:g}"))
  return lines


def decoders(
  model: Model,
  params: Params,
  batch: Batch,
  count: int,
  settings: Settings,
  what: tuple[str, str],
) -> list[tuple[str, ...]]:
  """The lines of one model and one share of hidden tokens."""
  seed, lines = settings.seed, []
  slow = Reveal(score=LeftToRight(), budget=EvenShare(steps=count))
  reference = drawn(model, params, slow, batch, seed + 1)

  def add(name, found):
    hidden = found.ids[~np.asarray(batch.observed)]
    mean, error = mean_and_error(found.nats)
    # The texts have their own keys, but the same observed tokens: differences are paired by row.
    apart, noise = mean_and_error(found.nats - reference.nats)
    z = f"{apart / noise:+.1f}" if noise else "–"
    nats = f"{mean / count:.3f} ± {error / count:.3f}"
    calls, steps = found.calls.mean() / count, count / found.steps.mean()
    entropy = f"{pooled_entropy(hidden):.3f}"
    lines.append((*what, name, f"{calls:.3f}", f"{steps:.2f}", nats, z, entropy))

  add("one per call", reference)
  for k in settings.drafts:
    sampler = Speculative(drafts=k)
    add(f"speculative, k = {k}", drawn(model, params, sampler, batch, seed + 2))
    of_row = ContextBigrams(drafts=k)
    add(f"bigram drafts, k = {k}", drawn(model, params, of_row, batch, seed + 2, Unread()))
    unchecked = Reveal(score=LeftToRight(), budget=EvenShare(steps=-(-count // k)))
    add(f"{k} unchecked drafts", drawn(model, params, unchecked, batch, seed + 2))
  cost = cost_of(model, params, make_key(0), batch, Progress())
  nothing = np.zeros(len(batch.ids))
  text = Drawn(np.asarray(batch.ids), nothing, nothing + np.inf, np.asarray(cost).sum(1))
  add("text", text)
  return lines


def table(lines: Sequence[Sequence[str]]) -> str:
  """The lines in Markdown."""
  return markdown(HEADER, lines, left=(2,))


def run(settings: Settings, workdir: pathlib.Path) -> str:
  """The table, which is also written to the workdir."""
  lines = study(settings)
  kept = {"settings": dataclasses.asdict(settings), "header": HEADER, "lines": lines}
  text = table(lines)
  write(workdir, "any_order", text, **kept)
  return text
