"""The one transformer: pre-norm, rotary, any layout, optional per-token time, and an unembedding that is only called where needed.

`Network.create(config)` gives two pure functions, `init(key) -> params` and `apply(params, inputs, t, layout, key) -> Prediction`;
flax nnx stays inside this folder. Layers are stored stacked ([layers, ...] per weight) whether they are scanned or unrolled,
so a checkpoint does not depend on that choice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_text.kernels.attention import attention
from diffusion_text.model.layers import MLP, NORMS, Linear, RMSNorm, TimeEmbedding, dropout, rotary_angles, rotate
from diffusion_text.model.partition import AXES, ROWS
from diffusion_text.types import Array, Inputs, Key, Layout, Params, Prediction, Time

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
  time_conditioning: bool  # adaLN-zero (arXiv 2212.09748) from each token's own t; masked diffusion needs none
  time_width: int
  dropout: float
  dtype: str  # of the network's matmuls; parameters and logits are float32
  scan_layers: bool | None  # None: scan, except on CPU, where it costs about 11 %
  remat: str  # "none", "full" (keep block inputs only) or "dots" (keep matmul results)
  attention: Sequence[str]  # implementations, tried in order

  def __post_init__(self):
    for name, table in (("norm", NORMS), ("activation", ("gelu", "swiglu")), ("remat", REMAT), ("dtype", DTYPES)):
      if getattr(self, name) not in table:
        raise ValueError(f"model.{name}={getattr(self, name)!r} is unknown; use one of {sorted(table)}")
    if self.width % self.heads or (self.width // self.heads) % 2:
      raise ValueError(
        f"model.heads={self.heads} must divide model.width={self.width} into even head widths (rotary turns pairs)"
      )
    if self.heads % self.kv_heads:
      raise ValueError(f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"model.dropout={self.dropout} must be in [0, 1)")

  @property
  def head_width(self) -> int:
    return self.width // self.heads


class Past(NamedTuple):
  """What one layer attends to besides its own tokens: keys and values [B, S, G, K], and the layout of all S + L keys."""

  keys: Array
  values: Array
  layout: Layout


def sharded_attention(q: Array, k: Array, v: Array, q_layout: Layout, k_layout: Layout, implementation: Sequence[str]) -> Array:
  """`kernels.attention` on each device's own rows and heads, where the mesh in scope (`jax.set_mesh`) splits them.

  The compiler can split XLA attention by itself but not a Pallas kernel, so the split is made by hand for all. Where rows or heads
  do not divide over the mesh, the XLA implementation is used and the split left to the compiler.
  """
  call = lambda q, k, v, q_layout, k_layout: attention(q, k, v, q_layout, k_layout, implementation=implementation)
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  rows, tensor = math.prod(sizes.get(axis, 1) for axis in ROWS), sizes.get(AXES["heads"], 1)
  if rows * tensor == 1:
    return call(q, k, v, q_layout, k_layout)
  if q.shape[0] % rows or q.shape[2] % tensor or k.shape[2] % tensor:
    return attention(q, k, v, q_layout, k_layout, implementation=("xla",))
  heads = PartitionSpec(ROWS, None, AXES["heads"], None)
  of_layout = lambda layout: jax.tree.map(lambda ids: PartitionSpec(ROWS if ids.shape[0] > 1 else None, None), layout)
  in_specs = heads, heads, heads, of_layout(q_layout), of_layout(k_layout)
  return jax.shard_map(call, in_specs=in_specs, out_specs=heads, check_vma=False)(q, k, v, q_layout, k_layout)


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
      keys, values = jnp.concatenate([past.keys, k], axis=1), jnp.concatenate([past.values, v], axis=1)
      k_layout = past.layout
    out = sharded_attention(q, keys, values, layout, k_layout, tuple(self.config.attention))
    return self.out(out.reshape(*x.shape[:2], -1)), (k, v)


class Block(nnx.Module):
  """One pre-norm layer. With a condition [B, 1 or L, C], adaLN-zero shifts, scales and gates each branch per token."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    std = config.width**-0.5
    std_out = std / (2 * config.layers) ** 0.5  # keeps the residual stream's variance of order 1 at any depth
    norm = NORMS[config.norm]
    self.attention_norm, self.mlp_norm = norm(config.width), norm(config.width)
    self.attention = Attention(config, std=std, std_out=std_out, rngs=rngs)
    mlp_out = config.mlp_width**-0.5 / (2 * config.layers) ** 0.5
    self.mlp = MLP(config.width, config.mlp_width, config.activation, std=std, std_out=mlp_out, rngs=rngs)
    modulates = config.time_conditioning
    self.modulation = Linear(config.time_width, 6 * config.width, std=0.0, rngs=rngs, bias=True) if modulates else None

  def __call__(
    self,
    x: Array,
    rotary: tuple[Array, Array],
    layout: Layout,
    condition: Array | None,
    key: Key | None,
    past: Past | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """The next x, and this layer's own keys and values [B, L, G, K]."""
    keys = (None, None) if key is None else jax.random.split(key)
    if self.modulation is None:
      h, own = self.attention(self.attention_norm(x), rotary, layout, past)
      x = x + dropout(h, self.config.dropout, keys[0])
      return x + dropout(self.mlp(self.mlp_norm(x)), self.config.dropout, keys[1]), own
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(self.modulation(condition), 6, axis=-1)
    h, own = self.attention(self.attention_norm(x) * (1 + scale_a) + shift_a, rotary, layout, past)
    x = x + gate_a * dropout(h, self.config.dropout, keys[0])
    h = self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)
    return x + gate_m * dropout(h, self.config.dropout, keys[1]), own


