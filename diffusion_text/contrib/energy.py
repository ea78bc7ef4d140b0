"""EDLM: candidates for the whole row, weighed by an autoregressive model (arXiv 2410.21357).

A diffusion model draws the tokens of one step independently. Here each step draws k candidates
x^1 … x^k of the whole clean row from that product law, weighs them by their residual energy,

  E(x, z_t) = log p_diff(x | z_t) - log p_AR(x),      w_j = exp(-E(x^j, z_t) / temperature),

chooses one with probability w_j / Σ w, and makes the posterior step with the chosen tokens. As k
grows, the law of the chosen row approaches p_AR given the visible tokens, with an error of order
1 / k however large the step is: importance resampling with the weight p_AR / p_diff. For noise that
is itself a token (uniform noise; not published) log q(z_t | x) is added to log p_AR(x); for masks
that term is 0.

Two things differ from the released code, and exact tests cover both. The released sampler weighs
with exp(+E), the inverse of the ratio. And it leaves visible tokens out of log p_AR ("carry-over"),
although the probability of a visible token behind a masked one depends on the candidate; without
that factor another law is approached (option `visible`).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.capability import require
from diffusion_text.core.numerics import NEVER, at_ids
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, fold, streams
from diffusion_text.reader.other import Other
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.grid import Grid, Turn, Walked
from diffusion_text.sampler.scorer import check_scorer, token_log_probs
from diffusion_text.types import Canvas, Model, Params, Prediction, Query, State, pytree


@runtime_checkable
class TellsEvidence(Protocol):
  """A process that says how well a noisy token fits each clean one."""

  def evidence(self, params: Params, state: State, t: Float[Array, "*n"]) -> Float[Array, "*n V"]:
    """float32 [*n, V]: log q(z_i | x_i = v), up to a constant."""


@pytree("vocab_size")
class ChosenHead:
  """The head of a prediction that is certain of one token, whose id is the only feature.

  Attributes:
    vocab_size: V.
  """

  vocab_size: int

  def __call__(self, features: Float[Array, "*n 1"]) -> Float[Array, "*n V"]:
    """float32 [*n, V]: logits 0 at the token of that id, NEVER at all other tokens."""
    ids = features.astype(jnp.int32)
    return jnp.where(ids == jnp.arange(self.vocab_size), 0.0, NEVER)


@member
class Energy(Grid):
  """`Grid` whose steps choose among candidates of the whole window, drawn from the prediction and
  weighed by another model (EDLM, arXiv 2410.21357).

  With one candidate it is `Grid`, up to the draws. Candidates are drawn after temperature and
  top_p, and weighed by the law that they were drawn from.

  A config has no second model to give: `--decoder=edlm --scorer=WORKDIR` gives it. A step whose row
  has no noisy token at a time in [low, high] takes the first candidate; if no row of the batch has
  one, the scorer is not called. `Sample.calls` counts one number of calls for all steps: those
  of a step that weighs.
  """

  scorer: Other = option(..., "the autoregressive model, and the group of its parameters")
  candidates: int = option(8, "k, candidates per step; 2 is the least that weighs", ge=1, le=1024)
  low: float = option(0.0, "the smallest time of a step that weighs", ge=0, le=1)
  high: float = option(
    1.0,
    "the largest time of a step that weighs; the released config has [0.4, 0.6], its scripts end"
    " at 1",
    ge=0,
    le=1,
  )
  energy_temperature: float = option(1.0, "divides the energy; 1 is Bayes' rule", gt=0)
  visible: bool = option(
    True,
    "whether log p_AR counts the visible tokens too, as the law of the masked ones given them"
    " needs; False: the masked ones alone, as released",
  )

  def __post_init__(self):
    if self.low > self.high:
      raise ValueError(f"low={self.low} must not exceed high={self.high}; 0.2 and 1, say")

  @property
  def extra_calls(self) -> int:
    """The scorer's, once per candidate."""
    return self.candidates * self.scorer.calls

  def check(self, model: Model) -> None:
    """Raises ValueError for a process of vectors, and for a scorer that cannot score."""
    super().check(model)
    check_scorer(self.scorer, model, "contrib.energy")
    process = model.process
    require(process, TellsEvidence, "contrib.energy", "use process.name='masked'")
    scores = process.reads_logits_as == "score" and process.mask_id is None
    if scores or process.reads_logits_as == "vector":
      raise ValueError(
        f"contrib.energy makes a posterior step with the chosen tokens, and the outputs of"
        f" {process} are no logits of tokens; use prediction='leave_one_out', or"
        " process.name='masked'"
      )

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: Walked
  ) -> Bool[Array, "B u"]:
    """All tokens, as candidates are rows."""
    del model, params
    return canvas.active & (state.step < self.steps)[:, None]

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, Walked]:
    """The grid's step, with a prediction that is certain of the chosen candidate."""
    if prediction.fresh is not None:
      raise ValueError(
        "contrib.energy chooses among whole rows, and the reader has answered for some tokens only;"
        " use reader.name='whole_row'"
      )
    ids = self.chosen(model, params, canvas, state, prediction, query)
    certain = Prediction(ids[..., None].astype(jnp.float32), ChosenHead(model.process.vocab_size))
    return super().step(model, params, canvas, state, certain, query, needs)

  def chosen(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: Walked,
    prediction: Prediction,
    query: Query,
  ) -> Int[Array, "B u"]:
    """The candidate of each row that its weight has chosen."""
    turn = self.turn(canvas, state)
    ids, log_q, log_fit = self.drawn(model, params, canvas, prediction, turn)
    weighs = jnp.any(canvas.active & (turn.t >= self.low) & (turn.t <= self.high), axis=1)
    hidden = canvas.active & model.process.has_loss(params["process"], canvas.state, turn.t)

    def log_weights(_):
      def one(candidate):
        log_p = token_log_probs(self.scorer, model, params, query, candidate)
        return self.log_p_row(log_p, hidden)

      return self.log_weight(jax.lax.map(one, ids) + log_fit, log_q)

    def none(_):
      return jnp.zeros(log_q.shape)

    weights = jax.lax.cond(jnp.any(weighs), log_weights, none, None)
    number = draw_categorical(streams(turn.keys[:, 0], "candidate"), weights.T)
    number = jnp.where(weighs, number, 0)
    return jnp.take_along_axis(ids, number[None, :, None], axis=0)[0]

  def drawn(
    self, model: Model, params: Params, canvas: Canvas, prediction: Prediction, turn: Turn
  ) -> tuple[Int[Array, "k B u"], Float[Array, "k B"], Float[Array, "k B"]]:
    """(the candidates, log p_diff under the law of the draw, log q(z_t | candidate)).

    Tokens at t = 0, and those that are not to be generated, are what they are.
    """
    process = model.process

    def one(of_process, output, keys, text, t, s):
      law = process.posterior(of_process, text, t, self.transform(output, s))
      fit = process.evidence(of_process, text, t)

      def draw(number):
        ids = draw_categorical(fold(streams(keys, "guess"), number), law)
        return ids, at_ids(law, ids), at_ids(fit, ids)

      return jax.tree.map(jnp.transpose, jax.lax.map(draw, jnp.arange(self.candidates)))

    noisy = canvas.active & (turn.t > 0)
    rows = turn.keys, canvas.state, turn.t, turn.s
    ids, log_q, log_fit = on_tokens(model, params, prediction, noisy, one, *rows)
    known = process.decode(params["process"], canvas.state)
    ids = jnp.where(noisy[..., None], ids, known[..., None])
    return jnp.moveaxis(ids, 2, 0), jnp.sum(log_q, axis=1).T, jnp.sum(log_fit, axis=1).T

  def log_p_row(self, log_p: Float[Array, "B u"], hidden: Bool[Array, "B u"]) -> Float[Array, " B"]:
    """log p_AR of each row, of the tokens that count."""
    return jnp.sum(log_p if self.visible else jnp.where(hidden, log_p, 0.0), axis=1)

  def log_weight(self, log_p: Float[Array, "k B"], log_q: Float[Array, "k B"]) -> Any:
    """-E / temperature of each candidate, E = log_q - log_p."""
    return (log_p - log_q) / self.energy_temperature
