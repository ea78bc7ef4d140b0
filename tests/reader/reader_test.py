"""Readers with the sampler in the loop: caches give the tokens of whole rows, and combinators what
they say; mutants must fail.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.core.options import member
from diffusion_text.experiment.registry import construct
from diffusion_text.process.masked import Masked
from diffusion_text.reader import READERS
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.classifier_free import ClassifierFree
from diffusion_text.reader.mixture import Mixture
from diffusion_text.reader.other import Other
from diffusion_text.reader.self_conditioned import SelfConditioned
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import SuffixCache
from diffusion_text.sampler import loop
from diffusion_text.sampler.grid import Grid
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.exact_network import ExactNetwork
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, IdentityHead, MixedHead

V, L, ROWS = 3, 4, 256
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
MASKED = Masked(vocab_size=V)
STEPS = Grid(steps=3)


@functools.cache
def model_of(context, **options):
  """The exact model of the language in this context; one that shows an answer again has an echo of
  it.
  """
  return exact_model(MASKED, LANGUAGE, context=context, **options)


ECHO = {"self_conditioning": 0.5, "echo": 1.0}
BLOCKS, FULL = Blocks(size=2), Full()


@functools.cache
def batch():
  """Some tokens are observed; the last token of some rows is padding, in a segment of its own."""
  rng = np.random.default_rng(0)
  padding = (np.arange(ROWS)[:, None] % 4 == 0) & (np.arange(L) == L - 1)
  return Batch(
    ids=LANGUAGE.sample(rng, ROWS),
    observed=rng.random((ROWS, L)) < 0.3,
    weights=np.float32(~padding),
    segment=np.int32(padding),
  )


@functools.cache
def program(model, sampler, reader):
  """The compiled loop."""
  params = jax.eval_shape(lambda: model_of(BLOCKS)[1])
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), ROWS))
  run = loop._sample.lower(loop.Loop(model, sampler, reader), params, keys, batch())
  return run.compile()


def drawn(model_and_params, reader, sampler=STEPS, what=None):
  """The sample, in numpy."""
  model, params = model_and_params
  reader.check(model)
  keys = jax.random.split(jax.random.key(0), ROWS)
  run = program(model, sampler, reader)
  return jax.tree.map(np.asarray, run(params, keys, batch() if what is None else what))


def check_same(model_and_params, reader, plain=None, **options):
  """The reader gives the tokens of whole rows, at as many calls."""
  want = drawn(model_and_params, WholeRow() if plain is None else plain, **options)
  got = drawn(model_and_params, reader, **options)
  for field in ("ids", "committed", "calls"):
    np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
  kept = batch().observed | (batch().weights == 0)
  np.testing.assert_array_equal(got.ids[kept], batch().ids[kept])
  return want


def test_cached_blocks_are_whole_rows():
  check_same(model_of(BLOCKS), Cached())


def test_cached_tokens_one_by_one_are_whole_rows():
  model = exact_model(MASKED, LANGUAGE, context=NextToken(), timing=AtNoise(), answer_shift=1)
  check_same(model, Cached(), sampler=Grid(steps=1))


def test_a_network_is_told_its_last_answer_through_a_cache_too():
  want = check_same(
    model_of(BLOCKS, **ECHO), SelfConditioned(Cached()), SelfConditioned(WholeRow())
  )
  assert (want.ids != drawn(model_of(BLOCKS, **ECHO), WholeRow()).ids).any()


def test_guidance_over_caches_is_guidance():
  check_same(model_of(BLOCKS), ClassifierFree(Cached(), 2.0), ClassifierFree(WholeRow(), 2.0))


@member
class KeepsNoiseInItsSlots(Cached):
  """Does not write the window again once it is clean."""

  def finish(self, model, params, memory, query):
    """As it is."""
    return memory


@member
class Forgets(Cached):
  """Loses what self-conditioning remembers."""

  def read(self, model, params, memory, query, *, refresh=True):
    """Without a memory."""
    query = query._replace(memory=None)
    return Cached.read(self, model, params, memory, query, refresh=refresh)


def test_slots_that_keep_noise_would_be_noticed():
  with pytest.raises(AssertionError):
    check_same(model_of(BLOCKS), KeepsNoiseInItsSlots())


def test_a_memory_that_a_cache_loses_would_be_noticed():
  with pytest.raises(AssertionError):
    check_same(model_of(BLOCKS, **ECHO), SelfConditioned(Forgets()), SelfConditioned(WholeRow()))


# Some tokens per call.

SKIP = Grid(steps=8, skip=True)


def language_distance(reader):
  """Total variation to the language of 4096 rows without a prompt, and the sample."""
  model, params = model_of(FULL)
  result = loop.sample(model, params, SKIP, jax.random.key(1), rows=4096, length=L, reader=reader)
  result = jax.tree.map(np.asarray, result)
  return LANGUAGE.total_variation(LANGUAGE.histogram(result.ids)), result


def test_all_tokens_per_call_are_whole_rows():
  check_same(model_of(FULL), Cached(policy="some", queries=L, every=3))


def test_some_tokens_per_call():
  """Slots that changed are written first, so that two tokens per call do nearly as well as four;
  and no token is left over.
  """
  whole, _ = language_distance(WholeRow())
  some, result = language_distance(Cached(policy="some", queries=2, every=3))
  assert some < whole + 0.03 and (result.ids < V).all()


@member
class ReadsWhatIsNeeded(Cached):
  """Leaves stale slots as they are."""

  def _chosen(self, written, query):
    return jax.lax.top_k(query.needs.astype(jnp.int32), self.queries)[1]


def test_stale_slots_would_be_noticed():
  whole, _ = language_distance(WholeRow())
  stale, _ = language_distance(ReadsWhatIsNeeded(policy="some", queries=1, every=9))
  assert stale > whole + 0.06


def test_no_cache_is_copied():
  """The evidence of an exact network's cache is [rows, slots, V]: no copy of that shape in the
  compiled loop.
  """
  for model, reader in (
    (model_of(BLOCKS)[0], Cached()),
    (model_of(FULL)[0], Cached(policy="some", queries=L, every=3)),
  ):
    text = program(model, STEPS, reader).as_text()
    assert f"f32[{ROWS},{L},{V}]" in text
    inside = [
      line for line in text.splitlines() if re.search(rf"f32\[{ROWS},{L},{V}\]\S* copy\(", line)
    ]
    assert len(inside) <= 1, inside  # one at the entry: what comes in is not donated


# Classifier-free guidance.


def test_scale_one_is_the_reader_inside_and_zero_hides_what_is_observed():
  model = model_of(FULL)
  assert ClassifierFree(WholeRow(), 1.0).calls == 1 and ClassifierFree(WholeRow(), 0.0).calls == 2
  plain = drawn(model, WholeRow())
  np.testing.assert_array_equal(drawn(model, ClassifierFree(WholeRow(), 1.0)).ids, plain.ids)
  blind = drawn(model, ClassifierFree(WholeRow(), 0.0))
  dropped = dropped_batch()
  hidden = loop.sample(*model, STEPS, jax.random.split(jax.random.key(0), ROWS), batch=dropped)
  np.testing.assert_array_equal(blind.ids, hidden.ids)
  assert (blind.ids != plain.ids).any() and blind.calls == 2 * plain.calls


def dropped_batch():
  """The batch, of whose observed tokens the network is shown none."""
  one = batch()
  return Batch(one.ids, one.observed, one.observed & (one.weights > 0), one.weights, one.segment)


def test_nothing_observed_is_refused():
  """Both answers would be the same one."""
  model, params = model_of(FULL)
  with pytest.raises(ValueError, match=r"scale=2\.0 guides by the observed tokens"):
    loop.sample(
      model,
      params,
      STEPS,
      jax.random.key(0),
      rows=2,
      length=L,
      reader=ClassifierFree(WholeRow(), 2.0),
    )


SEEN = []


@member
class Watched(ExactNetwork):
  """Notes what it is asked, and answers."""

  def apply(self, params, rows, *, memory=None, **options):
    """As it is."""

    def note(ids, t, memory):
      SEEN.append(tuple(map(np.asarray, (ids, t, memory))))

    prediction = ExactNetwork.apply(self, params, rows, memory=memory, **options)
    jax.debug.callback(note, rows.inputs.ids, rows.t, memory, ordered=True)
    return prediction


def check_memory(reader):
  """Each reading is told of its own last answer, and of none at first; what is known is told
  nothing.
  """
  model, params = model_of(FULL, **ECHO)
  model = model._replace(network=Watched(process=MASKED, echo=1.0))
  SEEN.clear()
  keys = jax.random.split(jax.random.key(0), ROWS)
  result = loop.sample(model, params, STEPS, keys, batch=batch(), reader=reader)
  jax.effects_barrier()
  readings = SEEN[::2], SEEN[1::2]
  assert len(SEEN) == int(result.calls) == 2 * STEPS.steps
  observed = batch().observed & (batch().weights > 0)
  for number, calls in enumerate(readings):
    assert (calls[0][2] == 0.5).all()  # `ExactNetwork.no_memory`
    for ids, t, memory in calls:
      masked = ids == MASKED.mask_id
      assert (memory[~masked] == 0.5).all()
      assert masked[observed].all() == (number == 1) and (t[observed] == number).all()
    for before, now in itertools.pairwise(calls):
      told = (before[0] == MASKED.mask_id) & (now[0] == MASKED.mask_id)
      np.testing.assert_allclose(now[2][told].sum(-1), 1.0, atol=1e-4)
  last = readings[0][-1][2], readings[1][-1][2]
  both = (readings[0][-1][0] == MASKED.mask_id) & (readings[1][-1][0] == MASKED.mask_id)
  assert np.abs(last[0] - last[1])[both].max() > 0.05


def test_each_reading_has_a_memory_of_its_own():
  check_memory(ClassifierFree(SelfConditioned(WholeRow()), 2.0))


@member
class OneMemoryForBoth(ClassifierFree):
  """The blind reading is told the other one's answers."""

  def read(self, model, params, memory, query, *, refresh=True):
    """Both memories are the first."""
    read = ClassifierFree.read(self, model, params, memory, query, refresh=refresh)
    return read[0], read[1]._replace(readings=(read[1].readings[0],) * 2)


