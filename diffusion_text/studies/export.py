"""The weights of a workdir as a checkpoint that other libraries read: safetensors, config.json and
tokenizer.json. Or as a workdir again. A low rank is added to its matrices, and integers become
floats: what is written is a plain network."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import Experiment, build
from diffusion_text.experiment.checks import trained_directory
from diffusion_text.experiment.registry import nearest
from diffusion_text.model.linear_maps import plain
from diffusion_text.model.pretrained import FAMILIES, architecture_of, write
from diffusion_text.model.pretrained.files import checked_config
from diffusion_text.studies.convert import RECORD
from diffusion_text.studies.kept_tokens import kept_tokens, needed, renumbered
from diffusion_text.studies.workdirs import check_new, save

OWN = "workdir"  # in place of a family: a workdir of ours


def export(
  workdir: str, output: str, family: str | None = None, keep_tokens_of: str | None = None
) -> str:
  """A report of the files. Writes the newest checkpoint of a workdir (the average, if one is kept).

  Args:
    workdir: of the run.
    output: a folder that holds no checkpoint.
    family: the layout of the files, or "workdir"; None: that of the weights of which the workdir
      was made.
    keep_tokens_of: a file of text, or "corpus": tokens that it does not need are left out
      (kept_tokens.py). None: all tokens.

  Raises:
    ValueError: for a workdir without a checkpoint, a family that is unknown or cannot write the
      network, and a folder that holds a checkpoint.
  """
  if family == OWN:
    if keep_tokens_of is not None:
      raise ValueError(
        f"--keep_tokens_of={keep_tokens_of} is for a checkpoint of other libraries, and"
        f" --family={OWN} writes none; leave one of them out"
      )
    return _plain_workdir(workdir, output)
  path = pathlib.Path(workdir).expanduser() / RECORD
  record = json.loads(path.read_text()) if path.exists() else {}
  trained_directory(workdir)
  name = _family_name(family, record, workdir)
  experiment = runs.load_experiment(workdir)
  process = experiment.model.process
  if process.output_size != experiment.tokenizer.vocab_size:
    raise ValueError(
      f"{workdir} answers with vectors of {process.output_size} numbers, and layouts of other"
      " libraries hold answers with tokens; export a process over tokens"
    )
  architecture = architecture_of(plain(experiment.model.network, {})[0])
  checked_config(FAMILIES[name], architecture)
  tokenizer = experiment.tokenizer
  used = None if keep_tokens_of is None else _used(experiment, keep_tokens_of, workdir)
  trained = runs.load(workdir)
  params = plain(experiment.model.network, trained.params["network"])[1]
  table = np.asarray(params["embedding"])
  lost = table.shape[0] > architecture.vocab_size
  if not lost:  # a process without a mask: there is no row V to leave out
    params["embedding"] = np.concatenate([table, table[:1]])
  more, said = record.get("config", {}) if name == record.get("family") else {}, []
  if used is not None:
    tokenizer, old, architecture, params = kept_tokens(tokenizer, used, architecture, params)
    more = renumbered(more, old)
    said = [f"  {len(old):,} of {table.shape[0] - lost:,} tokens are kept"]
  files = write(output, FAMILIES[name], architecture, params, more=more)
  for file, text in _tokenizer_files(tokenizer).items():
    files.append(pathlib.Path(output).expanduser() / file)
    files[-1].write_text(text, encoding="utf-8")
  lines = [f"step {trained.step} of {workdir} as {name}:", *(f"  {path}" for path in files), *said]
  if lost and architecture.mask_id is None:
    lines.append("  row V of the table (what stands for a lost token) has no place there: left out")
  return "\n".join(lines)


def _family_name(family: str | None, record: dict[str, Any], workdir: str) -> str:
  """The family that is asked for, or else that of the record.

  Raises:
    ValueError: for one that is unknown, and for none.
  """
  name = family or record.get("family")
  if name not in FAMILIES:
    known = ", ".join(FAMILIES)
    raise ValueError(
      f"--family={name} is not known{nearest(name, FAMILIES)}; use one of {known}, {OWN}"
      if name
      else f"--family is not set, and {workdir} was not converted; use one of {known}, {OWN}"
    )
  return name


def _used(experiment: Experiment, source: str, workdir: str) -> set[int]:
  """The ids that a text needs. Raises ValueError for a tokenizer that cannot have fewer tokens."""
  tokenizer = experiment.tokenizer
  if not _tokenizer_files(tokenizer):
    raise ValueError(
      f"--keep_tokens_of={source} needs a tokenizer.json, and the tokenizer of {workdir} is of kind"
      f" {tokenizer.name!r}; leave the flag out"
    )
  return needed(experiment, source)


def _plain_workdir(workdir: str, output: str) -> str:
  """Writes step 0 of a run whose network is plain, for any command that reads a workdir."""
  place = check_new(output)
  trained = runs.load(workdir)
  experiment = trained.experiment
  config = ConfigDict(experiment.config.to_dict())
  config.model.low_rank = config.model.quantized = None
  merged = plain(experiment.model.network, trained.params["network"])[1]
  made = build(config, tokenizer=experiment.tokenizer, devices=jax.devices()[:1])
  record = pathlib.Path(workdir).expanduser() / RECORD
  files = {RECORD: record.read_bytes()} if record.exists() else {}
  save(made, {**trained.params, "network": merged}, place, files)
  return f"step {trained.step} of {workdir} as a workdir with plain matrices: {place}"


def _tokenizer_files(tokenizer) -> dict[str, str]:
  """The files of a tokenizer that other libraries read; {} for one of ours."""
  written = {"tokenizer_json"}
  return tokenizer.files() if tokenizer.name in written else {}
