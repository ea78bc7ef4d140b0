"""Floating-point operations of the network, counted by hand: what MFU and rooflines divide by."""

from __future__ import annotations

from diffusion_text.model.body import may_answer_alone
from diffusion_text.model.options import TransformerOptions


def flops_per_token(
  network: TransformerOptions, length: int, *, read: int, answered: float
) -> float:
  """Operations of one forward pass, per token of a row of `length` tokens; a training step costs
  three times that (backward = 2 forwards).

  Multiply-adds × 2: matmuls of layers and dense attention over the `read` positions of the row
  (`Context.positions_read`), the head at the `answered` positions whose logits are computed, and
  the head and table of a first stage, which answers every position. Of positions that are read and
  not asked (`positions_asked`) the last layer computes only keys and values.
  """
  asked = positions_asked(network, length, read)
  sizes = network.sizes
  inner = sizes.heads * sizes.head_width
  kv_inner = sizes.kv_heads * sizes.head_width
  matrices = _mlp_matrices(network)
  mlp = matrices * sizes.mlp_width
  if network.experts:  # the experts that a token passes, the shared one, and the router
    hidden = network.experts_per_token * network.expert_width + network.shared_width
    mlp = matrices * hidden + network.experts
  of_all = network.layers * 2 * kv_inner * read
  of_asked = (2 * inner + mlp) * ((network.layers - 1) * read + asked)
  layers = 2 * network.width * (of_all + of_asked)
  heads = answered + (2 * read if network.first_stage_layers else 0)
  unembedding = 2 * network.width * network.output_size * heads
  if network.head_transform:  # of every position that has features
    unembedding += 2 * network.width**2 * asked
  return (layers + unembedding) / length + attention_flops(network, length, read=read)


def attention_flops(network: TransformerOptions, length: int, *, read: int) -> float:
  """FLOPs of the two products of dense attention in all layers, per token, a part of
  `flops_per_token`."""
  sizes = network.sizes
  queries = (network.layers - 1) * read + positions_asked(network, length, read)
  return 4.0 * queries * read * sizes.heads * sizes.head_width / length


def positions_asked(network: TransformerOptions, length: int, read: int) -> int:
  """The number of positions that the last layer computes (`Body`): `length` where a clean copy of
  the text is read beside it and the last layer may answer alone, else `read`.

  Whether it may depends on the platform compiled for: count within `compile_for` for another one.
  """
  return length if read >= 2 * length and may_answer_alone(network) else read


def expert_flops(network: TransformerOptions, length: int, *, read: int) -> float:
  """FLOPs of the experts that a router chooses, in all layers, per token, a part of
  `flops_per_token`; 0 for a network without experts."""
  if not network.experts:
    return 0.0
  hidden = network.experts_per_token * network.expert_width
  return 2.0 * network.layers * _mlp_matrices(network) * network.width * hidden * read / length


def _mlp_matrices(network: TransformerOptions) -> int:
  """The number of matrices of an MLP or an expert."""
  return 3 if network.activation == "swiglu" else 2
