"""EDLM against exact laws: the law of a step with two candidates, and with many; the released sign
and the released carry-over lead elsewhere.
"""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.contrib.energy import Energy
from diffusion_text.core.options import member
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.loop import sample
from diffusion_text.testing import Enumerable, check_sampler, exact_model
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)
ROWS = 4_000
SEEN = (3, 1)  # place and token, behind the masked ones


@member
class WrongSign(Energy):
  """As released: candidates are weighed with exp(+E)."""

  def log_weight(self, log_p, log_q):
    """The inverse of the ratio."""
    return (log_q - log_p) / self.energy_temperature


@member
class WithoutEvidence(Energy):
  """Noise that looks like text is not weighed, as if it were masks."""

  def drawn(self, *args):
    """As it is, but for the last."""
    ids, log_q, log_fit = super().drawn(*args)
    return ids, log_q, 0 * log_fit


@functools.cache
def paired(process=MASKED, context=None):
  """(model, its parameters with those of the scorer, the scorer), both exact."""
  model, params = exact_model(process, TOY, context=Full() if context is None else context)
  exact = exact_model(process, TOY, timing=AtNoise(), context=NextToken(), answer_shift=1)
  other = Other(reader=WholeRow(), model=exact[0], group="ar")
  return model, {**params, "ar": exact[1]}, other


@functools.cache
def drawn(kind, **options):
  """Ids [2, rows, 4] of one step: with nothing visible, and with one token visible."""
  model, params, scorer = paired()
  place, token = SEEN
  ids = np.full((2 * ROWS, 4), token, np.int32)
  observed = np.broadcast_to((np.arange(4) == place), ids.shape).copy()
  observed[:ROWS] = False
  sampler = kind(scorer=scorer, **{"steps": 1, **options})
  result = sample(model, params, sampler, jax.random.key(0), batch=Batch(ids, observed))
  assert int(result.calls) == sampler.steps * (1 + sampler.candidates)
  return np.asarray(result.ids).reshape(2, ROWS, 4)


def laws(seen):
  """(the language given what is visible, the product of its marginals), over all rows."""
  sequences, p = TOY.sequences, TOY.probabilities
  if seen:
    p = np.where(sequences[:, SEEN[0]] == SEEN[1], p, 0.0)
    p = p / p.sum()
  marginals = np.stack([[p[sequences[:, i] == v].sum() for v in range(3)] for i in range(4)])
  return p, marginals[np.arange(4), sequences].prod(1)


def of_two(p, q):
  """The law of the candidate that is chosen out of two."""
  weight = p / np.maximum(q, 1e-30)
  first = weight[:, None] / np.maximum(weight[:, None] + weight[None, :], 1e-30)
  return 2 * q * (first * q[None, :]).sum(1)


def distance(ids, law):
  """(total variation to a law, what exact draws would show)."""
  got = TOY.histogram(ids)
  chance = 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * len(ids))).sum()
  return 0.5 * np.abs(got - law).sum(), chance


@pytest.mark.parametrize("seen", [0, 1], ids=["nothing visible", "one visible"])
def test_two_candidates_have_the_law_that_theory_gives_them(seen):
  """Their law can be written down; it is neither that of the language nor that of one candidate."""
  p, q = laws(seen)
  found, chance = distance(drawn(Energy, candidates=2, low=1.0)[seen], of_two(p, q))
  assert found < 1.3 * chance
  for other in (p, q):
    assert distance(drawn(Energy, candidates=2, low=1.0)[seen], other)[0] > 2 * chance
  found, chance = distance(drawn(Energy, candidates=1)[seen], q)
  assert found < 1.3 * chance


@pytest.mark.parametrize("seen", [0, 1], ids=["nothing visible", "one visible"])
def test_many_candidates_are_the_language_after_one_step(seen):
  """TV falls like 1 / k. The wrong sign is worse than one candidate, and tokens that are visible
  behind masked ones must count.
  """
  p, q = laws(seen)
  one = 0.5 * np.abs(p - q).sum()
  assert one > 0.2
  found, chance = distance(drawn(Energy, candidates=32)[seen], p)
  assert found < chance + 3 * one / 32
  wrong, _ = distance(drawn(WrongSign, candidates=32)[seen], p)
  assert wrong > one + 0.1
  released, _ = distance(drawn(Energy, candidates=32, visible=False)[seen], p)
  assert released > 0.3 > 2 * found if seen else abs(released - found) < 1e-6


def test_the_laws_of_every_sampler():
  model, params, scorer = paired()
  sampler = Energy(steps=3, scorer=scorer, candidates=4)
  check_sampler(sampler, model, params, TOY, calls=15, slack=0.06)


@pytest.mark.parametrize(
  "process,context,steps", [(MASKED, Blocks(size=2), 1), (Uniform(vocab_size=3), None, 3)], ids=str
)
def test_in_blocks_and_from_uniform_noise(process, context, steps):
  """A window is weighed given the clean blocks before it. Noise that looks like text is evidence,
  which must be weighed too.
  """
  model, params, scorer = paired(process, context)

  def found(candidates, kind=Energy):
    sampler = kind(steps=steps, scorer=scorer, candidates=candidates)
    ids = sample(model, params, sampler, jax.random.key(1), rows=4_000, length=4).ids
    return distance(np.asarray(ids), TOY.probabilities)

  (few, _), (many, chance) = found(1), found(24)
  assert many < 1.3 * chance + 0.02 and few > many + 0.04
  if process.mask_id is None:
    assert found(24, WithoutEvidence)[0] > 1.3 * chance + 0.04


def test_steps_out_of_the_window_take_the_first_candidate():
  """t = 1 at the only step."""
  outside = drawn(Energy, candidates=2, high=0.9)
  _, q = laws(0)
  found, chance = distance(outside[0], q)
  assert found < 1.3 * chance
  assert (drawn(Energy, candidates=2, low=1.0) != outside).any()  # whose law is tested above


def test_the_temperature_of_the_energy_flattens_the_weights():
  """exp(-E / temperature)."""
  sampler = Energy(scorer=paired()[2], energy_temperature=2.0)
  log_p, log_q = np.log([[0.5], [0.25]]), np.log([[0.125], [0.25]])
  np.testing.assert_allclose(np.exp(sampler.log_weight(log_p, log_q)), [[2.0], [1.0]], rtol=1e-6)


def test_what_does_not_fit_is_refused():
  model, params, scorer = paired()
  with pytest.raises(ValueError, match=r"low=0.6 must not exceed high=0.4"):
    Energy(scorer=scorer, low=0.6, high=0.4)
  with pytest.raises(ValueError, match="show each token to its own answer"):
    Energy(scorer=Other(reader=WholeRow(), model=model)).check(model)
  with pytest.raises(ValueError, match="answered for some tokens only"):
    slow = Cached(policy="some", queries=1, every=2)
    sampler = Energy(steps=2, scorer=scorer, candidates=2)
    sample(model, params, sampler, jax.random.key(0), rows=2, length=4, reader=slow)
  scores = model._replace(process=Uniform(vocab_size=3, prediction="score"))
  with pytest.raises(ValueError, match="one kind of noise"):
    Energy(scorer=scorer).check(scores)
  of_scores = scorer.model._replace(process=scores.process)
  with pytest.raises(ValueError, match="no logits of tokens"):
    Energy(scorer=Other(reader=WholeRow(), model=of_scores)).check(scores)
