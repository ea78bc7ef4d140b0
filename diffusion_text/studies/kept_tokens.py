"""Weights with those rows of their tables alone whose tokens a text needs, for `export`.

A table of 30,000 rows is most of what a small network costs on a CPU: logits of every position. The
features of a text are unchanged, and each logit that stays is what it was; the others are gone, so
that probabilities are larger than they were.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from diffusion_text.data.fewer_tokens import fewer_tokens, used_tokens
from diffusion_text.data.text_files import whole_text
from diffusion_text.data.tokenizer_json import JsonTokenizer
from diffusion_text.experiment.build import Experiment
from diffusion_text.model.pretrained import Architecture
from diffusion_text.types import Params

CORPUS = "corpus"  # in place of a file: the training text of the workdir


def needed(experiment: Experiment, source: str) -> set[int]:
  """The ids that a text needs, its lines encoded one by one.

  Args:
    experiment: of a workdir whose tokenizer is a tokenizer.json.
    source: a file of text, or CORPUS.

  Raises:
    ValueError: for a file that is not there, and a corpus of anything but texts.
  """
  return used_tokens(experiment.tokenizer, _texts(experiment, source))


def _texts(experiment: Experiment, source: str) -> Iterator[str]:
  if source != CORPUS:
    path = pathlib.Path(source).expanduser()
    if not path.is_file():
      raise ValueError(
        f"--keep_tokens_of={source} is no file; give a file of text, or {CORPUS!r} for the training"
        " text of the workdir"
      )
    yield from whole_text(path).splitlines()
    return
  for document in experiment.data.make_corpus().documents("train"):
    if not isinstance(document, str):
      raise ValueError(
        f"--keep_tokens_of={CORPUS} needs texts, and config.data.corpus="
        f"{experiment.data.corpus!r} has none; give a file of text"
      )
    yield document


def kept_tokens(
  tokenizer: JsonTokenizer, used: set[int], architecture: Architecture, params: Params
) -> tuple[JsonTokenizer, Int[np.ndarray, " n"], Architecture, Params]:
  """(tokenizer, old id of each new token, architecture, parameters), all with fewer tokens.

  Args:
    tokenizer, architecture: of the parameters.
    used: ids that must stay; tokens with a task stay too.
    params: of a network whose table has V rows, and one for a lost token.
  """
  size, mask = architecture.vocab_size, architecture.mask_id
  fewer, old = fewer_tokens(tokenizer, used | ({mask} - {None}))
  rows = np.append(old, size)
  params = {**params, "embedding": np.asarray(params["embedding"])[rows]}
  if "head" in params:  # [D, V] and [V]
    params["head"] = {name: np.asarray(each)[..., old] for name, each in params["head"].items()}
  new_mask = None if mask is None else int(np.searchsorted(old, mask))
  architecture = architecture._replace(vocab_size=len(old), mask_id=new_mask)
  return fewer, old, architecture, params


def renumbered(config: Mapping[str, Any], old: Int[np.ndarray, " n"]) -> dict[str, Any]:
  """The keys of config.json with new ids of tokens; ids that are gone are left out."""
  new = {int(number): place for place, number in enumerate(old)}
  found: dict[str, Any] = {}
  for key, value in config.items():
    if not key.endswith("_token_id"):
      found[key] = value
    elif isinstance(value, list):
      found[key] = [new[each] for each in value if each in new]
    elif value in new:
      found[key] = new[value]
  return found
