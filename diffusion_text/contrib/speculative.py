"""Speculative sampling of an any-subset model, ASSD (arXiv 2504.20456): several tokens per two
calls, with the law of one token per call.

Each step drafts the next k tokens in one call; p_i is the law of draft i given the known tokens
alone. A second call of the same network gives q_i, the law of token i given also the drafts before
it. From left to right a draft x_i is accepted with probability min(1, q_i(x_i) / p_i(x_i)). The
first draft that is not accepted is replaced by a draw from max(q_i - p_i, 0), normalised, and the
step ends there (arXiv 2211.17192, 2302.01318). For any drafts the tokens that are kept have the law
of q, which is that of one token per call.

As p_1 = q_1, the first draft is always accepted. A step therefore makes at least two tokens where
two are left: calls <= tokens, plus one if the last step has one token.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.chunked import map_rows
from diffusion_text.core.numerics import at_ids, flatten_tokens, select, unflatten_tokens
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold, streams
from diffusion_text.reader.rows import visible_state
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.transform import LogitsTransform, refuse_scores
from diffusion_text.types import (
  Batch,
  Canvas,
  Inputs,
  Keys,
  Model,
  Params,
  Prediction,
  Query,
  Rows,
  State,
)


@runtime_checkable
class AnswersInOrder(Protocol):
  """A context whose answer for a token sees all tokens of lower rank, drafts or not."""

  def query_rows(
    self,
    content: Inputs,
    noise: Inputs,
    t: Float[Array, "B N"],
    index: Int[Array, "B Q"],
    batch: Batch,
  ) -> Rows:
    """The rows that answer for the tokens at `index`."""


class Decoded(NamedTuple):
  """The state of `Speculative`.

  Attributes:
    waiting: bool [B, u], tokens that are not decoded yet.
    step: int32 [B], the steps so far.
  """

  waiting: Bool[Array, "B u"]
  step: Int[Array, " B"]


class Drafts(NamedTuple):
  """The drafts of one step, [B, k] each.

  Attributes:
    index: int32, their places in the window, from left to right.
    there: bool, False behind the last token of the row.
    keys: of this step.
    features: [B, k, D], by which they were drawn.
    ids: int32.
    head: from features to logits.
  """

  index: Int[Array, "B k"]
  there: Bool[Array, "B k"]
  keys: Keys
  features: Array
  ids: Int[Array, "B k"]
  head: Any


@member
class Speculative:
  """Tokens from left to right, k drafts at a time, which are checked by a second call (ASSD, arXiv
  2504.20456).

  The law is that of one token per call from left to right, for any parameters: drafts are checked
  as `context.name='any_order'` was trained, and what was decoded is read in the same way. Other
  contexts, under which an answer depends on all that is shown, are refused: their answers are not
  the factors of one law. The reader only drafts, so guidance by the reader changes the number of
  calls and not the law. `Sample.log_prob` is that of the drafting call.
  """

  drafts: int = option(5, "k, tokens that are drafted per step; 5 and 10 are published", ge=1)
  temperature: float = option(1.0, "of drafts and checks; 0 takes the likeliest token", ge=0)
  top_p: float = option(1.0, "share of the probability that is kept; 1 keeps all", gt=0, le=1)

  extra_calls: ClassVar[int] = 1

  def check(self, model: Model) -> None:
    """Raises ValueError for a context without ranks, and for outputs that are no law."""
    require(
      model.context, AnswersInOrder, "sampler.name='speculative'", "use context.name='any_order'"
    )
    refuse_scores(model, "Speculative", True)

  def init(self, model: Model, params: Params, canvas: Canvas) -> Decoded:
    """Every token waits."""
    del model, params
    return Decoded(canvas.active, jnp.zeros_like(canvas.call))

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Decoded
  ) -> Bool[Array, "B u"]:
    """The next k tokens."""
    del model, params, canvas
    return state.waiting & (jnp.cumsum(state.waiting, axis=1) <= self.drafts)

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: Decoded
  ) -> Float[Array, "B u"]:
    """1 where a token waits."""
    del model, params, canvas
    return state.waiting.astype(jnp.float32)

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: Decoded
  ) -> Float[Array, "B u"]:
    """Those of `times`."""
    return self.times(model, params, canvas, state)

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Decoded,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Decoded]:
    """(the text after one step, the sampler's next state): the drafts that were accepted, and the
    token that replaces the first one that was not. Raises ValueError for a reader that answers for
    some of the tokens only.
    """
    if prediction.fresh is not None:
      raise ValueError(
        "sampler.name='speculative' drafts the next tokens together, and the reader has answered"
        " for some tokens only; use reader.name='whole_row'"
      )
    drafts = self.drafted(model, params, canvas, state, prediction, query, needs)
    checked = self.checked(model, params, drafts, query)
    accepted, other = self.verdict(model, params, drafts, drafts.head, checked)
    kept = jnp.cumprod(accepted & drafts.there, axis=1).astype(bool)
    before = jnp.pad(kept, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    made = before & drafts.there
    ids, there = self._in_window(drafts, jnp.where(kept, drafts.ids, other), made, canvas)
    text = select(there, model.process.clean(params["process"], ids), canvas.state)
    return text, Decoded(state.waiting & ~there, state.step + jnp.any(needs, axis=1))

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
    """The next k tokens, each drawn from the prediction."""
    del query
    index, there, keys = self.places(canvas, state, needs)
    features = prediction.features[jnp.arange(needs.shape[0])[:, None], index]

    def draw(of_process, output, keys):
      return draw_categorical(streams(keys, "draft"), self.law(model, of_process, keys, output))

    short = Prediction(features, prediction.head)
    ids = on_tokens(model, params, short, there, draw, keys)
    return Drafts(index, there, keys, features, ids, prediction.head)

  def places(
    self, canvas: Canvas, state: Decoded, needs: Bool[Array, "B u"]
  ) -> tuple[Int[Array, "B k"], Bool[Array, "B k"], Keys]:
    """(the places of the next k tokens in the window, whether there are so many, their keys)."""
    rows, size = needs.shape
    place = jnp.where(needs, jnp.arange(size), size + jnp.arange(size))
    index = jnp.argsort(place, axis=1)[:, : min(self.drafts, size)]
    row = jnp.arange(rows)[:, None]
    keys = fold(streams(canvas.keys[row, index], "step"), state.step[:, None])
    return index, needs[row, index], keys

  def checked(self, model: Model, params: Params, drafts: Drafts, query: Query) -> Prediction:
    """The prediction [B, k] of the checking call: each token given the known ones and the drafts
    before it.
    """
    process, own = model.process, params["process"]
    row = jnp.arange(drafts.ids.shape[0])[:, None]
    # Tokens of the row that wait, and are not drafted, have a higher rank than all drafts: whatever
    # they are, no draft sees them.
    place = query.start + jnp.where(drafts.there, drafts.index, query.t.shape[1])
    state, t = visible_state(query)
    ids = process.clean(own, drafts.ids)
    state = jax.tree.map(lambda all_, new: all_.at[row, place].set(new, mode="drop"), state, ids)
    t = t.at[row, place].set(0.0, mode="drop")
    content = process.inputs(own, state, t)
    noise = process.inputs(own, query.noise, jnp.ones_like(t))
    index = query.start + drafts.index
    rows = model.context.query_rows(content, noise, t, index, query.batch)
    return model.network.apply(params["network"], rows)

  def verdict(
    self, model: Model, params: Params, drafts: Drafts, head: object, checked: Prediction
  ) -> tuple[Bool[Array, "B k"], Int[Array, "B k"]]:
    """(whether each draft would be accepted, the token that takes its place if it is not)."""

    def one(consts, row):
      head_p, head_q, of_process = consts
      features_p, features_q, keys, ids = row
      log_p = self.draft_law(model, of_process, keys, head_p(features_p))
      log_q = self.law(model, of_process, keys, head_q(features_q))
      coin = draw_uniform(streams(keys, "accept"))
      accepted = jnp.log(coin) < at_ids(log_q, ids) - at_ids(log_p, ids)
      return accepted, draw_categorical(streams(keys, "residual"), residual(log_p, log_q))

    consts = head, checked.head, params["process"]
    rows = drafts.features, checked.features, drafts.keys, drafts.ids
    where, flat = drafts.there.reshape(-1), flatten_tokens(rows)
    out = map_rows(one, consts, where, flat, chunk=model.chunk)
    return unflatten_tokens(out, drafts.there.shape)

  def draft_law(
    self, model: Model, of_process: Params, keys: Keys, output: Float[Array, "n V"]
  ) -> Float[Array, "n V"]:
    """float32 [n, V]: log p of drafts by an output of their head."""
    return self.law(model, of_process, keys, output)

  def law(
    self, model: Model, of_process: Params, keys: Keys, output: Float[Array, "n V"]
  ) -> Float[Array, "n V"]:
    """float32 [n, V]: log p of masked tokens by an output, after temperature and top_p."""
    process = model.process
    noise = process.prior(of_process, keys)
    log_p = process.posterior(of_process, noise, jnp.ones(keys.shape), output)
    transform = LogitsTransform(self.temperature, self.top_p)
    return jax.nn.log_softmax(transform(log_p), axis=-1)

  def _in_window(self, drafts: Drafts, ids, made, canvas: Canvas):
    """(ids [B, u], where they were made): the tokens at their places."""
    rows, size = canvas.active.shape
    row = jnp.arange(rows)[:, None]
    place = jnp.where(made, drafts.index, size)
    everywhere = jnp.zeros((rows, size), jnp.int32).at[row, place].set(ids, mode="drop")
    return everywhere, jnp.zeros((rows, size), bool).at[row, place].set(True, mode="drop")


def residual(log_p: Float[Array, "n V"], log_q: Float[Array, "n V"]) -> Float[Array, "n V"]:
  """float32 [n, V]: logits of max(q - p, 0), or of q in rows where that is 0 everywhere."""
  rest = jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0.0)
  left = jnp.sum(rest, axis=-1, keepdims=True) > 0
  return jnp.where(left, jnp.log(rest), log_q)
