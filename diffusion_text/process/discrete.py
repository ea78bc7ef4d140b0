"""What processes over ids have in common: the state is a row of ids, nothing is learned, and the ends of the bound are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_text.types import Array, Denoise, Inputs, Key, Params, State, Time


class Discrete:
  """State: ids int32 [B, L]. The schedules reach alpha(0) = 1 and alpha(1) = 0 exactly: no reconstruction and no prior cost."""

  vocab_size: int

  def init(self, key: Key) -> Params:
    del key  # nothing is learned
    return {}

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    del params, t
    return Inputs(ids=state)

  @property
  def estimate_size(self) -> int:
    return self.vocab_size

  def estimate(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """The network's probabilities [..., V], whatever the process takes its logits to mean."""
    del params, state, t
    return jax.nn.softmax(logits, axis=-1)

  def ends(self, params: Params, key: Key, ids: Array, denoise: Denoise) -> Array:
    del params, key, denoise
    return jnp.zeros(ids.shape, jnp.float32)

  def decode(self, params: Params, state: State) -> Array:
    del params
    return state  # no noise is left at t = 0


class WithMask(Discrete):
  """The id V is the mask, which the network reads but never answers."""

  @property
  def mask_id(self) -> int:
    return self.vocab_size

  @property
  def input_size(self) -> int:
    return self.vocab_size + 1


class Absorbing(WithMask):
  """Noise is the mask and nothing else: a masked token tells nothing of what it was, and a clean one is the truth."""

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    del params, key  # all mask: no randomness
    return jnp.full(shape, self.mask_id, jnp.int32)

  def scored(self, params: Params, state: State, t: Time) -> Array:
    del params, t
    return state == self.mask_id
