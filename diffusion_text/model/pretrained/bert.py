"""BERT (arXiv 1810.04805) and MiniLM, RoBERTa: norms after branches, learned positions, exact gelu.

The head of a masked model is read where the file has one; else the table of tokens serves as the
head, untrained for it. Poolers are left unread. RoBERTa's rows of positions
begin at 2. Names and keys as in the library transformers (recalled; held by a reference in tests).
"""

from __future__ import annotations

from typing import Any

from diffusion_text.model.pretrained.family import Architecture, Config, Family, Names, need, refuse
from diffusion_text.model.pretrained.mapping import Entry, Path, layer_entries

LAYER: dict[str, Path] = {
  "attention.self.query.weight": ("attention", "query", "kernel"),
  "attention.self.query.bias": ("attention", "query", "bias"),
  "attention.self.key.weight": ("attention", "key", "kernel"),
  "attention.self.key.bias": ("attention", "key", "bias"),
  "attention.self.value.weight": ("attention", "value", "kernel"),
  "attention.self.value.bias": ("attention", "value", "bias"),
  "attention.output.dense.weight": ("attention", "out", "kernel"),
  "attention.output.dense.bias": ("attention", "out", "bias"),
  "attention.output.LayerNorm.weight": ("attention_norm", "scale"),
  "attention.output.LayerNorm.bias": ("attention_norm", "bias"),
  "intermediate.dense.weight": ("mlp", "up", "kernel"),
  "intermediate.dense.bias": ("mlp", "up", "bias"),
  "output.dense.weight": ("mlp", "down", "kernel"),
  "output.dense.bias": ("mlp", "down", "bias"),
  "output.LayerNorm.weight": ("mlp_norm", "scale"),
  "output.LayerNorm.bias": ("mlp_norm", "bias"),
}
EMBEDDINGS: dict[str, Path] = {
  "word_embeddings.weight": ("embedding",),
  "position_embeddings.weight": ("position", "embedding"),
  "token_type_embeddings.weight": ("token_type", "embedding"),
  "LayerNorm.weight": ("embedding_norm", "scale"),
  "LayerNorm.bias": ("embedding_norm", "bias"),
}
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
# model_type -> (prefix of the encoder, and the names of the head of a masked model).
HEADS: dict[str, tuple[str, dict[str, Path]]] = {
  "bert": (
    "bert.",
    {
      "cls.predictions.transform.dense.weight": ("head_transform", "dense", "kernel"),
      "cls.predictions.transform.dense.bias": ("head_transform", "dense", "bias"),
      "cls.predictions.transform.LayerNorm.weight": ("head_transform", "norm", "scale"),
      "cls.predictions.transform.LayerNorm.bias": ("head_transform", "norm", "bias"),
      "cls.predictions.bias": ("head", "bias"),
    },
  ),
  "roberta": (
    "roberta.",
    {
      "lm_head.dense.weight": ("head_transform", "dense", "kernel"),
      "lm_head.dense.bias": ("head_transform", "dense", "bias"),
      "lm_head.layer_norm.weight": ("head_transform", "norm", "scale"),
      "lm_head.layer_norm.bias": ("head_transform", "norm", "bias"),
      "lm_head.bias": ("head", "bias"),
    },
  ),
}
OFFSETS = {"bert": 0, "roberta": 2}


def architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  kind = config["model_type"]
  refuse(
    config,
    hidden_act=tuple(ACTIVATIONS),
    position_embedding_type=("absolute",),
    is_decoder=(False,),
    tie_word_embeddings=(True,),
  )
  heads, width = need(config, "num_attention_heads"), need(config, "hidden_size")
  has_head = next(iter(HEADS[kind][1])) in names
  options = {
    "layers": need(config, "num_hidden_layers"),
    "width": width,
    "heads": heads,
    "kv_heads": heads,
    "mlp_width": need(config, "intermediate_size"),
    "norm": "layernorm",
    "norm_eps": float(config.get("layer_norm_eps", 1e-12)),
    "norm_bias": True,
    "norm_place": "after",
    "embedding_norm": True,
    "activation": ACTIVATIONS[config.get("hidden_act", "gelu")],
    "mlp_bias": True,
    "attention_bias": "all",
    "positions": "learned",
    "max_positions": need(config, "max_position_embeddings"),
    "position_offset": OFFSETS[kind],
    "token_types": need(config, "type_vocab_size"),
    "tie_embeddings": True,
    "head_bias": has_head,
    "head_transform": has_head,
  }
  mask = config.get("mask_token_id")
  return Architecture(options, need(config, "vocab_size"), mask)


def entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  options = architecture.options
  kind = "roberta" if options["position_offset"] == OFFSETS["roberta"] else "bert"
  prefix, head = HEADS[kind]
  base = "" if "embeddings.word_embeddings.weight" in names else prefix
  found = [Entry(f"{base}embeddings.{name}", path) for name, path in EMBEDDINGS.items()]
  found += layer_entries(options["layers"], base + "encoder.layer.{}.", LAYER)
  if options["head_transform"]:
    found += [Entry(name, path, transposed=path[-1] == "kernel") for name, path in head.items()]
  return found


def config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  options = architecture.options
  roberta = options["position_offset"] == OFFSETS["roberta"]
  name = "Roberta" if roberta else "Bert"
  written = {
    "architectures": [f"{name}ForMaskedLM" if options["head_transform"] else f"{name}Model"],
    "model_type": name.lower(),
    "hidden_size": options["width"],
    "num_hidden_layers": options["layers"],
    "num_attention_heads": options["heads"],
    "intermediate_size": options["mlp_width"],
    "layer_norm_eps": options["norm_eps"],
    "hidden_act": "gelu_new" if options["activation"] == "gelu" else "gelu",
    "max_position_embeddings": options["max_positions"],
    "type_vocab_size": options["token_types"],
    "position_embedding_type": "absolute",
    "vocab_size": architecture.vocab_size,
    "torch_dtype": "float32",
  }
  mask = architecture.mask_id
  return written if mask is None else written | {"mask_token_id": mask}


FAMILY = Family(
  name="bert",
  model_types=("bert", "roberta"),
  reads="whole",
  architecture=architecture,
  entries=entries,
  config=config,
  buffers=(
    r"embeddings\.position_ids$",
    r"(^|\.)pooler\.",
    r"^cls\.seq_relationship\.",
    r"^(cls\.predictions|lm_head)\.decoder\.(weight|bias)$",  # tied
  ),
)
