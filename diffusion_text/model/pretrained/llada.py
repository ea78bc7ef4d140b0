"""LLaDA (arXiv 2502.09992): the layers of LLaMA over the whole row, under names of its own, with
the token 126336 as mask.

The published vocabulary has 126464 rows; `embedding_size` counts rows, `vocab_size` tokens.
"""

from __future__ import annotations

from typing import Any

from diffusion_text.model.pretrained.family import Architecture, Config, Family, Names, need, refuse
from diffusion_text.model.pretrained.mapping import Entry, Path, layer_entries

MASK = 126336
LAYER: dict[str, Path] = {
  "attn_norm.weight": ("attention_norm", "scale"),
  "q_proj.weight": ("attention", "query", "kernel"),
  "k_proj.weight": ("attention", "key", "kernel"),
  "v_proj.weight": ("attention", "value", "kernel"),
  "attn_out.weight": ("attention", "out", "kernel"),
  "ff_norm.weight": ("mlp_norm", "scale"),
  "ff_proj.weight": ("mlp", "gate", "kernel"),
  "up_proj.weight": ("mlp", "up", "kernel"),
  "ff_out.weight": ("mlp", "down", "kernel"),
}
QKV_BIASES: dict[str, Path] = {
  "q_proj.bias": ("attention", "query", "bias"),
  "k_proj.bias": ("attention", "key", "bias"),
  "v_proj.bias": ("attention", "value", "bias"),
}
BASE = "model.transformer."


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  refuse(
    config,
    block_type=("llama",),
    layer_norm_type=("rms",),
    activation_type=("silu",),
    rope=(True,),
    alibi=(False,),
    include_bias=(False,),
    attention_layer_norm=(False,),
    input_emb_norm=(False,),
    scale_logits=(False,),
    block_group_size=(1,),
    rope_scaling=(None,),
    rope_parameters=(None,),
  )
  heads, width = need(config, "n_heads"), need(config, "d_model")
  rows = config.get("embedding_size") or need(config, "vocab_size")
  mask = config.get("mask_token_id", MASK)
  if not 0 <= mask < rows:
    raise ValueError(
      f"config.json: mask_token_id={mask} is no row of the {rows} of the table of tokens; it is"
      f" {MASK} in the published models"
    )
  options = {
    "layers": need(config, "n_layers"),
    "width": width,
    "heads": heads,
    "kv_heads": config.get("n_kv_heads") or heads,
    "head_width": width // heads,
    "mlp_width": config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * width,
    "norm": "rmsnorm",
    "norm_eps": float(config.get("rms_norm_eps", 1e-5)),
    "activation": "swiglu",
    "attention_bias": "qkv" if config.get("include_qkv_bias") else "none",
    "rope_base": float(config.get("rope_theta", 10_000.0)),
    "tie_embeddings": bool(config.get("weight_tying", False)),
    "head_bias": False,
  }
  return Architecture(options, rows, mask)


def entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  del names
  options = architecture.options
  table = LAYER | ({} if options["attention_bias"] == "none" else QKV_BIASES)
  found = [
    Entry(f"{BASE}wte.weight", ("embedding",)),
    *layer_entries(options["layers"], BASE + "blocks.{}.", table),
    Entry(f"{BASE}ln_f.weight", ("final_norm", "scale")),
  ]
  if not options["tie_embeddings"]:
    found.append(Entry(f"{BASE}ff_out.weight", ("head", "kernel"), transposed=True))
  return found


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  options = architecture.options
  return {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "block_type": "llama",
    "block_group_size": 1,
    "d_model": options["width"],
    "n_layers": options["layers"],
    "n_heads": options["heads"],
    "n_kv_heads": options["kv_heads"],
    "mlp_hidden_size": options["mlp_width"],
    "layer_norm_type": "rms",
    "rms_norm_eps": options["norm_eps"],
    "activation_type": "silu",
    "rope": True,
    "rope_theta": options["rope_base"],
    "include_bias": False,
    "include_qkv_bias": options["attention_bias"] == "qkv",
    "weight_tying": options["tie_embeddings"],
    "vocab_size": architecture.vocab_size,
    "embedding_size": architecture.vocab_size,
    "mask_token_id": architecture.mask_id,
  }


FAMILY = Family(
  name="llada",
  model_types=("llada",),
  reads="whole",
  architecture=architecture,
  entries=entries,
  config=config,
)
