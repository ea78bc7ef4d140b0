"""The memory of parts from call to call, their own network calls, and parts in whole texts: the
host's loop is the compiled one, and a text beside others is the text alone.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment.registry import construct
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import BUDGETS, Budget
from diffusion_text.sampler.history import Divergence
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.sampler.parts import Score
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.revise import Change, Revision
from diffusion_text.sampler.score import SCORES, Density, LeftToRight
from diffusion_text.testing import Enumerable, ExactNetwork, check_sampler, exact_params
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model
from tests.sampler.ragged_test import MASKED, check_alone

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MODEL = Model(ExactNetwork(Masked(vocab_size=3)), Masked(vocab_size=3), Shared(), Full(), chunk=512)


def text_of(sampler, rows=16, **options):
  sampler.check(MODEL)
  keys = row_keys(0, rows)
  result = sample(MODEL, exact_params(TOY), sampler, keys, rows=rows, length=4, **options)
  return jax.tree.map(np.asarray, result)


def states(sampler, rows=4, reader=None):
  """(state of the sampler before each step and after the last, the tokens that are answered)."""
  loop = Loop(MODEL, sampler, WholeRow() if reader is None else reader)
  params = exact_params(TOY)
  fixed = loop.fixed(params, row_keys(0, rows), made_batch(rows))
  carry = loop.start(params, fixed)
  advance = jax.jit(lambda carry: loop.advance(params, fixed, carry))
  found = [carry.sampler]
  while bool(jnp.any(loop.needs(params, fixed, carry))):
    carry = advance(carry)
    found.append(carry.sampler)
  return jax.tree.map(np.asarray, found)


def made_batch(rows):
  return Batch(jnp.zeros((rows, 4), jnp.int32))


# --- memory and calls ---------------------------------------------------------------------------


@member
class Counts(Score):
  """Left to right, and how often each token has been answered; of the row, how often any has."""

  reads_logits: ClassVar[bool] = True

  def init(self, model, params, canvas):
    return jnp.zeros(canvas.active.shape, jnp.int32)

  def __call__(self, candidates):
    return -candidates.place.astype(jnp.float32) + 0.0 * candidates.memory

  def remember(self, candidates):
    return candidates.memory + 1


@member
class Hears(Budget):
  """One token; remembers the number of the calls, and asks another network twice."""

  reads_logits: ClassVar[bool] = False
  extra_calls: ClassVar[int] = 2

  def init(self, model, params, canvas):
    return jnp.zeros_like(canvas.call)

  def __call__(self, view, proposal, waiting):
    first = jnp.argmax(jnp.where(waiting, proposal.score, -jnp.inf), axis=1)
    return waiting & (jnp.arange(waiting.shape[1]) == first[:, None])

  def keep(self, view, proposal, committed):
    return view.memory + jnp.sum(committed, axis=1)


@member
class ChoosesNone(Budget):
  """Commits nothing in rows of even number, and everything in others."""

  reads_logits: ClassVar[bool] = False

  def __call__(self, view, proposal, waiting):
    return waiting & (jnp.arange(waiting.shape[0]) % 2 == 1)[:, None]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_budget_that_chooses_nothing_takes_the_leftmost_token(ahead):
  """In place of a row that is never done; whether or not the choice is made before the call."""
  found = text_of(Reveal(score=LeftToRight() if ahead else Counts(), budget=ChoosesNone()), rows=4)
  np.testing.assert_array_equal(found.committed[::2], np.tile(np.arange(4), (2, 1)))
  np.testing.assert_array_equal(found.committed[1::2], 0)


@member
class Notes(Revision):
  """Changes nothing; remembers what was recorded before its call."""

  reads: ClassVar[str] = "committed"
  extra_calls: ClassVar[int] = 1

  def init(self, model, params, canvas):
    return jnp.zeros(canvas.active.shape)

  def __call__(self, view, proposal, committed):
    nowhere = jnp.zeros(committed.shape, bool)
    return Change(nowhere, proposal.ids, view.level, view.memory + view.recorded)


REMEMBERING = Reveal(score=Counts(), budget=Hears(), revise=Notes())


def test_parts_remember_from_call_to_call():
  found = states(REMEMBERING)
  answered = [state.memory.scores[0] for state in found]
  np.testing.assert_array_equal(answered[0], 0)
  np.testing.assert_array_equal(answered[-1], np.tile([1, 2, 3, 4], (4, 1)))
  np.testing.assert_array_equal([s.memory.budget for s in found], np.tile(np.arange(5), (4, 1)).T)
  recorded = np.stack([state.recorded for state in found])
  np.testing.assert_allclose(found[-1].memory.revise, recorded[:-1].sum(0), atol=1e-6)


def test_what_is_recorded_is_the_log_probability_at_commitment():
  result = text_of(Reveal(score=LeftToRight(), budget=Hears()), trace=True, rows=4)
  last = states(Reveal(score=LeftToRight(), budget=Hears()))
  np.testing.assert_allclose(last[-1].recorded, result.log_prob, atol=1e-6)
  assert (last[2].recorded[:, 2:] == 0).all() and (last[-1].recorded < 0).all()


def test_calls_of_parts_are_counted():
  assert REMEMBERING.extra_calls == 3 and Reveal().extra_calls == 0
  assert (text_of(REMEMBERING).row_calls == 4 * (1 + 3)).all()


@member
class EveryOther(WholeRow):
  """Answers every other place, in turns."""

  def init(self, model, params, query):
    return jnp.int32(0)

  def read(self, model, params, memory, query, *, refresh=True):
    prediction, _ = super().read(model, params, (), query, refresh=refresh)
    fresh = jnp.broadcast_to((jnp.arange(4) + memory) % 2 == 0, query.needs.shape)
    return dataclasses.replace(prediction, fresh=fresh), memory + 1


def test_only_answered_tokens_are_remembered():
  """Places 0 and 2, then 1 and 3, …: each counts its own calls, as long as it waits."""
  found = states(REMEMBERING, reader=EveryOther())
  counts = np.stack([state.memory.scores[0][0] for state in found])
  np.testing.assert_array_equal(counts[1:3], [[1, 0, 1, 0], [1, 1, 1, 1]])
  score = Divergence()
  known = [s.memory.scores[0].known[0] for s in states(Reveal(score=score), reader=EveryOther())]
  np.testing.assert_array_equal(known[1], [True, False, True, False])


def test_a_part_without_memory_costs_nothing():
  for score in ("random", "left_to_right", "max_prob", "margin", "entropy", "density"):
    for budget in ("even_share", "count", "quota", "threshold", "factor", "entropy_bound"):
      state = states_at_start(Reveal(score=SCORES[score](), budget=BUDGETS[budget]()))
      assert not jax.tree.leaves(state.memory), (score, budget)
  assert jax.tree.leaves(states_at_start(Reveal(budget=BUDGETS["stable"]())).memory)


def states_at_start(sampler):
  loop = Loop(MODEL, sampler, WholeRow())
  params = exact_params(TOY)
  fixed = loop.fixed(params, row_keys(0, 2), made_batch(2))
  return jax.eval_shape(lambda: loop.start(params, fixed)).sampler


def test_a_score_that_two_parts_ask_for_is_remembered_once():
  sampler = Reveal(score=Divergence(), budget=BUDGETS["stable"]())
  assert len(states_at_start(sampler).memory.scores) == 2  # kl and max_prob


# --- every part in whole texts ------------------------------------------------------------------

BOTH = {"name": "any_of", "budgets": ["per_run", {"name": "stable", "calls": 1, "below": 0.3}]}
COMMON = {
  "name": "all_of",
  "budgets": [{"name": "entropy_bound", "gamma": 0.5}, {"name": "consistent", "warm_up": 0}],
}
TEXTS = {
  "kl, runs, stability": {"score": "kl", "budget": BOTH, "top_k": 2, "repetition_penalty": 0.4},
  "mean, bound, agreement": {
    "score": {"name": "averaged", "calls": 3, "highest": 2},
    "budget": COMMON,
    "end": "late",
    "end_id": 1,
    "stop_at_end": True,
  },
  "density, factor, quota": {
    "score": {"name": "density", "width": 2.0},
    "budget": {"name": "any_of", "budgets": ["factor", {"name": "quota", "steps": 3}]},
    "revise": {"name": "remask", "probability": 0.3, "calls": 2},
    "banned": (0,),
  },
}


# The second one ends in tokens that are to be generated.
OPEN = ["[6]cabca", "ab[6]", "e[4]"]


def sampler_of(options):
  return construct("sampler", {"name": "reveal", **options})


@pytest.mark.parametrize("name", TEXTS)
def test_the_loop_of_the_host_and_a_row_alone(name):
  sampler = sampler_of(TEXTS[name])
  check_sampler(sampler, MODEL, exact_params(TOY), TOY, only={"alone", "host"}, rows=16)


@pytest.mark.parametrize("name", TEXTS)
def test_an_infill_does_not_depend_on_its_neighbours(name):
  check_alone(MASKED, sampler_of(TEXTS[name]), texts=OPEN)


@member
class OverThePadding(Density):
  """Padding counts as known text."""

  def density(self, view):
    lengths = jnp.full_like(view.canvas.lengths, view.waiting.shape[1])
    return super().density(view._replace(canvas=view.canvas._replace(lengths=lengths)))


def test_a_density_of_the_padding_would_be_noticed():
  with pytest.raises(AssertionError, match="timing"):
    wrong = Reveal(score=OverThePadding(width=2.0), budget=BUDGETS["count"]())
    check_alone(MASKED, wrong, texts=OPEN)
