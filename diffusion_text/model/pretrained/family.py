"""The interface of a family of networks: options from its config, names of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_text.model.pretrained.mapping import Entry, Path
from diffusion_text.model.transformer import Transformer
from diffusion_text.types import InputSizes, Params

Config = Mapping[str, Any]
Names = Mapping[str, Any]  # the tensors of a checkpoint by name


class Architecture(NamedTuple):
  """What a config says.

  Attributes:
    options: Of the transformer, but for the sizes of its tables.
    vocab_size: Rows of the table of tokens, V.
    mask_id: The token that stands for a lost one, or None.
  """

  options: dict[str, Any]
  vocab_size: int
  mask_id: int | None = None

  @property
  def network(self) -> Transformer:
    """The transformer that reads V + 1 ids, of which V is a lost token, and answers with V."""
    options = self.options | ({} if self.mask_id is None else {"unanswered": (self.mask_id,)})
    sizes = {"input_sizes": InputSizes(self.vocab_size + 1), "output_size": self.vocab_size}
    return Transformer(**options, **sizes)


@dataclasses.dataclass(frozen=True)
class Folding:
  """How tensors are multiplied into several of our arrays, where none of ours is a copy of them.

  Attributes:
    shapes: (config, architecture, names) -> name and shape of each of these tensors.
    made: Paths of our arrays that are filled by these tensors alone.
    fold: (params, read, names) changes our tree in place; `read` returns a tensor by name.
    unfold: params -> (name, values) of tensors of which `fold` would make these parameters.
  """

  shapes: Callable[[Config, Architecture, Names], dict[str, tuple[int, ...]]]
  made: tuple[Path, ...]
  fold: Callable[[Params, Callable[[str], np.ndarray], Names], None]
  unfold: Callable[[Params], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of checkpoints.

  Attributes:
    name: As users write it.
    model_types: `model_type` in config.json.
    reads: "next_token": position i answers for token i + 1, and sees no later one. "shifted": the
      same answers, and every position sees the whole row. "whole": every position answers for
      itself and sees the whole row. "blocks": it sees its block and those before, of `block_size`
      in config.json.
    architecture: (config, names of tensors) -> what they say. Raises ValueError for a feature that
      the transformer does not have.
    entries: (architecture, names) -> one entry per tensor. By `names`, those of the checkpoint, a
      family tells whether they have a prefix.
    config: architecture -> config.json, the inverse of `architecture`. Raises ValueError for
      options that the family cannot write.
    buffers: Patterns of names of tensors that are no weights.
    folding: For tensors that are multiplied into arrays of others.
    matches: Tells whether a config is of this family. None: by its model_type.
    process: config -> the section of the process that the weights were trained for. None: masked
      diffusion, or next tokens.
  """

  name: str
  model_types: tuple[str, ...]
  reads: Literal["next_token", "shifted", "whole", "blocks"]
  architecture: Callable[[Config, Names], Architecture]
  entries: Callable[[Architecture, Names], Sequence[Entry]]
  config: Callable[[Architecture], dict[str, Any]]
  buffers: tuple[str, ...] = ()
  folding: Folding | None = None
  matches: Callable[[Config], bool] | None = None
  process: Callable[[Config], dict[str, Any]] | None = None


def need(config: Config, key: str) -> Any:
  """A value that a config must have. Raises ValueError if it does not."""
  if config.get(key) is None:
    raise ValueError(
      f"config.json of model_type={config.get('model_type')!r} lacks {key!r}; is it the config of"
      " this checkpoint?"
    )
  return config[key]


def refuse(config: Config, **accepted: Sequence[Any]) -> None:
  """Raises ValueError for a key of the config whose value is not among the accepted ones. A missing
  key is accepted."""
  for key, values in accepted.items():
    if key in config and config[key] not in values:
      raise ValueError(
        f"config.json sets {key}={config[key]!r}, which the transformer here does not do; it reads"
        f" {' or '.join(repr(value) for value in values)}"
      )


def differences(options: Mapping[str, Any], written: Mapping[str, Any]) -> str:
  """ "key=value here, …" for options that a config of a family cannot say; "" if there are none."""
  keys = [key for key in sorted({*options, *written}) if options.get(key) != written.get(key)]
  return ", ".join(f"{key}={options.get(key)!r} (it writes {written.get(key)!r})" for key in keys)
