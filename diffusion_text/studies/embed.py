"""Sentences as vectors: pooled hidden states of a language model, by layer and noise level, before
and after contrastive fine-tuning (DiffEmbed, arXiv 2505.15045; InfoNCE, arXiv 1807.03748; both
recalled).

The question is whether a masked diffusion model, which reads a sentence in both directions, makes
better vectors than an autoregressive one of the same size, text and updates. Retrieval: of two
sentences with one translation ("pivot pairs"), the first is to find the second among all second
ones. Controls are a network that was never trained, and a bag of tokens without a network.

A sentence is its tokens and an end, so that the state that answers the end of an autoregressive
model has read all of them. Vectors are the mean of the states of all tokens, or the state at the
end ("last").
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text import train
from diffusion_text.context import Full, NextToken
from diffusion_text.core.numerics import cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key, numbered_keys, token_keys
from diffusion_text.core.trees import split
from diffusion_text.data import pair_files
from diffusion_text.data.documents import Documents
from diffusion_text.data.tokenizers import build_tokenizer
from diffusion_text.experiment.api import TextData, fit
from diffusion_text.experiment.build import init
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.studies.measures import markdown, write
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, Loss, Model, Params, Progress, Times

Pool = Literal["mean", "last"]
HEADER = ("model", "vectors", "pool", "layer", "noise t", "recall@1", "cosine of unrelated")
CHUNK = 250  # sentences that are read at once


@member
class Settings:
  """How the study is run."""

  layers: int = option(3, "of the networks", ge=1)
  width: int = option(128, "of the networks", ge=2)
  vocab_size: int = option(2000, "pieces of the tokenizer", ge=300)
  length: int = option(24, "tokens of a sentence, its end included, at most", ge=4)
  batch_size: int = option(64, "rows, and pairs, of an update", ge=2)
  steps: int = option(500, "updates of each language model", ge=1)
  tune_steps: int = option(120, "contrastive updates; 0: none", ge=0)
  temperature: float = option(0.05, "of the contrastive loss; 0.02 to 0.05 are usual", gt=0)
  tune_rate: float = option(1e-3, "peak learning rate of the contrastive updates", gt=0)
  levels: tuple[float, ...] = option((0.0, 0.15, 0.4), "noise at which sentences are read")
  sentences: int = option(40_000, "sentences that language models are trained on, at most", ge=1)
  candidates: int = option(1000, "pairs that are searched, never trained on", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Sentences(NamedTuple):
  """Sentences as rows: ids int32 [S, L], with an end each, and their numbers of tokens [S]."""

  ids: Int[np.ndarray, "S L"]
  sizes: Int[np.ndarray, " S"]


def pivot_groups(path: str | pathlib.Path) -> list[list[str]]:
  """Groups of at least two sentences with one translation, in the order of the file.

  Args:
    path: a file of pairs, see `data.pair_files`.

  Raises:
    ValueError: for a file that cannot be read, and one without such groups.
  """
  by_translation: dict[str, dict[str, None]] = defaultdict(dict)
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ValueError(f"--path={path} is not there; give a file of pairs, as of Tatoeba: fra.txt")
  for sentence, translation in pair_files.read(file, None, None):
    by_translation[translation][sentence] = None
  groups = [list(group) for group in by_translation.values() if len(group) > 1]
  if not groups:
    raise ValueError(f"--path={path} has no two sentences with one translation")
  return groups


def sentences(texts: Sequence[str], tokenizer: Any, length: int, begin: bool = False) -> Sentences:
  """Texts as rows of at most `length` tokens; longer ones are cut. The last token is the end.

  Args:
    begin: whether the token of the role "begin", if there is one, stands before the text.
  """
  special = tokenizer.special
  first = [special["begin"]] if begin and special["begin"] is not None else []
  end = 0 if special["end"] is None else special["end"]
  rows = [[*first, *tokenizer.encode(text).tolist()][: length - 1] + [end] for text in texts]
  sizes = np.array([len(row) for row in rows])
  ids = np.zeros((len(rows), sizes.max()), np.int32)
  for number, row in enumerate(rows):
    ids[number, : len(row)] = row
  return Sentences(ids, sizes)


def batch_of(rows: Sentences) -> Batch:
  """The rows with padding that is neither read nor scored."""
  real = np.arange(rows.ids.shape[1]) < rows.sizes[:, None]
  return Batch(rows.ids, weights=real.astype(np.float32), segment=real.astype(np.int32))


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def pooled(
  model: Model,
  params: Params,
  layers: tuple[int, ...],
  pools: tuple[Pool, ...],
  batch: Batch,
  t: Array | float,
  numbers: Int[Array, " B"],
) -> dict[tuple[int, Pool], Float[Array, "B D"]]:
  """(layer, pool) -> unit vectors [B, D] of sentences that are read with noise of level `t`.

  Args:
    numbers: int32 [B], the number of each sentence, which names its noise: the vector of a sentence
      does not depend on its batch.
  """
  rows, length = batch.ids.shape
  times = jnp.full((rows, length), t, jnp.float32)
  times = Times(times, jnp.ones_like(times), times[:, :1], times)
  process, own = model.process, params["process"]
  keys = token_keys(numbered_keys(0, numbers), length)
  clean = process.clean(own, batch.ids)
  states = clean, process.corrupt(own, keys, clean, times.t)
  read = {"corrupted": states, "hidden_layers": layers, "dropout": False}
  # The key draws nothing that is read: the states are there, and no dropout.
  noised = engine.read(model, params, make_key(0), batch, times, Progress(), **read)
  real = batch.weights
  weights = {
    "mean": real / jnp.sum(real, axis=1, keepdims=True),
    "last": real * (jnp.cumsum(real, axis=1) == jnp.sum(real, axis=1, keepdims=True)),
  }
  found = {}
  for layer in layers:
    hidden = noised.prediction.hidden[layer].astype(jnp.float32)
    for pool in pools:
      vector = jnp.einsum("bnd,bn->bd", hidden, weights[pool])
      norm = jnp.linalg.norm(vector, axis=1, keepdims=True)
      found[layer, pool] = vector / jnp.maximum(norm, 1e-9)
  return found


def embed(
  model: Model,
  params: Params,
  rows: Sentences,
  *,
  layers: tuple[int, ...],
  pools: tuple[Pool, ...] = ("mean",),
  level: float = 0.0,
) -> dict[tuple[int, Pool], Float[np.ndarray, "S D"]]:
  """(layer, pool) -> unit vectors [S, D], CHUNK sentences at a time."""
  parts = []
  for start in range(0, len(rows.ids), CHUNK):
    numbers = np.minimum(np.arange(start, start + CHUNK), len(rows.ids) - 1)
    batch = batch_of(Sentences(rows.ids[numbers], rows.sizes[numbers]))
    made = pooled(model, params, layers, pools, batch, level, jnp.asarray(numbers))
    parts.append(jax.tree.map(np.asarray, made))
  return {key: np.concatenate([p[key] for p in parts])[: len(rows.ids)] for key in parts[0]}


def bag_of_tokens(rows: Sentences, vocab_size: int) -> Float[np.ndarray, "S V"]:
  """Unit vectors of the tokens of each sentence, weighted by log(sentences / sentences with it)."""
  counts = np.zeros((len(rows.ids), vocab_size))
  for row, ids, size in zip(counts, rows.ids, rows.sizes):
    np.add.at(row, ids[:size], 1.0)
  rarity = np.log(len(counts) / np.maximum((counts > 0).sum(axis=0), 1))
  weighed = counts * rarity
  return weighed / np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-9)


class Found(NamedTuple):
  """Recall at rank 1 with its standard error, and the mean cosine of sentences that are no pair,
  which is near 1 where all vectors are alike."""

  recall: float
  error: float
  unrelated: float


def recall_at_1(left: Float[np.ndarray, "S D"], right: Float[np.ndarray, "S D"]) -> Found:
  """How often the vector that is nearest to left[i] is right[i]; ties count as misses."""
  cosines = left @ right.T
  own = np.diagonal(cosines)
  others = np.where(np.eye(len(cosines), dtype=bool), -np.inf, cosines).max(axis=1)
  hits = (own > others).mean()
  count = len(cosines)
  unrelated = (cosines.sum() - own.sum()) / (count * (count - 1))
  return Found(float(hits), float(np.sqrt(hits * (1 - hits) / count)), float(unrelated))


def contrastive_loss(
  model: Model,
  layer: int,
  pool: Pool,
  temperature: float,
  params: Params,
  frozen: Params,
  key: Array,
  batch: Batch,
  progress: Progress,
) -> Loss:
  """Σ over pairs of the cross-entropy of finding the other sentence among those of the batch, in
  both directions. Rows 0 … P - 1 of the batch are first sentences, rows P … 2 P - 1 their partners.
  """
  del frozen, key, progress
  numbers = jnp.arange(batch.ids.shape[0])
  vectors = pooled(model, params, (layer,), (pool,), batch, 0.0, numbers)[layer, pool]
  left, right = jnp.split(vectors, 2)
  logits = left @ right.T / temperature
  answers = jnp.arange(logits.shape[0])
  total = jnp.sum(cross_entropy(logits, answers) + cross_entropy(logits.T, answers)) / 2
  count = jnp.float32(logits.shape[0])
  hits = jnp.sum((jnp.argmax(logits, axis=1) == answers).astype(jnp.float32))
  return Loss(total, count, {"recall": hits})


def tuned(
  model: Model,
  params: Params,
  pairs: Iterator[Batch],
  settings: Settings,
  *,
  layer: int,
  pool: Pool,
) -> Params:
  """The parameters after contrastive updates of the network."""
  optimizer = train.make_optimizer(
    learning_rate=settings.tune_rate,
    steps=settings.tune_steps,
    warmup_steps=settings.tune_steps // 10,
    weight_decay=0.0,
  )

  def moves(path: tuple[str, ...]) -> bool:
    return path[0] == "network"

  loss = functools.partial(contrastive_loss, model, layer, pool, settings.temperature)

  def whole(own, frozen, key, batch, progress):
    return loss({**frozen, **own}, {}, key, batch, progress)

  state = train.create_state(lambda: split(params, moves), optimizer, ema=False)
  step = jax.jit(train.make_train_step(whole, optimizer, seed=settings.seed), donate_argnums=0)
  for _ in range(settings.tune_steps):
    state, _ = step(state, next(pairs))
  return {**state.frozen, **state.params}


def pairs_of(
  groups: Sequence[Sequence[str]], tokenizer: Any, settings: Settings
) -> Iterator[Batch]:
  """Endless batches for `contrastive_loss`: two sentences of each of some groups, at random."""
  generator = np.random.default_rng(settings.seed)
  cut = functools.partial(sentences, tokenizer=tokenizer, length=settings.length)
  rows = [cut(group) for group in groups]
  while True:
    chosen = generator.choice(len(rows), min(settings.batch_size, len(rows)), replace=False)
    two = [generator.choice(len(rows[number].ids), 2, replace=False) for number in chosen]
    ids = np.zeros((2 * len(chosen), settings.length), np.int32)
    sizes = np.zeros(2 * len(chosen), np.int64)
    for place, (number, both) in enumerate(zip(chosen, two)):
      for side, sentence in enumerate(both):
        row = place + side * len(chosen)
        ids[row, : rows[number].ids.shape[1]] = rows[number].ids[sentence]
        sizes[row] = rows[number].sizes[sentence]
    yield batch_of(Sentences(ids, sizes))


class Line(NamedTuple):
  """A line of the table."""

  model: str
  vectors: str
  pool: str
  layer: str
  level: str
  found: Found

  def cells(self) -> tuple[str, ...]:
    """As text."""
    recall, error, unrelated = self.found
    return (*self[:-1], f"{100 * recall:.1f} ± {100 * error:.1f} %", f"{unrelated:.2f}")


def swept(
  name: str,
  vectors: str,
  model: Model,
  params: Params,
  both: tuple[Sentences, Sentences],
  *,
  layers: tuple[int, ...],
  levels: Sequence[float],
) -> list[Line]:
  """A line for each noise level, layer and pool."""
  lines = []
  for level in levels:
    how = {"layers": layers, "pools": ("mean", "last"), "level": level}
    left, right = (embed(model, params, rows, **how) for rows in both)
    for (layer, pool), one in left.items():
      found = recall_at_1(one, right[layer, pool])
      lines.append(Line(name, vectors, pool, str(layer + 1), f"{level:g}", found))
  return lines


def best(lines: Sequence[Line]) -> Line:
  """The line with the highest recall."""
  return max(lines, key=lambda line: line.found.recall)


def models(data: TextData, settings: Settings) -> dict[str, tuple[Model, Params]]:
  """Name -> (model, parameters): an autoregressive and a masked one, trained alike, and the masked
  one without training."""
  process = Masked(vocab_size=data.vocab_size)
  network = Transformer(
    layers=settings.layers,
    width=settings.width,
    heads=max(settings.width // 32, 1),
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  facts = data.facts(settings.steps)
  made = {
    "autoregressive": Model(network, process, AtNoise(), NextToken()),
    "masked": Model(network, process, Shared(), Full()),
  }
  found = {}
  for name, model in made.items():
    rows = data.batches(settings.batch_size, seed=settings.seed)
    found[name] = model, fit(model, Bound(), rows, facts, seed=settings.seed)
  start = init(made["masked"], make_key(settings.seed), facts)
  return found | {"untrained": (made["masked"], start)}


def texts_of(path: str, settings: Settings) -> tuple[list[list[str]], list[list[str]], list[str]]:
  """(groups that are searched, groups that are tuned on, sentences that models are trained on).

  No sentence of a searched group is in the others.

  Raises:
    ValueError: for a file with too few groups.
  """
  groups = pivot_groups(path)
  if len(groups) < settings.candidates + 2:
    raise ValueError(
      f"--path={path} has {len(groups)} groups of sentences with one translation, and"
      f" --candidates={settings.candidates} leaves none to train on; use fewer"
    )
  order = np.random.default_rng(settings.seed).permutation(len(groups))
  searched = [groups[number] for number in order[: settings.candidates]]
  hidden = {text for group in searched for text in group}
  others = [
    [t for t in groups[number] if t not in hidden] for number in order[settings.candidates :]
  ]
  plain = dict.fromkeys(text for text, _ in pair_files.read(pathlib.Path(path), None, None))
  plain = [text for text in plain if text not in hidden]
  order = np.random.default_rng(settings.seed + 1).permutation(len(plain))
  kept = [plain[number] for number in order[: settings.sentences]]
  return searched, [group for group in others if len(group) > 1], kept


def run(
  path: str, settings: Settings, workdir: pathlib.Path, references: Sequence[str] = ()
) -> str:
  """The table, which is also written to the workdir.

  Args:
    path: a file of pairs: sentences, and translations into one language.
    settings: of the study.
    workdir: where to.
    references: workdirs of other models (converted ones), which are not tuned.

  Raises:
    ValueError: for a file without enough pairs, and a workdir without a run.
  """
  searched, tuning, plain = texts_of(path, settings)
  known = [of_workdir(reference, searched) for reference in references]
  corpus = Documents({"train": plain})
  tokenizer = build_tokenizer("sentencepiece", settings.vocab_size, corpus.documents("train"))
  data = TextData(corpus, tokenizer, settings.length, "documents")
  both = tuple(
    sentences([group[side] for group in searched], tokenizer, settings.length) for side in (0, 1)
  )
  bags = [bag_of_tokens(rows, tokenizer.vocab_size) for rows in both]
  lines = [Line("bag of tokens", "no network", "–", "–", "–", recall_at_1(*bags))]
  layers = tuple(range(settings.layers))
  for name, (model, params) in models(data, settings).items():
    levels = settings.levels if model.context.reads_noisy else (0.0,)
    found = swept(name, "as trained", model, params, both, layers=layers, levels=levels)
    lines += found
    if settings.tune_steps:
      lines += _after_tuning(name, model, params, both, best(found), tuning, tokenizer, settings)
  lines += [line for line in known if line is not None]
  text = markdown(HEADER, [line.cells() for line in lines], left=(0, 1, 2))
  kept = [line._asdict() | {"found": line.found._asdict()} for line in lines]
  write(workdir, "embed", text, settings=dataclasses.asdict(settings), lines=kept)
  return text


def _after_tuning(name, model, params, both, chosen, tuning, tokenizer, settings) -> list[Line]:
  """The last layer after contrastive updates, pooled as it was best before them."""
  layer = settings.layers - 1
  batches = pairs_of(tuning, tokenizer, settings)
  after = tuned(model, params, batches, settings, layer=layer, pool=chosen.pool)
  found = swept(name, "tuned", model, after, both, layers=(layer,), levels=(0.0,))
  return [line for line in found if line.pool == chosen.pool]


def of_workdir(workdir: str, searched: Sequence[Sequence[str]]) -> Line:
  """The last layer of another model, mean over tokens, without tuning or noise."""
  from diffusion_text.experiment import run as runs

  trained = runs.load(workdir)
  left, right = (last_layer(trained, [group[side] for group in searched]) for side in (0, 1))
  name, layer = pathlib.Path(workdir).name, str(trained.experiment.model.network.layers)
  return Line(name, "as converted", "mean", layer, "0", recall_at_1(left, right))


def last_layer(trained: Any, texts: Sequence[str]) -> Float[np.ndarray, "S D"]:
  """Unit vectors of texts: the mean over tokens of the last layer of a run, without noise."""
  model, tokenizer = trained.experiment.model, trained.experiment.tokenizer
  begin = model.context.reads_noisy
  rows = sentences(texts, tokenizer, trained.experiment.data.length, begin)
  layer = model.network.layers - 1
  return embed(model, trained.params, rows, layers=(layer,))[layer, "mean"]
