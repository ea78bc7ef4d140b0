"""Self-correction: one token per row and call, the surest of those that change first, until the
accuracy rises no more.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.self_correcting import SelfCorrecting
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Canvas, IdentityHead, Model, Prediction

V = 4
BEST = np.array([1, 0, 3, 2, 1, 0])
UNIFORM = Uniform(vocab_size=V)
ROWS = 40


@member
class Opinion:
  """A network that likes one token at each place, the first place most."""

  layers: ClassVar[int] = 1

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    jax.debug.callback(lambda t: TOLD.append(float(t)), rows.t[0, 0], ordered=True)
    features = jnp.broadcast_to(params["likes"], (*rows.t.shape, V))
    return Prediction(features, IdentityHead())


LIKES = np.where(np.arange(V) == BEST[:, None], np.linspace(3.0, 2.0, 6)[:, None], 0.0)
PARAMS = {"network": {"likes": jnp.float32(LIKES)}, "process": {}, "timing": {}}
TOLD = []
MODEL = Model(Opinion(), UNIFORM, Shared(), Full(), chunk=4096)
PATIENCE = 2
GREEDY = SelfCorrecting(steps=3, corrections=20, correction_temperature=0.0, patience=PATIENCE)


def draw(sampler, rows=ROWS, first=0, batch=None):
  shape = {"rows": rows, "length": 6} if batch is None else {"batch": batch}
  result = sample(MODEL, PARAMS, sampler, row_keys(0, rows, first=first), **shape)
  jax.effects_barrier()
  return jax.tree.map(np.asarray, result)


def check_corrections(sampler):
  """The draft is the grid's; then one token per row and call; each row stops by itself."""
  draft = draw(Grid(steps=3))
  TOLD.clear()
  done = draw(sampler)
  wrong = (draft.ids != BEST).sum(1)
  assert 0 < wrong.mean() < 6
  np.testing.assert_array_equal(done.ids, np.tile(BEST, (ROWS, 1)))
  np.testing.assert_array_equal(done.row_calls, 3 + np.maximum(wrong, 1) + PATIENCE)
  changed = np.where(draft.ids != BEST, done.committed, -1)
  for row in changed:
    row = row[row >= 0]
    np.testing.assert_array_equal(row, 3 + np.arange(len(row)), "the leftmost of equals")
  return done


def test_corrections_one_by_one():
  """And clean text is read as if it were at `correction_time`."""
  done = check_corrections(GREEDY)
  later = [0.01] * (int(done.calls) - 3)
  np.testing.assert_allclose(TOLD, [1, 2 / 3, 1 / 3, *later], rtol=1e-6)


class AllAtOnce(SelfCorrecting):
  def correct(self, model, params, canvas, state, prediction, needs):
    text = jnp.where(needs, jnp.argmax(prediction.logits, axis=-1), canvas.state)
    return text, needs


def test_correcting_all_at_once_fails():
  with pytest.raises(AssertionError):
    options = {"corrections": 20, "correction_temperature": 0.0, "patience": PATIENCE}
    check_corrections(AllAtOnce(steps=3, **options))


def test_corrections_are_bounded():
  draft, partly = draw(Grid(steps=3)), draw(dataclasses.replace(GREEDY, corrections=2))
  places = [np.nonzero(row)[0][:2].tolist() for row in draft.ids != BEST]
  assert [np.nonzero(row)[0].tolist() for row in partly.ids != draft.ids] == places


def test_corrections_of_a_row_are_its_own_and_spare_observed_tokens():
  sampler = dataclasses.replace(GREEDY, correction_temperature=0.5)
  together, alone = draw(sampler, 6), draw(sampler, 1, first=4)
  np.testing.assert_array_equal(together.ids[4], alone.ids[0])
  assert together.row_calls[4] == alone.row_calls[0] and len(set(together.row_calls)) > 1
  observed = np.tile(np.arange(6) < 3, (6, 1))
  kept = draw(GREEDY, 6, batch=Batch(np.full((6, 6), 2, np.int32), observed=observed))
  assert (kept.ids[:, :3] == 2).all() and (kept.ids[:, 3:] == BEST[3:]).all()


def texts_of(sampler, rows=30):
  """(the texts after the draft and after each correction [calls, rows, 6], the sample)."""
  loop = host_sample(MODEL, PARAMS, sampler, row_keys(3, rows), rows=rows, length=6)
  texts = []
  while True:
    try:
      texts.append(np.asarray(next(loop).state))
    except StopIteration as stop:
      return np.stack(texts[sampler.steps - 1 :]), stop.value


