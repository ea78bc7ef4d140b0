"""Tau-leaping and Ψ-steps reach the language for every noise; leaps of masks are posterior
steps.
"""

import jax
import numpy as np
import pytest

from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.tau_leaping import TauLeaping
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable

V, L, ROWS = 4, 2, 2_000
LANGUAGE = Enumerable.dirichlet(1, 0.7, V, L)


def drawn(process, sampler, rows=ROWS):
  """The sample of a network that knows the language."""
  model, params = exact_model(process, LANGUAGE)
  result = sample(model, params, sampler, jax.random.key(0), rows=rows, length=L)
  return jax.tree.map(np.asarray, result)


# GIDD-like noise, ancestral steps: 0.026 at 96 steps, 0.013 at 384.
@pytest.mark.parametrize(
  "process,most",
  [(Uniform(vocab_size=V), 0.045), (Mixed(vocab_size=V, share=0.3), 0.065)],
  ids=["uniform", "mixed"],
)
@pytest.mark.parametrize(
  "sampler", [TauLeaping(steps=96), Grid(steps=96, kappa=0.95)], ids=["tau", "psi"]
)
def test_many_steps_reproduce_the_language(process, sampler, most):
  result = drawn(process, sampler)
  assert (result.ids < V).all() and result.calls == 96
  assert LANGUAGE.total_variation(LANGUAGE.histogram(result.ids)) < most


def test_leaps_of_masks_are_posterior_steps():
  """With the linear schedule, token by token."""
  process = Masked(vocab_size=V)
  leapt, stepped = drawn(process, TauLeaping(steps=5), 64), drawn(process, Grid(steps=5), 64)
  np.testing.assert_array_equal(leapt.ids, stepped.ids)


def test_processes_without_jump_rates_are_refused():
  model, _ = exact_model(Embedding(vocab_size=V, width=4), LANGUAGE)
  with pytest.raises(ValueError, match=r"tau_leaping.* needs leap, which Embedding .*'grid'"):
    TauLeaping(steps=4).check(model)
