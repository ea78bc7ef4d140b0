"""Records and the sentences that say them, in whole words, and two models of them: a masked one and
an autoregressive one, of the same size, rows and updates.

The data are those of the E2E challenge (arXiv 1706.09254), folders with columns mr and ref. A text
is in lower case and a token is a word, a number or a mark; texts with a rare word, and long ones,
are left out. A record is one token for each of its values, as in "food=chinese area=riverside". A
share of the training texts has the record "any" in place of its own: so one model writes both from
a record and from none, and a bound under "any" is that of the text alone.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from diffusion_text.data.corpora import Pairs
from diffusion_text.data.tokenizer_json import JsonTokenizer
from diffusion_text.experiment.build import Experiment, build
from diffusion_text.experiment.run import Trained, load, train_workdir
from diffusion_text.objective import engine
from diffusion_text.studies.compare import Comparison, config_files
from diffusion_text.types import Batch, Key, Model, Params, Progress

SPLITS = ("train", "validation", "test")
SYSTEMS = ("mdlm", "autoregressive")
ANY = "any"  # the record of a text whose record is not told
END, UNKNOWN = "\n", "[UNK]"
SHORT = {"eatType": "type", "priceRange": "price", "customer rating": "rating"}
SHORT |= {"familyFriendly": "family"}
_VALUE = re.compile(r"([^,\[\]]+)\[([^\]]*)\]")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[^\s\w]")


class Text(NamedTuple):
  """A text and what it says.

  Attributes:
    record: (field, value) pairs, in the order of the file.
    words: Of the text.
  """

  record: tuple[tuple[str, str], ...]
  words: tuple[str, ...]

  @property
  def source(self) -> str:
    """The record as tokens between spaces."""
    return source_of(dict(self.record))


def source_of(record: Mapping[str, str]) -> str:
  """A record as tokens between spaces; "any" for an empty one."""
  return " ".join(f"{field}={value.replace(' ', '_')}" for field, value in record.items()) or ANY


def words_of(text: str) -> tuple[str, ...]:
  """The words, numbers and marks of a text, in lower case."""
  return tuple(_WORD.findall(text.lower()))


def places(words: Sequence[str], wanted: Sequence[str]) -> list[int]:
  """Where the words `wanted` stand one after the other; nowhere if there are none."""
  size = len(wanted)
  if not size:
    return []
  return [i for i in range(len(words) - size + 1) if tuple(words[i : i + size]) == tuple(wanted)]


def parsed(record: str, text: str) -> Text:
  """A row of the data."""
  found = ((field.strip(), value.lower()) for field, value in _VALUE.findall(record))
  return Text(tuple((SHORT.get(field, field), value) for field, value in found), words_of(text))


@dataclasses.dataclass(frozen=True)
class Texts:
  """The texts that are used, and their tokens.

  Attributes:
    splits: name -> texts.
    tokenizer: A token for each word and each value of a record.
    length: Tokens of a row: record, end, text, end.
  """

  splits: Mapping[str, list[Text]]
  tokenizer: JsonTokenizer
  length: int

  @property
  def end(self) -> int:
    """The token that ends records and texts."""
    return self.tokenizer.separator

  def ids(self, words: Sequence[str]) -> Int[np.ndarray, " n"]:
    """int32 [n]: the token of each word."""
    return self.tokenizer.encode(" ".join(words))

  def rows(self, sources: Sequence[str], texts: Iterable[Sequence[str]]) -> Batch:
    """Rows [B, L] of records with their texts, as models are trained on them: the record is
    observed, and what follows the end of a text has weight 0, but for the first end.

    Raises:
      ValueError: If a record with its text is longer than a row.
    """
    ids, observed, weights = [], [], []
    for source, words in zip(sources, texts, strict=True):
      start, text = self.tokenizer.encode(source), self.ids(words)
      row = [*start, self.end, *text, self.end]
      if len(row) > self.length:
        raise ValueError(f"{source} with its text has {len(row)} tokens; use length={len(row)}")
      place = np.arange(self.length)
      ids.append(row + [self.end] * (self.length - len(row)))
      observed.append(place <= len(start))
      weights.append(place < len(row))
    return Batch(np.array(ids, np.int32), np.array(observed), weights=np.array(weights, np.float32))

  def written(self, ids: Int[np.ndarray, "B L"], begin: int) -> list[tuple[str, ...]]:
    """The words of rows from the position `begin` up to the first end."""
    return [tuple(self.tokenizer.decode(row[begin:]).split(END)[0].split()) for row in ids]


def read(path: str, *, rarest: int = 20, longest: int = 30) -> Texts:
  """The texts of a folder with three csv files, whose names say the split.

  Args:
    path: The folder.
    rarest: Texts with a word that occurs less often in the training texts are left out.
    longest: Words of a text, at most.

  Raises:
    ValueError, FileNotFoundError: For a folder that cannot be read.
  """
  pairs = Pairs(path=path, source="mr", target="ref")
  found = {split: [parsed(*pair) for pair in pairs.pairs(split)] for split in SPLITS}
  counts = collections.Counter(word for text in found["train"] for word in text.words)
  known = {word for word, count in counts.items() if count >= rarest}
  values = {token for text in found["train"] for token in text.source.split()}

  def kept(text: Text) -> bool:
    fits = 0 < len(text.words) <= longest and known.issuperset(text.words)
    return fits and values.issuperset(text.source.split())

  splits = {split: list(filter(kept, texts)) for split, texts in found.items()}
  record = max(len(text.record) for texts in splits.values() for text in texts)
  return Texts(splits, word_tokenizer(sorted(known), sorted(values | {ANY})), record + longest + 2)


def word_tokenizer(words: Sequence[str], values: Sequence[str]) -> JsonTokenizer:
  """A tokenizer with one token for each of these, for the end, and for anything else."""
  tokens = [UNKNOWN, END, *words, *values]
  splits = [
    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
    {"type": "Split", "pattern": {"String": END}, "behavior": "Isolated", "invert": False},
  ]
  made = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    "model": {
      "type": "WordPiece",
      "unk_token": UNKNOWN,
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": {token: number for number, token in enumerate(tokens)},
    },
  }
  return JsonTokenizer(json.dumps(made), (("end", tokens.index(END)),))


def write(texts: Texts, folder: pathlib.Path, untold: float, seed: int) -> None:
  """Writes pairs and the tokenizer to a folder, for training.

  untold: the share of texts of which the record is "any".
  """
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  for split, found in texts.splits.items():
    hidden: Bool[np.ndarray, " n"] = rng.random(len(found)) < untold
    lines = [
      f"{ANY if hide else text.source}\t{' '.join(text.words)}" for hide, text in zip(hidden, found)
    ]
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
  (folder / "tokenizer").write_bytes(texts.tokenizer.to_bytes())


def config_of(
  system: str, base: ConfigDict, files: Mapping[str, pathlib.Path], data: pathlib.Path, texts: Texts
) -> ConfigDict:
  """The config of a run: the base on the pairs of a folder, and what the system owns."""
  shared = ConfigDict(base.to_dict())
  shared.data = ConfigDict(
    {
      "corpus": "pairs",
      "packing": "pairs",
      "path": str(data),
      "length": texts.length,
      "tokenizer_path": str(data / "tokenizer"),
      "cache_dir": str(data.parent / "cache"),
    }
  )
  config, _ = Comparison(data, shared, files, steps=base.train.steps).system(system)
  config.train.keep = 1
  return config


def trained(
  texts: Texts, base: ConfigDict, configs: pathlib.Path, workdir: pathlib.Path, untold: float = 0.5
) -> dict[str, Trained]:
  """name -> the trained model of each of SYSTEMS. A workdir that has them is read, and a training
  that was stopped goes on.

  Raises:
    ValueError: For a workdir of another config, or of other texts.
    SystemExit: If training was stopped, with the exit code of the loop.
  """
  data = workdir / "data"
  known = data / "tokenizer"
  if not known.exists():
    write(texts, data, untold, base.seed)
  elif known.read_bytes() != texts.tokenizer.to_bytes():
    raise ValueError(
      f"{workdir} holds models of other texts, with other words ({known}); use another --workdir,"
      " or the --path that they were trained on"
    )
  files = config_files(list(SYSTEMS), configs)
  found = {}
  for system in SYSTEMS:
    experiment: Experiment = build(config_of(system, base, files, data, texts))
    result = train_workdir(experiment, str(workdir / system), terminal=False)
    if result.status != "finished":
      raise SystemExit(result.exit_code)
    found[system] = load(str(workdir / system))
  return found


def nats(model: Trained, batch: Batch, key: Key, *, rows: int = 64) -> Float[np.ndarray, "B L"]:
  """float64 [B, L]: one draw of the bound of each token, nats; 0 where nothing is scored. It is
  exact for an autoregressive model.

  Args:
    model: The model.
    batch: Rows as `Texts.rows` gives them.
    key: Of the noise. Row r has the noise of row r of any other batch with this key.
    rows: Scored at a time.
  """
  model_, found = model.experiment.scoring, []
  filler = -len(batch.ids) % rows
  padded = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1].repeat(filler, 0)]), batch)
  for number, first in enumerate(range(0, len(padded.ids), rows)):
    some = jax.tree.map(lambda leaf: leaf[first : first + rows], padded)  # noqa: B023
    found.append(np.asarray(_nats(model_, model.params, jax.random.fold_in(key, number), some)))
  return np.concatenate(found).astype(np.float64)[: len(batch.ids)]


@functools.partial(jax.jit, static_argnums=0)
def _nats(model: Model, params: Params, key: Key, batch: Batch) -> Float[Array, "B L"]:
  return engine.nats(model, params, key, batch, Progress())
