"""The bound, and the cross-entropy of tokens that are settled already (hyperschedules, Fathi et al.
2025, arXiv 2504.06416; the loss of ServiceNow/hdlm, hdlm/gamma_hybrid/losses.py).

Along a hyperschedule some tokens of a row are noisy and those before them are settled: t = 0, and
not observed. The released loss of a row is

  Σ over noisy tokens of their score entropy + λ · mean over settled tokens of w · CE

CE is the cross-entropy of the logits at a settled token, which the network has read. w rises evenly
from 0 in the first block of settled tokens to 1 in the last. Here the score entropy is the bound of
the process (process.prediction="score": of free scores). The released sum has no factor of the
speed dt/dτ; all noisy tokens of a row have the same speed, so here λ is multiplied by it instead.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.core.numerics import TINY, cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.objective import engine
from diffusion_text.objective.bound import Bound
from diffusion_text.types import Batch, Key, Loss, Model, Params, Progress, Times, TokenCosts


def settled_weights(
  settled: Bool[Array, "B N"], speed: Float[Array, "B N"], width: int | None
) -> Float[Array, "B N"]:
  """float32 [B, N]: the weight of each token's cross-entropy, which is w of its block times the
  speed of the row's noisy tokens over the number of its settled ones; 0 at tokens not settled.

  Args:
    settled: True at settled tokens.
    speed: dt/dτ.
    width: positions of a block, counted from the start of the row; None: w = 1.
  """
  number = jnp.sum(settled, axis=1, keepdims=True)
  ramp = jnp.ones(settled.shape)
  if width is not None:
    place = jnp.arange(settled.shape[1])
    last = jnp.max(jnp.where(settled, place, 0), axis=1, keepdims=True) // width
    ramp = jnp.where(last > 0, place // width / jnp.maximum(last, 1), 1.0)
  pace = jnp.max(speed, axis=1, keepdims=True)
  return jnp.where(settled, pace * ramp / jnp.maximum(number, 1), 0.0)


@member
class SettledTokens(Bound):
  """The bound + λ · mean over settled tokens of w · CE, row by row. Reports "bound" and "settled",
  the latter without λ.

  The cross-entropy changes only what is minimised. Where no token is settled, as under the released
  configuration of OpenWebText, whose one block is as wide as the row, this is `Bound`.
  """

  settled: float = option(1.0, "λ, the weight of settled tokens; 1 as released", ge=0)
  block: int | None = option(
    None,
    "positions of a block, whose number w rises with, as released the width of the hyperschedule;"
    " None: w is 1 everywhere",
    ge=1,
  )

  def check(self, model: Model) -> None:
    """Raises ValueError as `Bound` does, and for options of it that are not combined."""
    super().check(model)
    if self.auxiliary or self.detach_self_conditioned:
      raise ValueError(
        f"objective.auxiliary={self.auxiliary} and"
        f" detach_self_conditioned={self.detach_self_conditioned} are options of"
        " objective.name='bound'; leave them unset for 'settled_tokens'"
      )

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts]:
    """The loss of one draw, and what each token cost."""
    start = engine.start_time(model, self.decode_at)
    noised = engine.read(model, params, key, batch, times, progress)
    scored = engine.scored_weights(model.process.in_positions(batch)) > 0
    weights = settled_weights(scored & (times.t == 0), times.dt_dtau, self.block)

    def cost(consts, process_params, row, output, nats):
      nats = jnp.where(row.t > consts, nats, 0.0)
      settled = row.extra * cross_entropy(output, row.ids)
      at_time = nats / jnp.maximum(row.dt_dtau, TINY)
      return nats + self.settled * settled, at_time, {"bound": nats, "settled": settled}

    loss, costs = engine.token_loss(
      model, params, batch, noised, cost, extra=weights, consts=start, everywhere=True
    )
    loss = engine.add_boundary(
      model, params, key, batch, progress, loss, start=start, minimised=True
    )
    return loss, costs._replace(nats=jnp.where(times.t > start, costs.nats, 0.0))
