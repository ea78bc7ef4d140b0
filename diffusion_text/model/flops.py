"""Floating-point operations of the network, counted by hand: what MFU and rooflines divide by."""

from __future__ import annotations

from diffusion_text.model.transformer import TransformerConfig


def flops_per_token(config: TransformerConfig, length: int, scored_fraction: float = 1.0) -> float:
  """Multiply-adds × 2 of one forward pass per token: matmuls of layers, attention over `length` keys, unembedding of the
  `scored_fraction` of positions whose logits are read, and the head and table of a first stage, which reads all of them. A training
  step costs 3x this (backward = 2 forwards)."""
  inner, kv_inner = config.heads * config.head_width, config.kv_heads * config.head_width
  matrices = 3 if config.activation == "swiglu" else 2
  mlp = matrices * config.mlp_width
  if config.mixture:  # the experts that a token passes, the shared one, and the router
    mlp = (
      matrices * (config.experts_per_token * config.expert_width + config.shared_width)
      + config.experts
    )
  layer = 2 * config.width * (2 * inner + 2 * kv_inner + mlp)
  unembeddings = scored_fraction + (2 if config.anchor_layers else 0)
  return (
    config.layers * layer
    + attention_flops(config, length)
    + 2 * config.width * config.vocab_size * unembeddings
  )


def attention_flops(config: TransformerConfig, length: int) -> float:
  """Of these, per token, the two products of attention over `length` keys, in all layers, counted dense."""
  return 4.0 * config.layers * length * config.heads * config.head_width
