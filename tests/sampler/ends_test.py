"""What is drawn and where rows end: bans, the k likeliest, a penalty for repetition, ends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.core.prng import row_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.budget import Count
from diffusion_text.sampler.ends import behind_end, count_before, may_end
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Entropy, LeftToRight, MaxProb, Random
from diffusion_text.sampler.transform import LogitsTransform, without
from diffusion_text.testing import Enumerable, ExactNetwork, check_sampler, exact_params
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model
from tests.sampler.windows import drawn

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
END = 2


@functools.cache
def text_of(sampler, **options):
  return new_text(sampler, **options)


def new_text(sampler, rows=400, process=None, context=None, **options):
  process = Masked(vocab_size=3) if process is None else process
  context = Full() if context is None else context
  model = Model(ExactNetwork(process), process, Shared(), context, chunk=8192)
  sampler.check(model)
  shape = {} if "batch" in options else {"rows": rows, "length": 4}
  result = sample(model, exact_params(TOY), sampler, row_keys(0, rows), **shape, **options)
  return jax.tree.map(np.asarray, result)


# --- the law of one draw ------------------------------------------------------------------------


def test_the_k_likeliest():
  """And all that equal the last; together with the nucleus and the temperature, k comes second."""
  logits = np.log(np.float32([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]))
  kept = np.isfinite(LogitsTransform(top_k=2)(logits))
  np.testing.assert_array_equal(kept, [[True, False, True, False], [True] * 4])
  np.testing.assert_array_equal(LogitsTransform(top_k=9)(logits), logits)
  # Of 0.4, 0.3 and 0.2 the first two are 0.78, and of all four 0.7.
  both = LogitsTransform(top_k=3, top_p=0.75)(logits[:1])
  np.testing.assert_array_equal(np.isfinite(both), [[True, False, True, False]])
  assert np.isfinite(LogitsTransform(top_p=0.75)(logits[:1])).sum() == 3
  assert np.isfinite(LogitsTransform(top_k=1, temperature=7.0)(logits[:1])).sum() == 1


def test_bans_and_the_penalty():
  log_p, _, _ = drawn(0)
  left = np.arange(log_p.shape[0] * log_p.shape[1]).reshape(log_p.shape[:2]) % 7 - 1
  got = np.exp(np.asarray(without(jnp.asarray(log_p), (1, 4), 0.7, jnp.asarray(left))))
  p = np.exp(np.float64(log_p))
  p = np.where(left[..., None] == np.arange(6), p * np.exp(-0.7), p)
  p[..., [1, 4]] = 0
  np.testing.assert_allclose(got, p / p.sum(-1, keepdims=True), atol=1e-6)
  assert without(log_p) is log_p, "nothing is computed where nothing is asked for"


def test_banned_ids_are_never_drawn():
  for sampler in (Reveal(banned=(END,)), Reveal(score=Random(), end="banned", end_id=END)):
    assert (text_of(sampler).ids < END).all()


def test_no_mask_is_drawn():
  """It is no token of the vocabulary, so no option has to ban it."""
  result = text_of(Reveal(score=Random(), budget=Count(tokens=2)))
  assert (result.ids < 3).all()
  with pytest.raises(ValueError, match="3 is no id of a vocabulary of 3; a mask needs no ban"):
    Reveal(banned=(3,)).check(Model(None, Masked(vocab_size=3), Shared(), Full()))


def repeats(result):
  """The share of neighbours that are equal."""
  return (result.ids[:, 1:] == result.ids[:, :-1]).mean()


def test_a_penalty_ends_repetition():
  """Of neighbours that are known: never of what a token that waits happens to show."""
  process = Uniform(vocab_size=3)
  order = functools.partial(Reveal, score=LeftToRight(), budget=Count())
  assert repeats(text_of(order(repetition_penalty=50.0), process=process)) == 0
  plain = text_of(order(), process=process)
  assert repeats(plain) > 0.1
  # From right to left no left neighbour is known, and nothing changes.
  one_call = functools.partial(Reveal, score=LeftToRight(), budget=Count(tokens=4))
  same = text_of(one_call(repetition_penalty=50.0), process=process)
  np.testing.assert_array_equal(same.ids, text_of(one_call(), process=process).ids)


def test_the_left_neighbour_of_a_window():
  """It stands in the window before."""
  sampler = Reveal(score=LeftToRight(), budget=Count(), repetition_penalty=50.0)
  assert repeats(text_of(sampler, context=Blocks(size=2))) == 0
  assert repeats(text_of(Reveal(score=LeftToRight(), budget=Count()), context=Blocks(size=2))) > 0.1


# --- ends of text -------------------------------------------------------------------------------


def test_counting_within_documents():
  where = np.array([[1, 0, 1, 1, 0, 1]], bool)
  np.testing.assert_array_equal(count_before(where, None), [[0, 1, 1, 2, 3, 3]])
  segment = np.array([[0, 0, 0, 1, 1, 1]])
  np.testing.assert_array_equal(count_before(where, segment), [[0, 1, 1, 0, 1, 1]])
  ids = np.array([[2, 2, 0, 2, 2, 2]])
  np.testing.assert_array_equal(may_end(ids, END, ~where, None), [[1, 1, 1, 0, 0, 0]])
  active = np.array([[0, 1, 1, 1, 1, 1]], bool)
  # The first end is given, not generated; the next one that counts is at place 3.
  waiting = np.array([[0, 0, 0, 0, 0, 1]], bool)
  ids = np.array([[2, 0, 1, 2, 0, 0]])
  np.testing.assert_array_equal(behind_end(ids, END, waiting, active, None), [[0, 0, 0, 0, 1, 1]])
  waiting[0, 1] = True
  assert not behind_end(ids, END, waiting, active, None).any()
  np.testing.assert_array_equal(
    behind_end(ids, END, waiting, active, segment), [[0, 0, 0, 0, 1, 1]]
  )


def check_late(sampler):
  """An end is committed after all that stands before it."""
  result = text_of(sampler)
  assert (result.ids < 3).all() and (result.ids == END).any()
  before = np.maximum.accumulate(result.committed, axis=1)[:, :-1]
  ends = result.ids[:, 1:] == END
  assert (result.committed[:, 1:] > before)[ends].all(), "an end came before its time"


LATE = [
  Reveal(score=Entropy(), budget=Count(tokens=2), end="late", end_id=END),
  Reveal(score=Random(), budget=Count(), end="late", end_id=END),
  Reveal(score=Random(), budget=Count(tokens=3), end="late", end_id=END, temperature=0.0),
]


@pytest.mark.parametrize("sampler", LATE, ids=["entropy", "random", "greedy"])
def test_a_late_end_waits_for_what_stands_before_it(sampler):
  check_late(sampler)


def test_an_early_end_would_be_noticed():
  with pytest.raises(AssertionError, match="before its time"):
    check_late(Reveal(score=Entropy(), budget=Count(tokens=2)))


STOPS = {
  "left to right": Reveal(score=LeftToRight(), budget=Count()),
  "random": Reveal(score=Random(), budget=Count()),
  "two by two": Reveal(score=MaxProb(), budget=Count(tokens=2), end="late", end_id=END),
}


def stopping(sampler):
  return dataclasses.replace(sampler, stop_at_end=True, end_id=END)


def check_stop(free, stopped):
  """The row of the text without a stop, up to the first end with nothing waiting before it; no call
  after that.
  """
  assert (stopped.row_calls < free.row_calls).mean() > 0.1
  for row, ids in enumerate(free.ids):
    done = np.maximum.accumulate(free.committed[row])
    ends = np.flatnonzero(ids == END)
    call = min((done[i] for i in ends), default=free.row_calls[row] - 1)
    assert stopped.row_calls[row] == call + 1, f"row {row}: calls"
    closing = min((i for i in ends if done[i] == call), default=len(ids))
    np.testing.assert_array_equal(stopped.ids[row, :closing], ids[:closing])
    assert (stopped.ids[row, closing:] == END).all(), f"row {row}: rest"


@pytest.mark.parametrize("name", STOPS)
def test_a_row_stops_at_its_end_and_pays_nothing_more(name):
  check_stop(text_of(STOPS[name]), text_of(stopping(STOPS[name])))


class StopsAtAnyEnd(Reveal):
  """A row ends although tokens before the end wait."""

  def _ended(self, view, text, state):
    done = state._replace(waiting=jnp.zeros_like(state.waiting))
    text, after = super()._ended(view, text, done)
    rest = (after.waiting != state.waiting) & (text == END)
    return text, state._replace(waiting=state.waiting & ~rest)


def test_a_stop_at_any_end_would_be_noticed():
  sampler = stopping(STOPS["random"])
  wrong = StopsAtAnyEnd(**{f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)})
  with pytest.raises(AssertionError, match="row"):
    check_stop(text_of(STOPS["random"]), text_of(wrong))


def test_an_end_that_is_given_stops_nothing():
  given = np.tile([END, 0, 0, 0], (50, 1)).astype(np.int32)
  batch = Batch(given, observed=np.tile([True, False, False, False], (50, 1)))
  free = new_text(Reveal(score=LeftToRight(), budget=Count()), rows=50, batch=batch)
  sampler = stopping(Reveal(score=LeftToRight(), budget=Count()))
  stopped = new_text(sampler, rows=50, batch=batch)
  assert (free.ids[:, 1:] != END).any() and (stopped.row_calls > 1).any()
  np.testing.assert_array_equal(stopped.ids[:, 1], free.ids[:, 1])


# --- a row that has ended makes no call for the windows behind -----------------------------------


def check_windows(free, ended, calls):
  """The row up to its first end, in windows of 2 tokens, and no call behind that window."""
  assert (ended.row_calls < free.row_calls).mean() > 0.1
  for row, ids in enumerate(free.ids):
    end = next(iter(np.flatnonzero(ids == END)), len(ids) - 1)
    np.testing.assert_array_equal(ended.ids[row, : end + 1], ids[: end + 1], f"row {row}")
    assert (ended.ids[row, end + 1 :] == END).all(), f"row {row}: rest"
    assert ended.row_calls[row] == calls * (end // 2 + 1), f"row {row}: calls"


# name -> (sampler, calls per window, windows and process)
WINDOWED = {
  "blocks": (Reveal(budget=Count()), 2, {"context": Blocks(size=2)}),
  "parts of a row": (Reveal(budget=Count()), 2, {"block": 2}),
  "uniform noise": (Reveal(budget=Count()), 2, {"block": 2, "process": Uniform(vocab_size=3)}),
  "a grid": (Grid(steps=3), 3, {"block": 2}),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_behind_the_end_cost_nothing(name):
  sampler, calls, how = WINDOWED[name]
  check_windows(text_of(sampler, **how), text_of(sampler, end_id=END, **how), calls)


def test_calls_behind_the_end_would_be_noticed():
  sampler, calls, how = WINDOWED["blocks"]
  free, ended = text_of(sampler, **how), text_of(sampler, end_id=END, **how)
  late = np.where(np.arange(len(free.ids)) == 5, 4, ended.row_calls)
  for wrong in (ended._replace(ids=free.ids), ended._replace(row_calls=late)):
    with pytest.raises(AssertionError, match="row"):
      check_windows(free, wrong, calls)


def test_within_a_window_and_behind_it():
  """Both stops together: a row makes the calls up to its end, and no more."""
  plain = Reveal(score=LeftToRight(), budget=Count())
  both = text_of(stopping(plain), context=Blocks(size=2), end_id=END)
  free = text_of(plain, context=Blocks(size=2))
  ends = [next(iter(np.flatnonzero(ids == END)), 3) for ids in free.ids]
  np.testing.assert_array_equal(both.row_calls, np.array(ends) + 1)
  for ids, row, end in zip(both.ids, free.ids, ends, strict=True):
    np.testing.assert_array_equal(ids, [*row[: end + 1], *[END] * (3 - end)])


def test_the_host_ends_rows_too():
  process = Masked(vocab_size=3)
  model = Model(ExactNetwork(process), process, Shared(), Blocks(size=2), chunk=8192)
  how = {"rows": 8, "length": 4, "end_id": END, "trace": True}
  keys = row_keys(0, 8)
  want = sample(model, exact_params(TOY), Reveal(budget=Count()), keys, **how)
  steps = host_sample(model, exact_params(TOY), Reveal(budget=Count()), keys, **how)
  while True:
    try:
      next(steps)
    except StopIteration as stop:
      jax.tree.map(np.testing.assert_array_equal, stop.value, want)
      break
  one = {"rows": 1, "length": 4, "end_id": END}
  alone = sample(model, exact_params(TOY), Reveal(budget=Count()), keys[3:4], **one)
  np.testing.assert_array_equal(alone.ids[0], want.ids[3])
  assert alone.row_calls[0] == want.row_calls[3]


def test_the_laws_of_a_sampler_that_stops():
  """A row is its own, the host's loop is the compiled one, observed tokens stay."""
  process = Masked(vocab_size=3)
  model = Model(ExactNetwork(process), process, Shared(), Full(), chunk=8192)
  sampler = stopping(LATE[0])
  only = {"tokens", "alone", "host"}
  check_sampler(sampler, model, exact_params(TOY), TOY, only=only, rows=64)


def test_what_does_not_fit_is_refused():
  model = Model(None, Masked(vocab_size=3), Shared(), Full())
  for options, message in (
    ({"end": "late"}, "set sampler.end_id"),
    ({"stop_at_end": True}, "set sampler.end_id"),
    ({"end_id": 7}, "7 is no id"),
    ({"banned": (-1,)}, "-1 is no id"),
    ({"banned": (0, 1), "end": "banned", "end_id": 2}, "bans all 3 tokens"),
    ({"banned": (2,), "end": "late", "end_id": 2}, "use end='banned'"),
  ):
    with pytest.raises(ValueError, match=message):
      Reveal(**options).check(model)
  with pytest.raises(ValueError, match="end_id=3 is no id"):
    sample(model, {}, Reveal(), row_keys(0, 1), rows=1, length=2, end_id=3)
