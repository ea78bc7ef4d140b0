"""The one transformer: pre-norm, rotary, any layout, optional per-token time, one stage or two, and an unembedding that is only
called where needed.

`Network.create(config)` gives two pure functions, `init(key) -> params` and `apply(params, inputs, t, layout, key) -> Prediction`;
flax nnx stays inside this folder. Layers are stored stacked ([layers, ...] per weight) whether they are scanned or unrolled,
so a checkpoint does not depend on that choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_text.kernels.block_sizes import target
from diffusion_text.model.anchor import Anchor
from diffusion_text.model.experts import Experts, Mixture, Routing
from diffusion_text.model.layers import (
  MLP,
  NORMS,
  Linear,
  RMSNorm,
  TimeEmbedding,
  dropout,
  embed,
  rotary_angles,
  rotate,
  unembed,
)
from diffusion_text.model.parallel import attention, placed
from diffusion_text.model.recall import check_recall, make_recall, reader, told
from diffusion_text.types import Array, Inputs, Key, Layout, Params, Prediction, Time

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# How the network is told the time. adaln: adaLN-zero, each token's own t shifts, scales and gates every branch (DiT, arXiv
# 2212.09748). layerwise: a map of each token's own t is added to the input of every layer; prefix: one more position, seen by all,
# holds the row's t (both DiffusionBERT, arXiv 2211.15029 section 3.3).
TIME_CONDITIONING = ("none", "adaln", "layerwise", "prefix")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and choices of the network; every field is a config key of the same name (`config.model.…`).

  vocab_size V is the clean vocabulary (logits), input_size the ids that may be read (V + 1 with a noise symbol).
  """

  vocab_size: int
  input_size: int
  layers: int
  width: int  # D
  heads: int  # H
  kv_heads: int  # G; fewer than heads is grouped-query attention (arXiv 2305.13245)
  mlp_width: int  # F
  norm: str  # "rmsnorm" or "layernorm"
  activation: str  # "gelu" or "swiglu"
  rope_base: float
  qk_norm: bool  # RMSNorm on each query and key head (arXiv 2302.05442)
  tie_embeddings: bool
  time_conditioning: (
    str  # one of TIME_CONDITIONING; False and True, in older configs, are "none" and "adaln"
  )
  time_width: int
  dropout: float
  dtype: str  # of the network's matmuls; parameters and logits are float32
  scan_layers: bool | None  # None: scan, except on CPU, where it costs about 11 %
  remat: str  # "none", "full" (keep block inputs only) or "dots" (keep matmul results)
  attention: Sequence[str]  # implementations, tried in order
  anchor_layers: int = 0  # of the layers, those of a first stage whose answer the others read (model/anchor.py); 0: one stage
  self_conditioning: str = (
    "none"  # "none", "add" or "mean": how it reads its own last answer (model/recall.py)
  )
  absent: str = "zeros"  # or "uniform": what stands in where there is no answer yet
  estimate_size: int = 0  # numbers per token of the estimates that it is told
  experts: int = 0  # MLPs that a router chooses from (model/experts.py), instead of one of mlp_width; 0: that one
  experts_per_token: int = 0
  expert_width: int = 0  # of each
  shared_width: int = 0  # of an MLP that every token passes besides
  balance_weight: float = 0.0
  router_z_weight: float = 0.0

  def __post_init__(self):
    spelled = {False: "none", True: "adaln"}.get(self.time_conditioning, self.time_conditioning)
    object.__setattr__(self, "time_conditioning", spelled)
    tables = {"norm": NORMS, "activation": ("gelu", "swiglu"), "remat": REMAT, "dtype": DTYPES}
    for name, table in (tables | {"time_conditioning": TIME_CONDITIONING}).items():
      if getattr(self, name) not in table:
        raise ValueError(
          f"model.{name}={getattr(self, name)!r} is unknown; use one of {sorted(table)}"
        )
    if not 0 <= self.anchor_layers < max(self.layers, 1):
      raise ValueError(
        f"model.anchor_layers={self.anchor_layers} must be at least 0 and below model.layers={self.layers}; two thirds are usual"
      )
    if self.width % self.heads or (self.width // self.heads) % 2:
      raise ValueError(
        f"model.heads={self.heads} must divide model.width={self.width} into even head widths (rotary turns pairs)"
      )
    if self.tie_embeddings and self.input_size < self.vocab_size:
      raise ValueError(
        f"model.tie_embeddings=True needs a row of the table for each of {self.vocab_size} tokens, and there are {self.input_size}"
        " (the coordinates of an embedding); use False"
      )
    check_recall(
      self.self_conditioning, self.absent, (self.vocab_size, self.input_size, self.estimate_size)
    )
    if self.heads % self.kv_heads:
      raise ValueError(f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"model.dropout={self.dropout} must be in [0, 1)")
    of_experts = (
      "experts_per_token",
      "expert_width",
      "shared_width",
      "balance_weight",
      "router_z_weight",
    )
    if not self.mixture and any(getattr(self, name) for name in of_experts):
      raise ValueError(
        f"model.experts={self.experts} has no use for any of model.{', '.join(of_experts)}; leave them unset"
      )

  @property
  def head_width(self) -> int:
    return self.width // self.heads

  @property
  def mixture(self) -> Mixture | None:
    """The mixture of experts that takes the place of the MLP, if there is one."""
    sizes = self.experts, self.experts_per_token, self.expert_width, self.shared_width
    return Mixture(*sizes, self.balance_weight, self.router_z_weight) if self.experts else None


class Past(NamedTuple):
  """What one layer attends to besides its own tokens: keys and values [B, S, G, K], and the layout of all S + L keys."""

  keys: Array
  values: Array
  layout: Layout


class Attention(nnx.Module):
  """Grouped-query self-attention under a layout: x [B, L, D] -> [B, L, D], and its own keys and values [B, L, G, K]."""

  def __init__(self, config: TransformerConfig, *, std: float, std_out: float, rngs: nnx.Rngs):
    self.config = config
    inner, kv_inner = config.heads * config.head_width, config.kv_heads * config.head_width
    self.query = Linear(config.width, inner, std=std, rngs=rngs)
    self.key = Linear(config.width, kv_inner, std=std, rngs=rngs)
    self.value = Linear(config.width, kv_inner, std=std, rngs=rngs)
    self.out = Linear(inner, config.width, std=std_out, rngs=rngs)
    self.query_norm = RMSNorm(config.head_width) if config.qk_norm else None
    self.key_norm = RMSNorm(config.head_width) if config.qk_norm else None

  def __call__(
    self, x: Array, rotary: tuple[Array, Array], layout: Layout, past: Past | None
  ) -> tuple[Array, tuple[Array, Array]]:
    heads = lambda flat: flat.reshape(*x.shape[:2], -1, self.config.head_width)
    q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
    if self.query_norm is not None:
      q, k = self.query_norm(q), self.key_norm(k)
    q, k = rotate(q, *rotary), rotate(k, *rotary)
    keys, values, k_layout = k, v, layout
    if past is not None:
      keys, values = (
        jnp.concatenate([past.keys, k], axis=1),
        jnp.concatenate([past.values, v], axis=1),
      )
      k_layout = past.layout
    out = attention(q, keys, values, layout, k_layout, tuple(self.config.attention))
    return self.out(out.reshape(*x.shape[:2], -1)), (k, v)


class Block(nnx.Module):
  """One pre-norm layer. A condition [B, 1 or L, C] is read per token, by adaLN-zero or as a term added to the input."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    std = config.width**-0.5
    std_out = (
      std / (2 * config.layers) ** 0.5
    )  # keeps the residual stream's variance of order 1 at any depth
    norm = NORMS[config.norm]
    self.attention_norm, self.mlp_norm = norm(config.width), norm(config.width)
    self.attention = Attention(config, std=std, std_out=std_out, rngs=rngs)
    mlp_out = lambda hidden: hidden**-0.5 / (2 * config.layers) ** 0.5
    if config.mixture:
      self.mlp = Experts(
        config.width, config.mixture, config.activation, std=std, std_out=mlp_out, rngs=rngs
      )
    else:
      self.mlp = MLP(
        config.width,
        config.mlp_width,
        config.activation,
        std=std,
        std_out=mlp_out(config.mlp_width),
        rngs=rngs,
      )
    of_time = lambda outputs: Linear(
      config.time_width, outputs * config.width, std=0.0, rngs=rngs, bias=True
    )
    self.modulation = of_time(6) if config.time_conditioning == "adaln" else None
    self.time_input = of_time(1) if config.time_conditioning == "layerwise" else None

  def __call__(
    self,
    x: Array,
    rotary: tuple[Array, Array],
    layout: Layout,
    condition: Array | None,
    key: Key | None,
    past: Past | None = None,
    counted: Array | None = None,
  ) -> tuple[Array, tuple[Array, Array], Routing | None]:
    """The next x, this layer's own keys and values [B, L, G, K], and the losses of its router, if it has one."""
    keys = (None, None) if key is None else jax.random.split(key)
    if self.time_input is not None:
      x = x + self.time_input(condition)
    if self.modulation is None:
      h, own = self.attention(self.attention_norm(x), rotary, layout, past)
      x = x + dropout(h, self.config.dropout, keys[0])
      h, routing = self._mlp(self.mlp_norm(x), counted)
      return x + dropout(h, self.config.dropout, keys[1]), own, routing
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
      self.modulation(condition), 6, axis=-1
    )
    h, own = self.attention(self.attention_norm(x) * (1 + scale_a) + shift_a, rotary, layout, past)
    x = x + gate_a * dropout(h, self.config.dropout, keys[0])
    h, routing = self._mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m, counted)
    return x + gate_m * dropout(h, self.config.dropout, keys[1]), own, routing

  def _mlp(self, x: Array, counted: Array | None) -> tuple[Array, Routing | None]:
    return self.mlp(x, counted) if self.config.mixture else (self.mlp(x), None)


