"""The options of the transformer: each with its default, its meaning and its range."""

from __future__ import annotations

from typing import Literal, NamedTuple

from diffusion_text.core.options import internal, member, option
from diffusion_text.types import InputSizes

Attention = Literal["pallas_tpu", "pallas_gpu", "xla", "reference"]


class Sizes(NamedTuple):
  """Sizes that options may leave open, as they are used: H, G, K and F."""

  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int


@member
class TransformerOptions:
  """What can be chosen of the transformer. `Transformer` adds the methods."""

  layers: int = option(6, "layers of the stack", ge=1)
  width: int = option(256, "D, the numbers per position of the residual stream", ge=2)
  heads: int | None = option(
    None, "H, attention heads; None: one per 64 of the width, at least one", ge=1
  )
  kv_heads: int | None = option(
    None,
    "G, key/value heads; fewer than heads is grouped-query attention (arXiv 2305.13245); None: as"
    " many as heads",
    ge=1,
  )
  mlp_width: int | None = option(
    None, "F, the hidden width of the MLP; None: four times the width", ge=1
  )
  norm: Literal["rmsnorm", "layernorm"] = option("rmsnorm", "the norm before every branch")
  activation: Literal["gelu", "swiglu"] = option("gelu", "of the MLP")
  rope_base: float = option(10_000.0, "base of the rotary positions", gt=0)
  qk_norm: bool = option(False, "RMSNorm on each query and key head (arXiv 2302.05442)")
  tie_embeddings: bool = option(False, "the head is the table that embeds the tokens")
  time_conditioning: Literal["none", "adaln", "layerwise", "prefix"] = option(
    "none",
    "how the network is shown the time. adaln: the time of each token shifts, scales and gates"
    " every branch (DiT, arXiv 2212.09748). layerwise: a map of the time of each token is added to"
    " the input of every layer; prefix: one more position, seen by all, holds the mean time of the"
    " row (both DiffusionBERT, arXiv 2211.15029 section 3.3)",
  )
  time_width: int = option(128, "width of the time embedding", ge=1)
  dropout: float = option(0.0, "probability with which a branch's number is dropped", ge=0, lt=1)
  dtype: Literal["float32", "bfloat16"] = option(
    "float32", "of the network's matmuls; parameters, logits and losses are float32"
  )
  scan_layers: bool | None = option(
    None, "compile one layer and scan over all; None: except on CPU, where that costs about 11 %"
  )
  remat: Literal["none", "full", "dots"] = option(
    "none", "kept for the backward pass: all, the inputs of layers (full), or results of matmuls"
  )
  attention: tuple[Attention, ...] = option(
    ("pallas_tpu", "pallas_gpu", "xla"), "implementations, tried in order", min_length=1
  )
  first_stage_layers: int = option(
    0,
    "of the layers, those of a first stage whose answer the others read (ADLM, arXiv 2505.18456;"
    " two thirds are usual); 0: one stage",
    ge=0,
  )
  self_conditioning: Literal["none", "add", "mean"] = option(
    "none", "how the network reads its own last answer (model/self_conditioning.py)"
  )
  absent: Literal["zeros", "uniform"] = option(
    "zeros", "what it reads where there is no answer yet: nothing, or the mean embedding"
  )
  experts: int = option(
    0, "MLPs that a router chooses from (model/experts.py), instead of one; 0: that one", ge=0
  )
  experts_per_token: int = option(0, "experts that each token passes", ge=0)
  expert_width: int = option(0, "hidden width of each expert", ge=0)
  shared_width: int = option(0, "hidden width of an MLP that every token passes too", ge=0)
  balance_weight: float = option(
    0.0, "weight of the router's load-balance loss; 0.01 is usual (LLaDA-MoE)", ge=0
  )
  router_z_weight: float = option(
    0.0, "weight of the router's z-loss; 0.001 is usual (LLaDA-MoE)", ge=0
  )
  input_sizes: InputSizes = internal()
  output_size: int = internal()
  estimate_size: int = internal(0)

  def __post_init__(self):
    if self.table_size < 1 or self.output_size < 1:
      raise ValueError(
        f"input_sizes={self.input_sizes} and output_size={self.output_size} must be positive; take"
        " those of the process"
      )
    self._check_heads()
    if self.first_stage_layers >= self.layers:
      raise ValueError(
        f"first_stage_layers={self.first_stage_layers} must be below layers={self.layers}; two"
        " thirds are usual"
      )
    if self.tie_embeddings and self.table_size < self.output_size:
      raise ValueError(
        f"tie_embeddings=True needs a row of the table for each of {self.output_size} outputs, and"
        f" there are {self.table_size}; use False"
      )
    self._check_self_conditioning()
    self._check_experts()

  def _check_heads(self) -> None:
    heads, kv_heads, _, _ = self.sizes
    if self.width % heads or (self.width // heads) % 2:
      raise ValueError(
        f"heads={heads} must divide width={self.width} into even head widths, as rotary positions"
        " turn pairs"
      )
    if heads % kv_heads:
      raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")

  def _check_self_conditioning(self) -> None:
    if self.self_conditioning == "none":
      if self.absent != "zeros":
        raise ValueError(
          f"absent={self.absent!r} is read by a network that conditions on itself; set"
          " self_conditioning, or leave absent unset"
        )
      return
    if self.estimate_size < 1:
      raise ValueError(
        f"self_conditioning={self.self_conditioning!r} needs estimate_size={self.estimate_size} of"
        " the process, at least 1"
      )
    if self.absent == "uniform" and self.estimate_size != self.output_size:
      raise ValueError(
        f"absent='uniform' is a distribution over {self.output_size} tokens, and an estimate here"
        f" has {self.estimate_size} numbers (of an embedding, whose mean is about zero); use"
        " 'zeros'"
      )
    if self.self_conditioning == "mean" and self.estimate_size > self.table_size:
      raise ValueError(
        f"self_conditioning='mean' embeds estimates of {self.estimate_size} numbers by a table of"
        f" {self.table_size} rows; use 'add'"
      )

  def _check_experts(self) -> None:
    if not self.experts:
      names = ("experts_per_token", "expert_width", "shared_width")
      names += ("balance_weight", "router_z_weight")
      values = (self.experts_per_token, self.expert_width, self.shared_width)
      values += (self.balance_weight, self.router_z_weight)
      if any(values):
        raise ValueError(f"experts=0 has no use for any of {', '.join(names)}; leave them unset")
      return
    if not 1 <= self.experts_per_token <= self.experts:
      raise ValueError(
        f"experts_per_token={self.experts_per_token} must be at least 1 and at most"
        f" experts={self.experts}"
      )
    if self.expert_width < 1:
      raise ValueError(f"expert_width={self.expert_width} must be positive")

  @property
  def sizes(self) -> Sizes:
    """H, G, K and F, with those that were left open filled in."""
    heads = self.heads or max(1, self.width // 64)
    return Sizes(
      heads, self.kv_heads or heads, self.width // heads, self.mlp_width or 4 * self.width
    )

  @property
  def table_size(self) -> int:
    """Rows of the table "embedding": ids, or the numbers of a vector where no ids are read."""
    return self.input_sizes.ids or self.input_sizes.vectors