def test_a_row_stops_on_its_accuracy():
  """`patience` corrections after its best one, by the published count; draws that are less likely
  are taken, too."""
  sampler = SelfCorrecting(steps=2, corrections=40, correction_temperature=3.0, patience=4)
  texts, result = texts_of(sampler)
  changed = texts[1:] != texts[:-1]
  assert changed.sum(2).max() == 1
  place = np.arange(6)
  gain = LIKES[place, texts[1:]] - LIKES[place, texts[:-1]]
  assert (gain[changed] < 0).sum() > 10 < (gain[changed] > 0).sum()
  right = (texts[1:] == BEST).sum(2)
  for row, calls in enumerate(np.asarray(result.row_calls)):
    best, since, made = -1, 0, 0
    while since < 4 and made < 40:
      since = 0 if right[made, row] > best else since + 1
      best = max(best, right[made, row])
      made += 1
    assert calls == 2 + made
  assert len(set(np.asarray(result.row_calls).tolist())) > 3


def test_the_surest_draw_is_taken_not_the_one_that_gains_most():
  """At the first place the old token has 1e-6 and the new one 0.6, at the second 0.1 and 0.9."""
  chance = np.array([[1e-6, 0.6, 0.4 - 1e-6, 1e-9], [0.1, 0.9, 1e-9, 1e-9]], np.float32)
  sampler = SelfCorrecting(steps=1, correction_temperature=0.1)

  @jax.jit
  def run(keys):
    call = jnp.zeros(20, jnp.int32)
    canvas = Canvas(jnp.zeros((20, 2), jnp.int32), jnp.ones((20, 2), bool), keys, call, call + 2)
    state = sampler.init(MODEL, PARAMS, canvas)
    prediction = Prediction(jnp.broadcast_to(jnp.log(chance), (20, 2, 4)), IdentityHead())
    return sampler.correct(MODEL, PARAMS, canvas, state, prediction, canvas.active)

  text, right = map(np.asarray, run(token_keys(row_keys(0, 20), 2)))
  np.testing.assert_array_equal(text, np.tile([0, 1], (20, 1)))
  np.testing.assert_array_equal(right, np.tile([False, True], (20, 1)))


@member
class AsSaid(Uniform):
  """Uniform noise whose leave-one-out prediction is what the network says, whatever that means."""

  def leave_one_out(self, params, state, t, output):
    return jax.nn.log_softmax(output, axis=-1)


def corrected(process):
  """The texts after one correction, by a network that says the same in the terms of the process."""
  model = MODEL._replace(process=process)
  text = np.random.default_rng(0).integers(0, V, (60, 6)).astype(np.int32)
  t = np.full(text.shape, 0.01, np.float32)

  @jax.jit
  def run(keys):
    zeros = jnp.zeros(60, jnp.int32)
    canvas = Canvas(text, jnp.ones(text.shape, bool), keys, zeros, zeros + 6)
    state = GREEDY.init(model, PARAMS, canvas)
    said = jnp.broadcast_to(jax.nn.log_softmax(jnp.float32(LIKES)), (*text.shape, V))
    if process.prediction == "posterior":
      said = UNIFORM.posterior({}, text, t, said)
    prediction = Prediction(said, IdentityHead())
    return GREEDY.correct(model, PARAMS, canvas, state, prediction, canvas.active)[0]

  return np.asarray(run(token_keys(row_keys(0, 60), 6)))


def test_the_meaning_of_logits_does_not_matter():
  """What the state itself tells is taken off again: a token does not vote for itself."""
  want = corrected(UNIFORM)
  np.testing.assert_array_equal(corrected(Uniform(vocab_size=V, prediction="posterior")), want)
  assert (corrected(AsSaid(vocab_size=V, prediction="posterior")) != want).any()


def test_the_mixture_of_masks_and_random_tokens_is_corrected():
  result = sample(
    MODEL._replace(process=Mixed(vocab_size=V, share=0.3)),
    PARAMS,
    GREEDY,
    row_keys(0, ROWS),
    rows=ROWS,
    length=6,
  )
  np.testing.assert_array_equal(result.ids, np.tile(BEST, (ROWS, 1)))


@pytest.mark.parametrize(
  "make,word",
  [
    (lambda: SelfCorrecting(steps=4, corrections=-1), "corrections"),
    (lambda: SelfCorrecting(steps=4, correction_temperature=-1.0), "temperature"),
    (lambda: SelfCorrecting(steps=4, correction_time=0.0), "correction_time"),
    (lambda: SelfCorrecting(steps=4, patience=0), "patience"),
  ],
)
def test_bad_choices_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()


@member
class TwoVectors(Uniform):
  @property
  def input_sizes(self):
    return super().input_sizes._replace(vectors=2)


@pytest.mark.parametrize(
  "process",
  [Masked(vocab_size=V), Mixed(vocab_size=V, share=0.0), TwoVectors(vocab_size=V)],
  ids=repr,
)
def test_what_was_never_trained_is_not_corrected(process):
  with pytest.raises(ValueError, match=f"{type(process).__name__}.*clean tokens"):
    GREEDY.check(MODEL._replace(process=process))


def test_one_token_alone_is_not_corrected():
  with pytest.raises(ValueError, match="1 token"):
    GREEDY.check(MODEL._replace(context=Blocks(size=1)))
  with pytest.raises(ValueError, match="1 token"):
    sample(MODEL, PARAMS, GREEDY, row_keys(0, 2), rows=2, length=1)
