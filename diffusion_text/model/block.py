"""One layer of the transformer: attention and MLP, each with a norm, and the times of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.kernels.layout import Window
from diffusion_text.model.cache import heads_of, put_heads
from diffusion_text.model.experts import Experts, Routing
from diffusion_text.model.layers import MLP, Linear, RMSNorm, dropout, norm_of, rotate
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.parallel import attention
from diffusion_text.types import Key, Layout


class Stores(NamedTuple):
  """Keys and values of a layer, [B, G, S, K], or of all layers, as in `SlotCache`."""

  keys: Any
  values: Any


class Shared(NamedTuple):
  """What every layer reads in addition to the stream.

  Attributes:
    rotary: cosines and sines of the positions of the tokens, [B or 1, L, 1, K / 2]; None where
      positions are learned.
    layout: of the tokens.
    key_layout: of what they attend to: the tokens, or the slots of a cache.
    slots: int32 [B, L], where the tokens are written in the cache; None: there is no cache.
    condition: [B, L, C], the time of each token as the layers read it ([B, 1, C] if a row has one
      time), or None.
    weights: float32 [B, L], what each token weighs in the losses of routers, or None.
    t: float32 [B, L], the time of each token, by which the loads of routers are told apart; None:
      there is no router.
    window: how far tokens see in this layer, or None.
    windowed: bool [], whether this layer has the window, where layers are one program; None: known
      when that is compiled.
    answered: a function [B or 1, L, …] -> [B or 1, N, …] that takes the part of the N answered
      tokens out of an array of all L tokens, for a last layer that computes the answered tokens
      alone and reads the others as keys; None: all tokens are computed.
  """

  rotary: tuple[Array, Array] | None
  layout: Layout
  key_layout: Layout
  slots: Int[Array, "B L"] | None
  condition: Float[Array, "B L1 C"] | None
  weights: Float[Array, "B L"] | None
  t: Float[Array, "B L"] | None
  window: Window | None = None
  windowed: Bool[Array, ""] | None = None
  answered: Callable[[Array], Array] | None = None

  def of_queries(self) -> Shared:
    """The same with the rotary angles, layout and window of the computed tokens alone, which are
    the queries of attention.
    """
    if self.answered is None:
      return self
    window = self.window
    if window is not None:
      window = window._replace(query=self.answered(window.query))
    rotary, layout = jax.tree.map(self.answered, (self.rotary, self.layout))
    return self._replace(rotary=rotary, layout=layout, window=window)

  def of_each(self, x: Float[Array, "B L1 D"]) -> Float[Array, "B N1 D"]:
    """The part of x that belongs to the computed tokens; x itself if all tokens are computed, or if
    x holds one value for all of them.
    """
    return x if self.answered is None or x.shape[1] == 1 else self.answered(x)


class Attention(nnx.Module):
  """Grouped-query self-attention under a layout, or attention to a cache."""

  def __init__(self, config: TransformerOptions, *, std: float, std_out: float, rngs: nnx.Rngs):
    self.config = config
    sizes = config.sizes
    inner = sizes.heads * sizes.head_width
    kv_inner = sizes.kv_heads * sizes.head_width
    bias, out_bias = config.attention_bias != "none", config.attention_bias == "all"
    self.query = Linear(config.width, inner, std=std, rngs=rngs, bias=bias)
    self.key = Linear(config.width, kv_inner, std=std, rngs=rngs, bias=bias)
    self.value = Linear(config.width, kv_inner, std=std, rngs=rngs, bias=bias)
    self.out = Linear(inner, config.width, std=std_out, rngs=rngs, bias=out_bias)
    normed, eps = config.qk_norm, config.norm_eps
    self.query_norm = RMSNorm(sizes.head_width, eps=eps) if normed else None
    self.key_norm = RMSNorm(sizes.head_width, eps=eps) if normed else None

  def __call__(
    self,
    x: Float[Array, "B L D"],
    shared: Shared,
    number: Int[Array, ""] | None,
    stores: Stores | None,
  ) -> tuple[Float[Array, "B N D"], Stores | None]:
    """(the result of the tokens that are computed, the stores with the keys and values of all
    tokens written).

    number: of this layer in stores that are stacked over layers; None: the stores are its own.
    """
    asking, asked = shared.of_queries(), shared.of_each(x)
    width = self.config.sizes.head_width
    q = self.query(asked).reshape(*asked.shape[:2], -1, width)
    k, v = (project(x).reshape(*x.shape[:2], -1, width) for project in (self.key, self.value))
    if self.query_norm is not None:
      q = self.query_norm(q)
      k = self.key_norm(k)
    if shared.rotary is not None:
      q = rotate(q, *asking.rotary)
      k = rotate(k, *shared.rotary)
    if stores is not None:
      stores = Stores(
        put_heads(stores.keys, k, shared.slots, number),
        put_heads(stores.values, v, shared.slots, number),
      )
      k = heads_of(stores.keys, number)
      v = heads_of(stores.values, number)
    out = self._mixed(q, k, v, asking)
    return self.out(out.reshape(*asked.shape[:2], -1)), stores

  def _mixed(
    self,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    shared: Shared,
  ) -> Float[Array, "B L H K"]:
    """What each token takes of those that it sees in this layer."""

    def mixed(window):
      layouts = (shared.layout, shared.key_layout)
      return attention(q, k, v, *layouts, self.config.attention, window)

    if shared.windowed is None:
      return mixed(shared.window)
    return jax.lax.cond(shared.windowed, lambda: mixed(shared.window), lambda: mixed(None))


class Block(nnx.Module):
  """One layer, whose time is read per token: by adaLN-zero, or as a term of the input."""

  def __init__(self, config: TransformerOptions, *, rngs: nnx.Rngs):
    self.config = config
    std = config.width**-0.5
    # The variance of the residual stream stays of order 1 at any depth.
    depth = (2 * config.layers) ** 0.5
    self.attention_norm = norm_of(config)
    self.mlp_norm = norm_of(config)
    self.attention = Attention(config, std=std, std_out=std / depth, rngs=rngs)
    if config.experts:
      self.mlp = Experts(config, std=std, depth=depth, rngs=rngs)
    else:
      hidden = config.sizes.mlp_width
      out = hidden**-0.5 / depth
      kind, bias = config.activation, config.mlp_bias
      self.mlp = MLP(config.width, hidden, kind, std=std, std_out=out, rngs=rngs, bias=bias)

    def of_time(outputs):
      return Linear(config.time_width, outputs * config.width, std=0.0, rngs=rngs, bias=True)

    self.modulation = of_time(6) if config.time_conditioning == "adaln" else None
    self.time_input = of_time(1) if config.time_conditioning == "layerwise" else None

  def __call__(
    self,
    x: Float[Array, "B L D"],
    shared: Shared,
    number: Int[Array, ""] | None,
    key: Key | None,
    stores: Stores | None,
  ) -> tuple[Float[Array, "B N D"], Stores | None, Routing | None]:
    """The next stream of the tokens that are computed, the stores with these tokens in them, and
    the losses of a router."""
    config = self.config
    attention_rate = 0.0 if config.dropout_in == "mlp" else config.dropout
    mlp_rate = 0.0 if config.dropout_in == "attention" else config.dropout
    attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
    if self.time_input is not None:
      x = x + self.time_input(shared.condition)
    if self.modulation is None:
      before, after = self._before, self._after
      h, stores = self.attention(before(self.attention_norm, x), shared, number, stores)
      x = shared.of_each(x)
      x = after(self.attention_norm, x + dropout(h, attention_rate, attention_key))
      h, routing = self._mlp(before(self.mlp_norm, x), shared)
      return after(self.mlp_norm, x + dropout(h, mlp_rate, mlp_key)), stores, routing
    modulation = self.modulation(shared.condition)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
    h = self.attention_norm(x) * (1 + scale_a) + shift_a
    h, stores = self.attention(h, shared, number, stores)
    gate_a, shift_m, scale_m, gate_m = map(shared.of_each, (gate_a, shift_m, scale_m, gate_m))
    x = shared.of_each(x) + gate_a * dropout(h, attention_rate, attention_key)
    h, routing = self._mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m, shared)
    return x + gate_m * dropout(h, mlp_rate, mlp_key), stores, routing

  def values(
    self, x: Float[Array, "B L D"], condition: Float[Array, "B L1 C"] | None
  ) -> Float[Array, "B L F"]:
    """The values of the attention; in a first layer those of a token depend on that token alone.

    condition: as in `Shared`.
    """
    if self.time_input is not None:
      x = x + self.time_input(condition)
    h = self._before(self.attention_norm, x)
    if self.modulation is not None:
      shift, scale = jnp.split(self.modulation(condition), 6, axis=-1)[:2]
      h = h * (1 + scale) + shift
    return self.attention.value(h)

  def _before(self, norm: nnx.Module, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """What a branch reads of the stream."""
    return norm(x) if self.config.norm_place == "before" else x

  def _after(self, norm: nnx.Module, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """The stream to which a branch has been added."""
    return x if self.config.norm_place == "before" else norm(x)

  def _mlp(
    self, x: Float[Array, "B L D"], shared: Shared
  ) -> tuple[Float[Array, "B L D"], Routing | None]:
    if self.config.experts:
      return self.mlp(x, shared.weights, shared.t)
    return self.mlp(x), None
