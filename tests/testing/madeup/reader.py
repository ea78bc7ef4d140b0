"""A reader: the network is asked several times, and its answers are averaged."""

import jax.numpy as jnp

from diffusion_text.core.options import member, option
from diffusion_text.reader.reading import Reading
from diffusion_text.reader.rows import rows_of, window
from diffusion_text.types import MixedHead, Prediction


@member
class Chorus(Reading):
  """`voices` readings of the whole row, combined as one head."""

  voices: int = option(2, "how often the network is asked", ge=1)

  @property
  def calls(self):
    return self.voices

  def read(self, model, params, memory, query, *, refresh):
    rows, size = rows_of(model, params, query), query.needs.shape[1]
    answers = [model.network.apply(params["network"], rows) for _ in range(self.voices)]
    features = [window(answer.features, query.start, size) for answer in answers]
    widths = tuple(one.shape[-1] for one in features)
    heads = tuple(answer.head for answer in answers)
    head = MixedHead(heads, widths, (1 / self.voices,) * self.voices)
    return Prediction(jnp.concatenate(features, axis=-1), head), memory
