"""The sections of a config that choose no member: data, training, evaluation, optimizer, mesh;
every option declared once.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from diffusion_text import train
from diffusion_text.core.options import member, option, part
from diffusion_text.core.trees import Path
from diffusion_text.data.chat_template import template_of
from diffusion_text.data.conversations import Chats
from diffusion_text.data.corpora import CORPORA, Corpus
from diffusion_text.data.detokenize import DETOKENIZERS, Detokenized
from diffusion_text.data.tasks import TASKS, Task, TaskText, check_rows
from diffusion_text.data.token_arrays import TokenArrays, say_once, token_arrays
from diffusion_text.data.tokenizers import build_tokenizer, tokenizer_from_bytes
from diffusion_text.data.words import Words, words_of
from diffusion_text.experiment import registry
from diffusion_text.train.sharding import row_shards


@member
class DataSettings:
  """`config.data`: which text, in which tokens, cut how."""

  corpus: Literal["austen", "text8", "folder", "tfds", "pairs", "task", "conversations"] = option(
    "austen", "austen is bundled; the others need a path, a dataset or a task"
  )
  task: Task | None = part(
    TASKS, None, "task: the name of one, or a section; experiments.tasks lists them"
  )
  path: str | None = option(
    None, "text8: the file; folder, pairs, conversations: a directory or a file", min_length=1
  )
  dataset: str | None = option(None, "tfds: the name, as in lm1b", min_length=1)
  data_dir: str | None = option(
    None, "tfds: where prepared data sets are; unset: TFDS's default", min_length=1
  )
  field: str | None = option(
    None,
    "folder, tfds: the field that holds the text; unset: text. conversations: the one that holds"
    " messages; unset: messages",
    min_length=1,
  )
  source: str | None = option(
    None, "pairs: field or column number (from 0) of what is observed", min_length=1
  )
  target: str | None = option(
    None, "pairs: field or column number of what is to be written", min_length=1
  )
  max_characters: int | None = option(
    None, "pairs: those with a longer source or target are left out", ge=1
  )
  bad_rows: Literal["refuse", "skip"] | None = option(
    None, "folder, tfds, pairs: a row that cannot be read is an error, or left out; unset: refuse"
  )
  detokenizer: Literal[tuple(DETOKENIZERS)] | None = option(
    None, "the published set whose spaces around marks are to be removed from the text; unset: none"
  )
  tokenizer: Literal["characters", "bytes", "sentencepiece"] = option(
    "characters", "learned from the training split if need be"
  )
  vocab_size: int | None = option(None, "sentencepiece: the number of pieces", ge=2)
  tokenizer_path: str | None = option(
    None, "a tokenizer saved by experiments.tokenize, used instead of learning one", min_length=1
  )
  length: int = option(256, "tokens per row", ge=2, le=2**24)
  packing: Literal["stream", "documents", "pairs", "conversations"] = option(
    "stream",
    "stream: rows cut from one long text; documents: whole documents, each its own segment; pairs:"
    " one pair per row, the source observed; conversations: as many whole ones as fit, each its own"
    " segment, all but the answers observed",
  )
  template: str | None = option(
    None,
    "conversations: a chat template, a file of Jinja or the name of a known one (chatml, llama3,"
    " plain); unset: that beside the tokenizer, or plain without one",
    min_length=1,
  )
  answer_multiple: int = option(
    1,
    "conversations: last answers are filled up with ends to a multiple of so many tokens, and these"
    " ends are learned; 1: they are not, and the length of an answer has to be known",
    ge=1,
  )
  random_offset: bool = option(True, "stream: cut the rows at another place each epoch")
  short_rows: float = option(
    0.0, "share of the training rows that are cut to a random length; 0.01 is usual", ge=0, le=1
  )
  cache_dir: str = option("~/.cache/diffusion_text", "where token arrays are kept", min_length=1)

  def __post_init__(self):
    in_pairs = self.corpus in ("pairs", "task")
    if in_pairs != (self.packing == "pairs"):
      raise ValueError(
        f"data.corpus={self.corpus!r} with data.packing={self.packing!r}: 'pairs' is the packing of"
        " the corpora 'pairs' and 'task' and of no other; set both, or none"
      )
    talks = self.corpus == "conversations"
    if talks != (self.packing == "conversations"):
      raise ValueError(
        f"data.corpus={self.corpus!r} with data.packing={self.packing!r}: 'conversations' is a"
        " corpus and the packing of its rows; set both, or none"
      )
    if not talks and (self.template is not None or self.answer_multiple != 1):
      raise ValueError(
        f"data.template={self.template!r} and data.answer_multiple={self.answer_multiple} are of"
        f" conversations, not of data.corpus={self.corpus!r}; leave them unset"
      )
    if (self.corpus == "task") != (self.task is not None):
      raise ValueError(
        f"data.corpus={self.corpus!r} with data.task={self.task!r}: a task needs"
        " --config.data.corpus=task --config.data.packing=pairs --config.data.task=NAME, all three"
      )
    if (in_pairs or talks) and self.short_rows:
      raise ValueError(
        f"data.short_rows={self.short_rows} with data.corpus={self.corpus!r} would cut targets off;"
        " use 0"
      )
    if (in_pairs or talks) and self.detokenizer is not None:
      raise ValueError(
        f"data.detokenizer={self.detokenizer!r} is for text, not for {self.packing}; leave it unset"
      )

  def make_corpus(self) -> Corpus:
    """The corpus, without reading it. Raises ValueError for an option that the corpus does not
    read.
    """
    options = {
      "path": self.path,
      "dataset": self.dataset,
      "data_dir": self.data_dir,
      "field": self.field,
      "source": self.source,
      "target": self.target,
      "max_characters": self.max_characters,
      "bad_rows": self.bad_rows,
      "task": self.task,
    }
    if self.task is not None:
      return registry.settings(TaskText, options, "config.data")
    self._check_read(options)
    corpus = registry.settings(CORPORA[self.corpus], options, "config.data")
    return corpus if self.detokenizer is None else Detokenized(corpus, self.detokenizer)

  def _check_read(self, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that this corpus does not read, with those that do."""
    for name, value in options.items():
      readers = [each for each, cls in CORPORA.items() if name in cls.__pydantic_fields__]
      if value is not None and self.corpus not in readers:
        raise ValueError(
          f"config.data.{name}={value!r} is not read by data.corpus={self.corpus!r}; set"
          f" --config.data.corpus to one that reads {name}: {', '.join(readers)}"
        )

  def make_tokenizer(self) -> Any:
    """The tokenizer of `tokenizer_path`, or one learned from the training split."""
    if self.tokenizer_path is None:
      corpus = self.make_corpus()
      say_once(f"data: the {self.tokenizer} tokenizer is made from {corpus.origin('train')}")
      return build_tokenizer(self.tokenizer, self.vocab_size, corpus.documents("train"))
    path = pathlib.Path(self.tokenizer_path).expanduser()
    if not path.exists():
      raise ValueError(
        f"data.tokenizer_path={self.tokenizer_path!r} is not there; make it with"
        " python -m experiments.tokenize"
      )
    return tokenizer_from_bytes(path.read_bytes())

  def tokens(self, tokenizer: Any, split: str) -> TokenArrays:
    """The tokens of a split, from the cache if they are there.

    Raises:
      ValueError: for a split without text, an answer of a task that has no room in a row, and a
        cache that cannot be written or is full.
    """
    try:
      encoder = self._encoder(tokenizer)
      arrays = token_arrays(self.make_corpus(), tokenizer, split, self.cache, encoder)
      if self.task is not None:
        check_rows(self.task, split, arrays.document_sizes, self.length)
      return arrays
    except OSError as error:
      # A disk that is full names no file, but has a number; a file elsewhere is one of the corpus,
      # which says so, and what the corpus itself raises has no number.
      elsewhere = error.filename is not None and not _related(self.cache, error.filename)
      if elsewhere or error.errno is None:
        raise
      raise ValueError(
        f"data.cache_dir={self.cache_dir!r} cannot be written: {error}; make room there, or set"
        " --config.data.cache_dir to another directory"
      ) from error

  def _encoder(self, tokenizer: Any) -> Chats | None:
    """How conversations become tokens; None for text. Raises ValueError for an unknown template."""
    if self.corpus != "conversations":
      return None
    beside = None if self.tokenizer_path is None else pathlib.Path(self.tokenizer_path).parent
    bare = beside is None and self.template is None
    return Chats(template_of(beside or ".", tokenizer, "plain" if bare else self.template))

  def token_counts(self, tokenizer: Any) -> np.ndarray:
    """int64 [V]: how often each token occurs in the training split."""
    return self.tokens(tokenizer, "train").token_counts(tokenizer.vocab_size)

  def document_counts(self, tokenizer: Any) -> np.ndarray:
    """int64 [V]: in how many documents of the training split each token occurs."""
    return self.tokens(tokenizer, "train").document_counts(tokenizer.vocab_size)

  def words(self, tokenizer: Any) -> Words:
    """The words of the training split, and the tokens in them."""
    return words_of(self.tokens(tokenizer, "train"), tokenizer)

  @property
  def cache(self) -> pathlib.Path:
    """`cache_dir` as a path."""
    return pathlib.Path(os.path.expanduser(self.cache_dir))


