"""GGUF files, read as a config, tensors by their names in safetensors, and float32 numbers.

Quantised tensors are dequantised. In files of the architecture "llama" the rows of queries and keys
are permuted, for rotary positions that turn neighbouring rows. They are put back in order here, for
positions that turn row i with row i + K/2 of a head.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_text.model.pretrained.weights import CHUNK, Chunk

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Key of config.json -> end of the metadata key.
KEYS = {
  "hidden_size": "embedding_length",
  "num_hidden_layers": "block_count",
  "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv",
  "head_dim": "attention.key_length",
  "intermediate_size": "feed_forward_length",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
  "rope_theta": "rope.freq_base",
  "max_position_embeddings": "context_length",
  "sliding_window": "attention.sliding_window",
}
# Of `rope_scaling`: key -> end of the metadata key. The defaults are those of llama.cpp.
SCALING = {
  "rope_type": "rope.scaling.type",
  "factor": "rope.scaling.factor",
  "original_max_position_embeddings": "rope.scaling.original_context_length",
  "beta_fast": "rope.scaling.yarn_beta_fast",
  "beta_slow": "rope.scaling.yarn_beta_slow",
}
OLD_FACTOR = "rope.scale_linear"  # of files without a type
# Ends of metadata keys that are not read -> values with which they change nothing.
UNREAD = {
  "rope.scaling.attn_factor": (1,),
  "rope.scaling.yarn_attn_factor": (1,),
  "rope.scaling.yarn_ext_factor": (1,),
  "rope.scaling.alpha": (0,),
  "attention.causal": (True,),
  "expert_count": (0,),
  "expert_used_count": (0,),
}
ABOUT = ("rope.scaling.finetuned", "tensor_data_layout")  # the network does not depend on them
RATIOS = "rope_freqs.weight"  # a tensor: what each pair of positions is slowed by (LLaMA 3.1)
NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}


class Tensor(NamedTuple):
  """A tensor of a file: its bytes in rows, on disk; the kind of its numbers; its shape."""

  data: Any
  kind: Any
  shape: tuple[int, ...]


class GGUF:
  """The tensors of a GGUF file, by the names that safetensors has for them; see `Weights`."""

  def __init__(self, path: pathlib.Path):
    """Reads the metadata. Raises ValueError for a file that is damaged or of another network."""
    self.place = str(path)
    reader = _reader(path)
    fields = reader.fields
    self.architecture = str(_value(fields, "general.architecture"))
    if self.architecture not in ARCHITECTURES:
      raise ValueError(
        f"{path} holds a network of architecture {self.architecture!r}; those that are read are"
        f" {', '.join(ARCHITECTURES)}"
      )
    self._tensors = {
      _name(each.name): Tensor(each.data, each.tensor_type, tuple(map(int, reversed(each.shape))))
      for each in reader.tensors
    }
    self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
    # The reader is dropped here, as it holds an object for every token of the vocabulary.
    self.config = _config(fields, self.architecture, self.shapes)
    _check_unread(self.place, fields, self.config)
    if RATIOS in self.shapes:
      raise ValueError(
        f"{path} slows rotary positions by its tensor {RATIOS}, which is not read; take the"
        " safetensors of this model"
      )

  def check(self, name: str) -> None:
    """Raises ValueError for a kind of quantisation that cannot be undone."""
    import gguf  # only this reader needs it

    tensor = self._tensors[name]
    try:
      gguf.quants.dequantize(tensor.data[:1], tensor.kind)
    except NotImplementedError as error:
      raise ValueError(
        f"{self.place}: {name} has type {tensor.kind.name}, which the package gguf cannot"
        " turn into numbers; take a file with another quantisation, such as Q8_0"
      ) from error

  def chunks(self, name: str) -> Iterator[Chunk]:
    """(rows, values), see `Weights`."""
    import gguf

    tensor, shape = self._tensors[name], self.shapes[name]
    order = self._order(name)
    if len(shape) < 2:
      values = gguf.quants.dequantize(tensor.data, tensor.kind)
      yield slice(None) if order is None else order, values.astype(np.float32, copy=False)
      return
    step = max(1, CHUNK // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
      stop = min(start + step, shape[0])
      values = gguf.quants.dequantize(tensor.data[start:stop], tensor.kind)
      rows = slice(start, stop) if order is None else order[start:stop]
      yield rows, values.reshape(-1, *shape[1:]).astype(np.float32, copy=False)

  def _order(self, name: str) -> np.ndarray | None:
    """Where each row of the file belongs, if they are permuted."""
    which = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    if self.architecture != "llama" or part not in which:
      return None
    rows, heads = self.shapes[name][0], self.config[which[part]]
    # Row (head, pair, half) of the file is row (head, half, pair) of half-split positions.
    places = np.arange(rows).reshape(heads, 2, rows // heads // 2)
    return places.swapaxes(1, 2).reshape(-1)


def _reader(path: pathlib.Path) -> Any:
  import gguf

  try:
    return gguf.GGUFReader(str(path))
  except Exception as error:  # many kinds; each means that the file cannot be read
    raise ValueError(f"{path} is no whole GGUF file ({error}); is the download complete?") from None


def _value(fields: Mapping[str, Any], key: str) -> Any:
  field = fields.get(key)
  return None if field is None else field.contents()


def _name(name: str) -> str:
  """The name of a tensor in safetensors; a name that is unknown stays as it is."""
  parts = name.split(".")
  if parts[0] == "blk" and len(parts) == 4 and parts[2] in NAMES:
    return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
  return f"{NAMES[parts[0]]}.{parts[1]}" if len(parts) == 2 and parts[0] in NAMES else name


def _config(
  fields: Mapping[str, Any], architecture: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  found = {key: _value(fields, f"{architecture}.{end}") for key, end in KEYS.items()}
  config = {key: value for key, value in found.items() if value is not None}
  config["rms_norm_eps"] = float(np.format_float_positional(np.float32(found["rms_norm_eps"])))
  scaling = _scaling(fields, architecture)
  if scaling:
    config["rope_scaling"] = scaling
  embedding = "model.embed_tokens.weight"
  if embedding in shapes:
    config["vocab_size"] = shapes[embedding][0]
  for role in ("bos", "eos"):
    token = _value(fields, f"tokenizer.ggml.{role}_token_id")
    if token is not None:
      config[f"{role}_token_id"] = int(token)
  config["tie_word_embeddings"] = "lm_head.weight" not in shapes
  return config | {"model_type": architecture, "hidden_act": "silu"}


def _scaling(fields: Mapping[str, Any], architecture: str) -> dict[str, Any]:
  """`rope_scaling` of the file, {} where positions are not slowed.

  A file without a type is linear; without a factor, or with 0, nothing is slowed.
  """
  found = {key: _value(fields, f"{architecture}.{end}") for key, end in SCALING.items()}
  if found["factor"] is None:
    found["factor"] = _value(fields, f"{architecture}.{OLD_FACTOR}")
  if found["rope_type"] is None:
    found["rope_type"] = "linear"
    found.pop("original_max_position_embeddings")  # read by other types only
  slowed = found["rope_type"] != "none" and (found["factor"] or 1) != 1
  return {key: value for key, value in found.items() if slowed and value is not None}


def _check_unread(place: str, fields: Mapping[str, Any], config: Mapping[str, Any]) -> None:
  """Raises ValueError for metadata of the network that is not read and may change it."""
  architecture = config["model_type"]
  width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
  harmless = UNREAD | {
    "rope.dimension_count": (width,),
    "attention.value_length": (width,),
    "vocab_size": (config.get("vocab_size"),),
  }
  read = {*KEYS.values(), *SCALING.values(), OLD_FACTOR, *ABOUT}
  for key in fields:
    start, _, end = key.partition(".")
    if start != architecture or end in read:
      continue
    value = _value(fields, key)
    if value in harmless.get(end, ()):
      continue
    only = f" and only {harmless[end][0]} is" if end in harmless else ""
    raise ValueError(
      f"{place} has {key}={value!r}, which is not read{only}; take the safetensors of this model"
    )
