"""What a prediction says of single tokens, computed for those that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool

from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import flatten_tokens, unflatten_tokens
from diffusion_text.types import Model, Params, Prediction

# Where few tokens change per call, chunks are so many times smaller: each call pays for its share
# of the last chunk.
_FEW = 8


def on_tokens(
  model: Model,
  params: Params,
  prediction: Prediction,
  where: Bool[Array, "B u"],
  fn: Callable[..., Any],
  *rows: Any,
  few: bool = False,
) -> Any:
  """fn(process_params, output [n, …], *rows [n, …]) at the positions where `where` holds, zeros
  elsewhere: a tree of [B, u, …].

  Outputs exist for those positions only, a chunk at a time. `fn` must not close over traced arrays.

  Args:
    model: says how many outputs exist at a time.
    params: the whole tree.
    prediction: of the window.
    where: the positions that count.
    fn: elementwise over a flat list of positions.
    *rows: trees of arrays (or keys) [B, u, …].
    few: True where a small part of the positions counts in most calls.
  """

  def one(consts, leaves):
    head, of_process = consts
    features, rest = leaves
    return fn(of_process, head(features), *rest)

  chunk = max(model.chunk // _FEW, 1) if few else model.chunk
  flat = flatten_tokens((prediction.features, rows))
  consts = (prediction.head, params["process"])
  return unflatten_tokens(map_rows(one, consts, where.reshape(-1), flat, chunk=chunk), where.shape)