@member
class TrainSettings:
  """`config.train`: how long, how many rows, what is saved, and what the network is shown besides
  the noisy tokens.
  """

  steps: int = option(10_000, "optimizer updates", ge=1, le=10**9)
  batch_size: int = option(32, "rows per step, over all devices and microbatches", ge=1)
  accumulation: int = option(1, "microbatches per step", ge=1)
  ema_decay: float = option(0.999, "of the average of parameters; 0 keeps none", ge=0, lt=1)
  self_conditioning: float | None = option(
    None,
    "probability, per row, that the network is shown its own first answer; for networks with"
    " model.self_conditioning, 0.5 is usual",
    ge=0,
    le=1,
  )
  prompt_dropout: float = option(
    0.0,
    "probability, per row, that observed tokens are hidden from the network, which prepares it for"
    " classifier-free guidance; 0.1 is usual",
    ge=0,
    le=1,
  )
  frozen: tuple[str, ...] = option(
    (), "parameters that do not move: prefixes of their paths, as in network/embedding"
  )
  log_every: int = option(10, "steps between lines of metrics", ge=1, le=10**9)
  evaluate_every: int = option(1_000, "steps between scores of held-out text", ge=1, le=10**9)
  save_every: int = option(500, "steps between checkpoints", ge=1, le=10**9)
  keep: int = option(3, "newest checkpoints that are kept, beside the best", ge=1)
  max_seconds: float | None = option(
    None, "of training time; the run stops there even if steps are left", gt=0, le=1e9
  )
  restore_from: str | None = option(
    None,
    "a workdir or checkpoint directory whose run is continued here: state, optimizer, place in the"
    " data; same model, rows, seed and data",
    min_length=1,
  )
  initialize_from: str | None = option(
    None,
    "a workdir or checkpoint directory whose weights (and their average) a new run starts with, at"
    " step 0; any data, sizes and rates, the same tokenizer",
    min_length=1,
  )
  wandb: str | None = option(
    None,
    "a project at Weights & Biases that metrics are sent to as well; unset: none",
    min_length=1,
  )
  profile_steps: tuple[int, int] = option((0, 0), "[first, last) step to trace with jax.profiler")

  def __post_init__(self):
    if self.restore_from is not None and self.initialize_from is not None:
      raise ValueError(
        f"train.restore_from={self.restore_from!r} continues a run, and"
        f" train.initialize_from={self.initialize_from!r} starts a new one with the weights of"
        " another; set one of them"
      )
    first, last = self.profile_steps
    if not 0 <= first <= last or (first < last and first >= self.steps):
      raise ValueError(
        f"train.profile_steps={self.profile_steps} must be first <= last, of the"
        f" {self.steps} steps of the run; use (10, 15), or (0, 0) for no profile"
      )

  def trainable(self, path: Path) -> bool:
    """True if the parameter at this path moves."""
    joined = "/".join(path)
    return not any(joined == name or joined.startswith(f"{name}/") for name in self.frozen)


