"""The layers of the transformer: embedding, blocks in one or two stages, final norm and head.

Used by `Transformer` only; flax nnx does not leave this folder. Layers are stored stacked
([layers, …] per weight) whether they are scanned or unrolled, so that a checkpoint does not depend
on that choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import NEVER
from diffusion_text.kernels.block_sizes import target
from diffusion_text.kernels.layout import Window
from diffusion_text.model import spans
from diffusion_text.model.block import Block, Shared, Stores
from diffusion_text.model.cache import SlotCache, write_layout
from diffusion_text.model.experts import Routing, router_loads, router_losses
from diffusion_text.model.first_stage import FirstStage
from diffusion_text.model.layers import (
  Bias,
  HeadTransform,
  Linear,
  Table,
  TimeEmbedding,
  embed_inputs,
  norm_of,
  rotary_angles,
)
from diffusion_text.model.linear_maps import rewrite
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.parallel import placed
from diffusion_text.model.self_conditioning import SelfConditioning
from diffusion_text.types import Head, Key, Layout, Prediction, Rows

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Body(nnx.Module):
  """Embedding, blocks, final norm, head."""

  def __init__(self, config: TransformerOptions, *, rngs: nnx.Rngs):
    self.config = config
    width = config.width
    self.embedding = _table(config.table_size, config, rngs)
    timed = config.time_conditioning != "none"
    self.time = TimeEmbedding(config, rngs=rngs) if timed else None

    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
      return Block(config, rngs=rngs)

    self.blocks = stacked(rngs)
    self.final_norm = norm_of(config) if config.norm_place == "before" else None
    final_modulation = None
    if config.time_in_head:
      final_modulation = Linear(config.time_width, 2 * width, std=0.0, rngs=rngs, bias=True)
    # Zeros: an untrained prediction is exactly uniform, so the first loss is log V at any width.
    head = None
    if not config.tie_embeddings:
      head = Linear(width, config.output_size, std=0.0, rngs=rngs, bias=config.has_head_bias)
    elif config.has_head_bias:
      head = Bias(config.output_size)
    first_stage = FirstStage(config, rngs=rngs) if config.first_stage_layers else None
    own_answer = None
    if config.self_conditioning != "none":
      choices = (config.self_conditioning, config.absent)
      own_answer = SelfConditioning(*choices, config.estimate_size, width)
    prefix = None
    if config.time_conditioning == "prefix":
      std = config.time_width**-0.5
      prefix = Linear(config.time_width, width, std=std, rngs=rngs, bias=True)
    vectors = None
    if config.input_sizes.ids and config.input_sizes.vectors:
      vectors = _table(config.input_sizes.vectors, config, rngs)
    # The names of these attributes are the paths of parameters in checkpoints.
    self.head = head
    self.final_modulation = final_modulation
    self.anchor = first_stage
    self.recall = own_answer
    self.prefix = prefix
    self.vector_embedding = vectors
    learned, wide = config.positions == "learned", {"std": config.embedding_std, "rngs": rngs}
    self.position = Table(config.max_positions, width, **wide) if learned else None
    self.token_type = Table(config.token_types, width, **wide) if config.token_types else None
    self.embedding_norm = norm_of(config) if config.embedding_norm else None
    self.head_transform = HeadTransform(config, rngs=rngs) if config.head_transform else None
    rewrite(self, config, rngs)

  def __call__(
    self,
    rows: Rows,
    memory: Float[Array, "B N D"] | None,
    key: Key | None,
    hidden_layers: tuple[int, ...],
    cache: SlotCache | None = None,
    slots: Int[Array, "B Q"] | None = None,
  ) -> tuple[Prediction, SlotCache | None]:
    """The answers of `rows.answers`; and the cache with these tokens in it, if there is one."""
    parts = spans.parts_of(rows) if self.prefix is None else 1
    rows = spans.spread(rows, parts)
    x = self.streams(rows, memory, parts)
    layout = key_layout = rows.layout
    position = key_position = _positions(rows)
    if cache is not None:
      layout, cache = write_layout(cache, rows.layout, slots, position)
      key_layout, key_position = cache.layout, cache.position
    weights, times = rows.weights, rows.t if self.config.experts else None
    condition = prefix = None
    if self.prefix is not None:
      prefix = self._prefix(x, rows.t, rows.layout)
      position = jnp.pad(position, ((0, 0), (1, 0)), constant_values=-1)
      layout = key_layout = _seen_by_all(rows.layout)
      weights = None if weights is None else jnp.pad(weights, ((0, 0), (1, 0)))
      if times is not None:  # the prefix has no noise, and is no clean token
        times = jnp.pad(times, ((0, 0), (1, 0)), constant_values=-1)
    elif self.time is not None:
      t = rows.t[:, :1] if rows.one_time else rows.t
      condition = self.time(t).astype(x.dtype)
    rotary = None if self.position is not None else rotary_angles(position, self.config)
    size = self.config.window
    window = Window(size, position, key_position) if size else None
    shared = Shared(rotary, layout, key_layout, slots, condition, weights, times, window)
    stores = None if cache is None else Stores(cache.keys, cache.values)
    last = shared
    if self._answers_alone(rows, stores):
      answered = functools.partial(spans.answered, rows=rows, parts=parts)
      last = shared._replace(answered=answered, weights=None)  # weights are for routers
      condition = None if condition is None else last.of_each(condition)
    x, prediction, stores = self._stages(x, prefix, shared, last, key, hidden_layers, stores)
    features = self.read_out(x, condition)
    prediction = dataclasses.replace(prediction, features=features, head=self.output_head())
    if cache is not None:
      return prediction, dataclasses.replace(cache, keys=stores.keys, values=stores.values)
    return _answers(prediction, rows, parts), None

  def first_values(self, rows: Rows, memory: Float[Array, "B N D"] | None) -> Float[Array, "B L F"]:
    """The values of the first layer's attention at every position."""
    x = self.streams(rows, memory, 1)
    condition = None if self.time is None else self.time(rows.t).astype(x.dtype)
    definition, layers = nnx.split(self.blocks)
    first = nnx.merge(definition, jax.tree.map(lambda leaf: leaf[0], layers))
    return first.values(x, condition)

  def remember(self, estimate: Float[Array, "n E"]) -> Float[Array, "n D"]:
    """The memory of an estimate."""
    return self.recall.remember(estimate, self.embedding[...], self.config.dtype)

  def no_memory(self) -> Float[Array, " D"]:
    """The memory of a token of which there is no estimate."""
    return self.recall.no_memory(self.embedding[...], self.config.dtype)

  def streams(self, rows: Rows, memory: Array | None, parts: int) -> Float[Array, "B L D"]:
    """The streams of all tokens before the first layer: inputs, positions, memory.

    Args:
      rows: spread over `parts` parts, see `spans`.
      memory: of the answers before, of the answered tokens; None: there is none.
      parts: number of parts of a row.
    """
    vectors = self.vector_embedding
    tables = (self.embedding[...], None if vectors is None else vectors[...])
    x = self._placed(embed_inputs(tables, rows.inputs, jnp.dtype(self.config.dtype)), rows)
    if self.recall is None:
      return x
    absent = self.no_memory()
    if memory is None:
      return self.recall.mix(x, absent[None, None], rows.t)
    return self.recall.mix(x, spans.place(memory, absent, rows, parts), rows.t)

  def _placed(self, x: Float[Array, "B L D"], rows: Rows) -> Float[Array, "B L D"]:
    """What stands at each position, and what is learned of the position itself."""
    if self.position is not None:
      if rows.layout.segment is None:  # one document, whose positions all differ
        _check_positions(self.config, x.shape[1] // rows.copies)
      x = x + self.position(_positions(rows) + self.config.position_offset, x.dtype)
    if self.token_type is not None:
      x = x + self.token_type(jnp.zeros((1, 1), jnp.int32), x.dtype)
    return x if self.embedding_norm is None else self.embedding_norm(x)

  def read_out(
    self, x: Float[Array, "B L D"], condition: Float[Array, "B L1 C"] | None
  ) -> Float[Array, "B L D"]:
    """What the head reads of the streams after the last layer."""
    x = x if self.final_norm is None else self.final_norm(x)
    if self.final_modulation is not None:
      shift, scale = jnp.split(self.final_modulation(condition), 2, axis=-1)
      x = x * (1 + scale) + shift
    return x if self.head_transform is None else self.head_transform(x)

  def output_head(self) -> Head:
    """The matrix and the bias that turn what `read_out` gives into logits."""
    config, size = self.config, self.config.output_size
    bias = self.head.bias[...] if config.has_head_bias else None
    if config.unanswered:
      bias = jnp.zeros((size,), jnp.float32) if bias is None else bias
      bias = jnp.asarray(bias).at[jnp.array(config.unanswered)].set(NEVER)
    if config.tie_embeddings:
      return Head(self.embedding[...][:size], bias, transposed=True)
    return Head(self.head.kernel[...], bias)

  def _prefix(
    self, x: Float[Array, "B L D"], t: Float[Array, "B L"], layout: Layout
  ) -> Float[Array, "B 1 D"]:
    """The prefix position: the mean time of the tokens of its segment that are not clean.

    It is of the segment of the row's first token and serves that one only: padding on the right
    reads no time.
    """
    t = jnp.broadcast_to(t, x.shape[:2]).astype(jnp.float32)
    if layout.segment is not None:
      t = jnp.where(layout.segment == layout.segment[:, :1], t, 0.0)
    noisy = jnp.sum(t > 0, axis=1, keepdims=True)
    mean = jnp.sum(t, axis=1, keepdims=True) / jnp.maximum(noisy, 1)
    return self.prefix(self.time(mean).astype(x.dtype))

  def _answers_alone(self, rows: Rows, stores: Stores | None) -> bool:
    """True if the last layer computes the answered tokens alone.

    It does if these are at most half of the tokens that are read, as in rows with a noisy and a
    clean copy, and if there is no cache.
    """
    few = 0 < 2 * rows.answers.size <= rows.t.shape[1]
    return few and stores is None and may_answer_alone(self.config)

  def _stages(
    self,
    x: Float[Array, "B L D"],
    prefix: Float[Array, "B 1 D"] | None,
    shared: Shared,
    last: Shared,
    key: Key | None,
    hidden_layers: tuple[int, ...],
    stores: Stores | None,
  ) -> tuple[Float[Array, "B N D"], Prediction, Stores | None]:
    """The stream after all layers, without the prefix; and stages, hidden layers and losses.

    last: what the last layer reads in place of `shared`.
    """
    first, count = self.config.first_stage_layers, self.config.layers
    ends = {count, *(number + 1 for number in hidden_layers)} | ({first} if first else set())
    if last is not shared and count > 1:
      ends |= {count - 1}
    ends = sorted(ends)
    starts = [0, *ends[:-1]]
    layers = (nnx.split(self.blocks)[1], jnp.arange(count))
    runs = _split(layers, [end - start for start, end in zip(starts, ends)])
    hidden, stages, routings = {}, (), []
    x = _with_prefix(x, prefix)
    for start, end, run in zip(starts, ends, runs):
      own = last if end == count else shared
      x, stores, routing = self._layers(x, run, start, own, key, stores)
      routings.append(routing)
      if end - 1 in hidden_layers:
        hidden[end - 1] = _without_prefix(x, prefix)
      if end == first:
        x = _without_prefix(x, prefix)
        answer = self.anchor.predict(x)
        stages = (answer,)
        x = _with_prefix(x + self.anchor.read(answer), prefix)
    losses, reports = {}, {}
    if self.config.experts:
      routing = jax.tree.map(lambda *runs: jnp.concatenate(runs), *routings)
      losses, reports = router_losses(self.config, routing), router_loads(routing)
    prediction = Prediction(None, None, losses, stages, hidden, reports=reports)
    return _without_prefix(x, prefix), prediction, stores

  def _layers(
    self, x: Float[Array, "B L D"], layers: Any, first: int, shared: Shared, key: Key | None, stores
  ) -> tuple[Float[Array, "B N D"], Stores | None, Routing | None]:
    """The stream and the stores after `layers` (stacked parameters, and the numbers of the layers,
    from `first` on), and the losses of their routers, stacked."""
    scan = scans_layers(self.config)
    layer = self._layer(shared, key, keep=stores is not None)
    if scan:
      (x, stores), routing = jax.lax.scan(layer, (x, stores), layers)
      return x, stores, routing
    unlimited = self._layer(shared._replace(window=None), key, keep=stores is not None)
    routings = []
    for number, piece in enumerate(_split(layers, [1] * layers[1].shape[0]), start=first):
      one = jax.tree.map(lambda leaf: leaf[0], piece)
      own = None if stores is None else Stores(stores.keys[number], stores.values[number])
      run = unlimited if number in self.config.full_layers else layer
      (x, own), routing = run((x, own), one)
      if stores is not None:
        stores = Stores(
          _replaced(stores.keys, number, own.keys), _replaced(stores.values, number, own.values)
        )
      routings.append(routing)
    return x, stores, jax.tree.map(lambda *leaves: jnp.stack(leaves), *routings)

  def _layer(self, shared: Shared, key: Key | None, *, keep: bool) -> Callable[..., Any]:
    """(stream and stores, (parameters, number of the layer)) -> (the same after it, routing), for a
    scan; if all is not to be kept for the backward pass, as `remat` says."""
    config = self.config
    definition = nnx.split(self.blocks)[0]
    scan = scans_layers(config)

    def layer(carry, each):
      x, stores = carry
      params, number = each
      layer_key = None if key is None else jax.random.fold_in(key, number)
      block = nnx.merge(definition, params)
      own = shared
      if scan and config.full_layers:
        own = shared._replace(windowed=jnp.all(number != jnp.array(config.full_layers)))
      place = number if scan else None
      x, stores, routing = block(placed(x), own, place, layer_key, stores)
      return (x, stores), routing

    policy = REMAT[config.remat]
    return layer if keep or policy is None else jax.checkpoint(layer, policy=policy)


def scans_layers(config: TransformerOptions) -> bool:
  """True if one compiled layer is scanned over all, so that a cache is stacked."""
  return config.scan_layers if config.scan_layers is not None else target()[0] != "cpu"


def may_answer_alone(config: TransformerOptions) -> bool:
  """True if the last layer may compute answered tokens alone.

  It may not with experts, whose losses are of all tokens, nor with a prefix, nor where one compiled
  layer is scanned over all (`scans_layers`): a second program for the last layer would take longer
  to compile, and more memory.
  """
  return not (config.experts or config.time_conditioning == "prefix" or scans_layers(config))


def _replaced(parts: tuple, number: int, part: Any) -> tuple:
  return (*parts[:number], part, *parts[number + 1 :])


def _positions(rows: Rows) -> Int[Array, "B1 L"]:
  """The position of each token: that of the inputs, or else its place in the row."""
  if rows.inputs.position is not None:
    return rows.inputs.position
  return jnp.arange(rows.inputs.shape[1], dtype=jnp.int32)[None]


def _check_positions(config: TransformerOptions, length: int) -> None:
  """Raises ValueError for more positions than the table has rows."""
  if length > config.max_positions:
    raise ValueError(
      f"{length} positions are more than the model.max_positions={config.max_positions} rows of the"
      " table; use shorter rows"
    )


def _table(size: int, config: TransformerOptions, rngs: nnx.Rngs) -> nnx.Param:
  shape = (size, config.width)
  return nnx.Param(config.embedding_std * jax.random.normal(rngs.params(), shape, jnp.float32))


def _answers(prediction: Prediction, rows: Rows, parts: int) -> Prediction:
  """The prediction of all positions, cut to those that are answered."""
  stages = tuple(
    dataclasses.replace(stage, features=spans.answered(stage.features, rows, parts))
    for stage in prediction.stages
  )
  hidden = {layer: spans.answered(x, rows, parts) for layer, x in prediction.hidden.items()}
  features = spans.answered(prediction.features, rows, parts)
  return dataclasses.replace(prediction, features=features, stages=stages, hidden=hidden)


def _with_prefix(x: Array, prefix: Array | None) -> Array:
  return x if prefix is None else jnp.concatenate([prefix, x], axis=1)


def _without_prefix(x: Array, prefix: Array | None) -> Array:
  return x if prefix is None else x[:, 1:]


def _split(layers: Any, sizes: Sequence[int]) -> list:
  """A tree of arrays that are stacked over layers, cut into runs of these sizes."""
  # lax.split, not indexing: its transpose is one concatenation, where that of indexing adds up as
  # many padded copies as there are layers.
  leaves, tree = jax.tree.flatten(layers)
  runs = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves))
  return [jax.tree.unflatten(tree, run) for run in runs]


def _seen_by_all(layout: Layout) -> Layout:
  """The layout with one position before the others that all of the first one's segment see.

  Where all see all, that position does too. Otherwise it is clean and of a block below every other:
  the rule then shows it to all and shows it only itself, so that no token's content passes through.
  """
  segment = layout.segment
  if segment is not None:
    segment = jnp.concatenate([segment[:, :1], segment], axis=1)
  if layout.block is None and layout.noisy is None:
    return Layout(segment=segment)
  block = jnp.zeros_like(layout.noisy) if layout.block is None else layout.block
  block = jnp.concatenate([jnp.min(block, axis=1, keepdims=True) - 1, block], axis=1)
  noisy = layout.noisy
  if noisy is not None:
    noisy = jnp.pad(noisy, ((0, 0), (1, 0)))
  return Layout(segment, block, noisy)
