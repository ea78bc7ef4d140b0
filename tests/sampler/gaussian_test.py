"""Grid steps of Gaussian processes: the language is reached however they are made, and options
reach the process.
"""

import jax
import numpy as np
import pytest

from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import StepOptions
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import Slanted

V, L, ROWS = 4, 2, 2_000
LANGUAGE = Enumerable.dirichlet(1, 0.7, V, L)
PROCESS = Embedding(vocab_size=V, width=4)


def drawn(sampler, rows=ROWS, process=PROCESS, **options):
  """The ids of a network that knows the language."""
  model, params = exact_model(process, LANGUAGE, **options)
  result = sample(model, params, sampler, jax.random.key(0), rows=rows, length=L)
  assert int(result.calls) == sampler.steps
  return np.asarray(result.ids)


@pytest.mark.parametrize(
  "sampler,options",
  [
    (Grid(steps=32), {}),
    (GaussianGrid(steps=32, rho=0.0), {}),
    (GaussianGrid(steps=48, projection="sample"), {"timing": Slanted(spread=1.0)}),
    (Multistep(steps=16), {"timing": Slanted(spread=1.0)}),
  ],
  ids=["ddpm", "ddim", "sample", "multistep"],
)
def test_the_language_is_reached(sampler, options):
  """2000 draws, whose own noise is 0.03."""
  assert LANGUAGE.total_variation(LANGUAGE.histogram(drawn(sampler, **options))) < 0.06


def test_the_defaults_are_the_steps_of_grid():
  np.testing.assert_array_equal(drawn(GaussianGrid(steps=4), 64), drawn(Grid(steps=4), 64))


def test_every_option_reaches_the_process():
  """They are handed over together, and change the text."""
  made = {"projection": "argmax", "rho": 1.0}, {"score_temperature": 0.3, "eta": 0.5}
  for options in (*made, {"fixed_large": True}):
    assert GaussianGrid(steps=4, **options)._options() == StepOptions(**options)
  plain = drawn(GaussianGrid(steps=4), 64)
  assert (drawn(GaussianGrid(steps=4, projection="argmax", rho=1.0), 64) != plain).any()


@pytest.mark.parametrize(
  "bad,word",
  [
    ({"rho": 0.5, "eta": 0.5}, "eta=0.5"),
    ({"fixed_large": True, "eta": 0.5}, "fixed_large"),
    ({"score_temperature": 0.5, "projection": "argmax"}, "score_temperature=0.5"),
    ({"score_temperature": 0.0}, "score_temperature"),
    ({"projection": "best"}, "projection"),
  ],
)
def test_options_that_do_not_fit_together_are_refused(bad, word):
  with pytest.raises(ValueError, match=word):
    GaussianGrid(steps=4, **bad)


def test_what_a_process_does_not_have_is_refused():
  model, _ = exact_model(PROCESS, LANGUAGE)
  with pytest.raises(ValueError, match=r"projection='multi_hot' is unknown to Embedding"):
    GaussianGrid(steps=4, projection="multi_hot").check(model)
  GaussianGrid(steps=4, projection="multi_hot").check(model._replace(process=Simplex(vocab_size=V)))
  masked = model._replace(process=Masked(vocab_size=V))
  with pytest.raises(ValueError, match=r"'gaussian' needs .*step_towards, which Masked .*'grid'"):
    GaussianGrid(steps=4).check(masked)
