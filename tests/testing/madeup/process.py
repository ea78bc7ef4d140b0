"""A process: tokens as one-hot vectors that are lost whole, at first slowly (alpha = 1 - t²)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_text.core.numerics import NEVER, cross_entropy
from diffusion_text.core.options import internal, member, option
from diffusion_text.core.prng import draw_categorical, draw_uniform, fold
from diffusion_text.process.base import PerToken
from diffusion_text.types import Inputs, InputSizes


@member
class Faded(PerToken):
  """State: float32 [*n, V], `height` times a one-hot, or zeros where the token is lost."""

  vocab_size: int = internal()
  height: float = option(1.0, "the length of a clean token's vector", gt=0)

  reads_logits_as: ClassVar[str] = "posterior"

  @property
  def input_sizes(self):
    return InputSizes(vectors=self.vocab_size)

  @property
  def estimate_size(self):
    return self.vocab_size

  def clean(self, params, ids):
    return self.height * jax.nn.one_hot(ids, self.vocab_size)

  def decode(self, params, state):
    return jnp.argmax(state, axis=-1).astype(jnp.int32)

  def prior(self, params, keys):
    return jnp.zeros((*keys.shape, self.vocab_size))

  def corrupt(self, params, keys, clean_state, t):
    lost = draw_uniform(fold(keys, 5)) < t**2
    return jnp.where(lost[..., None], 0.0, clean_state)

  def inputs(self, params, state, t):
    return Inputs(vectors=state)

  def evidence(self, params, state, t):
    return jnp.where(self._lost(state)[..., None] | (state > 0), 0.0, NEVER)

  def posterior(self, params, state, t, output):
    said = jax.nn.log_softmax(output, axis=-1)
    return jnp.where(self._lost(state)[..., None], said, self.evidence(params, state, t))

  def leave_one_out(self, params, state, t, output):
    return jax.nn.log_softmax(output, axis=-1)

  def estimate(self, params, state, t, output):
    return jax.nn.softmax(output, axis=-1)

  def has_loss(self, params, state, t):
    return self._lost(state)

  def nelbo_rate(self, params, clean_state, state, t, output):
    cost = cross_entropy(output, self.decode(params, clean_state))
    return jnp.where(self._lost(state), 2 / jnp.maximum(t, 1e-7) * cost, 0.0)

  def boundary_terms(self, params, keys, ids, start=0.0):
    return jnp.zeros(ids.shape)

  def may_change(self, params, keys, state, t, s):
    found = draw_uniform(fold(keys, 0)) < 1 - (s / jnp.maximum(t, 1e-7)) ** 2
    return self._lost(state) & found

  def step(self, params, keys, state, output, t, s):
    found = self.may_change(params, keys, state, t, s)
    drawn = self.clean(params, draw_categorical(fold(keys, 1), output))
    return jnp.where(found[..., None], drawn, state)

  def _lost(self, state):
    return jnp.max(state, axis=-1) == 0
