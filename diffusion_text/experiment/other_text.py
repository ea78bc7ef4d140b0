"""Scoring a trained model on text that it was not trained on, or on its own text in a new place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_text.experiment.registry import named_value
from diffusion_text.experiment.run import read_run_config

# Options of config.data that say where text is and how it is read; another corpus has its own.
_SOURCE = (
  "path",
  "dataset",
  "data_dir",
  "field",
  "source",
  "target",
  "max_characters",
  "bad_rows",
  "detokenizer",
  "task",
  "template",
  "answer_multiple",
)
_WITH_PATH = ("text8", "folder", "pairs", "conversations")
_PACKED = {"pairs": "pairs", "task": "pairs", "conversations": "conversations"}  # others: "stream"


def of_workdir(workdir: str, *choices: Any) -> list[tuple[str, Any]]:
  """`overrides` for the run of a workdir. Without a config there, none: `run.load` says what is
  missing.

  choices: path, options and detokenizer of `overrides`.
  """
  config = read_run_config(workdir)
  return [] if config is None else overrides(config.data, *choices)


def overrides(
  data: Mapping[str, Any],
  path: str | None = None,
  options: Sequence[str] = (),
  detokenizer: str | None = None,
) -> list[tuple[str, Any]]:
  """(dotted key, value) pairs for `run.load` that put other text in the place of a run's own.

  The corpus is that of `options`, or else the run's own if it has a path: then `path` is where this
  text is now, and the splits are cut as they were. A run on a corpus without a path reads `path` as
  a folder.

  Args:
    data: `config.data` of the run.
    path: A file or folder. None: the run's own.
    options: Options of config.data as texts, as in "corpus=pairs", "field=article".
    detokenizer: See `config.data.detokenizer`.

  Raises:
    ValueError: For an option without a value.
  """
  given = dict(named_value(option, "data") for option in options)
  if path is not None:
    given["path"] = path
  if detokenizer is not None:
    given["detokenizer"] = detokenizer
  own = data["corpus"]
  moved = path is None or own in _WITH_PATH
  corpus = given.setdefault("corpus", own if moved else "folder")
  unset = {} if corpus == own else dict.fromkeys(_SOURCE)
  own_packing, packing = data.get("packing"), _PACKED.get(corpus, "stream")
  if own_packing != packing and {own_packing, packing} & set(_PACKED.values()):
    given.setdefault("packing", packing)
  return [(f"data.{key}", value) for key, value in (unset | given).items()]