class Transformer(nnx.Module):
  """Embedding, blocks, final norm, unembedding. Built once by `Network.create`, used only through it."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    table = 0.02 * jax.random.normal(rngs.params(), (config.input_size, config.width), jnp.float32)
    self.embedding = nnx.Param(table)
    self.time = (
      TimeEmbedding(config.time_width, rngs=rngs) if config.time_conditioning != "none" else None
    )

    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
      return Block(config, rngs=rngs)

    self.blocks = stacked(rngs)
    self.final_norm = NORMS[config.norm](config.width)
    # Zeros: before training the prediction is exactly uniform, so the first loss is log V whatever the width.
    self.head = (
      None
      if config.tie_embeddings
      else Linear(config.width, config.vocab_size, std=0.0, rngs=rngs, bias=True)
    )
    self.anchor = (
      Anchor(config.width, config.vocab_size, config.norm, rngs=rngs)
      if config.anchor_layers
      else None
    )
    self.recall = make_recall(
      config.self_conditioning, config.absent, config.estimate_size, config.width
    )
    prefix = config.time_conditioning == "prefix"
    self.prefix = (
      Linear(config.time_width, config.width, std=config.time_width**-0.5, rngs=rngs, bias=True)
      if prefix
      else None
    )

  def __call__(
    self,
    inputs: Inputs,
    t: Time,
    layout: Layout,
    key: Key | None,
    past: Past | None = None,
    counted: Array | None = None,
  ) -> tuple[Prediction, tuple[Array, Array] | None]:
    """The prediction; and with a past (its fields stacked over layers), the keys and values of these tokens, stacked too.

    A time prefix is of the segment of the row's first token and serves that one only: padding on the right reads no time. Raises
    ValueError for a time prefix with a past.
    """
    config, length = self.config, inputs.shape[1]
    table = self.embedding[...]
    x, recall = (
      told(self.recall, self._embed(inputs), inputs, t, table),
      reader(self.recall, table, config.dtype),
    )
    position = (
      jnp.arange(length, dtype=jnp.int32)[None] if inputs.position is None else inputs.position
    )
    condition = prefix = None
    if self.prefix is not None:
      prefix = self._prefix(x, t, layout, past)
      position, layout = (
        jnp.pad(position, ((0, 0), (1, 0)), constant_values=-1),
        _seen_by_all(layout),
      )
      counted = None if counted is None else jnp.pad(counted, ((0, 0), (1, 0)))
    elif self.time is not None:
      condition = self.time(t).astype(x.dtype)
    rotary = rotary_angles(position, config.head_width, config.rope_base)

    def stage(x, layers):
      x = x if prefix is None else jnp.concatenate([prefix, x], axis=1)
      x, *rest = self._layers(x, layers, rotary, layout, condition, key, past, counted)
      return (x if prefix is None else x[:, 1:]), rest

    params = nnx.split(self.blocks)[1]
    layers = (params, jnp.arange(config.layers), None if past is None else (past.keys, past.values))
    if self.anchor is None:
      x, (own, routing) = stage(x, layers)
      return self._predict(x, None, recall, routing), own
    first, second = _split(layers, [config.anchor_layers, config.layers - config.anchor_layers])
    x, of_first = stage(x, first)
    anchor = self.anchor.predict(x)
    x, of_second = stage(x + self.anchor.read(anchor.features), second)
    own, routing = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), of_first, of_second)
    return self._predict(x, anchor, recall, routing), own

  def _predict(
    self, x: Array, anchor: Prediction | None, recall: Callable | None, routing: Routing | None
  ) -> Prediction:
    auxiliary = None if routing is None else self.config.mixture.auxiliary(routing)
    return Prediction(self.final_norm(x), self._unembed, anchor, recall, auxiliary)

  def _embed(self, inputs: Inputs) -> Array:
    """[B, L, D]: what stands at each position. Raises ValueError for vectors of another size than the table."""
    table, dtype = self.embedding[...], DTYPES[self.config.dtype]
    if inputs.vectors is None:
      return embed(table, inputs.ids, inputs.weights, dtype)
    size = inputs.vectors.shape[-1]
    if size != table.shape[0]:
      raise ValueError(
        f"vectors of {size} numbers do not fit input_size={table.shape[0]}; build the network for this process"
      )
    return (inputs.vectors.reshape(-1, size).astype(dtype) @ table.astype(dtype)).reshape(
      *inputs.shape, -1
    )

  def _prefix(self, x: Array, t: Time, layout: Layout, past: Past | None) -> Array:
    """[B, 1, D]: what the prefix position holds, from the mean time of the tokens of its segment that are not clean."""
    if past is not None:
      raise ValueError(
        "model.time_conditioning='prefix' is one position of a whole row and cannot serve a cache of finished blocks; use 'adaln'"
        " or 'layerwise'"
      )
    t = jnp.broadcast_to(t, (x.shape[0], t.shape[1])).astype(jnp.float32)
    if layout.segment is not None:
      t = jnp.where(layout.segment == layout.segment[:, :1], t, 0.0)
    mean = jnp.sum(t, axis=1, keepdims=True) / jnp.maximum(jnp.sum(t > 0, axis=1, keepdims=True), 1)
    return self.prefix(self.time(mean).astype(x.dtype))

  def _layers(
    self,
    x: Array,
    layers,
    rotary,
    layout: Layout,
    condition,
    key: Key | None,
    past: Past | None,
    counted,
  ):
    """x after `layers`: stacked parameters, numbers, and keys and values of the past; and the tokens' own keys and values, and the
    routers' losses, each stacked."""
    config = self.config
    block_def = nnx.split(self.blocks)[0]

    def layer(x, each):
      params, number, kv = each
      x = placed(x)
      layer_key = None if key is None else jax.random.fold_in(key, number)
      layer_past = None if past is None else Past(*kv, past.layout)
      x, own, routing = nnx.merge(block_def, params)(
        x, rotary, layout, condition, layer_key, layer_past, counted
      )
      return x, (None if past is None else own, routing)

    if REMAT[config.remat] is not None:
      layer = jax.checkpoint(layer, policy=REMAT[config.remat])
    scan = config.scan_layers if config.scan_layers is not None else target()[0] != "cpu"
    if scan:
      x, rest = jax.lax.scan(layer, x, layers)
      return x, *rest
    rests = []
    for piece in _split(layers, [1] * layers[1].shape[0]):
      x, rest = layer(x, jax.tree.map(lambda leaf: leaf[0], piece))
      rests.append(rest)
    return x, *jax.tree.map(lambda *leaves: jnp.stack(leaves), *rests)

  def _unembed(self, features: Array) -> Array:
    """features [..., D] -> float32 logits [..., V]."""
    if self.head is None:
      return unembed(features, self.embedding[...][: self.config.vocab_size].T, None)
    return unembed(features, self.head.kernel[...], self.head.bias[...])


