"""What processes over ids share: the state is a row of ids, and both ends of time are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.numerics import NEVER
from diffusion_text.process.base import PerToken
from diffusion_text.types import Inputs, InputSizes, Keys, Params


def is_token(ids: Int[Array, "*n"], vocab_size: int) -> Bool[Array, "*n {vocab_size}"]:
  """True where the id is v, for every clean token v: a one-hot that is never multiplied."""
  return ids[..., None] == jnp.arange(vocab_size)


class Discrete(PerToken):
  """State: ids int32 [*n].

  Schedules reach alpha(0) = 1 and alpha(1) = 0 exactly, so there is neither a reconstruction nor a
  prior term.
  """

  @property
  def input_sizes(self) -> InputSizes:
    """The network reads the V clean tokens."""
    return InputSizes(ids=self.vocab_size)

  @property
  def estimate_size(self) -> int:
    """V."""
    return self.vocab_size

  def clean(self, params: Params, ids: Int[Array, "*b L"]) -> Int[Array, "*b L"]:
    """The ids themselves."""
    del params
    return ids.astype(jnp.int32)

  def decode(self, params: Params, state: Int[Array, "*b L"]) -> Int[Array, "*b L"]:
    """The ids themselves: no noise is left at t = 0."""
    del params
    return state

  def inputs(self, params: Params, state: Int[Array, "B N"], t: Float[Array, "B N"]) -> Inputs:
    """The network reads the ids."""
    del params, t
    return Inputs(ids=state)

  def estimate(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """The network's probabilities, whatever the process takes its logits to mean."""
    del params, state, t
    return jax.nn.softmax(output, axis=-1)

  def boundary_terms(
    self,
    params: Params,
    keys: Keys,
    ids: Int[Array, "B L"],
    start: float | Float[Array, ""] = 0.0,
  ) -> Float[Array, "B L"]:
    """Zeros. Raises ValueError for a bound that is to start later than at t = 0."""
    del params, keys
    if isinstance(start, int | float) and start > 0:
      self.time_of(start)
    return jnp.zeros(ids.shape, jnp.float32)


class WithMask(Discrete):
  """The id V is the mask, which the network reads but never answers."""

  @property
  def mask_id(self) -> int:
    """V."""
    return self.vocab_size

  @property
  def input_sizes(self) -> InputSizes:
    """The network reads the V clean tokens and the mask."""
    return InputSizes(ids=self.vocab_size + 1)


class Absorbing(WithMask):
  """Noise is the mask and nothing else: a token that is not masked is the truth.

  The network's output is the posterior of a masked token, and says nothing about a visible one.
  """

  def __post_init__(self):
    if self.vocab_size < 1:
      raise ValueError(
        f"vocab_size={self.vocab_size} must be at least 1; take it from the tokenizer"
      )

  def prior(self, params: Params, keys: Keys) -> Int[Array, "*n"]:
    """All mask."""
    del params
    return jnp.full(keys.shape, self.mask_id, jnp.int32)

  def has_loss(
    self, params: Params, state: Int[Array, "*n"], t: Float[Array, "*n"]
  ) -> Bool[Array, "*n"]:
    """True at masks."""
    del params, t
    return state == self.mask_id

  def posterior(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z): what the network says at masks; the token itself where it is visible."""
    del params, t
    visible = jnp.where(is_token(state, self.vocab_size), 0.0, NEVER)
    log_p = jax.nn.log_softmax(output, axis=-1)
    return jnp.where((state == self.mask_id)[..., None], log_p, visible)

  def leave_one_out(
    self,
    params: Params,
    state: Int[Array, "*n"],
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i): what the network says. It is trained to say so at masks."""
    del params, state, t
    return jax.nn.log_softmax(output, axis=-1)
