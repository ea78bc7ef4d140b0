"""Speculative sampling whose drafts come from the text itself: bigrams of what is known of the row
(the drafter of ASSD that asks no network, arXiv 2504.20456; its formula is ours).

Draft i is drawn from a law of the token before it, which is a known one or draft i - 1:

  p(v | w) = (n(w, v) + s · u(v)) / (n(w) + s),   u(v) = (n(v) + 1) / (n + V)

with n(w, v) the pairs of known neighbours w, v of the row, n(w) those that begin with w, n(v) the
known tokens v and n all known ones; u alone where the token before is not known. One call of the
network checks the drafts. The first one may be refused, too, so a step makes one token at least and
takes one call, where drafts of the network make two and take two. Whatever the drafts, the law of
the text is that of one token per call.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.contrib.speculative import Decoded, Drafts, Speculative
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, streams
from diffusion_text.reader.reading import NOTHING, During, Reading
from diffusion_text.reader.rows import visible_state
from diffusion_text.types import (
  Canvas,
  Cost,
  IdentityHead,
  Keys,
  Memory,
  Model,
  Params,
  Prediction,
  Query,
)


class Known(NamedTuple):
  """What is known of each row.

  Attributes:
    ids: int32 [B, N].
    where: bool [B, N], tokens that are known.
    pairs: bool [B, N - 1], where a token and the next one are known and of one document.
    shares: float32 [B, V], u.
  """

  ids: Int[Array, "B N"]
  where: Bool[Array, "B N"]
  pairs: Bool[Array, "B M"]
  shares: Float[Array, "B V"]


@member
class ContextBigrams(Speculative):
  """`Speculative` with drafts from bigrams of the row, at one network call per step.

  The reader's answers are not used: reader.name='unread' makes and charges none. There is no
  drafting call, so that `Sample.log_prob` means nothing.
  """

  smoothing: float = option(
    1.0, "s, how many pairs the frequencies of single tokens count for", gt=0
  )

  def drafted(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Decoded,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> Drafts:
    """The next k tokens, one after the other; their features are the logarithms of p, [B, k, V]."""
    index, there, keys = self.places(canvas, state, needs)
    known = _known(model, params, query)
    row = jnp.arange(needs.shape[0])

    def one(known, each):
      place, there, key = each
      law = jnp.log(self.bigram_law(known, place))
      id = draw_categorical(streams(key, "draft"), law)
      at = jnp.where(there, place, known.ids.shape[1])
      ids = known.ids.at[row, at].set(id, mode="drop")
      where = known.where.at[row, at].set(True, mode="drop")
      return known._replace(ids=ids, where=where), (law, id)

    steps = (query.start + index.T, there.T, keys.T)
    _, (laws, ids) = jax.lax.scan(one, known, steps)
    return Drafts(index, there, keys, jnp.swapaxes(laws, 0, 1), ids.T, IdentityHead())

  def bigram_law(self, known: Known, place: Int[Array, " B"]) -> Float[Array, "B V"]:
    """p, of the token at a place of each row. Pairs with a draft do not count, the token before the
    place may be one.
    """
    row, before = jnp.arange(place.shape[0]), jnp.maximum(place - 1, 0)
    first = known.ids[row, before]
    there = (place > 0) & known.where[row, before]
    counts = known.pairs & (known.ids[:, :-1] == first[:, None]) & there[:, None]
    pairs = jnp.zeros(known.shares.shape).at[row[:, None], known.ids[:, 1:]].add(counts)
    total = jnp.sum(pairs, axis=1, keepdims=True)
    return (pairs + self.smoothing * known.shares) / (total + self.smoothing)

  def draft_law(
    self, model: Model, of_process: Params, keys: Keys, output: Float[Array, "n V"]
  ) -> Float[Array, "n V"]:
    """float32 [n, V]: the features of drafts are their law."""
    del model, of_process, keys
    return output


def _known(model: Model, params: Params, query: Query) -> Known:
  """What is known of each row before a step."""
  process = model.process
  state, t = visible_state(query)
  where = t == 0
  if query.batch.weights is not None:
    where = where & (query.batch.weights > 0)
  ids = jnp.where(where, process.decode(params["process"], state), 0)
  pairs = where[:, :-1] & where[:, 1:]
  if query.batch.segment is not None:
    pairs = pairs & (query.batch.segment[:, :-1] == query.batch.segment[:, 1:])
  row = jnp.arange(ids.shape[0])[:, None]
  counts = jnp.zeros((ids.shape[0], process.vocab_size)).at[row, ids].add(where)
  shares = (counts + 1) / (jnp.sum(counts, axis=1, keepdims=True) + process.vocab_size)
  return Known(ids, where, pairs, shares)


@member
class Unread(Reading):
  """No reading: for samplers that use no answer of the reader, such as
  sampler.name='context_bigrams'. Its answers are flat.
  """

  calls: ClassVar[int] = 0

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool = True
  ) -> tuple[Prediction, Memory]:
    """(logits that are 0, the memory)."""
    del params, refresh
    shape = (*query.needs.shape, model.process.output_size)
    return Prediction(jnp.zeros(shape), IdentityHead()), memory

  def cost(
    self, model: Model, params: Params, memory: Memory, query: Query, during: During
  ) -> Cost:
    """Nothing."""
    del model, params, memory, query, during
    return NOTHING
