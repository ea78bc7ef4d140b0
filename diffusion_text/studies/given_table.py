"""A diffusion of vectors whose table is the embedding of a pretrained model, for `convert`: SED
(arXiv 2211.04236), Smoothie (arXiv 2505.18853).

The network is that of the config, from scratch, and reads the tokens of the pretrained model. The
process keeps its options: how rows are scaled when they are read (`norm`), and whether they are
trained (`learned`, False in both papers: the rows then stay as they are, bit by bit).
"""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_text.core.prng import make_key
from diffusion_text.experiment import registry
from diffusion_text.experiment.validation import without_text
from diffusion_text.model.pretrained import Pretrained
from diffusion_text.types import DataFacts, Params

# exact: the rows as they are. principal: projected on their first principal components. random: as
# the process draws them, of the same tokens: the control.
How = Literal["exact", "principal", "random"]
TABLE = "embedding"  # of the process


def table_config(config: ConfigDict, loaded: Pretrained, tokenizer: str, how: How) -> ConfigDict:
  """The config with this tokenizer; a table that is not trained is kept apart from what is.

  Raises:
    ValueError: for a process without a table, and one whose width does not fit.
  """
  full = ConfigDict(config.to_dict())
  full.data.tokenizer_path = tokenizer
  section, rows = full.process.to_dict(), loaded.architecture.vocab_size
  process = registry.construct("process", section, vocab_size=rows)
  facts = without_text(DataFacts(length=full.data.length, vocab_size=rows))
  made = jax.eval_shape(lambda: process.init(make_key(0), facts))
  if TABLE not in made or made[TABLE].shape[0] != rows:
    raise ValueError(
      f"--table={how} needs a process with a row of numbers for each of the {rows} tokens, and"
      f" config.process.name={section['name']!r} has {list(made) or 'no parameters'}; use"
      " 'embedding' or 'distance', as in configs/sed.py"
    )
  width, theirs = made[TABLE].shape[1], loaded.network.width
  if how == "exact" and width != theirs:
    raise ValueError(
      f"config.process.width={width}, and the rows of these weights have {theirs} numbers; use"
      f" --config.process.width={theirs}, or --table=principal for fewer"
    )
  if how == "principal" and width >= theirs:
    raise ValueError(
      f"--table=principal with config.process.width={width} of {theirs} numbers projects nothing;"
      f" use a width below {theirs}, or --table=exact"
    )
  if not process.learned:
    full.train.frozen = (*full.train.get("frozen", ()), f"process/{TABLE}")
  return full


def given_rows(loaded: Pretrained, width: int, how: How) -> Float[np.ndarray, "V E"] | None:
  """float32 [V, width]: the table; None where it is to be random."""
  rows = np.asarray(loaded.params["embedding"])[: loaded.architecture.vocab_size]
  if how == "random":
    return None
  return rows if how == "exact" else principal(rows, width)


def principal(rows: Float[np.ndarray, "V D"], width: int) -> Float[np.ndarray, "V {width}"]:
  """The rows less their mean, on the `width` directions in which they differ most.

  The largest number of each direction is positive, so that the result is one.
  """
  centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
  _, directions = np.linalg.eigh(centred.T @ centred)
  first = directions[:, ::-1][:, :width]
  largest = first[np.abs(first).argmax(axis=0), np.arange(width)]
  return (centred @ (first * np.sign(largest))).astype(np.float32)


def with_table(params: Params, rows: Float[Array, "V E"] | None) -> Params:
  """The parameters with the table of the process, if there is one to give."""
  if rows is None:
    return params
  return {**params, "process": {**params["process"], TABLE: jax.numpy.asarray(rows)}}
