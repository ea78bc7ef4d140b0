"""A workdir made of pretrained weights: config, tokenizer and a checkpoint at step 0, for every
command that reads a trained workdir.

Network and tokenizer are those of the weights. Process, context, reader and sampler are those of a
config, or those that the weights were trained for: next tokens in causal rows, or lost tokens of
whole rows or blocks, answered at their own position or at the one before. Or only the embeddings of
tokens are taken, as the table of a process of vectors (`given_table`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.core.trees import merge, split
from diffusion_text.data.chat_template import keep_chat_template
from diffusion_text.data.tokenizer_json import JsonTokenizer, load_tokenizer
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment, build, init
from diffusion_text.model.pretrained import Architecture, Pretrained, read
from diffusion_text.model.pretrained.family import need
from diffusion_text.model.pretrained.files import family_of
from diffusion_text.model.pretrained.weights import open_weights
from diffusion_text.studies.given_table import How, given_rows, table_config, with_table
from diffusion_text.studies.workdirs import check_new, save
from diffusion_text.types import Params

RECORD = "pretrained.json"  # of a workdir: where its weights are from
TOKENIZER = "tokenizer"
CONFIG = "config.py"
RECORDED = ("block_size", "p_uniform")  # of config.json, beside ids of tokens, for an export
LENGTH = 256
LEARNING_RATE = 5e-5  # usual for further training (recalled)
# Options of the network that a config adds to the weights; their parameters begin as in any run.
KEPT = (
  *("dropout", "dtype", "remat", "scan_layers", "attention"),
  *("self_conditioning", "absent", "low_rank"),
)
TIMED = ("time_conditioning", "time_width")
CLOSED = (
  "time         not read: model.time_conditioning='adaln' of the config is left out, as its gates"
  " begin at 0 and would close the layers of these weights"
)
_CONFIG_FILE = '''"""The config of this workdir, for experiments.train --config=…"""

import json
import pathlib

from ml_collections import ConfigDict


def get_config(size: str = ""):
  del size
  return ConfigDict(json.loads(pathlib.Path(__file__).with_name("config.json").read_text()))
'''


def convert(
  source: str,
  workdir: str,
  config: ConfigDict,
  *,
  keep_system: bool,
  frozen: bool = False,
  tokenizer: str | None = None,
  roles: Mapping[str, str] | None = None,
  table: How | None = None,
) -> str:
  """A report of what was loaded, in one line per part. Writes the workdir.

  Args:
    source: a folder of weights, a .safetensors or a .gguf file.
    workdir: where to; it must not hold a run.
    config: of everything but the network and the tokenizer.
    keep_system: True for the process, timing, context, reader, sampler and rates of `config`, False
      for those that the weights were trained for.
    frozen: True for a network that is not trained. Its parameters are kept once, without the two
      moments of an optimizer and without an average.
    tokenizer: a folder or file of it; None: `source`.
    roles: role ("begin", "end", "mask", "pad") -> text of its token, over what the files say.
    table: what the table of the process of `config` is made of; the network is then that of
      `config`. None: the network is made of the weights.

  Raises:
    ValueError: for weights or a tokenizer that cannot be read or do not fit, before anything is
      computed, and for a workdir that holds a run.
  """
  if frozen and table is not None:
    raise ValueError(
      f"--frozen keeps the weights of a network as they are, and --table={table} takes none; leave"
      " one of them out"
    )
  place = check_new(workdir)
  loaded, words = _read(source, tokenizer or source, roles)
  saved = str((place / TOKENIZER).absolute())
  if table is None:
    full = _config(config, loaded, saved, keep_system)
    _check_process(full, loaded.architecture.vocab_size)
  else:
    full = table_config(config, loaded, saved, table)
  if frozen:
    full.train.update({"frozen": ("network",), "ema_decay": 0.0})
  experiment = build(full, tokenizer=words, devices=jax.devices()[:1])
  params = _params(experiment, loaded) if table is None else _tabled(experiment, loaded, table)
  save(experiment, params, place, _files(loaded, words))
  keep_chat_template(tokenizer or source, place)
  if table is None:
    read_as = _network_lines(loaded, words)
    read_as += [CLOSED] if keep_system and _closes(config.model.to_dict()) else []
  else:
    read_as = [f"table        {_said_of(experiment, table)}; nothing else is read"]
  return _report(experiment, loaded, words, place, read_as)


def _read(
  source: str, tokenizer: str, roles: Mapping[str, str] | None
) -> tuple[Pretrained, JsonTokenizer]:
  """(the weights, their tokenizer), whose sizes fit each other."""
  weights = open_weights(source)
  family = family_of(weights.config)
  architecture = family.architecture(weights.config, weights.shapes)
  words = load_tokenizer(tokenizer, size=architecture.vocab_size, roles=roles)
  token = words.special
  process = {} if family.process is None else family.process(weights.config)
  unmasked = family.reads == "next_token" or process.get("name") == "uniform"
  mask = None if unmasked else _mask(architecture, token)
  before = (mask, token["begin"], token["end"])
  noise_id = next((each for each in before if each is not None), None)
  return read(source, mask_id=mask, noise_id=noise_id), words


def _mask(architecture: Architecture, token: Mapping[str, int | None]) -> int | None:
  """The id of the mask: that of the weights, or else of the tokenizer; None without either."""
  return token["mask"] if architecture.mask_id is None else architecture.mask_id


def _config(config: ConfigDict, loaded: Pretrained, tokenizer: str, keep: bool) -> ConfigDict:
  """The config with network and tokenizer; unless `keep`, with the system of the weights."""
  full = ConfigDict(config.to_dict())
  network = loaded.network
  options = dict(loaded.architecture.options) | {"unanswered": network.unanswered}
  own = {"chunk": 256} | config.model.to_dict()
  names = (*KEPT, *(() if _closes(own) else TIMED), "chunk") if keep else ("chunk",)
  kept = {key: own[key] for key in names if key in own}
  full.model = ConfigDict({"name": "transformer", **options, **kept})
  full.data.tokenizer_path = tokenizer
  if keep:
    return full
  if network.positions == "learned":
    full.data.length = min(LENGTH, network.max_positions - network.position_offset)
  full.optimizer.learning_rate = LEARNING_RATE
  full.train.update({"ema_decay": 0.0, "batch_size": 8})
  full.evaluate = ConfigDict({"batch_size": 8})
  if loaded.family.process is not None:
    full.process = ConfigDict(loaded.family.process(loaded.weights.config))
  if loaded.family.reads == "next_token":
    full.timing = ConfigDict({"name": "at_noise"})
    full.context = ConfigDict({"name": "next_token"})
    full.reader = ConfigDict({"name": "cached"})
    full.sampler = ConfigDict({"name": "grid", "steps": 1})
  if loaded.family.reads == "blocks":
    size = need(loaded.weights.config, "block_size")
    full.context = ConfigDict({"name": "blocks", "size": size})
    full.reader = ConfigDict({"name": "cached"})
  if loaded.family.reads == "shifted":
    full.context = ConfigDict({"name": "full", "answer_shift": 1})
  return full


def _closes(model: Mapping[str, Any]) -> bool:
  """True for a time input whose gates begin at 0, by which pretrained layers would do nothing."""
  return model.get("time_conditioning") == "adaln"


def _check_process(config: ConfigDict, vocabulary: int) -> None:
  """Raises ValueError for a process that reads other ids than tokens, and perhaps one more."""
  section = config.process.to_dict()
  reads = registry.construct("process", section, vocab_size=vocabulary).input_sizes
  if reads.vectors or reads.ids not in (vocabulary, vocabulary + 1):
    raise ValueError(
      f"config.process.name={section['name']!r} makes the network read {reads}, and these weights"
      f" read {vocabulary} tokens; use a process over tokens, such as 'masked'"
    )


def _params(experiment: Experiment, loaded: Pretrained) -> Params:
  """All parameters of the experiment, those of the network being the weights."""
  network = dict(loaded.params)
  network["embedding"] = network["embedding"][: experiment.model.process.input_sizes.ids]
  loaded_paths = {path for path, _ in jax.tree_util.tree_leaves_with_path({"network": network})}

  def others(key):
    made = init(experiment.model, key, experiment.facts, experiment.objective)
    return split(made, lambda path: tuple(map(jax.tree_util.DictKey, path)) not in loaded_paths)[0]

  groups = jax.jit(others)(train.named_key(experiment.config.seed, "init", 0))
  return merge({"network": jax.tree.map(jnp.asarray, network)}, groups)


def _tabled(experiment: Experiment, loaded: Pretrained, how: How) -> Params:
  """All parameters of the experiment as it begins, with the table."""
  made = experiment.model.process
  rows = given_rows(loaded, made.width, how)
  key = train.named_key(experiment.config.seed, "init", 0)
  shapes = jax.jit(lambda key: merge(*experiment.init(key)))
  return with_table(shapes(key), rows)


def _files(loaded: Pretrained, tokenizer: JsonTokenizer) -> dict[str, bytes]:
  """Name -> content of what the workdir holds beside the run: tokenizer, config, record."""
  said = loaded.weights.config
  kept = {key: said[key] for key in said if key.endswith("_id") or key in RECORDED}
  record = {"family": loaded.family.name, "from": loaded.weights.place, "config": kept}
  return {
    TOKENIZER: tokenizer.to_bytes(),
    CONFIG: _CONFIG_FILE.encode(),
    RECORD: (json.dumps(record, indent=2, default=str) + "\n").encode(),
  }


def _said_of(experiment: Experiment, table: How) -> str:
  """What the table of the process is made of."""
  process = experiment.model.process
  made = {
    "exact": "the rows of these weights",
    "principal": "the rows of these weights on their first principal components",
    "random": "random rows for the tokens of these weights",
  }
  moves = "trained further" if process.learned else "not trained"
  return f"{made[table]}, {process.width} numbers each, {moves}"


def _network_lines(loaded: Pretrained, tokenizer: JsonTokenizer) -> list[str]:
  """What the network is that the weights are read as, a line per part."""
  network, sizes = loaded.network, loaded.network.sizes
  noise, mask = tokenizer.token_of(loaded.noise_id), loaded.architecture.mask_id
  lines = [
    f"network      {network.layers} layers × {network.width}, {sizes.heads} heads of"
    f" {sizes.head_width} ({sizes.kv_heads} of keys), MLP {sizes.mlp_width}; head"
    f" {'tied' if network.tie_embeddings else 'of its own'}",
    f"row V        of the table, read where nothing is known: that of {noise!r} (id"
    f" {loaded.noise_id})",
    f"mask         {'none in the vocabulary' if mask is None else f'id {mask}, never answered'}",
  ]
  if loaded.family.reads == "whole" and not network.head_transform and network.tie_embeddings:
    lines.append("head         none in the files: the table of tokens, not trained to be one")
  return lines


def _report(
  experiment: Experiment,
  loaded: Pretrained,
  tokenizer: JsonTokenizer,
  place: pathlib.Path,
  read_as: Sequence[str],
) -> str:
  """The report; `read_as` are the lines that say what the weights have become."""
  config = experiment.config
  count = sum(int(np.prod(shape)) for shape in loaded.weights.shapes.values())
  roles = {role: token for role, token in tokenizer.special.items() if token is not None}
  lines = [
    f"weights      {loaded.weights.place}: {loaded.family.name}, {len(loaded.weights.shapes)}"
    f" tensors, {count:,} numbers; {len(loaded.unread)} that are no weights are left unread",
    *read_as,
    f"tokenizer    {loaded.architecture.vocab_size:,} rows, tokens by role {roles};"
    f" {tokenizer.changes or 'text comes back as it was'}",
    f"system       process {config.process.name}, timing {config.timing.name}, context"
    f" {dict(config.context)}",
    f"workdir      {place}, step 0; go on with python -m experiments.train"
    f" --config={place / CONFIG} --workdir={place}",
  ]
  return "\n".join(lines)