def _split(layers, sizes: Sequence[int]) -> list:
  """A tree of arrays stacked over layers, cut into runs of so many layers."""
  # lax.split, not indexing: its transpose is one concatenation, where indexing would add up `layers` padded copies.
  leaves, tree = jax.tree.flatten(layers)
  return [
    jax.tree.unflatten(tree, run) for run in zip(*(jax.lax.split(leaf, sizes) for leaf in leaves))
  ]


def _seen_by_all(layout: Layout) -> Layout:
  """The layout with one position before the others that all of the first one's segment see.

  Where all see all, it does too. Otherwise it is clean and of a block below every other: the rule then shows it to all and
  shows it only itself, so that no token's content passes through it.
  """
  segment = (
    None
    if layout.segment is None
    else jnp.concatenate([layout.segment[:, :1], layout.segment], axis=1)
  )
  if layout.block is None and layout.noisy is None:
    return Layout(segment=segment)
  given = next(field for field in (layout.block, layout.noisy) if field is not None)
  block = jnp.zeros_like(given) if layout.block is None else layout.block
  block = jnp.concatenate([jnp.min(block, axis=1, keepdims=True) - 1, block], axis=1)
  return Layout(
    segment, block, None if layout.noisy is None else jnp.pad(layout.noisy, ((0, 0), (1, 0)))
  )


