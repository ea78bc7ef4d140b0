"""Walking the grid: the exact law of its steps, the same tokens without idle calls, and marginals
that Ψ-samplers keep.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks
from diffusion_text.core.options import member
from diffusion_text.core.prng import draw_categorical, streams, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler import grid
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.guessed_times import GuessedTimes
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.tau_leaping import TauLeaping
from diffusion_text.sampler.transform import LogitsTransform
from diffusion_text.schedules.discrete import Cosine
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.exact_network import ExactNetwork
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import ByInformation, Shared, Slanted
from diffusion_text.types import Batch, Canvas, DataFacts
from tests.sampler.queries import query_of

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)


def drawn(model, params, sampler, rows, **options):
  """The sample, in numpy."""
  result = sample(model, params, sampler, jax.random.key(0), rows=rows, length=4, **options)
  return jax.tree.map(np.asarray, result)


def law_of_grid(language, steps):
  """The law of so many even steps of masks: tokens that are revealed in one step do not see each
  other.
  """
  sequences, p, places = language.sequences, language.probabilities, range(language.length)
  law = np.zeros(len(p))
  for arrival in itertools.product(range(steps), repeat=language.length):
    known, chance = np.zeros(language.length, bool), np.ones(len(p))
    for step in sorted(set(arrival)):
      new = [place for place in places if arrival[place] == step]
      for i, row in enumerate(sequences):
        fits = (sequences[:, known] == row[known]).all(1) * p
        for place in new:
          chance[i] *= fits[sequences[:, place] == row[place]].sum() / fits.sum()
      known[new] = True
    law += chance / steps**language.length
  return law


def noise_floor(law, rows):
  """The expected total variation between a law and the histogram of `rows` draws from it, and
  some.
  """
  return 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * rows)).sum() * 1.25


def test_the_law_of_a_coarse_grid_and_the_same_tokens_without_idle_calls():
  """Two steps: tokens of one step are independent, which is far from the language, and exactly
  so.
  """
  model, params = exact_model(MASKED, TOY)
  result = drawn(model, params, Grid(steps=2), 8_000)
  law, got = law_of_grid(TOY, 2), TOY.histogram(result.ids)
  assert 0.5 * np.abs(got - law).sum() < noise_floor(law, 8_000)
  assert TOY.total_variation(law) > 0.1 > noise_floor(law, 8_000) * 2
  assert (result.row_calls == 2).all() and result.calls == 2
  skipping = drawn(model, params, Grid(steps=2, skip=True), 8_000)
  np.testing.assert_array_equal(skipping.ids, result.ids)
  assert skipping.row_calls.mean() == pytest.approx(2 - 2 / 2**4, abs=0.01)


@pytest.mark.parametrize(
  "process,timing,kappa",
  [(Masked(vocab_size=3, schedule=Cosine()), Slanted(spread=2.0), 1.0), (MASKED, Shared(), 0.9)],
  ids=["slanted", "kappa"],
)
def test_many_steps_reproduce_the_language(process, timing, kappa):
  """And skipping is the same sampler, whatever the timing and kappa."""
  model, params = exact_model(process, TOY, timing=timing)
  result = drawn(model, params, Grid(steps=64, kappa=kappa), 2_000)
  got = TOY.histogram(result.ids)
  assert result.calls == 64
  assert TOY.total_variation(got) < noise_floor(TOY.probabilities, 2_000) + 0.015
  skipping = drawn(model, params, Grid(steps=64, kappa=kappa, skip=True), 2_000)
  np.testing.assert_array_equal(skipping.ids, result.ids)
  assert skipping.row_calls.max() < 64
  changed = result.committed.max(axis=1)
  assert (skipping.row_calls - 1 >= skipping.committed.max(axis=1)).all() and (changed > 4).any()


@pytest.mark.parametrize("kind", [Grid, TauLeaping], ids=lambda kind: kind.__name__)
def test_a_cosine_grid_reveals_few_tokens_early(kind):
  """After k of S steps of linear masks 1 - cos(π/2 · k / S) of the tokens are drawn."""
  model, params = exact_model(MASKED, Enumerable.independent(3, 4))
  result = drawn(model, params, kind(steps=4, spacing="cosine"), 4_000)
  share = [(result.committed < k).mean() for k in (1, 2, 3, 4)]
  want = 1 - np.cos(np.pi / 2 * np.arange(1, 5) / 4)
  np.testing.assert_allclose(share, want, atol=4 * 0.5 / 16_000**0.5)


def test_skipping_makes_as_many_calls_as_theory_says():
  """S (1 - (1 - 1/S)^u) calls per row, however many rows there are; the time is that of each row's
  own step.
  """
  seen = []

  @member
  class Watched(ExactNetwork):
    def apply(self, params, rows, **options):
      def note(ids, t):
        seen.append((np.asarray(ids), np.asarray(t)))

      jax.debug.callback(note, rows.inputs.ids, rows.t)
      return ExactNetwork.apply(self, params, rows, **options)

  language = Enumerable.independent(2, 1)
  process = Masked(vocab_size=2)
  model, params = exact_model(process, language)
  model = model._replace(network=Watched(process=process))
  steps, length, rows = 250, 64, 64
  batch = Batch(jnp.zeros((rows, length), jnp.int32))
  result = sample(model, params, Grid(steps=steps, skip=True), jax.random.key(0), batch=batch)
  jax.effects_barrier()
  expected = steps * (1 - (1 - 1 / steps) ** length)
  assert pytest.approx(226.0, abs=0.1) == 1000 * (
    1 - (1 - 1 / 1000) ** 256
  )  # what the docstring says
  error = float(result.row_calls.std()) / rows**0.5
  assert float(result.row_calls.mean()) == pytest.approx(expected, abs=4 * error) and error < 0.5
  assert int(result.calls) == int(result.row_calls.max()) == len(seen)
  for ids, t in seen:
    waits = ids == process.mask_id
    np.testing.assert_allclose(t * steps, np.round(t * steps), atol=1e-3)
    assert (t[waits] > 0).all()


def test_a_step_waits_for_answers_that_are_late():
  """A reader that answers one token a call: every token is drawn by an answer, and the law is still
  that of the grid.
  """
  model, params = exact_model(MASKED, TOY)
  late = drawn(model, params, Grid(steps=1), 4_000, reader=_Slow())
  assert (late.ids < 3).all() and (late.row_calls == 4).all()
  # One token after the other, each seeing those before it: the language itself.
  assert TOY.total_variation(TOY.histogram(late.ids)) < noise_floor(TOY.probabilities, 4_000)


@member
class _Slow:
  """Reads whole rows, and admits to the leftmost answer that is needed only."""

  calls = 1
  every = 1
  unrolls = False

  def check(self, model):
    """Nothing."""

  def cost(self, model, params, memory, query, during):
    """That of whole rows."""
    return WholeRow().cost(model, params, memory, query, during)

  def init(self, model, params, query):
    """Nothing."""
    return ()

  def read(self, model, params, memory, query, *, refresh=True):
    """One answer per row."""
    prediction, memory = WholeRow().read(model, params, memory, query)
    first = jnp.argmax(query.needs, axis=1)[:, None] == jnp.arange(query.needs.shape[1])
    return prediction.__class__(prediction.features, prediction.head, fresh=first), memory

  def finish(self, model, params, memory, query):
    """Nothing."""
    return memory


# One step with a network that knows the tokens: from q_t(z | x) it must lead to q_s(z | x).

KNOWN, T, S, MANY = (0, 3, 2), (0.9, 0.4, 0.5), (0.6, 0.1, 0.5), 12_000
FOUR = Masked(vocab_size=4)


@member
class Pair(Shared):
  """A grid of one step per token, t -> s."""

  def grid(self, params, clock, lengths, length):
    """T, S, 0."""
    times = jnp.array([T, S, (0.0,) * 3], jnp.float32)
    return jnp.broadcast_to(times, (lengths.shape[0], 3, 3))


@functools.partial(jax.jit, static_argnums=(0, 1))
def one_step(model, sampler, params, key):
  """States [rows, 3] before and after one step."""
  process, own = model.process, params["process"]
  ids = jnp.broadcast_to(jnp.array(KNOWN), (MANY, 3))
  keys = token_keys(jax.random.split(key, MANY), 3)
  t = jnp.broadcast_to(jnp.array(T), ids.shape)
  state = process.corrupt(own, streams(keys, "corrupt"), process.clean(own, ids), t)
  everywhere = jnp.ones(ids.shape, bool)
  length = jnp.full(MANY, 3)
  canvas = Canvas(state, everywhere, keys, jnp.zeros(MANY, jnp.int32), length)
  walked = sampler.init(model, params, canvas)
  query = query_of(canvas, t, everywhere)
  inputs = process.inputs(own, state, t)
  rows = model.context.sampling_rows(inputs, inputs, t, Batch(ids))
  prediction = model.network.apply(params["network"], rows)
  needs = sampler.needs(model, params, canvas, walked)
  after, _ = sampler.step(model, params, canvas, walked, prediction, query, needs)
  return state, after


def step_of(process, sampler):
  """The same, in numpy."""
  language = Enumerable(np.array([KNOWN], np.int32), np.ones(1), 4)
  model, params = exact_model(process, language, timing=Pair())
  return map(np.asarray, one_step(model, sampler, params, jax.random.key(3)))


def check_marginals(process, sampler):
  """Chapman–Kolmogorov, place by place, against draws of `corrupt` at s."""
  _, after = step_of(process, sampler)
  keys = token_keys(jax.random.split(jax.random.key(9), 2 * MANY), 3)
  ids = jnp.broadcast_to(jnp.array(KNOWN), (2 * MANY, 3))
  want = np.asarray(
    jax.jit(process.corrupt)({}, keys, ids, jnp.broadcast_to(jnp.array(S), ids.shape))
  )
  for place in range(3):
    size = process.input_sizes.ids
    got, p = (np.bincount(x[:, place], minlength=size) / len(x) for x in (after, want))
    error = np.sqrt(p * (1 - p) * (1 / len(after) + 1 / len(want)))
    assert (np.abs(got - p) < 4.5 * error + 2e-4).all(), (place, got, p)


MIXED = Mixed(vocab_size=4, mixing="peaked", share=0.3)
GAMMA = Mixed(vocab_size=4, mixing="gamma", share=0.4)


@pytest.mark.parametrize(
  "process,kappa",
  [(FOUR, 0.0), (FOUR, 0.6), (Uniform(vocab_size=4), 0.6), (MIXED, 0.0), (GAMMA, 0.6)],
  ids=str,
)
def test_marginals_are_kept(process, kappa):
  check_marginals(process, Grid(steps=2, kappa=kappa))


@pytest.mark.parametrize("process", [FOUR, Uniform(vocab_size=4)], ids=str)
def test_noise_of_another_time_fails(process, monkeypatch):
  right = grid.noised_guess

  def late(process, of_process, keys, state, output, t, s):
    return right(process, of_process, keys, state, output, t, jnp.minimum(1.2 * s, 1.0))

  monkeypatch.setattr(grid, "noised_guess", late)
  with pytest.raises(AssertionError):
    check_marginals(
      process, Grid(steps=2, kappa=0.59)
    )  # a choice of its own, as equal ones compile once


def test_psi_remasks_as_remdm_does():
  """sigma = (1 - kappa)(1 - alpha_s); kappa the wrong way round is far off."""
  want = 0.3 * np.array(S)

  def remasked(kappa):
    before, after = step_of(FOUR, Grid(steps=2, kappa=kappa))
    return ((before < 4) & (after == 4)).sum(0) / (before < 4).sum(0)

  np.testing.assert_allclose(remasked(0.7), want, atol=0.015)
  assert (np.abs(remasked(0.3) - want) > 0.03).all()


# What becomes of the logits.


def test_the_last_step_may_be_greedy():
  """One step from uniform noise is the likeliest token wherever the transform leaves no other."""
  liked = np.array([0.1, 0.2, 0.4, 0.3])
  language = Enumerable(np.arange(4, dtype=np.int32)[:, None], liked, 4)
  model, params = exact_model(Uniform(vocab_size=4), language)

  def shares(**options):
    sampler = Grid(steps=1, **options)
    ids = sample(model, params, sampler, jax.random.key(0), rows=2000, length=1).ids
    return np.bincount(np.asarray(ids)[:, 0], minlength=4) / 2000

  np.testing.assert_allclose(shares(), liked, atol=0.05)
  np.testing.assert_array_equal(shares(greedy_tail=True), [0, 0, 1, 0])
  logits, s = jnp.log(jnp.stack([liked, liked])), jnp.array([0.0, 0.5])
  only = np.where(liked == 0.4, 0, -np.inf)
  for options in ({"top_p": 1e-6}, {"temperature": 0.0}):
    kept = np.isfinite(Grid(steps=1, **options).transform(logits, s))
    np.testing.assert_array_equal(kept, np.isfinite([only, only]))
  kept = np.isfinite(Grid(steps=1, greedy_tail=True).transform(logits, s)).sum(1)
  np.testing.assert_array_equal(kept, [1, 4])


def test_top_p_keeps_the_crossing_token():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  kept = {
    p: np.isfinite(LogitsTransform(top_p=p)(logits)).tolist() for p in (0.5, 0.51, 0.96, 1e-6)
  }
  assert kept[0.5] == kept[1e-6] == [True, False, False, False]
  assert kept[0.51] == [True, True, False, False]
  assert kept[0.96] == [True, True, True, True]


@pytest.mark.parametrize(
  "bad",
  [
    {"temperature": -1.0},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"temperature": float("nan")},
    {"kappa": 1.5},
    {"steps": 0},
  ],
  ids=str,
)
def test_bad_choices_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Grid(**{"steps": 4, **bad})


def test_scores_of_uniform_noise_are_not_transformed():
  """They are ratios to the token shown, whose own logit means nothing; those of masks are a law up
  to a factor.
  """
  model, _ = exact_model(MASKED, TOY)
  scores = model._replace(process=Uniform(vocab_size=3, prediction="score"))
  of_masks = model._replace(process=Masked(vocab_size=3, prediction="score"))
  for kind in (Grid, TauLeaping):
    kind(steps=2).check(scores)
    for options in ({"greedy_tail": True}, {"temperature": 0.5}, {"top_p": 0.9}):
      with pytest.raises(ValueError, match=r"Uniform with prediction='score'.*leave temperature"):
        kind(steps=2, **options).check(scores)
      kind(steps=2, **options).check(model)
      kind(steps=2, **options).check(of_masks)


def test_rare_tokens_keep_their_share():
  """100 tokens of probability 1e-5 each are drawn 1e-3 of the time in all: 200 000 draws, within 4
  standard errors.
  """
  logits = jnp.log(jnp.concatenate([jnp.array([1 - 1e-3]), jnp.full((100,), 1e-5)]))

  @jax.jit
  def draws(keys):
    return draw_categorical(keys, jnp.broadcast_to(logits, (*keys.shape, 101)))

  rare = float((np.asarray(draws(jax.random.split(jax.random.key(0), 200_000))) > 0).mean())
  assert rare == pytest.approx(1e-3, abs=4 * (1e-3 / 200_000) ** 0.5)


def test_blocks_one_after_the_other():
  """Steps are those of one block; every block is finished before the next begins."""
  model, params = exact_model(MASKED, TOY, context=Blocks(size=2))
  result = drawn(model, params, Grid(steps=24), 2_000)
  first, second = result.committed[:, :2], result.committed[:, 2:]
  assert (first < 24).all() and (second >= 24).all() and result.calls == 48
  floor = noise_floor(TOY.probabilities, 2_000) + 0.02
  assert TOY.total_variation(TOY.histogram(result.ids)) < floor


# Processes in discrete time.


@member
class OffTheGrid(Masked):
  """Takes every time for one of its own, as samplers did once."""

  def round_time(self, t):
    return t


TOLD = []


@member
class KeepsTimes(ExactNetwork):
  """An exact network that keeps the times that it reads, in TOLD."""

  def apply(self, params, rows, **options):
    jax.debug.callback(lambda t: TOLD.append(np.asarray(t)), rows.t)
    return super().apply(params, rows, **options)


WALKS = {
  "grid": (Grid(steps=5), Shared()),
  "guessed": (GuessedTimes(steps=5), ByInformation()),
  "reveal": (Reveal(told="shared"), Shared()),
}


def times_read(cls, name):
  """The times that the network reads while a text is made by a process of two steps."""
  sampler, timing = WALKS[name]
  model, params = exact_model(cls(vocab_size=3, time_steps=2), TOY, timing=timing)
  network = KeepsTimes(model.process)
  TOLD.clear()
  facts = DataFacts(4, 3, lambda: np.array([5, 3, 1]))
  params = {**params, "timing": timing.init(jax.random.key(0), facts)}
  drawn(model._replace(network=network), params, sampler, 4)
  jax.effects_barrier()
  return np.unique(TOLD)


@pytest.mark.parametrize("name", WALKS)
def test_a_process_in_discrete_time_is_read_at_its_own_times(name):
  assert set(times_read(Masked, name)) <= {0.0, 0.5, 1.0}
  assert not set(times_read(OffTheGrid, name)) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("skip", [False, True])
def test_a_process_of_two_steps_makes_two_steps(skip):
  """However many the sampler has: the chain whose cost training bounds. The others are idle."""
  law = law_of_grid(TOY, 2)

  def away(cls):
    model, params = exact_model(cls(vocab_size=3, time_steps=2), TOY)
    result = drawn(model, params, Grid(steps=5, skip=skip), 8_000)
    assert not skip or cls is OffTheGrid or result.row_calls.max() <= 2
    return 0.5 * np.abs(law - TOY.histogram(result.ids)).sum()

  assert away(Masked) < noise_floor(law, 8_000)
  assert away(OffTheGrid) > 2 * noise_floor(law, 8_000)
