"""The field's own small networks: MDLM (arXiv 2406.07524) and BD3-LM (arXiv 2503.09573), a DiT with
rotary positions, whose norms an embedding of the noise shifts, scales and gates (adaLN-zero).

The published checkpoints are trained without time (`time_conditioning` false: the embedding is
always that of noise 0), so shifts, scales and gates are constants. They are multiplied into our
arrays, and the network here reads no time: with x̂ the normed stream,

  x̂·w·(1 + scale) + shift   a norm of scale w·(1 + scale) and bias shift
  gate · (h W + b)          a map W·gate and bias b·gate

Networks that do read the noise are in `timed_dit`. Names and keys as in the released code (read for
the network, recalled for config.json); the last row of the table is the mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from diffusion_text.model.pretrained.family import (
  Architecture,
  Config,
  Family,
  Folding,
  Names,
  need,
  refuse,
)
from diffusion_text.model.pretrained.mapping import Entry, Path, layer_entries
from diffusion_text.types import Params

LAYER: dict[str, Path] = {
  "norm1.weight": ("attention_norm", "scale"),
  "attn_out.weight": ("attention", "out", "kernel"),
  "norm2.weight": ("mlp_norm", "scale"),
  "mlp.0.weight": ("mlp", "up", "kernel"),
  "mlp.0.bias": ("mlp", "up", "bias"),
  "mlp.2.weight": ("mlp", "down", "kernel"),
  "mlp.2.bias": ("mlp", "down", "bias"),
}
WAVES = 256  # numbers of the embedding of the noise: cosines and sines


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  if config.get("time_conditioning", False):
    raise ValueError(
      f"config.json of model_type={config.get('model_type')!r} sets time_conditioning=True; with"
      " time mdlm, udlm, duo, sedd and gidd are read: is it one of these?"
    )
  refuse(config, causal=(False,), adaln=(True,), tie_word_embeddings=(False, True))
  heads, width = need(config, "n_heads"), size(config)
  options = {
    "layers": need(config, "n_blocks"),
    "width": width,
    "heads": heads,
    "kv_heads": heads,
    "mlp_width": 4 * width,
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "norm_bias": True,
    "activation": "gelu",
    "mlp_bias": True,
    "head_bias": True,
  }
  rows = need(config, "vocab_size")
  return Architecture(options, rows, config.get("mask_token_id", rows - 1))


def size(config: Config) -> int:
  """The width of the network, by either of the two names that it has."""
  return need(config, "hidden_size" if "hidden_size" in config else "hidden_dim")


def joined_entries(layers: int, base: str) -> list[Entry]:
  """The entries of queries, keys and values, which are one tensor per layer."""
  return [
    Entry(
      f"{base}blocks.{layer}.attn_qkv.weight",
      ("blocks", "attention", of, "kernel"),
      layer,
      transposed=True,
      part=(k, 3),
    )
    for layer in range(layers)
    for k, of in enumerate(("query", "key", "value"))
  ]


def entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  layers, base = architecture.options["layers"], base_of(names)
  return [
    Entry(f"{base}vocab_embed.embedding", ("embedding",)),
    *layer_entries(layers, base + "blocks.{}.", LAYER),
    *joined_entries(layers, base),
    Entry(f"{base}output_layer.norm_final.weight", ("final_norm", "scale")),
    Entry(f"{base}output_layer.linear.weight", ("head", "kernel"), transposed=True),
    Entry(f"{base}output_layer.linear.bias", ("head", "bias")),
  ]


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`. The embedding of the noise has one number, which is multiplied by zeros."""
  options = architecture.options
  return {
    "model_type": "mdlm",
    "hidden_dim": options["width"],
    "n_blocks": options["layers"],
    "n_heads": options["heads"],
    "cond_dim": 1,
    "dropout": 0.0,
    "time_conditioning": False,
    "vocab_size": architecture.vocab_size,
    "mask_token_id": architecture.mask_id,
  }


