"""`config.data` as an object: which text, cut how. A companion of `build`."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from diffusion_text.data.corpora import CORPORA, Corpus
from diffusion_text.experiment.registry import construct


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """`config.data`, checked; what each key means is said in configs/base.py."""

  corpus: str
  tokenizer: str
  length: int
  packing: str
  random_offset: bool = False
  path: str | None = None
  dataset: str | None = None
  data_dir: str | None = None
  field: str | None = None
  source: str | None = None
  target: str | None = None
  max_characters: int | None = None
  vocab_size: int | None = None
  tokenizer_path: str | None = None
  cache_dir: str = "~/.cache/diffusion_text"

  def __post_init__(self):
    if (self.corpus == "pairs") != (self.packing == "pairs"):
      raise ValueError(
        f"data.corpus={self.corpus!r} with data.packing={self.packing!r}: 'pairs' is a corpus and the packing of its rows; set both, or"
        " none"
      )

  def make_corpus(self) -> Corpus:
    """The corpus, without reading it."""
    options = {
      "path": self.path,
      "name": self.dataset,
      "data_dir": self.data_dir,
      "field": self.field,
    }
    options |= {"source": self.source, "target": self.target, "max_characters": self.max_characters}
    return construct(
      CORPORA,
      {"name": self.corpus},
      "data.corpus",
      **{k: v for k, v in options.items() if v is not None},
    )

  @property
  def cache(self) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(self.cache_dir))
