"""A reading that chooses in every layer which tokens are computed again (dLLM-Cache, arXiv
2506.06295; recalled through notes on its code).

Of each token and layer four things are kept: its key, its value, and what attention and MLP gave.
A call sends the streams of all tokens through all layers. In each layer the values of all tokens
are computed, one linear map, and compared by cosine with those that are kept. The tokens whose
values are least alike get a new key and value, then attention over the keys and values of all, then
the MLP. For all other tokens what is kept serves again. The first layer computes all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.model.layers import rotary_angles, rotate
from diffusion_text.model.parallel import attention
from diffusion_text.types import Layout, Prediction, Rows

if TYPE_CHECKING:
  from diffusion_text.model.block import Block
  from diffusion_text.model.body import Body
  from diffusion_text.model.options import TransformerOptions

_SAME = 1e-4  # cosine distances below this are rounding


class Kept(NamedTuple):
  """What is kept of N tokens in one layer.

  Attributes:
    keys, values: [B, N, G, K], keys after their rotation.
    mixed, made: [B, N, D], what attention and MLP gave, before they are gated by time.
  """

  keys: Array
  values: Array
  mixed: Array
  made: Array


class Choice(NamedTuple):
  """How many tokens are computed in each layer.

  Attributes:
    most: a number, for all rows.
    own: int32 [B], so many of these count in a row, the rest is dropped.
    text: bool [B, N], True at text, False at padding, which is never computed again.
  """

  most: int
  own: Int[Array, " B"]
  text: Bool[Array, "B N"]


class Common(NamedTuple):
  """What all layers read beside the stream."""

  rotary: tuple[Array, Array] | None
  layout: Layout
  condition: Array | None


def check_by_layer(config: TransformerOptions) -> None:
  """Raises ValueError for a network whose layers cannot be read so."""
  wrong = {
    "norm_place": config.norm_place != "before",
    "window": config.window > 0,
    "experts": config.experts > 0,
    "first_stage_layers": config.first_stage_layers > 0,
    "time_conditioning": config.time_conditioning == "prefix",
  }
  for name, found in wrong.items():
    if found:
      raise ValueError(
        f"model.{name}={getattr(config, name)!r} cannot be read with a choice of tokens in each"
        " layer; use reader.name='similar_cache', which chooses by the first layer"
      )


def read_by_layer(
  body: Body,
  rows: Rows,
  kept: tuple[Kept, ...] | None,
  choice: Choice | None,
  memory: Float[Array, "B N D"] | None,
) -> tuple[Prediction, tuple[Kept, ...]]:
  """(the answers of all N tokens, what is kept of each layer).

  Layers are compiled one by one, whether or not the network scans them.

  Args:
    body: the layers.
    rows: all N tokens of each row, answered in place.
    kept: of the call before; None: every token is computed in every layer.
    choice: how many tokens are computed, with `kept`.
    memory: as in `Transformer.apply`.
  """
  x, common = beginning(body, rows, memory)
  after = []
  for number, block in enumerate(blocks_of(body)):
    # The values of masks in the first layer are always the same, whatever happens around them.
    before = None if kept is None or number == 0 else kept[number]
    x, own = _layer(block, x, before, choice, common)
    after.append(own)
  return Prediction(body.read_out(x, common.condition), body.output_head()), tuple(after)


def beginning(
  body: Body, rows: Rows, memory: Float[Array, "B N D"] | None
) -> tuple[Float[Array, "B N D"], Common]:
  """(the streams of all tokens before the first layer, what all layers read beside them)."""
  x = body.streams(rows, memory, 1)
  condition = None if body.time is None else body.time(rows.t).astype(x.dtype)
  position = rows.inputs.position
  if position is None:
    position = jnp.arange(x.shape[1])[None]
  position = jnp.broadcast_to(position, x.shape[:2])
  rotary = rotary_angles(position, body.config) if body.position is None else None
  if rotary is not None:
    rotary = tuple(jnp.broadcast_to(each, (*x.shape[:2], *each.shape[2:])) for each in rotary)
  layout = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, x.shape[:2]), rows.layout)
  return x, Common(rotary, layout, condition)


def blocks_of(body: Body) -> Iterator[Block]:
  """The layers one by one, which are stored stacked."""
  definition, layers = nnx.split(body.blocks)
  for number in range(body.config.layers):
    yield nnx.merge(definition, jax.tree.map(lambda leaf, n=number: leaf[n], layers))


class Branches(NamedTuple):
  """How time changes what attention (a) and MLP (m) read and give: numbers, or [B, L, D]."""

  shift_a: Any = 0.0
  scale_a: Any = 1.0
  gate_a: Any = 1.0
  shift_m: Any = 0.0
  scale_m: Any = 1.0
  gate_m: Any = 1.0


def branches_of(block: Block, condition: Float[Array, "B L C"] | None) -> Branches:
  """Those of a layer."""
  if block.modulation is None:
    return Branches()
  shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
    block.modulation(condition), 6, axis=-1
  )
  return Branches(shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m)


def _layer(
  block: Block, x: Float[Array, "B N D"], kept: Kept | None, choice: Choice | None, common: Common
) -> tuple[Float[Array, "B N D"], Kept]:
  """(the next stream of all tokens, what is kept)."""
  if block.time_input is not None:
    x = x + block.time_input(common.condition)
  own = branches_of(block, common.condition)
  h = block.attention_norm(x) * own.scale_a + own.shift_a
  heads = (*x.shape[:2], -1, block.config.sizes.head_width)
  values = block.attention.value(h).reshape(heads)
  size = x.shape[1]
  if kept is None:
    index = jnp.broadcast_to(jnp.arange(size), x.shape[:2])
    slots = index
    kept = Kept(jnp.zeros_like(values), values, jnp.zeros_like(x), jnp.zeros_like(x))
  else:
    index, counts = least_alike(values, kept.values, choice)
    slots = jnp.where(counts, index, size)
  h = at(h, index)
  keys = put(kept.keys, keys_of(block, h, common, index), slots)
  values = put(kept.values, at(values, index), slots)
  mixed = put(kept.mixed, _attended(block, h, keys, values, common, index), slots)
  x = x + own.gate_a * mixed
  h = block.mlp_norm(x) * own.scale_m + own.shift_m
  made = put(kept.made, block.mlp(at(h, index)), slots)
  return x + own.gate_m * made, Kept(keys, values, mixed, made)


def least_alike(
  now: Float[Array, "B N G K"], before: Float[Array, "B N G K"], choice: Choice
) -> tuple[Int[Array, "B Q"], Bool[Array, "B Q"]]:
  """(the places of the tokens whose values have turned most, the left ones first where they are
  equal; True where they count in their row).
  """
  a, b = (each.astype(jnp.float32).reshape(*each.shape[:2], -1) for each in (now, before))
  sizes = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
  unlike = 1 - jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.maximum(sizes, 1e-20))
  unlike = jnp.where(unlike < _SAME, 0.0, unlike)
  index = jax.lax.top_k(jnp.where(choice.text, unlike, -1.0), choice.most)[1]
  return index, jnp.arange(choice.most)[None] < choice.own[:, None]


def keys_of(block: Block, h, common: Common, index) -> Float[Array, "B Q G K"]:
  """The keys of tokens at `index`, whose normed streams are h."""
  own = block.attention
  k = own.key(h).reshape(*h.shape[:2], -1, block.config.sizes.head_width)
  return turned(k if own.key_norm is None else own.key_norm(k), common, index)


def _attended(block: Block, h, keys, values, common: Common, index) -> Float[Array, "B Q D"]:
  """What attention gives tokens at `index` over all keys and values."""
  own = block.attention
  q = own.query(h).reshape(*h.shape[:2], -1, block.config.sizes.head_width)
  q = turned(q if own.query_norm is None else own.query_norm(q), common, index)
  layout = jax.tree.map(lambda leaf: at(leaf, index), common.layout)
  out = attention(q, keys, values, layout, common.layout, block.config.attention)
  return own.out(out.reshape(*h.shape[:2], -1))


def turned(x: Float[Array, "B Q H K"], common: Common, index) -> Float[Array, "B Q H K"]:
  if common.rotary is None:
    return x
  return rotate(x, *(at(each, index) for each in common.rotary))


def at(leaf: Any, index: Int[Array, "B Q"]) -> Any:
  """[B, Q, …], the entries [B, N, …] at these places."""
  return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)


def put(old: Array, new: Array, slots: Int[Array, "B Q"]) -> Array:
  """[B, N, …] with new entries in these places; none where a place is N."""
  rows = jnp.arange(slots.shape[0])[:, None]
  return old.at[rows, slots].set(new.astype(old.dtype), mode="drop")
