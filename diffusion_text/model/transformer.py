"""The one transformer, under any layout, with or without the times of tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_text.core.options import member
from diffusion_text.model.body import Body, scans_layers
from diffusion_text.model.by_layer import Choice, Kept, check_by_layer, read_by_layer
from diffusion_text.model.cache import SlotCache, empty
from diffusion_text.model.linear_maps import trains
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.partition import decays
from diffusion_text.model.roll_out import Slots, read_rolled_out
from diffusion_text.types import Key, Model, Params, Prediction, Rows, Span


@member
class Transformer(TransformerOptions):
  """A `types.Network`: pure functions of parameters, which are a nested dict of float32 arrays.

  Parameters do not depend on how the layers are run (scanned or not, kept or made again, in which
  dtype, by which implementation of attention).
  """

  def init(self, key: Key) -> Params:
    """Parameters as they are before training: every prediction is uniform, unless tied."""
    return nnx.to_pure_dict(nnx.state(Body(self, rngs=nnx.Rngs(key))))

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The answers for `rows.answers`.

    Its losses, of a network with experts, are "router_balance" and "router_z", each times its
    weight: their sum is what is added to the loss, and each is reported as it counts.

    Args:
      params: what `init` returned, trained or not.
      rows: what the network reads.
      memory: what self-conditioning remembers of the tokens that stand at `rows.tokens`; None:
        `no_memory` for all. Nothing is remembered of a token at t == 0 or outside of `rows.tokens`.
      key: turns dropout on.
      hidden_layers: numbers of layers, from 0, whose output is `hidden` of the prediction.
    """
    self._check_memory(memory)
    wrong = [number for number in hidden_layers if not 0 <= number < self.layers]
    if wrong:
      raise ValueError(
        f"hidden_layers={hidden_layers} must be layers of 0 … {self.layers - 1}; there is no"
        f" {wrong[0]}"
      )
    return self._body(params)(rows, memory, key, hidden_layers)[0]

  def cache(self, params: Params, rows: Rows, slots: int) -> SlotCache:
    """An empty cache with `slots` slots for each of the rows."""
    del params
    if self.time_conditioning == "prefix":
      raise ValueError(
        "time_conditioning='prefix' is one position of a whole row, which a cache of tokens cannot"
        " hold; use 'adaln' or 'layerwise'"
      )
    if self.positions == "learned" and slots > self.max_positions:
      raise ValueError(
        f"{slots} tokens of a row are more than model.max_positions={self.max_positions}; use"
        " shorter rows"
      )
    if self.rope_kind == "dynamic" and slots > self.rope_trained_length:
      raise ValueError(
        f"rope_kind='dynamic' turns the keys of rows beyond"
        f" model.rope_trained_length={self.rope_trained_length} by their length, and a cache of"
        f" {slots} slots would keep them as they were turned before; use the reader whole_row, or"
        " shorter rows"
      )
    sizes = self.sizes
    count = rows.t.shape[0]
    shape = (self.layers, count, slots, sizes.kv_heads, sizes.head_width)
    kinds = {"stacked": scans_layers(self), "with_position": self.window > 0}
    return empty(*shape, self.dtype, **kinds)

  def extend(
    self,
    params: Params,
    rows: Rows,
    cache: SlotCache,
    slots: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B Q D"] | None = None,
  ) -> tuple[Prediction, SlotCache]:
    """The answers of all Q tokens of `rows`, and the cache in which they are written.

    Every token sees what the layout of the written slots lets it see, itself included; the answer
    equals that of `apply` on a row that holds the tokens of all written slots.

    Args:
      params: what `init` returned, trained or not.
      rows: the Q tokens, with their rotary positions.
      cache: what has been read so far.
      slots: where each token is written, over what may have been there. No slot twice in a row;
        a token whose slot is beyond the last is not written, and its answer means nothing.
      memory: what self-conditioning remembers of each of the Q tokens.
    """
    self._check_memory(memory)
    if rows.inputs.position is None:
      raise ValueError(
        "rows.inputs.position=None would count the tokens of this call from 0; give the place of"
        " each token in its row"
      )
    everything = Span(0, rows.t.shape[1])
    rows = dataclasses.replace(rows, copies=1, tokens=everything, answers=everything)
    return self._body(params)(rows, memory, None, (), cache, slots)

  def first_values(
    self, params: Params, rows: Rows, *, memory: Float[Array, "B N D"] | None = None
  ) -> Float[Array, "B L F"]:
    """The attention values of the first layer, [B, L, F], in the dtype of the network.

    They depend on the input, time and memory of the position alone, and cost one linear map. A
    cache tells by them which tokens to read again.
    """
    self._check_memory(memory)
    return self._body(params).first_values(rows, memory)

  def check_by_layer(self) -> None:
    """Raises ValueError where `read_by_layer` and `read_rolled_out` cannot serve."""
    check_by_layer(self)

  def read_by_layer(
    self,
    params: Params,
    rows: Rows,
    kept: tuple[Kept, ...] | None,
    choice: Mapping[str, Any],
    *,
    memory: Float[Array, "B N D"] | None = None,
  ) -> tuple[Prediction, tuple[Kept, ...]]:
    """(the answers of all tokens of `rows`, which are answered in place; what is kept of each layer
    for the next call).

    Args:
      params: what `init` returned, trained or not.
      rows: whole rows.
      kept: of the call before; None: every token is computed in every layer, as by `apply`.
      choice: the fields of `by_layer.Choice`: how many tokens each layer computes.
      memory: as in `apply`.
    """
    self._check_memory(memory)
    return read_by_layer(self._body(params), rows, kept, Choice(**choice), memory)

  def read_rolled_out(
    self,
    params: Params,
    rows: Rows,
    kept: tuple[Slots, ...] | None,
    index: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B N D"] | None = None,
  ) -> tuple[Prediction, tuple[Slots, ...], Float[Array, "B N"]]:
    """(the answers of the tokens at `index`, keys and values of each layer for the next call, what
    each token of the row is worth by attention roll-out). `check_by_layer` says where it serves.

    Args:
      params: what `init` returned, trained or not.
      rows: whole rows.
      kept: of the call before; None: all tokens are read.
      index: places of tokens, none twice in a row.
      memory: as in `apply`.
    """
    self._check_memory(memory)
    return read_rolled_out(self._body(params), rows, kept, index, memory)

  def remember(self, params: Params, estimate: Float[Array, "n E"]) -> Float[Array, "n D"]:
    """What the network keeps of an estimate of the clean token, in the dtype of its matmuls."""
    self._check_self_conditioned("an estimate")
    return self._body(params).remember(estimate)

  def no_memory(self, params: Params) -> Float[Array, " D"]:
    """The memory of a token of which there is no estimate."""
    self._check_self_conditioned("a missing estimate")
    return self._body(params).no_memory()

  def like(self, **changes: Any) -> Transformer:
    """A network of the same options but for the changes: a small one that serves beside this."""
    return dataclasses.replace(self, **changes)

  @property
  def remembers(self) -> bool:
    """True if the network conditions on itself."""
    return self.self_conditioning != "none"

  def check(self, model: Model, data: Any) -> None:
    """Raises ValueError for rows that are longer than the table of positions, and where one time
    per row cannot serve rows of several times."""
    if self.positions == "learned" and data.length + self.position_offset > self.max_positions:
      raise ValueError(
        f"data.length={data.length} is more than model.max_positions={self.max_positions}, of which"
        f" {self.position_offset} are before the first token; use rows of"
        f" {self.max_positions - self.position_offset}, or positions='rotary'"
      )
    several = model.context.unit is not None or data.packing == "documents"
    if self.time_conditioning == "prefix" and several:
      raise ValueError(
        f"model.time_conditioning='prefix' tells one time to one document and cannot serve"
        f" {model.context} with data.packing={data.packing!r}; use 'adaln' or 'layerwise'"
      )

  def decays(self, path: tuple[str, ...]) -> bool:
    """True for matrices; norms, biases and embedding tables do not decay."""
    return decays(path)

  def trains(self, path: tuple[str, ...]) -> bool:
    """True for parameters that move: all of them, unless there are integers or a low rank."""
    return trains(self, path)

  def _body(self, params: Mapping[str, Any]) -> Body:
    return nnx.merge(_graph(self), nnx.State(params))

  def _check_memory(self, memory: Array | None) -> None:
    if memory is not None:
      self._check_self_conditioned("memory")

  def _check_self_conditioned(self, what: str) -> None:
    if self.self_conditioning == "none":
      raise ValueError(
        f"{what} is for a network that conditions on itself, and model.self_conditioning is"
        " 'none'; use 'add' or 'mean'"
      )


@functools.cache
def _graph(network: Transformer) -> nnx.GraphDef:
  """The structure of the network, without its parameters."""
  return nnx.split(nnx.eval_shape(lambda: Body(network, rngs=nnx.Rngs(0))))[0]