def test_a_memory_that_is_shared_would_be_noticed():
  with pytest.raises(AssertionError):
    check_memory(OneMemoryForBoth(SelfConditioned(WholeRow()), 2.0))


def test_golden_spaces():
  """Trap 14: the same scale in two spaces, and negative mass cut off and the rest divided by its
  sum.
  """
  u, c = jnp.array([2.0, 0, 0, 0]), jnp.array([3.0, 1, 0, 0])

  def combined(scale, space):
    head = MixedHead((IdentityHead(),) * 2, (4, 4), (scale, 1 - scale), space)
    return np.asarray(jax.nn.softmax(head(jnp.concatenate([c, u]))))

  np.testing.assert_allclose(combined(2.0, "logits"), [0.8533, 0.1155, 0.0156, 0.0156], atol=5e-5)
  want = np.array([0.9083, 0.1229, 0, 0]) / 1.0312
  np.testing.assert_allclose(combined(2.0, "probabilities"), want, atol=1e-4)
  for space, (scale, alone) in itertools.product(("logits", "probabilities"), ((0.0, u), (1.0, c))):
    np.testing.assert_allclose(combined(scale, space), jax.nn.softmax(alone), atol=1e-6)


# Several models.


def test_two_exact_models_are_one():
  """An autoregressive partner knows what blocks of one token know, so that their mixture changes
  nothing.
  """
  model, params = model_of(Blocks(size=1))
  other, of_other = exact_model(
    MASKED, LANGUAGE, context=NextToken(), timing=AtNoise(), answer_shift=1
  )
  partner = Other(WholeRow(), other, "other")
  mixture = Mixture((WholeRow(), partner), (0.5, 0.5))
  mixture.check(model)
  assert mixture.calls == 2 and mixture.every == 1
  draw = functools.partial(loop.sample, model, sampler=Grid(steps=1), key=jax.random.key(0))
  got = draw(params={**params, "other": of_other}, rows=ROWS, length=L, reader=mixture)
  alone = draw(params=params, rows=ROWS, length=L)
  np.testing.assert_array_equal(got.ids, alone.ids)
  assert int(got.calls) == 2 * int(alone.calls)
  with pytest.raises(ValueError, match="a vocabulary of 4"):
    Other(WholeRow(), model._replace(process=Masked(vocab_size=4))).check(model)


