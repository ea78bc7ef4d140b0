"""The bound through masks against the law of a language that lists its rows, and a mutant."""

import jax
import numpy as np
import pytest

from diffusion_text.context import NextToken
from diffusion_text.contrib.masked_inputs import MaskedInputs
from diffusion_text.core.prng import stream
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Progress

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
MODEL, PARAMS = exact_model(
  Masked(vocab_size=3), LANGUAGE, timing=AtNoise(), context=NextToken(), answer_shift=1
)
IDS = LANGUAGE.systematic(64)
KEY = jax.random.key(5)


def loss_of(objective, observed):
  @jax.jit
  def run(params):
    batch, progress = Batch(IDS, observed=observed), Progress()
    times = engine.draw_times(MODEL, params, stream(KEY, "times"), batch, progress)
    hidden = MaskedInputs(rate=0.4).hidden(KEY, batch, progress)
    return objective(MODEL, params, KEY, batch, times, progress)[0].total, hidden

  return jax.device_get(run(PARAMS))


def cost_of(row, hidden, observed):
  """-log p of the tokens that are not observed, each given those before it that are shown."""
  total = 0.0
  for place in np.flatnonzero(~observed):
    shown = [i for i in range(place) if not hidden[i]]
    fits = (LANGUAGE.sequences[:, shown] == row[shown]).all(1)
    right = fits & (LANGUAGE.sequences[:, place] == row[place])
    total -= np.log(LANGUAGE.probabilities[right].sum() / LANGUAGE.probabilities[fits].sum())
  return total


def check(objective):
  observed = np.broadcast_to(np.arange(4) < 1, IDS.shape)
  loss, hidden = loss_of(objective, observed)
  assert 0.3 < hidden.mean() < 0.5 and hidden[:, 0].any()
  want = sum(map(cost_of, IDS, hidden, observed))
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_the_loss_is_that_of_the_tokens_shown():
  """Prompts are hidden too, and what is hidden is predicted as all else is."""
  check(MaskedInputs(rate=0.4))


def test_a_loss_that_shows_all_is_noticed():
  with pytest.raises(AssertionError, match="Not equal to tolerance"):
    check(Bound())


def test_times_between_clean_and_noise_are_refused():
  model, _ = exact_model(Masked(vocab_size=3), LANGUAGE)
  with pytest.raises(ValueError, match=r"use timing\.name='at_noise'"):
    MaskedInputs().check(model)
