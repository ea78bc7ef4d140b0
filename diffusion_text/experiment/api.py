"""Training from Python, without a config or a workdir: for notebooks, tests and small experiments.

What a run needs beyond this (checkpoints, several hosts, metrics on disk) is in `experiment.run`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text import train
from diffusion_text.core.trees import split
from diffusion_text.data import pipeline, tokenizers
from diffusion_text.data.corpora import Corpus
from diffusion_text.data.documents import Documents
from diffusion_text.data.text_files import BadRows
from diffusion_text.data.token_arrays import TokenArrays, token_arrays
from diffusion_text.data.words import WORDLESS, Words, words_of
from diffusion_text.evaluate import likelihood
from diffusion_text.experiment.build import init, loss, moves
from diffusion_text.experiment.settings import EvaluateSettings
from diffusion_text.experiment.validation import scoring_model
from diffusion_text.objective import engine
from diffusion_text.types import Batch, DataFacts, Model, Objective, Params, Progress, Tokenizer


def fit(
  model: Model,
  objective: Objective,
  batches: Iterable[Batch],
  facts: DataFacts,
  *,
  learning_rate: float = 1e-3,
  seed: int = 0,
  ema_decay: float = 0.99,
  trainable: Callable[[tuple[str, ...]], bool] | None = None,
  report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> Params:
  """The parameters (their average) of a model after `facts.steps` updates on one device, as one
  tree.

  Args:
    model, objective: what is trained, and how.
    batches: at least `facts.steps` batches of one shape.
    facts: of the data; `steps` is the length of the run.
    learning_rate: the peak of a cosine schedule of AdamW.
    seed: of parameters and noise.
    ema_decay: of the average of parameters.
    trainable: path -> bool, which parameters move; None: those that the network moves.
    report: called with (step, metrics) after every update.

  Raises:
    ValueError: if a member does not fit the model, or there are fewer batches than steps.
  """
  objective.check(model)
  optimizer = train.make_optimizer(
    learning_rate=learning_rate,
    steps=facts.steps,
    warmup_steps=min(facts.steps // 20, 2500),
    clips=lambda path: path[0] != "timing",
  )
  key = train.named_key(seed, "init", 0)
  trainable = functools.partial(moves, model) if trainable is None else trainable
  state = train.create_state(
    lambda: split(init(model, key, facts, objective), trainable), optimizer
  )
  step = jax.jit(
    train.make_train_step(
      functools.partial(loss, model, objective), optimizer, seed=seed, ema_decay=ema_decay
    ),
    donate_argnums=0,
  )
  iterator = iter(batches)
  for number in range(facts.steps):
    batch = next(iterator, None)
    if batch is None:
      raise ValueError(f"batches ended after {number} of facts.steps={facts.steps}; give as many")
    state, metrics = step(state, batch)
    report(number + 1, metrics)
  return state.eval_params


@dataclasses.dataclass(frozen=True)
class TextData:
  """Text as rows of tokens, for `fit` and `score`.

  Attributes:
    corpus: The documents by split: `data.documents.Documents`, or one of `data.corpora`.
    tokenizer: One of `data.tokenizers`.
    length: L, tokens of a row.
    packing: "stream": rows are cut from one long text. "documents": whole documents.
    cache_dir: Where tokens are kept. None: in memory.
  """

  corpus: Corpus
  tokenizer: Tokenizer
  length: int
  packing: Literal["stream", "documents"] = "stream"
  cache_dir: str | os.PathLike[str] | None = None
  _kept: dict[str, TokenArrays] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def __post_init__(self):
    if self.packing not in ("stream", "documents"):
      raise ValueError(
        f"packing={self.packing!r} is not 'stream' or 'documents'; pairs are trained by a config"
      )

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.tokenizer.vocab_size

  def tokens(self, split: str) -> TokenArrays:
    """The tokens of a split, encoded once. Raises ValueError for a split without text."""
    if split not in self._kept:
      self._kept[split] = token_arrays(self.corpus, self.tokenizer, split, self.cache_dir)
    return self._kept[split]

  def batches(self, batch_size: int, *, seed: int = 0) -> pipeline.TrainIterator:
    """Endless training batches [batch_size, L], shuffled anew in each epoch.

    Raises:
      ValueError: For fewer rows than `batch_size`.
    """
    return pipeline.train_iterator(
      self.tokens("train"),
      length=self.length,
      batch_size=batch_size,
      seed=seed,
      packing_kind=self.packing,
    )

  def facts(self, steps: int) -> DataFacts:
    """What members may know of the data, in a run of `steps` updates."""
    return DataFacts(
      length=self.length,
      vocab_size=self.vocab_size,
      token_counts=lambda: self.tokens("train").token_counts(self.vocab_size),
      document_counts=lambda: self.tokens("train").document_counts(self.vocab_size),
      steps=steps,
      words=None if self.tokenizer.name in WORDLESS else self._words,
    )

  def _words(self) -> Words:
    return words_of(self.tokens("train"), self.tokenizer)

  def held_out(self, split: str, batch_size: int) -> Iterator[tuple[Batch, tokenizers.TextSize]]:
    """(batch, size of the text scored in it) over a whole split, in order."""
    arrays = self.tokens(split)
    for batch in pipeline.evaluation_batches(
      arrays, length=self.length, batch_size=batch_size, packing_kind=self.packing
    ):
      weights = np.asarray(engine.scored_weights(batch))
      size = tokenizers.text_size(self.tokenizer, batch.ids, weights, arrays.bytes_of_unknown)
      yield batch, size


def text_data(
  documents: Any,
  *,
  length: int,
  tokenizer: Literal["characters", "bytes", "sentencepiece"] = "characters",
  vocab_size: int | None = None,
  packing: Literal["stream", "documents"] = "stream",
  field: str = "text",
  bad_rows: BadRows = "refuse",
  cache_dir: str | os.PathLike[str] | None = None,
) -> TextData:
  """Text from a Python object, with a tokenizer that is learned from its training split.

  Args:
    documents: texts, rows, or a `datasets.Dataset` or `DatasetDict`; see `Documents`, also for
      `field` and `bad_rows`. Text in files is `TextData(corpora.Folder(path), …)`.
    length: L, tokens of a row.
    tokenizer, vocab_size: see `data.tokenizers.build_tokenizer`.
    packing, cache_dir: see `TextData`.

  Raises:
    ValueError: for an object or a row that is no text, and a tokenizer that does not suit it.
  """
  corpus = Documents(documents, field=field, bad_rows=bad_rows)
  made = tokenizers.build_tokenizer(tokenizer, vocab_size, corpus.documents("train"))
  return TextData(corpus, made, length, packing, cache_dir)


def score(
  model: Model,
  params: Params,
  data: TextData,
  *,
  split: str = "validation",
  batch_size: int = 32,
  num_draws: int = 1,
  seed: int = 0,
) -> likelihood.Likelihood:
  """The bound on a whole split: nats per token, bits per character and per byte.

  Args:
    model, params: what `fit` was given and what it returned.
    data: of the same tokenizer; its corpus may be another than that of training.
    split: "train", "validation", "test" or "all".
    batch_size: rows at a time.
    num_draws: draws of time and noise for each row.
    seed: of the draws.

  Raises:
    ValueError: for a split without text.
  """
  scoring = scoring_model(model, EvaluateSettings())

  @jax.jit
  def nats(params: Params, key: jax.Array, batch: Batch, progress: Progress):
    values = engine.nats(scoring, params, key, batch, progress)
    return jnp.sum(values, axis=1), jnp.sum(engine.scored_weights(batch), axis=1)

  batches = data.held_out(split, batch_size)
  return likelihood.evaluate(nats, params, batches, train.named_key(seed, "evaluate", 0), num_draws)
