"""Renoising: the marginals of every process are kept, whatever noise it has; and what it equals."""

import jax
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.grid import Grid, Turn
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.remasking import Remasking
from diffusion_text.sampler.renoising import Renoising
from diffusion_text.schedules.discrete import time_of
from diffusion_text.testing import Enumerable, check_sampler, exact_model
from diffusion_text.types import Canvas
from tests.sampler.grid_test import MANY, S, check_marginals, step_of

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED, UNIFORM = Masked(vocab_size=4), Uniform(vocab_size=4)
PEAKED = Mixed(vocab_size=4, mixing="peaked", share=0.3)


def drawn(process, sampler, rows=64):
  model, params = exact_model(process, TOY)
  return np.asarray(sample(model, params, sampler, row_keys(0, rows), rows=rows, length=4).ids)


@pytest.mark.parametrize("process", [MASKED, UNIFORM, PEAKED], ids=str)
@pytest.mark.parametrize("strategy,eta", [("cap", 0.3), ("rescale", 0.4)])
def test_marginals_are_kept(process, strategy, eta):
  """At eta 0.3 the cap of the second place, whose noise is 0.1, binds: all of it is renoised."""
  check_marginals(process, Renoising(steps=2, strategy=strategy, eta=eta))


class Late(Renoising):
  """Steps that lead to more noise than they say."""

  def moved(self, model, params, canvas, state, prediction, moves, turn):
    """To half-way between both times."""
    late = turn._replace(s=(turn.s + turn.t) / 2)
    return super().moved(model, params, canvas, state, prediction, moves, late)


def test_noise_of_another_time_would_be_noticed():
  with pytest.raises(AssertionError):
    check_marginals(UNIFORM, Late(steps=2, strategy="rescale", eta=0.4))


@pytest.mark.parametrize("eta", [0.05, 0.3])
def test_the_cap_takes_back_as_much_as_remdm_does(eta):
  """Visible tokens go back to the mask with probability min(eta, 1 - alpha_s)."""
  want = np.minimum(eta, np.array(S))
  for sampler in (
    Renoising(steps=2, strategy="cap", eta=eta),
    Remasking(steps=2, strategy="cap", eta=float(want.min())),
  ):
    before, after = step_of(MASKED, sampler)
    got = ((before < 4) & (after == 4)).sum(0) / (before < 4).sum(0)
    wanted = want if isinstance(sampler, Renoising) else want.min()
    np.testing.assert_allclose(got, wanted, atol=4.5 * np.sqrt(0.25 / (0.1 * MANY)))


@pytest.mark.parametrize("process", [Masked(3), Uniform(3)], ids=str)
def test_it_is_the_grid_where_nothing_is_renoised_and_psi_where_rho_is_constant(process):
  assert (drawn(process, Renoising(steps=8, eta=0.0)) == drawn(process, Grid(steps=8))).all()
  constant = drawn(process, Renoising(steps=8, strategy="rescale", eta=0.25))
  assert (constant == drawn(process, Grid(steps=8, kappa=0.75))).all()
  assert (constant != drawn(process, Grid(steps=8))).any()


def test_confidence_renoises_what_was_unlikely():
  """All tokens of a row together have eta; those with less chance have more of it."""
  sampler = Renoising(steps=2, strategy="conf", eta=0.8)
  chance = np.tile(np.float32([0.1, 0.9, 0.5]), (2, 1))
  active = np.array([[True, True, True], [True, False, True]])
  model, _ = exact_model(UNIFORM, Enumerable.dirichlet(0, 0.5, 4, 3))
  times = np.full((2, 3), 0.5, np.float32)
  rho = sampler.rho(model, Turn(None, times, times - 0.1), active, chance)
  weight = np.exp(-chance) * active
  np.testing.assert_allclose(rho, 0.8 * weight / weight.sum(1, keepdims=True), rtol=1e-6)


def test_a_loop_renoises_only_where_it_stands_still():
  """At the clock times between t_on and t_off of 20 steps; its length is the grid's."""
  sampler = Renoising(steps=20, strategy="rescale", eta=1.0, loop=(0.5, 0.2, 0.6))
  model, params = exact_model(Uniform(3), TOY)
  held = float(time_of(model.process.schedule, 0.6))
  keys = jax.vmap(lambda key: jax.random.split(key, 4))(row_keys(0, 2))
  canvas = Canvas(
    np.zeros((2, 4), np.int32), np.ones((2, 4), bool), keys, np.zeros(2, np.int32), np.full(2, 4)
  )
  state = sampler.init(model, params, canvas)
  grid = np.asarray(state.grid)[0, :, 0]
  still = np.isclose(grid[1:], grid[:-1])
  assert still.sum() == 6 and np.allclose(grid[1:][still], held) and (np.diff(grid) <= 0).all()
  for step in range(20):
    turn = sampler.turn(canvas, state._replace(step=np.full(2, step)))
    rho = np.asarray(sampler.rho(model, turn, canvas.active, state.extra))
    assert (rho == float(still[step])).all()


def test_the_laws_of_every_sampler():
  sampler = Renoising(steps=16, strategy="conf", eta=0.2)
  check_sampler(sampler, *exact_model(Uniform(3), TOY), TOY, exact_law=False, calls=16)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"renoising.*kappa"):
    Renoising().check(exact_model(Embedding(vocab_size=3, width=4), TOY)[0])
  with pytest.raises(ValueError, match="t_off"):
    Renoising(loop=(0.1, 0.5, 0.9))
