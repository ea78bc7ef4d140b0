"""How a sampler asks the network at each call: told its own last answer (self-conditioning), and, where a guidance scale is set, once
more without the given tokens (classifier-free guidance, arXiv 2207.12598)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_text.kernels.cross_entropy import map_rows
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.types import Array, Denoise, Params, Prediction, Process, State, Time


class Memory(NamedTuple):
  """What the network is told of its last answer (`types.Inputs`): recalled float32 [B, L, D]; recalls bool [B, L]."""

  recalled: Array
  recalls: Array


@dataclasses.dataclass(frozen=True)
class Asking:
  """One round of questions. `width`: D of a network that conditions on itself, whose every reading has a memory of its own; 0 for others.

  hidden: bool [B, L], given tokens that the unconditional reading sees as `noise`, the prior, at t = 1; None where nothing is given or
  the scale is 1. It is the reading for which `objective.conditioning` prepares the network. chunk: positions whose logits exist at once.
  """

  process: Process
  params: Params
  denoise: Denoise
  guidance: Guidance
  hidden: Array | None
  noise: State
  width: int
  chunk: int

  @property
  def calls(self) -> int:
    """Network calls of a round: 2 with classifier-free guidance, else 1."""
    return 1 if self.hidden is None else 2

  def start(self, shape: tuple[int, int]) -> Any:
    """The memories before the first round."""
    nothing = Memory(jnp.zeros((*shape, self.width), jnp.float32), jnp.zeros(shape, bool))
    return (nothing if self.width else None,) * self.calls

  def __call__(self, state: State, t: Time, memories: Any) -> tuple[Prediction, Any]:
    """The (guided) prediction for a state at t [B, L], and the next memories."""
    prediction, memory = self._once(state, t, memories[0])
    if self.hidden is None:
      return prediction, (memory,)
    widen = lambda leaf: self.hidden.reshape(*self.hidden.shape, *(1,) * (leaf.ndim - 2))
    blind = jax.tree.map(
      lambda noise, known: jnp.where(widen(known), noise, known), self.noise, state
    )
    unconditional, blind_memory = self._once(blind, jnp.where(self.hidden, 1.0, t), memories[1])
    return guided(self.guidance, prediction, unconditional), (memory, blind_memory)

  def _once(self, state: State, t: Time, memory: Memory | None) -> tuple[Prediction, Memory | None]:
    inputs = self.process.inputs(self.params, state, t)
    if memory is None:
      return self.denoise(inputs, t), None
    scored = self.process.scored(self.params, state, t)
    prediction = self.denoise(
      dataclasses.replace(inputs, recalled=memory.recalled, recalls=memory.recalls & scored), t
    )

    def one(rows):
      features, state, t = rows
      estimate = self.process.estimate(self.params, state, t, prediction.unembed(features))
      return prediction.recall(estimate).astype(jnp.float32)

    flat = jax.tree.map(
      lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (prediction.features, state, t)
    )
    recalled = map_rows(one, scored.reshape(-1), flat, chunk=self.chunk)
    return prediction, Memory(recalled.reshape(*scored.shape, -1), scored)


def guided(guidance: Guidance, conditional: Prediction, unconditional: Prediction) -> Prediction:
  """The prediction whose logits are those of the two readings combined; each position pays for both where its logits are asked for."""
  width = conditional.features.shape[-1]

  def unembed(features: Array) -> Array:
    return guidance.combine(
      conditional.unembed(features[..., :width]), unconditional.unembed(features[..., width:])
    )

  return Prediction(
    jnp.concatenate([conditional.features, unconditional.features], axis=-1), unembed
  )
