"""Log-probabilities of proposed tokens by a second model, the scorer of samplers and budgets.

A scorer is a frozen network. `reader.other:Other` names its model and the group of `params` with
its parameters. It predicts each token without seeing that token. Usually it is autoregressive:
token i is scored given the tokens before it, and the scores of a row add up to log p(row).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import at_ids, likeliest
from diffusion_text.reader.other import Other
from diffusion_text.reader.rows import put_window, window
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.types import Model, Params, Prediction, Query


class Scored(NamedTuple):
  """A scorer's answers for a window, 0 at padding.

  Attributes:
    log_prob: float32 [B, u], the log-probability of each token in nats.
    best: int32 [B, u], the scorer's likeliest token at each place.
  """

  log_prob: Float[Array, "B u"]
  best: Int[Array, "B u"]


def check_scorer(scorer: Other, model: Model, who: str) -> None:
  """Raises ValueError for a scorer whose states differ from the model's, and for a scorer that sees
  the very token which it predicts.
  """
  scorer.check(model)
  if scorer.model.context.reads_noisy:
    raise ValueError(
      f"{who} scores a row whose tokens are all clean, and {scorer.model.context} would show each"
      " token to its own answer; use a scorer of context.name='next_token'"
    )


def read_filled(
  scorer: Other, model: Model, params: Params, query: Query, ids: Int[Array, "B u"]
) -> Prediction:
  """The scorer's prediction of the window, which holds `ids` as clean tokens at t = 0.

  One call of the scorer's reader. As in the query, tokens before the window are clean and tokens
  behind it are noise.

  Raises:
    ValueError: for a reader with a memory, as no scored row continues the one before.
  """
  state = put_window(query.state, model.process.clean(params["process"], ids), query.start)
  t = put_window(query.t, jnp.zeros(ids.shape, query.t.dtype), query.start)
  needs = jnp.ones(ids.shape, bool)
  filled = query._replace(state=state, t=t, needs=needs, memory=None, told=None)
  memory = scorer.init(model, params, filled)
  if jax.tree.leaves(memory):
    raise ValueError(
      f"the scorer's reader {scorer.reader} keeps a memory from call to call, and each row that is"
      " scored is another one; use WholeRow()"
    )
  return scorer.read(model, params, memory, filled, refresh=True)[0]


def score_tokens(
  scorer: Other, model: Model, params: Params, query: Query, ids: Int[Array, "B u"]
) -> Scored:
  """The scores of the tokens `ids` of a window.

  Logits exist for `model.chunk` tokens at a time. Raises ValueError as `read_filled` does.
  """
  prediction = read_filled(scorer, model, params, query, ids)
  noise = window(query.noise, query.start, ids.shape[1])

  def one(of_process, output, noise, ids):
    # A scorer has not seen the token that it predicts, so that token counts as noise at t = 1.
    law = model.process.leave_one_out(of_process, noise, jnp.ones(ids.shape), output)
    best = likeliest(law)
    return Scored(at_ids(law, ids), best)

  where = jnp.ones(ids.shape, bool)
  if query.batch.weights is not None:
    where = window(query.batch.weights, query.start, ids.shape[1]) > 0
  return on_tokens(model, params, prediction, where, one, noise, ids)


def token_log_probs(
  scorer: Other, model: Model, params: Params, query: Query, ids: Int[Array, "B u"]
) -> Float[Array, "B u"]:
  """float32 [B, u], in nats: the log-probability of each token of the window filled with `ids`,
  given the tokens that the scorer's context shows; 0 at padding.

  For an autoregressive scorer the sum of a row is log p(row). Raises ValueError as `read_filled`
  does.
  """
  return score_tokens(scorer, model, params, query, ids).log_prob