def shapes(config: Config, architecture: Architecture, names: Names) -> dict[str, tuple[int, ...]]:
  """See `Folding`."""
  options, base = architecture.options, base_of(names)
  width, cond = options["width"], need(config, "cond_dim")
  found = {"sigma_map.mlp.0": (cond, WAVES), "sigma_map.mlp.2": (cond, cond)}
  found |= {
    f"blocks.{layer}.adaLN_modulation": (6 * width, cond) for layer in range(options["layers"])
  }
  found |= {"output_layer.adaLN_modulation": (2 * width, cond)}
  weights = {f"{base}{name}.weight": shape for name, shape in found.items()}
  return weights | {f"{base}{name}.bias": shape[:1] for name, shape in found.items()}


def fold(params: Params, read: Callable[[str], np.ndarray], names: Names) -> None:
  """See `Folding`."""
  base = base_of(names)

  def linear(x: np.ndarray, name: str) -> np.ndarray:
    return read(f"{base}{name}.weight").astype(np.float64) @ x + read(f"{base}{name}.bias")

  waves = np.repeat([1.0, 0.0], WAVES // 2)  # cosines and sines of 0
  noise = _silu(linear(_silu(linear(waves, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
  blocks, final = params["blocks"], params["final_norm"]
  for layer in range(blocks["attention_norm"]["scale"].shape[0]):
    told = linear(noise, f"blocks.{layer}.adaLN_modulation")
    parts = np.split(told, 6)
    maps = (blocks["attention"]["out"], blocks["mlp"]["down"])
    norms = (blocks["attention_norm"], blocks["mlp_norm"])
    for norm, last, (shift, scale, gate) in zip(norms, maps, (parts[:3], parts[3:])):
      norm["scale"][layer] *= 1 + scale
      norm["bias"][layer] = shift
      for each in last.values():  # a kernel [D_in, D], and a bias [D] where there is one
        each[layer] *= gate
  shift, scale = np.split(linear(noise, "output_layer.adaLN_modulation"), 2)
  final["scale"] *= 1 + scale
  final["bias"][...] = shift


def unfold(params: Params) -> Iterator[tuple[str, np.ndarray]]:
  """See `Folding`: shifts are the biases of our norms, scales 0 and gates 1, whatever the noise."""
  base, blocks = base_of({}), params["blocks"]
  sizes = {"sigma_map.mlp.0": WAVES, "sigma_map.mlp.2": 1}
  for name, size in sizes.items():
    yield f"{base}{name}.weight", np.zeros((1, size), np.float32)
    yield f"{base}{name}.bias", np.zeros(1, np.float32)
  width = np.shape(params["final_norm"]["scale"])[0]
  none, all_of_it = np.zeros(width, np.float32), np.ones(width, np.float32)
  for layer in range(np.shape(blocks["attention_norm"]["scale"])[0]):
    shifts = [np.asarray(blocks[norm]["bias"][layer]) for norm in ("attention_norm", "mlp_norm")]
    told = np.concatenate([part for shift in shifts for part in (shift, none, all_of_it)])
    yield from _constant(f"{base}blocks.{layer}.adaLN_modulation", told)
  told = np.concatenate([np.asarray(params["final_norm"]["bias"]), none])
  yield from _constant(f"{base}output_layer.adaLN_modulation", told)


def _constant(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  yield f"{name}.weight", np.zeros((len(values), 1), np.float32)
  yield f"{name}.bias", values.astype(np.float32)


def base_of(names: Names) -> str:
  """The prefix of all names: that of a part of a larger module, or none."""
  return "" if "vocab_embed.embedding" in names else "backbone."


def _silu(x: np.ndarray) -> np.ndarray:
  return x / (1 + np.exp(-x))


WHOLE_ROW = Family(
  name="mdlm",
  model_types=("mdlm",),
  reads="whole",
  architecture=architecture,
  entries=entries,
  config=config,
  buffers=(r"rotary_emb\.inv_freq$",),
  folding=Folding(
    shapes=shapes,
    made=(
      ("blocks", "attention_norm", "bias"),
      ("blocks", "mlp_norm", "bias"),
      ("final_norm", "bias"),
    ),
    fold=fold,
    unfold=unfold,
  ),
)


def block_config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  return config(architecture) | {"model_type": "bd3lm", "adaln": True, "causal": False}


BLOCKS = dataclasses.replace(
  WHOLE_ROW, name="bd3lm", model_types=("bd3lm",), reads="blocks", config=block_config
)