@dataclasses.dataclass(frozen=True)
class Network:
  """The transformer as two pure functions.

  init: key -> params, a nested dict of float32 arrays.
  apply: (params, inputs, t [B, 1 or L], layout, key or None, counted or None) -> Prediction; the key turns dropout on; counted [B, L]
  are the weights of the tokens in the losses of routers, where there are any (None: all the same).
  extend: (params, inputs, t, layout, past) -> (Prediction, (keys, values) [layers, B, L, G, K]): these tokens after those in `past`,
  whose keys and values are [layers, B, S, G, K] and whose layout says how the queries see all S + L keys.
  """

  config: TransformerConfig
  init: Callable[[Key], Params]
  apply: Callable[..., Prediction]
  extend: Callable[[Params, Inputs, Time, Layout, Past], tuple[Prediction, tuple[Array, Array]]]

  @staticmethod
  def create(config: TransformerConfig) -> Network:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))

    def init(key: Key) -> Params:
      return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(key))))

    def apply(
      params: Params, inputs: Inputs, t: Time, layout: Layout, key: Key | None = None, counted=None
    ) -> Prediction:
      return nnx.merge(graph, nnx.State(params))(inputs, t, layout, key, counted=counted)[0]

    def extend(params: Params, inputs: Inputs, t: Time, layout: Layout, past: Past):
      return nnx.merge(graph, nnx.State(params))(inputs, t, layout, None, past)

    return Network(config, init, apply, extend)
