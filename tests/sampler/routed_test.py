"""Routing: what is kept, at which time the rest is told to be, and the bias it has by design."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.routed import Routed, Routing
from diffusion_text.schedules.discrete import Cosine, Linear
from diffusion_text.testing import (
  Enumerable,
  ExactNetwork,
  check_sampler,
  exact_model,
  exact_params,
)
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch, Canvas, IdentityHead, Model, Prediction
from tests.sampler.queries import query_of

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
MASK = 3
MASKED, UNIFORM = Masked(vocab_size=3), Uniform(vocab_size=3)


def model_of(process, timing=None):
  timing = Shared() if timing is None else timing
  return Model(ExactNetwork(process), process, timing, Full(), chunk=8192)


def draw(sampler, process, rows, language=TOY, batch=None, seed=0):
  shape = {"rows": rows, "length": 4} if batch is None else {"batch": batch}
  result = sample(model_of(process), exact_params(language), sampler, row_keys(seed, rows), **shape)
  return jax.tree.map(np.asarray, result)


def test_routing_is_biased():
  """It scores the token it drew: far from the language, at one more token per call even."""
  result = draw(Routed(steps=4), MASKED, 2_000)
  assert result.calls == 4
  assert TOY.total_variation(TOY.histogram(result.ids)) > 0.3  # 0.43


def share_of(rate, done, steps):
  share = np.arange(done, steps + 1) / steps
  return share if rate == "linear" else 1 - np.cos(np.pi / 2 * share)


@pytest.mark.parametrize("rate", ["linear", "cosine"])
def test_routing_keeps_what_it_says(rate):
  total = np.arange(1, 300)
  for steps in (1, 2, 3, 7, 10, 64):
    sampler = Routed(steps=steps, rate=rate)
    step, tokens = map(jnp.asarray, np.meshgrid(np.arange(steps), total, indexing="ij"))
    kept = np.asarray(sampler.kept(step, tokens))
    assert (np.diff(kept, axis=0) >= 0).all() and (kept[-1] == total).all()
    assert (np.abs(kept - share_of(rate, 1, steps)[:, None] * total) < 1 + 1e-4).all()


# Kept after each call, by the published code: floor((1 - rate) · tokens) go back to noise.
PUBLISHED = [
  (Routed(steps=10, rate="cosine"), 16, [1, 1, 2, 4, 5, 7, 9, 12, 14, 16]),
  (Routed(steps=4), 10, [3, 5, 8, 10]),
  (Routed(steps=3, rate="cosine"), 16, [3, 8, 16]),  # cos(π/3) · 16 is 8, not a little less
]


@pytest.mark.parametrize("sampler,total,want", PUBLISHED, ids=repr)
def test_routing_keeps_the_ceiling(sampler, total, want):
  step = jnp.arange(sampler.steps)
  np.testing.assert_array_equal(sampler.kept(step, jnp.full_like(step, total)), want)


@pytest.mark.parametrize("rate", ["linear", "cosine"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_routing_tells_the_time_of_what_it_kept(rate, schedule):
  """Whatever the timing: all tokens at the time at which the schedule keeps the share kept."""
  zeros, text = jnp.zeros(6, jnp.int32), jnp.zeros((6, 4), jnp.int32)
  keys = token_keys(row_keys(0, 6), 4)
  canvas = Canvas(text, jnp.ones((6, 4), bool), keys, zeros, zeros + 4)
  model = model_of(Uniform(vocab_size=3, schedule=schedule), Slanted(spread=2.0))
  times = Routed(steps=5, rate=rate).times(
    model, {}, canvas, Routing(jnp.arange(6), ~canvas.active)
  )
  want = np.tile(share_of(rate, 0, 5)[:, None], (1, 4))
  np.testing.assert_allclose(schedule(times).alpha, want, atol=2e-6)
  assert (times[0] == 1).all() and (times[-1] <= 1e-7).all()


LIKED = np.array([2, 0, 1, 2])
SURE = Enumerable(TOY.sequences, 1e-6 ** (TOY.sequences != LIKED).sum(1) / (1 + 2e-6) ** 4, 3)


def check_certain(sampler):
  """A network that knows the text is believed, whatever the noise and the timing."""
  for process in (MASKED, UNIFORM):
    assert (draw(sampler, process, 50, SURE).ids == LIKED).all()


CERTAIN = Routed(steps=3, rate="cosine", noise_scale=1.0)


def test_a_certain_network_is_believed():
  check_certain(CERTAIN)


class WalksTheGrid(Routed):
  """Tokens that went back to noise are told to be at the times of the timing, 0 among them."""

  def times(self, model, params, canvas, state):
    return jnp.zeros(canvas.active.shape)


def test_routing_by_another_time_would_be_noticed():
  with pytest.raises(AssertionError):
    check_certain(WalksTheGrid(steps=3, rate="cosine", noise_scale=1.0))


def watched(sampler, process, language, batch):
  """[(text before a call, text after it)]; noise before the first."""
  rows, length = batch.ids.shape
  observed = np.zeros((rows, length), bool) if batch.observed is None else batch.observed
  states = [np.where(observed, batch.ids, MASK)]
  loop = host_sample(
    model_of(process), exact_params(language), sampler, row_keys(0, rows), batch=batch
  )
  states += [np.asarray(canvas.state) for canvas in loop]
  return list(itertools.pairwise(states))


def test_routing_masks_the_rest_and_breaks_ties_to_the_left():
  """Of equal scores call k keeps the leftmost ceil(k/S · tokens)."""
  language = Enumerable.independent(3, 5)
  observed = np.tile(np.arange(5) == 1, (2, 1))
  batch = Batch(np.zeros((2, 5), np.int32), observed=observed)
  turns = watched(Routed(steps=3), MASKED, language, batch)
  assert len(turns) == 3
  for call, (_, after) in enumerate(turns, 1):
    kept = np.array([0, 2, 3, 4])[: -(-4 * call // 3)]
    shown = np.isin(np.arange(5), [1, *kept])
    np.testing.assert_array_equal(after != MASK, np.tile(shown, (2, 1)))
    assert (after[:, 1] == 0).all()


@functools.cache
def exact_law(state):
  """p(x_i = v | the tokens of the state that are no masks), [4, 3]."""
  state = np.array(state)
  agrees = ((TOY.sequences == state) | (state == MASK)).all(-1)
  law = np.einsum("m,mlv->lv", agrees * TOY.probabilities, np.eye(3)[TOY.sequences])
  return law / law.sum(-1, keepdims=True)


def test_greedy_keeps_the_likeliest():
  """At temperature 0 all that is kept is the likeliest, and the order follows from the text."""
  batch = Batch(np.zeros((20, 4), np.int32))
  for before, after in watched(Routed(steps=4, temperature=0.0), MASKED, TOY, batch):
    kept = (after != MASK) & (before == MASK)
    best = np.stack([exact_law(tuple(row)).argmax(-1) for row in before])
    np.testing.assert_array_equal(after[kept], best[kept])
    assert len(np.unique(after, axis=0)) == 1


@member
class AsSaid(Uniform):
  """Uniform noise whose leave-one-out prediction is what the network says, whatever that means."""

  def leave_one_out(self, params, state, t, output):
    return jax.nn.log_softmax(output, axis=-1)


TEXT = np.random.default_rng(0).integers(0, 3, (200, 4)).astype(np.int32)


def second_call(process):
  """The texts after a call at t = 1/2, where half of the tokens are kept."""
  model = model_of(process)
  sampler = Routed(steps=4)

  @jax.jit
  def run(params, keys):
    zeros = jnp.zeros(len(TEXT), jnp.int32)
    canvas = Canvas(TEXT, jnp.ones(TEXT.shape, bool), keys, zeros, zeros + 4)
    state = Routing(zeros + 2, jnp.zeros(TEXT.shape, bool))
    t = sampler.times(model, params, canvas, state)
    inputs = process.inputs({}, canvas.state, t)
    rows = model.context.sampling_rows(inputs, inputs, t, Batch(canvas.state))
    prediction = model.network.apply(params["network"], rows)
    query = query_of(canvas, t, canvas.active)
    return sampler.step(model, params, canvas, state, prediction, query, canvas.active)[0]

  return np.asarray(run(exact_params(TOY), token_keys(row_keys(0, len(TEXT)), 4)))


def test_the_meaning_of_logits_does_not_matter():
  """A network that says posteriors, leave-one-out laws or scores of the same language."""
  want = second_call(UNIFORM)
  for prediction in ("posterior", "score"):
    got = second_call(Uniform(vocab_size=3, prediction=prediction))
    assert (got == want).mean() > 0.995, "but for rounding"
  assert (second_call(AsSaid(vocab_size=3, prediction="posterior")) == want).mean() < 0.99


def third_of_four(**options):
  """(text, kept) after a call that keeps 3 of 4 tokens; the first two were 1 and had been kept.

  The network is sure of a 2 at the first place and of a 1 at the third.
  """
  text, had = np.array([[1, 1, MASK, MASK]]), np.array([[True, True, False, False]])
  chance = np.array([[0.05, 0.05, 0.9], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.33, 0.34, 0.33]])
  model, sampler = model_of(MASKED), Routed(steps=4, temperature=0.0, **options)

  @jax.jit
  def run(keys):
    call = jnp.full(1, 2)
    canvas = Canvas(jnp.int32(text), jnp.ones((1, 4), bool), keys, call, call + 2)
    prediction = Prediction(jnp.log(jnp.float32(chance))[None], IdentityHead())
    query = query_of(canvas, jnp.ones((1, 4)), canvas.active)
    state = Routing(call, jnp.asarray(had))
    return sampler.step(model, exact_params(TOY), canvas, state, prediction, query, canvas.active)

  after, state = run(token_keys(row_keys(0, 1), 4))
  return np.asarray(after)[0].tolist(), np.asarray(state.kept)[0].tolist()


def test_a_kept_token_is_ranked_by_what_is_predicted_anew():
  """The network gives the 1 at the first place 0.05 only: it stays, as a 2 there has 0.9 (RDM), or
  becomes that 2 (MDM)."""
  kept = [True, True, True, False]
  assert third_of_four() == ([1, 1, 1, MASK], kept)
  assert third_of_four(rewrites=True) == ([2, 1, 1, MASK], kept)


@member
class TwoVectors(Uniform):
  @property
  def input_sizes(self):
    return super().input_sizes._replace(vectors=2)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="TwoVectors keeps no tokens whole"):
    Routed(steps=3).check(model_of(MASKED)._replace(process=TwoVectors(vocab_size=3)))
  scores = model_of(Uniform(vocab_size=3, prediction="score"))
  Routed(steps=3).check(scores)
  with pytest.raises(ValueError, match="ratios"):
    Routed(steps=3, temperature=0.5).check(scores)
  for bad in ({"rate": "square"}, {"noise_scale": -1.0}, {"steps": 0}):
    with pytest.raises(ValueError, match=next(iter(bad))):
      Routed(**bad)


def test_the_laws_of_every_sampler():
  """Observed tokens and padding stay, a row is its own, and the calls are those that are asked."""
  sampler = Routed(steps=6, rate="cosine", noise_scale=1.0)
  model, params = exact_model(UNIFORM, TOY)
  check_sampler(
    sampler, model, params, TOY, rows=64, calls=6, only=("options", "tokens", "calls", "alone")
  )
