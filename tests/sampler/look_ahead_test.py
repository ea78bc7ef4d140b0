"""Look-ahead: the tokens of one-by-one greedy decoding, in fewer steps; and a mutant."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.budget import Count, best
from diffusion_text.sampler.look_ahead import LookAhead, Verified
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Averaged, Entropy, LeftToRight, Random
from diffusion_text.testing import Enumerable, check_sampler, exact_model
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model

V, L, ROWS = 7, 12, 16
TOY = Enumerable.dirichlet(0, 0.5, 3, 4)


@functools.cache
def model_of(process):
  network = small_transformer(
    layers=1,
    width=32,
    heads=2,
    mlp_width=32,
    time_conditioning="adaln",
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  params = {"network": noisy_parameters(network, scale=0.4), "process": {}, "timing": {}}
  return Model(network, process, Shared(), Full()), params


@functools.cache
def decoded(sampler, process):
  """(ids, steps of the loop) of rows that each have observed tokens of their own."""
  model, params = model_of(process)
  rng = np.random.default_rng(0)
  batch = Batch(
    rng.integers(0, V, (ROWS, L)).astype(np.int32), observed=rng.random((ROWS, L)) < 0.3
  )
  made = sample(model, params, sampler, row_keys(0, ROWS), batch=batch, trace=True)
  steps = int(made.calls) // (1 + sampler.extra_calls)
  return np.asarray(made.ids), steps, np.asarray(made.row_calls) // (1 + sampler.extra_calls)


PROCESSES = [Masked(vocab_size=V), Uniform(vocab_size=V, prediction="leave_one_out")]


@pytest.mark.parametrize(
  "process,score", zip(PROCESSES, [Entropy(), Random()], strict=True), ids=["masked", "uniform"]
)
def test_the_tokens_are_those_of_one_by_one_decoding(process, score):
  want, calls, _ = decoded(Reveal(score=score, budget=Count(), temperature=0.0), process)
  got, steps, each = decoded(LookAhead(score=score, depth=3), process)
  np.testing.assert_array_equal(got, want)
  # Two tokens at least per step, four at most.
  assert np.ceil(calls / 4) <= steps <= np.ceil(calls / 2) and (each <= steps).all()


def test_left_to_right_guesses_are_often_right():
  """With a deeper look fewer steps are left."""
  process = PROCESSES[0]
  steps = [decoded(LookAhead(score=LeftToRight(), depth=depth), process)[1] for depth in (1, 4)]
  assert steps[1] < steps[0]


@member
class Trusting(LookAhead):
  """Every guess is taken for right."""

  def _verified(self, view, proposal, text, after):
    """The next best tokens of the first reading."""
    where = best(proposal.score, after.waiting, jnp.full_like(view.total, self.depth))
    return Verified(where, proposal.ids, proposal.log_prob)


def test_trust_would_be_noticed():
  want, *_ = decoded(Reveal(score=Entropy(), budget=Count(), temperature=0.0), PROCESSES[0])
  got, *_ = decoded(Trusting(score=Entropy(), depth=3), PROCESSES[0])
  assert (got != want).any()


def test_the_laws_of_every_sampler():
  sampler = LookAhead(depth=2)
  check_sampler(sampler, *exact_model(Masked(3), TOY), TOY, exact_law=False, rows=16)


def test_what_cannot_be_verified_is_refused():
  model = model_of(PROCESSES[0])[0]
  for bad in (
    LookAhead(temperature=1.0),
    LookAhead(budget=Count(tokens=2)),
    LookAhead(end_id=1, stop_at_end=True),
  ):
    with pytest.raises(ValueError, match=r"look_ahead.*one token per call.*reveal"):
      bad.check(model)
  with pytest.raises(ValueError, match="remembers earlier calls"):
    decoded(LookAhead(score=Averaged(calls=2)), PROCESSES[0])
