"""Agreement with a second model as a budget: Guided Diffusion (FlashDLM, arXiv 2505.21467) and the
acceptance rule of APD (arXiv 2506.00413, recalled), for `Reveal`.

The diffusion model proposes a token for every waiting place. An autoregressive model, the scorer,
reads the filled row in one call. From left to right the proposals that equal the scorer's own
tokens are committed, up to the first difference; the leftmost proposal is always committed, so that
no row stands still. Every token is the diffusion model's; the scorer only decides how many there
are.

The rule is not lossless. Agreement of likeliest tokens seeks modes, so entropy must be reported
beside quality. At temperature 1 an accepted token has the law of neither model, as no residual is
drawn where the two draws differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from diffusion_text.core.numerics import select
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_categorical, streams
from diffusion_text.reader.mixture import mixed
from diffusion_text.reader.other import Other
from diffusion_text.sampler.answers import on_tokens
from diffusion_text.sampler.budget import Budget
from diffusion_text.sampler.scorer import check_scorer, read_filled
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.types import Model

if TYPE_CHECKING:
  from diffusion_text.sampler.reveal import Proposal, View


@member
class Agreement(Budget):
  """A budget: the longest run of waiting tokens from the left on which proposal and scorer agree,
  and always the leftmost one (Guided Diffusion, arXiv 2505.21467).

  The scorer's token is drawn as the proposal was, with the same temperature and the same noise: at
  sampler.temperature=0, the published way, both are the likeliest tokens; above it the two draws
  agree more often than independent ones (common random numbers, APD). The order of the score does
  not matter. A config has no second model to give: `--decoder=guided --scorer=WORKDIR` gives it.
  FreeCache, with which Guided Diffusion is published, is a matter of the reader.
  """

  scorer: Other = option(..., "the autoregressive model, and the group of its parameters")
  share: float = option(
    0.0,
    "R of the target R · logits of the diffusion model + (1 - R) · logits of the scorer; 0 asks the"
    " scorer alone, as Guided Diffusion does; larger ones accept more (APD)",
    ge=0,
    le=1,
  )

  reads_logits: ClassVar[bool] = True
  reads_draws: ClassVar[bool] = True

  @property
  def extra_calls(self) -> int:
    """The scorer's."""
    return self.scorer.calls

  def check(self, model: Model) -> None:
    """Raises ValueError for a scorer that cannot score."""
    check_scorer(self.scorer, model, "sampler.agreement")

  def __call__(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Bool[Array, "B u"]:
    """bool [B, u]: the tokens of the run, which ends at a token without an answer."""
    wanted = self.wanted(view, proposal, waiting)
    agrees = jnp.where(view.waiting, waiting & (wanted == proposal.ids), True)
    run = jnp.cumprod(agrees, axis=1).astype(bool)
    first = jnp.cumsum(waiting, axis=1) == 1
    return waiting & (run | first)

  def wanted(
    self, view: View, proposal: Proposal, waiting: Bool[Array, "B u"]
  ) -> Int[Array, "B u"]:
    """int32 [B, u]: the target's token at each waiting place of the filled row."""
    model, sampler = view.model, view.sampler
    known = model.process.decode(view.params["process"], view.canvas.state)
    ids = select(view.waiting, proposal.ids, known)
    answer = read_filled(self.scorer, model, view.params, view.query, ids)
    if self.share:
      answer = mixed((view.prediction, answer), (self.share, 1 - self.share), "logits")
    transform = LogitsTransform(sampler.temperature, sampler.top_p, sampler.top_k)

    def draw(of_process, output, keys):
      del of_process
      return draw_categorical(streams(keys, "token"), transform(output))

    return on_tokens(model, view.params, answer, waiting, draw, view.keys)