@pytest.mark.parametrize(
  "make,word",
  [
    (lambda: Cached(policy="some"), "queries=0"),
    (lambda: Cached(queries=4), "queries=4"),
    (lambda: Cached(every=4), "every=4"),
    (lambda: SuffixCache(prefix="kept", every=4), "every=4"),
    (lambda: ClassifierFree(WholeRow(), scale=-1.0), "scale"),
    (lambda: ClassifierFree(WholeRow(), space="score"), "space"),
    (lambda: Mixture((WholeRow(),), (0.5, 0.5)), "weights"),
    (lambda: Cached().check(model_of(FULL)[0]), "reader.policy='exact'"),
    (lambda: SelfConditioned(WholeRow()).check(model_of(FULL)[0]), "train.self_conditioning=0"),
  ],
)
def test_bad_choices_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()


def test_answers_at_another_position_are_not_cached():
  model, params = exact_model(MASKED, LANGUAGE, context=Full(answer_shift=1), answer_shift=1)
  reader = Cached(policy="some", queries=2, every=4)
  with pytest.raises(ValueError, match=r"answers each token at its own position|answer_shift=0"):
    loop.sample(model, params, STEPS, jax.random.key(0), rows=2, length=L, reader=reader)


def test_every_reader_of_the_table_can_be_made():
  sections = {
    "whole_row": {},
    "cached": {"policy": "some", "queries": 4, "every": 2},
    "window_cache": {},
    "suffix_cache": {"prefix": "kept"},
    "delayed_cache": {"queries": 4},
    "similar_cache": {},
    "layer_cache": {},
    "roll_out_cache": {"queries": 4},
    "self_conditioned": {"reader": {"name": "cached"}},
    "classifier_free": {
      "reader": {"name": "self_conditioned", "reader": "whole_row"},
      "scale": 2.0,
    },
    "mixture": {"readers": [{"name": "whole_row"}, {"name": "whole_row"}], "weights": [0.5, 0.5]},
  }
  assert sections.keys() == READERS.keys()
  for name, options in sections.items():
    made = construct("reader", {"name": name, **options})
    assert hash(made) == hash(construct("reader", {"name": name, **options}))
    assert made.calls >= 1 and made.every >= 1