@member
class EvaluateSettings:
  """`config.evaluate`: which text is scored, and how the bound is drawn."""

  split: Literal["train", "validation", "test"] = "validation"
  batch_size: int = option(32, "rows", ge=1)
  num_draws: int = option(1, "draws of time and noise per row", ge=1, le=10**6)
  max_rows: int = option(
    512, "rows scored while training; experiments.evaluate scores them all", ge=1
  )
  timing: dict[str, Any] | None = option(
    None,
    "the timing, a section with a name, under which the bound is drawn; unset: that of training if"
    " it gives a bound, else shared; a shared one draws its times as the process asks",
  )
  self_conditioning: float | None = option(
    None,
    "probability that a row is read twice; unset: 1 for a network that conditions on itself",
    ge=0,
    le=1,
  )
  decode_at: float | None = option(
    None,
    "log-SNR at which the bound decodes each token out of its own vector; unset: the clearest that"
    " the path has. experiments.evaluate --decoding finds the best",
    ge=-100,
    le=100,
  )


@member
class OptimizerSettings:
  """`config.optimizer`: the optimizer and its learning rate."""

  name: str = option(
    "adamw",
    "adamw; lion; muon, for the matrices of the layers, with adamw for all else; schedule_free,"
    " adamw at a constant rate that averages its parameters itself, whatever train.ema_decay is"
    " (train/optimizer.py)",
  )
  learning_rate: float = option(
    1e-3, "the peak; of muon: for all but the matrices of the layers", gt=0, le=10
  )
  schedule: Literal["constant", "cosine", "wsd"] | None = option(
    None, "wsd: warm-up, stable, decay. Unset: cosine, or constant for schedule_free"
  )
  warmup_steps: int | None = option(None, "unset: 5 % of the steps, at most 2500", ge=0)
  decay_steps: int | None = option(
    None, "wsd: length of the final decay; unset: decay_fraction of the steps", ge=1
  )
  decay_fraction: float = option(0.1, "wsd: the final decay / all steps", gt=0, le=1)
  final_fraction: float = option(0.1, "learning rate at the end / peak", ge=0, le=1)
  b1: float = option(0.9, "", ge=0, lt=1)
  b2: float = option(0.98, "", ge=0, lt=1)
  eps: float = option(1e-8, "", gt=0, le=1)
  weight_decay: float = option(0.03, "times the learning rate", ge=0, le=100)
  clip_norm: float | None = option(1.0, "of the global gradient; unset: never", gt=0)
  matrix_learning_rate: float = option(
    0.02, "muon: the peak for the matrices of the layers, on the same schedule", gt=0, le=10
  )
  momentum: float = option(0.95, "muon: of the matrices of the layers", ge=0, lt=1)
  base_width: int | None = option(
    None,
    "the model.width for which the rates were chosen; in matrices of other widths adamw's rate is"
    " divided, and its decay multiplied, by width / base_width (muP, arXiv 2203.03466). Unset: the"
    " rates as they are",
    ge=1,
  )

  def __post_init__(self):
    train.optimizer.check_known("name", self.name, train.optimizer.OPTIMIZERS)

  def make(
    self,
    steps: int,
    *,
    decays: Callable,
    clips: Callable,
    matrices: Callable | None = None,
    widths: Callable | None = None,
  ) -> train.Optimizer:
    """The optimizer of a run of `steps` updates. decays, clips, matrices, widths: see
    `train.make_optimizer`.
    """
    warmup = min(steps // 20, 2500) if self.warmup_steps is None else self.warmup_steps
    decay_steps = self.decay_steps
    if self.schedule == "wsd" and decay_steps is None:
      decay_steps = max(int(self.decay_fraction * steps), 1)
    return train.make_optimizer(
      name=self.name,
      steps=steps,
      learning_rate=self.learning_rate,
      schedule=self.schedule,
      warmup_steps=warmup,
      decay_steps=decay_steps,
      final_fraction=self.final_fraction,
      b1=self.b1,
      b2=self.b2,
      eps=self.eps,
      weight_decay=self.weight_decay,
      clip_norm=self.clip_norm,
      matrix_learning_rate=self.matrix_learning_rate,
      momentum=self.momentum,
      base_width=self.base_width,
      decays=decays,
      clips=clips,
      matrices=matrices,
      widths=widths,
    )


@member
class MeshSettings:
  """`config.mesh`: devices per axis; -1 takes what is left."""

  replica: int = option(1, "copies of all parameters", ge=-1)
  fsdp: int = option(-1, "rows, with the parameters split over the same devices", ge=-1)
  tensor: int = option(1, "heads and hidden units", ge=-1)
  sequence: int = option(1, "positions of a row", ge=-1)
  expert: int = option(1, "experts of a mixture", ge=-1)

  def make(self, devices: Any = None) -> Mesh:
    """The mesh over these devices, or all. Raises ValueError if the axes do not multiply to their
    number.
    """
    return train.make_mesh(
      replica=self.replica,
      fsdp=self.fsdp,
      tensor=self.tensor,
      sequence=self.sequence,
      expert=self.expert,
      devices=devices,
    )


def _related(directory: pathlib.Path, place: Any) -> bool:
  """True for a place inside a directory, and for a parent of the directory that cannot be made."""
  directory, place = directory.absolute(), pathlib.Path(os.fsdecode(place)).absolute()
  return directory in (place, *place.parents) or place in directory.parents


def check_sizes(
  data: DataSettings, settings: TrainSettings, evaluate: EvaluateSettings, mesh: Mesh
) -> None:
  """Raises ValueError for sizes that must divide one another, here rather than deep in a compiled
  step.
  """
  shards = row_shards(mesh)
  unit = shards * settings.accumulation
  if settings.batch_size % unit:
    raise ValueError(
      f"train.batch_size={settings.batch_size} does not divide into"
      f" train.accumulation={settings.accumulation} microbatches over {shards} devices (replica ×"
      f" fsdp); use {-(-settings.batch_size // unit) * unit}"
    )
  if evaluate.batch_size % shards:
    raise ValueError(
      f"evaluate.batch_size={evaluate.batch_size} does not divide over {shards} devices (replica ×"
      f" fsdp); use {-(-evaluate.batch_size // shards) * shards}"
    )
  positions = mesh.shape["sequence"]
  if data.length % positions:
    raise ValueError(
      f"data.length={data.length} does not divide over mesh.sequence={positions}; use"
      f" {-(-data.length // positions) * positions}"
    )