class Transformer(nnx.Module):
  """Embedding, blocks, final norm, unembedding. Built once by `Network.create`, used only through it."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    table = 0.02 * jax.random.normal(rngs.params(), (config.input_size, config.width), jnp.float32)
    self.embedding = nnx.Param(table)
    self.time = TimeEmbedding(config.time_width, rngs=rngs) if config.time_conditioning else None

    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
      return Block(config, rngs=rngs)

    self.blocks = stacked(rngs)
    self.final_norm = NORMS[config.norm](config.width)
    # Zeros: before training the prediction is exactly uniform, so the first loss is log V whatever the width.
    self.head = None if config.tie_embeddings else Linear(config.width, config.vocab_size, std=0.0, rngs=rngs, bias=True)

  def __call__(
    self, inputs: Inputs, t: Time, layout: Layout, key: Key | None, past: Past | None = None
  ) -> tuple[Prediction, tuple[Array, Array] | None]:
    """The prediction; and with a past (its fields stacked over layers), the keys and values of these tokens, stacked too."""
    config, dtype = self.config, DTYPES[self.config.dtype]
    length = inputs.ids.shape[1]
    x = self.embedding[...].astype(dtype)[inputs.ids]
    position = jnp.arange(length, dtype=jnp.int32)[None] if inputs.position is None else inputs.position
    rotary = rotary_angles(position, config.head_width, config.rope_base)
    condition = None if self.time is None else self.time(t).astype(dtype)
    x, own = self._layers(x, rotary, layout, condition, key, past)
    return Prediction(self.final_norm(x), self._unembed), own

  def _layers(self, x: Array, rotary, layout: Layout, condition: Array | None, key: Key | None, past: Past | None):
    config = self.config
    block_def, block_params = nnx.split(self.blocks)

    def layer(x, each):
      params, number, kv = each
      layer_key = None if key is None else jax.random.fold_in(key, number)
      layer_past = None if past is None else Past(*kv, past.layout)
      x, own = nnx.merge(block_def, params)(x, rotary, layout, condition, layer_key, layer_past)
      return x, None if past is None else own

    if REMAT[config.remat] is not None:
      layer = jax.checkpoint(layer, policy=REMAT[config.remat])
    layers = (block_params, jnp.arange(config.layers), None if past is None else (past.keys, past.values))
    scan = config.scan_layers if config.scan_layers is not None else jax.default_backend() != "cpu"
    if scan:
      return jax.lax.scan(layer, x, layers)
    # lax.split, not indexing: its transpose is one concatenation, where indexing would add up `layers` padded copies.
    leaves, tree = jax.tree.flatten(layers)
    pieces = zip(*(jax.lax.split(leaf, [1] * config.layers) for leaf in leaves))
    owns = []
    for piece in pieces:
      x, own = layer(x, jax.tree.unflatten(tree, [leaf[0] for leaf in piece]))
      owns.append(own)
    return x, jax.tree.map(lambda *own: jnp.stack(own), *owns)

  def _unembed(self, features: Array) -> Array:
    """features [..., D] -> float32 logits [..., V]; the matmul runs in the features' dtype and accumulates in float32."""
    if self.head is None:
      kernel = self.embedding[...][: self.config.vocab_size].T.astype(features.dtype)
    else:
      kernel = self.head.kernel[...].astype(features.dtype)
    flat = features.reshape(-1, features.shape[-1])
    logits = jnp.dot(flat, kernel, preferred_element_type=jnp.float32)
    if self.head is not None:
      logits = logits + self.head.bias[...]
    return logits.reshape(*features.shape[:-1], logits.shape[-1])


@dataclasses.dataclass(frozen=True)
class Network:
  """The transformer as two pure functions.

  init: key -> params, a nested dict of float32 arrays.
  apply: (params, inputs, t [B, 1 or L], layout, key or None) -> Prediction; the key turns dropout on.
  extend: (params, inputs, t, layout, past) -> (Prediction, (keys, values) [layers, B, L, G, K]): these tokens after those in `past`,
  whose keys and values are [layers, B, S, G, K] and whose layout says how the queries see all S + L keys.
  """

  config: TransformerConfig
  init: Callable[[Key], Params]
  apply: Callable[[Params, Inputs, Time, Layout, Key | None], Prediction]
  extend: Callable[[Params, Inputs, Time, Layout, Past], tuple[Prediction, tuple[Array, Array]]]

  @staticmethod
  def create(config: TransformerConfig) -> Network:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))

    def init(key: Key) -> Params:
      return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(key))))

    def apply(params: Params, inputs: Inputs, t: Time, layout: Layout, key: Key | None = None) -> Prediction:
      return nnx.merge(graph, nnx.State(params))(inputs, t, layout, key)[0]

    def extend(params: Params, inputs: Inputs, t: Time, layout: Layout, past: Past):
      return nnx.merge(graph, nnx.State(params))(inputs, t, layout, None, past)

    return Network(config, init, apply, extend)


def flops_per_token(config: TransformerConfig, length: int, scored_fraction: float = 1.0) -> float:
  """Multiply-adds × 2 of one forward pass per token: matmuls of layers, attention over `length` keys, unembedding of the
  `scored_fraction` of positions whose logits are read. A training step costs 3x this (backward = 2 forwards)."""
  inner, kv_inner = config.heads * config.head_width, config.kv_heads * config.head_width
  matrices = 3 if config.activation == "swiglu" else 2
  layer = 2 * config.width * (2 * inner + 2 * kv_inner + matrices * config.mlp_width) + 4 * length * inner
  return config.layers * layer + 2 * config.width * config.vocab_size * scored_fraction
