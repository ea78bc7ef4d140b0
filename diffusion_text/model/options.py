"""The options of the transformer: each with its default, its meaning and its range."""

from __future__ import annotations

from typing import Literal, NamedTuple

from diffusion_text.core.options import internal, member, option, part
from diffusion_text.model.low_rank import LOW_RANK, LowRank
from diffusion_text.model.quantized.stored import QUANTIZED, Quantized
from diffusion_text.types import InputSizes

Attention = Literal["pallas_tpu", "pallas_gpu", "cudnn", "xla", "reference"]
RopeKind = Literal["plain", "linear", "dynamic", "llama3", "yarn"]
# What each kind reads beside the base.
BY_TURNS = ("rope_factor", "rope_trained_length", "rope_slow_turns", "rope_fast_turns")
ROPE_KINDS: dict[RopeKind, tuple[str, ...]] = {
  "plain": (),
  "linear": ("rope_factor",),
  "dynamic": ("rope_factor", "rope_trained_length"),
  "llama3": BY_TURNS,
  "yarn": (*BY_TURNS, "rope_gain", "rope_whole_pairs"),
}


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
  head_width: int | None = option(
    None, "K, the width of one head; None: the width over the heads, as is usual", ge=1
  )
  mlp_width: int | None = option(
    None, "F, the hidden width of the MLP; None: four times the width", ge=1
  )
  norm: Literal["rmsnorm", "layernorm"] = option("rmsnorm", "the norm of every branch")
  norm_eps: float = option(1e-6, "added to the variance in every norm", gt=0, le=1)
  norm_bias: bool = option(False, "layernorm: a bias beside the scale")
  norm_place: Literal["before", "after"] = option(
    "before",
    "before: x + f(norm(x)), and a norm before the head. after: norm(x + f(x)), as in BERT (arXiv"
    " 1810.04805), and none before the head",
  )
  embedding_norm: bool = option(False, "one more norm, of what the first layer reads (BERT)")
  activation: Literal["gelu", "gelu_exact", "swiglu"] = option(
    "gelu", "of the MLP; gelu: its tanh form (GPT-2), gelu_exact: by the error function (BERT)"
  )
  mlp_bias: bool = option(False, "biases on the linear maps of the MLP")
  attention_bias: Literal["none", "qkv", "all"] = option(
    "none", "biases on queries, keys and values (Qwen2), or on the output too (GPT-2, BERT)"
  )
  positions: Literal["rotary", "learned"] = option(
    "rotary", "queries and keys are turned, or a table of positions is added to the embedding"
  )
  max_positions: int = option(0, "learned: rows of the table of positions", ge=0)
  position_offset: int = option(
    0,
    "learned: added to a position to find its row of the table; 1 where rows begin with a token at"
    " position -1 (context next_token, answer_shift)",
    ge=0,
  )
  token_types: int = option(
    0, "rows of a table of token types, of which the first is added to every token (BERT: 2)", ge=0
  )
  rope_base: float = option(10_000.0, "base of the rotary positions", gt=0, le=5e8)
  rope_scaling: float = option(
    1.0,
    "what rope_base is multiplied by, for rows longer than those of training"
    " (model/long_context.py); no parameter depends on it",
    ge=1,
  )
  rope_kind: RopeKind = option(
    "plain",
    "how rotary positions are slowed for longer rows, as in published checkpoints"
    " (model/long_context.py). plain: they are not",
  )
  rope_factor: float = option(1.0, "rope_kind: how many times as long rows may be", ge=1)
  rope_trained_length: int = option(
    0, "rope_kind: positions of the rows that the model was trained on before", ge=0
  )
  rope_slow_turns: float = option(
    1.0, "llama3, yarn: pairs with fewer turns in the trained length are slowed in full", gt=0
  )
  rope_fast_turns: float = option(
    32.0, "llama3 (4 is published), yarn (32): pairs with more turns are not slowed", gt=0
  )
  rope_gain: float = option(
    1.0, "yarn: what cosines and sines are multiplied by, its attention factor", gt=0
  )
  rope_whole_pairs: bool = option(
    True, "yarn: the pairs that bound the slowing are rounded outwards to whole ones"
  )
  window: int = option(
    0,
    "positions that a token sees to each side, itself included, in layers with a window: a key is"
    " seen if its position differs by less. 0: no layer has one",
    ge=0,
  )
  full_layers: tuple[int, ...] = option(
    (), "window: numbers of layers, from 0, without it; (): every layer has it"
  )
  qk_norm: bool = option(False, "RMSNorm on each query and key head (arXiv 2302.05442)")
  embedding_std: float = option(
    0.02,
    "standard deviation of the tables of ids, vectors, positions and types before training. At 0.02"
    " the first layer adds to each token a vector many times as long as that of the token; at 1"
    " later layers can still read the token, and small networks learn look-ups sooner"
    " (docs/results.md). On text 0.02 is a little better. A head tied to a table of 1 begins with"
    " logits that are far too large",
    gt=0,
  )
  tie_embeddings: bool = option(False, "the head is the table that embeds the tokens")
  head_bias: bool | None = option(
    None, "a bias on the logits; None: where the head is a matrix of its own"
  )
  head_transform: bool = option(
    False, "a linear map, gelu_exact and a norm before the head, as in BERT's masked model"
  )
  unanswered: tuple[int, ...] = option(
    (), "ids that are read and never answered, such as a mask inside the vocabulary: logit -1e30"
  )
  time_conditioning: Literal["none", "adaln", "layerwise", "prefix"] = option(
    "none",
    "how the network is shown the time. adaln: the time of each token shifts, scales and gates"
    " every branch (DiT, arXiv 2212.09748). layerwise: a map of the time of each token is added to"
    " the input of every layer; prefix: one more position, seen by all, holds the mean time of the"
    " row (both DiffusionBERT, arXiv 2211.15029 section 3.3)",
  )
  time_width: int = option(128, "width of the time embedding", ge=1)
  time_signal: Literal["thousands", "time", "loglinear", "geometric"] = option(
    "thousands",
    "the number that the time embedding has waves of. thousands: 1000 t. time: t (GIDD). loglinear:"
    " -log(1 - 0.999 t), the noise of the linear schedule (SEDD, MDLM, UDLM, Duo). geometric:"
    " sigma_min^(1 - t) sigma_max^t (SEDD)",
  )
  time_sigmas: tuple[float, float] = option(
    (1e-4, 20.0), "geometric: the noise at t = 0 and t = 1 (SEDD's released values)"
  )
  time_in_head: bool = option(
    False, "adaln: the time shifts and scales the last norm too, as in DiT; without gate"
  )
  dropout: float = option(0.0, "probability with which a branch's number is dropped", ge=0, lt=1)
  dropout_in: Literal["both", "attention", "mlp"] = option(
    "both", "the branches of a layer with dropout: attention and MLP, or one of them"
  )
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
    ("pallas_tpu", "pallas_gpu", "cudnn", "xla"), "implementations, tried in order", min_length=1
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
  low_rank: LowRank | None = part(
    LOW_RANK, None, "a change of low rank of chosen matrices, trained alone (model/low_rank.py)"
  )
  quantized: Quantized | None = part(
    QUANTIZED, None, "chosen matrices as integers, which do not move (model/quantized/)"
  )
  input_sizes: InputSizes = internal()
  output_size: int = internal()
  estimate_size: int = internal(0)
  observed: bool = internal(False)  # the inputs of the matrices are watched, for calibration

  def __post_init__(self):
    if self.table_size < 1 or self.output_size < 1:
      raise ValueError(
        f"input_sizes={self.input_sizes} and output_size={self.output_size} must be positive; take"
        " those of the process"
      )
    self._check_heads()
    self._check_norms()
    self._check_positions()
    self._check_rope()
    self._check_window()
    self._check_time()
    self._check_unanswered()
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
    if self.head_width is not None and self.head_width % 2:
      raise ValueError(
        f"head_width={self.head_width} must be even, as rotary positions turn pairs; 64 is usual"
      )
    if self.head_width is None and (self.width % heads or (self.width // heads) % 2):
      raise ValueError(
        f"heads={heads} must divide width={self.width} into even head widths, as rotary positions"
        " turn pairs; or set head_width"
      )
    if heads % kv_heads:
      raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")

  def _check_norms(self) -> None:
    if self.norm_bias and self.norm == "rmsnorm":
      raise ValueError("norm_bias=True is for norm='layernorm'; an rmsnorm has a scale only")
    if self.norm_place == "before":
      return
    if self.time_conditioning == "adaln":
      raise ValueError(
        "norm_place='after' with time_conditioning='adaln', which shifts and scales what a norm"
        " before a branch gives; use 'layerwise' or 'prefix'"
      )
    if self.first_stage_layers:
      raise ValueError(
        f"norm_place='after' with first_stage_layers={self.first_stage_layers}, whose answer is"
        " added to a stream without norms; use norm_place='before'"
      )

  def _check_positions(self) -> None:
    if self.positions == "learned" and self.max_positions <= self.position_offset:
      raise ValueError(
        f"positions='learned' needs rows: max_positions={self.max_positions} must be above"
        f" position_offset={self.position_offset}; 1024 is usual"
      )
    if self.positions == "rotary" and (self.max_positions or self.position_offset):
      raise ValueError(
        f"max_positions={self.max_positions} and position_offset={self.position_offset} are read"
        " with positions='learned' only; leave them unset"
      )
    if self.positions == "learned" and self.rope_scaling != 1:
      raise ValueError(
        f"rope_scaling={self.rope_scaling} turns rotary positions, and positions='learned' are rows"
        " of a table; leave it at 1"
      )

  def _check_unanswered(self) -> None:
    wrong = [id for id in self.unanswered if not 0 <= id < self.output_size]
    if wrong:
      raise ValueError(f"unanswered={self.unanswered} must be ids of 0 … {self.output_size - 1}")
    if len(set(self.unanswered)) == self.output_size:
      raise ValueError(f"unanswered={self.unanswered} leaves no id to answer with; leave some out")
    if self.unanswered and self.first_stage_layers:
      raise ValueError(
        f"unanswered={self.unanswered} with first_stage_layers={self.first_stage_layers}, whose"
        " head answers every id; use one stage"
      )

  def _check_rope(self) -> None:
    kind, length = self.rope_kind, self.rope_trained_length
    unread = [name for name in self._changed(ROPE_KINDS["yarn"]) if name not in ROPE_KINDS[kind]]
    if unread:
      kinds = [other for other, names in ROPE_KINDS.items() if unread[0] in names]
      raise ValueError(
        f"{unread[0]}={getattr(self, unread[0])!r} is not read with rope_kind={kind!r}, but with"
        f" {', '.join(kinds)}; set one of these, or leave {unread[0]} unset"
      )
    if kind == "plain":
      return
    if self.positions == "learned":
      raise ValueError(
        f"rope_kind={kind!r} slows rotary positions, and positions='learned' are rows of a table;"
        " use 'plain'"
      )
    if kind != "linear" and length < 1:
      raise ValueError(
        f"rope_kind={kind!r} goes by the length of earlier training, and"
        f" rope_trained_length={length}; set it (original_max_position_embeddings)"
      )
    if kind in ("llama3", "yarn") and not self.rope_slow_turns < self.rope_fast_turns:
      raise ValueError(
        f"rope_slow_turns={self.rope_slow_turns} must be below"
        f" rope_fast_turns={self.rope_fast_turns}; 1 and 4 (llama3) or 1 and 32 (yarn) are"
        " published"
      )
    if kind == "yarn" and self.rope_base * self.rope_scaling <= 1:
      raise ValueError(f"rope_kind='yarn' needs rope_base={self.rope_base} above 1; 10000 is usual")
    if kind == "dynamic" and self.sizes.head_width < 4:
      raise ValueError(
        f"rope_kind='dynamic' needs heads of at least 4 numbers, not {self.sizes.head_width}"
      )

  def _changed(self, names: tuple[str, ...]) -> list[str]:
    """Of these options, those that are not at their default."""
    fields = type(self).__pydantic_fields__
    return [name for name in names if getattr(self, name) != fields[name].default]

  def _check_window(self) -> None:
    if not self.window and self.full_layers:
      raise ValueError(
        f"full_layers={self.full_layers} are those without a window, and window=0 gives none to"
        " any layer; set window"
      )
    wrong = [number for number in self.full_layers if not 0 <= number < self.layers]
    if wrong:
      raise ValueError(
        f"full_layers={self.full_layers} must be layers of 0 … {self.layers - 1}; there is no"
        f" {wrong[0]}"
      )
    if self.window and len(set(self.full_layers)) == self.layers:
      raise ValueError(
        f"window={self.window} with full_layers={self.full_layers}, which are all layers; use"
        " window=0"
      )
    if self.window and self.time_conditioning == "prefix":
      raise ValueError(
        f"window={self.window} hides the prefix of time_conditioning='prefix' from most tokens; use"
        " 'adaln' or 'layerwise'"
      )

  def _check_time(self) -> None:
    if self.time_in_head and self.time_conditioning != "adaln":
      raise ValueError(
        "time_in_head=True is a part of time_conditioning='adaln', and it is"
        f" {self.time_conditioning!r}; set 'adaln'"
      )
    if self.time_conditioning == "none" and self.time_signal != "thousands":
      raise ValueError(
        f"time_signal={self.time_signal!r} is read by a network that reads the time; set"
        " time_conditioning"
      )
    if self.time_signal != "geometric" and self._changed(("time_sigmas",)):
      raise ValueError(
        f"time_sigmas={self.time_sigmas} are read with time_signal='geometric', and it is"
        f" {self.time_signal!r}; set it, or leave them unset"
      )
    low, high = self.time_sigmas
    if not 0 < low < high:
      raise ValueError(
        f"time_sigmas={self.time_sigmas} must rise from above 0; (0.0001, 20.0) is usual"
      )

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
    if self.mlp_bias or self.activation == "gelu_exact":
      raise ValueError(
        f"experts={self.experts} have no biases and no exact gelu; use mlp_bias=False and"
        " activation='gelu' or 'swiglu'"
      )

  @property
  def sizes(self) -> Sizes:
    """H, G, K and F, with those that were left open filled in."""
    heads = self.heads or max(1, self.width // 64)
    return Sizes(
      heads,
      self.kv_heads or heads,
      self.head_width or self.width // heads,
      self.mlp_width or 4 * self.width,
    )

  @property
  def has_head_bias(self) -> bool:
    """True if the logits have a bias: as `head_bias` says, or else where the head is not tied."""
    return not self.tie_embeddings if self.head_bias is None else self.head_bias

  @property
  def table_size(self) -> int:
    """Rows of the table "embedding": ids, or the numbers of a vector where no ids are read."""
    return self.input_sizes.ids or self.input_sizes.vectors
