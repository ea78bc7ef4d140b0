"""LLaMA and its relatives: RMSNorm, rotary positions, SwiGLU; Mistral, SmolLM2, Qwen2, Qwen3.

Qwen2 has biases on queries, keys and values; Qwen3 norms on heads, whose width is free. Mistral,
Qwen2 and Qwen3 may have sliding windows, all of them slowed positions (`longer_rows`).
Names and keys as in the library transformers (recalled; held by a reference in tests).
"""

from __future__ import annotations

from typing import Any

from diffusion_text.model.pretrained.family import Architecture, Config, Family, Names, need, refuse
from diffusion_text.model.pretrained.longer_rows import (
  rope_config,
  rope_options,
  window_config,
  window_options,
)
from diffusion_text.model.pretrained.mapping import Entry, Path, layer_entries

LAYER: dict[str, Path] = {
  "input_layernorm.weight": ("attention_norm", "scale"),
  "self_attn.q_proj.weight": ("attention", "query", "kernel"),
  "self_attn.k_proj.weight": ("attention", "key", "kernel"),
  "self_attn.v_proj.weight": ("attention", "value", "kernel"),
  "self_attn.o_proj.weight": ("attention", "out", "kernel"),
  "post_attention_layernorm.weight": ("mlp_norm", "scale"),
  "mlp.gate_proj.weight": ("mlp", "gate", "kernel"),
  "mlp.up_proj.weight": ("mlp", "up", "kernel"),
  "mlp.down_proj.weight": ("mlp", "down", "kernel"),
}
QKV_BIASES: dict[str, Path] = {
  "self_attn.q_proj.bias": ("attention", "query", "bias"),
  "self_attn.k_proj.bias": ("attention", "key", "bias"),
  "self_attn.v_proj.bias": ("attention", "value", "bias"),
}
OUT_BIAS: dict[str, Path] = {"self_attn.o_proj.bias": ("attention", "out", "bias")}
MLP_BIASES: dict[str, Path] = {
  "mlp.gate_proj.bias": ("mlp", "gate", "bias"),
  "mlp.up_proj.bias": ("mlp", "up", "bias"),
  "mlp.down_proj.bias": ("mlp", "down", "bias"),
}
HEAD_NORMS: dict[str, Path] = {
  "self_attn.q_norm.weight": ("attention", "query_norm", "scale"),
  "self_attn.k_norm.weight": ("attention", "key_norm", "scale"),
}
HEAD = "lm_head.weight"


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  kind = config["model_type"]
  refuse(config, hidden_act=("silu",))
  if kind == "llama":  # the library reads no window there: such a file is of another network
    refuse(config, use_sliding_window=(False, None))
  if kind != "mistral" and "use_sliding_window" not in config:
    refuse(config, sliding_window=(None,))
  layers = need(config, "num_hidden_layers")
  heads, width = need(config, "num_attention_heads"), need(config, "hidden_size")
  bias = "all" if config.get("attention_bias") else "none"
  options = {
    "layers": layers,
    "width": width,
    "heads": heads,
    "kv_heads": config.get("num_key_value_heads") or heads,
    "head_width": config.get("head_dim") or width // heads,
    "mlp_width": need(config, "intermediate_size"),
    "norm": "rmsnorm",
    "norm_eps": float(need(config, "rms_norm_eps")),
    "activation": "swiglu",
    "mlp_bias": bool(config.get("mlp_bias", False)),
    "attention_bias": "qkv" if kind in ("qwen2", "Dream") else bias,
    "qk_norm": kind == "qwen3",
    "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    "head_bias": False,
  }
  options |= rope_options(config) | window_options(config, layers)
  return Architecture(options, need(config, "vocab_size"), config.get("mask_token_id"))


def entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  options = architecture.options
  base = "" if "embed_tokens.weight" in names else "model."
  table = dict(LAYER)
  table |= {} if options["attention_bias"] == "none" else QKV_BIASES
  table |= OUT_BIAS if options["attention_bias"] == "all" else {}
  table |= MLP_BIASES if options["mlp_bias"] else {}
  table |= HEAD_NORMS if options["qk_norm"] else {}
  found = [
    Entry(f"{base}embed_tokens.weight", ("embedding",)),
    *layer_entries(options["layers"], base + "layers.{}.", table),
    Entry(f"{base}norm.weight", ("final_norm", "scale")),
  ]
  if not options["tie_embeddings"]:
    found.append(Entry(HEAD, ("head", "kernel"), transposed=True))
  return found


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  options = architecture.options
  kind, name = ("qwen2", "Qwen2") if options["attention_bias"] == "qkv" else ("llama", "Llama")
  kind, name = ("qwen3", "Qwen3") if options["qk_norm"] else (kind, name)
  windows = window_config(options)
  if kind == "llama" and options.get("window"):
    # Layers without windows are what Mistral cannot say: `checked_config` then says so.
    kind, name, windows = "mistral", "Mistral", {"sliding_window": options["window"]}
  written = {
    "architectures": [f"{name}ForCausalLM"],
    "model_type": kind,
    "hidden_size": options["width"],
    "num_hidden_layers": options["layers"],
    "num_attention_heads": options["heads"],
    "num_key_value_heads": options["kv_heads"],
    "head_dim": options["head_width"],
    "intermediate_size": options["mlp_width"],
    "hidden_act": "silu",
    "rms_norm_eps": options["norm_eps"],
    "attention_bias": options["attention_bias"] == "all",
    "mlp_bias": options["mlp_bias"],
    "tie_word_embeddings": options["tie_embeddings"],
    "vocab_size": architecture.vocab_size,
    "torch_dtype": "float32",
  }
  written |= rope_config(options) | (windows if kind != "llama" else {})
  mask = architecture.mask_id
  return written if mask is None else written | {"mask_token_id": mask}


FAMILY = Family(
  name="llama",
  model_types=("llama", "mistral", "qwen2", "qwen3"),
  reads="next_token",
  architecture=architecture,
  entries=entries,
  config=config,
  buffers=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$"),  # a tied head may be written too
)
