"""GPT-2: LayerNorm with bias, learned positions, gelu in its tanh form, a tied head.

Its kernels are [D_in, D_out] as ours are, and queries, keys and values are one tensor. Names and
keys as in the library transformers (recalled; held by a reference in tests).
"""

from __future__ import annotations

from typing import Any

from diffusion_text.model.pretrained.family import Architecture, Config, Family, Names, need, refuse
from diffusion_text.model.pretrained.mapping import Entry, Path, layer_entries

LAYER: dict[str, Path] = {
  "ln_1.weight": ("attention_norm", "scale"),
  "ln_1.bias": ("attention_norm", "bias"),
  "attn.c_proj.weight": ("attention", "out", "kernel"),
  "attn.c_proj.bias": ("attention", "out", "bias"),
  "ln_2.weight": ("mlp_norm", "scale"),
  "ln_2.bias": ("mlp_norm", "bias"),
  "mlp.c_fc.weight": ("mlp", "up", "kernel"),
  "mlp.c_fc.bias": ("mlp", "up", "bias"),
  "mlp.c_proj.weight": ("mlp", "down", "kernel"),
  "mlp.c_proj.bias": ("mlp", "down", "bias"),
}
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  refuse(
    config,
    activation_function=tuple(ACTIVATIONS),
    scale_attn_weights=(True,),
    scale_attn_by_inverse_layer_idx=(False,),
    add_cross_attention=(False,),
    tie_word_embeddings=(True,),
  )
  heads, width = need(config, "n_head"), need(config, "n_embd")
  options = {
    "layers": need(config, "n_layer"),
    "width": width,
    "heads": heads,
    "kv_heads": heads,
    "mlp_width": config.get("n_inner") or 4 * width,
    "norm": "layernorm",
    "norm_eps": float(config.get("layer_norm_epsilon", 1e-5)),
    "norm_bias": True,
    "activation": ACTIVATIONS[config.get("activation_function", "gelu_new")],
    "mlp_bias": True,
    "attention_bias": "all",
    "positions": "learned",
    "max_positions": need(config, "n_positions"),
    # The first row of the table is that of the token before the text, at position -1.
    "position_offset": 1,
    "tie_embeddings": True,
    "head_bias": False,
  }
  return Architecture(options, need(config, "vocab_size"))


def entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  layers = architecture.options["layers"]
  base = "" if "wte.weight" in names else "transformer."
  joined = [
    Entry(f"{base}h.{layer}.attn.c_attn.{kind}", path, layer, part=(k, 3))
    for layer in range(layers)
    for kind, ours in (("weight", "kernel"), ("bias", "bias"))
    for k, path in enumerate(("blocks", "attention", of, ours) for of in ("query", "key", "value"))
  ]
  return [
    Entry(f"{base}wte.weight", ("embedding",)),
    Entry(f"{base}wpe.weight", ("position", "embedding")),
    *layer_entries(layers, base + "h.{}.", LAYER, transposed=False),
    *joined,
    Entry(f"{base}ln_f.weight", ("final_norm", "scale")),
    Entry(f"{base}ln_f.bias", ("final_norm", "bias")),
  ]


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  options = architecture.options
  return {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": options["width"],
    "n_layer": options["layers"],
    "n_head": options["heads"],
    "n_inner": options["mlp_width"],
    "n_positions": options["max_positions"],
    "layer_norm_epsilon": options["norm_eps"],
    "activation_function": "gelu" if options["activation"] == "gelu_exact" else "gelu_new",
    "tie_word_embeddings": True,
    "vocab_size": architecture.vocab_size,
    "torch_dtype": "float32",
  }


FAMILY = Family(
  name="gpt2",
  model_types=("gpt2",),
  reads="next_token",
  architecture=architecture,
  entries=entries,
  config=config,
  # Causal masks that older files hold, and the tied head.
  buffers=(r"\.attn\.(masked_)?bias$", r"^lm_head\.weight$"),
)
