"""Caches over windows: exact where they should be, counted as the formulas say, each row its own.

An exact network keeps in a slot what its token shows, and nothing of others. So a cache that writes
every token again before it is looked at gives the tokens of whole rows, whatever its policy; one
that forgets a token does not.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Causal, Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.model import by_layer, roll_out
from diffusion_text.process.masked import Masked
from diffusion_text.reader.classifier_free import ClassifierFree
from diffusion_text.reader.delayed_cache import Delayed, DelayedCache
from diffusion_text.reader.layer_cache import LayerCache
from diffusion_text.reader.reading import NOTHING
from diffusion_text.reader.roll_out_cache import RolledOut, RollOutCache
from diffusion_text.reader.similar_cache import SimilarCache
from diffusion_text.reader.slots import extended, window_tokens
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import SuffixCache, WindowCache
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import MaxProb, Random
from diffusion_text.testing import check_reader
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import Hyperschedule, Shared
from diffusion_text.types import Batch, DataFacts, InputSizes, Model, Query

V, L, SIZE, ROWS = 3, 6, 3, 64
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
IN_ORDER = Reveal(score=Random(), budget=EvenShare(steps=L))  # of which the next token is known


@functools.cache
def model_of():
  return exact_model(Masked(vocab_size=V), LANGUAGE)


def check(reader, *only):
  check_reader(
    reader, *model_of(), IN_ORDER, LANGUAGE, rows=ROWS, block=SIZE, only={*only, "options"}
  )


EXACT = [
  WindowCache(),
  SuffixCache(),
  SuffixCache(prefix="kept"),
  DelayedCache(queries=2, every=99),  # the token of the last call, and the next
  SimilarCache(share=0.67, every=99),
]


@pytest.mark.parametrize("reader", EXACT, ids=lambda each: f"{type(each).__name__}")
def test_tokens_are_those_of_whole_rows(reader):
  """By a program of its own for each window, the host's loop gives the same."""
  host = ["host"] if reader.unrolls and reader == SuffixCache() else []
  check(reader, "fits", "tokens", "calls", "same", *host)


@member
class LeavesTheWindow(WindowCache):
  """The slots of the window stay as the read of the whole row wrote them."""

  def read(self, model, params, memory, query, *, refresh=True):
    """What was committed since is not seen."""
    if refresh:
      return WindowCache.read(self, model, params, memory, query, refresh=True)
    nobody = jnp.zeros((query.needs.shape[0], 1), bool)
    return extended(model, params, memory, query, window_tokens(query), nobody)


@member
class LeavesTheLastToken(WindowCache):
  """The next window does not begin with a read of the whole row."""

  unrolls: ClassVar[bool] = True

  def read(self, model, params, memory, query, *, refresh=True):
    """What the last call of a window has committed is not written."""
    first = refresh and query.start == 0
    return WindowCache.read(self, model, params, memory, query, refresh=first)


@member
class LeavesWhatIsFinished(SuffixCache):
  """The last token of a window is not written."""

  def finish(self, model, params, memory, query):
    """As it is."""
    return memory


@pytest.mark.parametrize(
  "mutant",
  [
    LeavesTheWindow(),
    LeavesTheLastToken(),
    LeavesWhatIsFinished(prefix="kept"),
    DelayedCache(queries=2, every=99, delay=0),
  ],
  ids=lambda each: f"{type(each).__name__}",
)
def test_a_token_that_is_not_written_again_would_be_noticed(mutant):
  with pytest.raises(AssertionError):
    check(mutant, "same")


def test_what_a_delayed_cache_reads_first():
  """The token of the last call, the next one, their neighbours, other masks; the oldest first."""
  mask, state = V, np.array([[0, 1, V, 2, V, V, V, V, V, V]], np.int32)
  places = state.shape[1]
  seen = np.where(np.arange(places) == 3, mask, state)  # token 3 was a mask before
  needs = np.arange(places)[None] == 7
  written = np.where(np.isin(np.arange(places), [2, 9]), 1, 2)[None]
  model, params = model_of()
  query = Query(state, np.float32(state == mask), 0, needs, Batch(state), state)

  def read(**options):
    reader = DelayedCache(**options)
    due = np.int32(np.where(state != seen, reader.delay, 0))
    memory = Delayed(None, seen, query.t, due, written, jnp.int32(2))
    return np.asarray(reader._chosen(model, params, memory, query))[0].tolist()

  assert read(queries=2) == [3, 7]
  assert read(queries=4) == [3, 7, 2, 9]  # the masks that were read longest ago
  assert read(queries=6, near=1) == [3, 7, 2, 4, 6, 8]
  assert read(queries=3, delay=0) == [7, 2, 9]
  assert len(set(read(queries=99))) == places


# A transformer, whose slots hold what a token saw of all others.

WORDS, LENGTH, BLOCK, CALLS = 11, 16, 8, 4
GREEDY = Reveal(score=MaxProb(), budget=EvenShare(steps=CALLS), temperature=0.0)


@functools.cache
def transformer():
  """A random network of three layers: in two, a slot holds of others what these show themselves."""
  network = small_transformer(input_sizes=InputSizes(WORDS + 1), layers=3)
  params = {"network": noisy_parameters(network, 0.3), "process": {}, "timing": {}}
  return Model(network, Masked(vocab_size=WORDS), Shared(), Full()), params


def batch_of(seed=0, rows=32):
  """Rows with prompts of different lengths and some words on their way."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, WORDS, (rows, LENGTH)).astype(np.int32)
  prompt = np.arange(LENGTH) < rng.integers(0, 7, (rows, 1))
  return Batch(ids, prompt | (rng.random(ids.shape) < 0.1))


def confident(reader, block=BLOCK, batch=None):
  model, params = transformer()
  batch = batch_of() if batch is None else batch
  keys = jax.random.split(jax.random.key(0), len(batch.ids))
  how = {"batch": batch, "reader": reader, "block": block, "trace": True}
  return jax.tree.map(np.asarray, sample(model, params, GREEDY, keys, **how))


@functools.cache
def by_whole_rows(block):
  return confident(WholeRow(), block)


def agreement(reader, block):
  """(the share of generated tokens that are those of whole rows, the positions that are read in
  rows that make all calls, against theirs).
  """
  want, got = by_whole_rows(block), confident(reader, block)
  same = (got.ids == want.ids)[~batch_of().observed].mean()
  rows = want.row_calls == want.row_calls.max()
  return same, got.token_layers[rows].sum() / want.token_layers[rows].sum()


@pytest.mark.parametrize(
  "reader,block",
  [
    (WindowCache(), None),
    (SuffixCache(every=1), BLOCK),
    (SuffixCache(prefix="kept"), None),
    (DelayedCache(queries=LENGTH, every=99), BLOCK),
    (SimilarCache(share=0.1, every=1), BLOCK),
    (SimilarCache(share=1.0, every=99), BLOCK),
    (LayerCache(share=0.1, every=1), BLOCK),
    (LayerCache(share=1.0, every=99), BLOCK),
    (RollOutCache(queries=LENGTH, every=99), BLOCK),
  ],
  ids=str,
)
def test_to_read_everything_at_each_call_is_no_cache(reader, block):
  """Whether it is a refresh or not. In a row of masks alone all places are alike, and rounding says
  which is first.
  """
  want, got = by_whole_rows(block), confident(reader, block)
  prompted = batch_of().observed.any(1)
  assert prompted.sum() > 24
  np.testing.assert_array_equal(got.ids[prompted], want.ids[prompted])
  np.testing.assert_array_equal(got.committed[prompted], want.committed[prompted])
  np.testing.assert_array_equal(got.row_calls, want.row_calls)


@pytest.mark.parametrize(
  "make,queries",
  [
    (lambda every: WindowCache(every=every), BLOCK),
    (lambda every: DelayedCache(queries=6, every=every), 6),
  ],
  ids=["window", "delayed"],
)
def test_agreement_rises_with_the_refreshes(make, queries):
  """And so do the positions: of four calls per window two are refreshes, or one is."""
  (often, more), (once, less) = (agreement(make(every), BLOCK) for every in (2, 99))
  print(f"tokens: {often:.3f}, {once:.3f} of whole rows; positions: {more:.3f}, {less:.3f}")
  assert once - 0.01 <= often < 1 and once < 0.97
  np.testing.assert_allclose(more, (2 * LENGTH + 2 * queries) / (4 * LENGTH), rtol=1e-6)
  np.testing.assert_allclose(less, (LENGTH + 3 * queries) / (4 * LENGTH), rtol=1e-6)


def test_a_layer_computes_the_tokens_that_have_turned_most():
  """The left ones first where they are equal; padding never, and of a short row fewer count."""
  turns = np.array([[0.1, 0.0, 0.4, 0.4, 3.0], [0.2, 0.0, 0.0, 0.9, 3.0]])
  now = np.stack([np.cos(turns), np.sin(turns)], axis=-1)[:, :, None]
  before = 2 * np.broadcast_to(np.array([1.0, 0.0]), now.shape)
  text = np.array([[True] * 5, [True] * 3 + [False] * 2])
  choice = by_layer.Choice(3, jnp.array([3, 2]), jnp.asarray(text))
  index, counts = by_layer.least_alike(jnp.asarray(now), jnp.asarray(before), choice)
  np.testing.assert_array_equal(index, [[4, 2, 3], [0, 1, 2]])
  np.testing.assert_array_equal(counts, [[True] * 3, [True, True, False]])


def test_a_choice_in_every_layer_is_another_cache():
  """Than the choice of the first layer, at the cost of one more layer of the whole row."""
  by_each, read = agreement(LayerCache(share=0.5, every=99), BLOCK)
  by_first, less = agreement(SimilarCache(share=0.5, every=99), BLOCK)
  print(f"tokens: each layer {by_each:.3f}, first layer {by_first:.3f} of whole rows")
  assert by_each != by_first and by_each > 0.5
  assert read == pytest.approx((LENGTH + 3 * (2 * 8 + LENGTH) / 3) / (4 * LENGTH))
  assert less == pytest.approx((LENGTH + 3 * 8) / (4 * LENGTH))


def test_networks_that_are_no_layers_of_tokens_are_refused():
  model, _ = transformer()
  for options in ({"window": 4}, {"norm_place": "after"}):
    network = dataclasses.replace(model.network, **options)
    with pytest.raises(ValueError, match=r"use reader\.name='similar_cache'"):
      LayerCache().check(model._replace(network=network))
  with pytest.raises(ValueError, match=r"reader\.name='layer_cache' chooses tokens in each"):
    LayerCache().check(model_of()[0])
  with pytest.raises(ValueError, match="reads what is attended to"):
    RollOutCache(queries=4).check(model_of()[0])


def test_a_roll_out_is_the_product_of_the_layers():
  """Each half attention and half the token itself; tokens that are not read stay as they are."""
  rng = np.random.default_rng(0)
  first, second = rng.dirichlet(np.ones(4), (2, 1, 4))
  index = np.array([[2, 0]])
  got = roll_out.rolled(jnp.eye(4)[None], jnp.asarray(first), jnp.arange(4)[None])
  want = 0.5 * (first[0] + np.eye(4))
  np.testing.assert_allclose(got[0], want, rtol=1e-6)
  got = roll_out.rolled(got, jnp.asarray(second[:, index[0]]), jnp.asarray(index))
  own = np.eye(4)
  own[index[0]] = 0.5 * (second[0, index[0]] + np.eye(4)[index[0]])
  np.testing.assert_allclose(got[0], own @ want, rtol=1e-6)


def test_what_a_rolled_out_cache_reads_first():
  """What has changed, the surest masks near what is known, what is attended to most, and the rest
  of the masks; padding last.
  """
  mask = V
  state = np.array([[0, 1, 2, 0, mask, mask, mask, mask, mask, 0]], np.int32)
  weights = np.float32(np.arange(10) < 9)[None]
  worth = np.array([[0.1, 3.0, 0.2, 0.1, 9, 9, 9, 9, 9, 99]])
  log_prob = np.where(state == mask, np.array([[0, 0, 0, 0, -2, -3, -2, -2, -0.1, 0]]), 0.0)
  changed = np.arange(10)[None] == 2
  needs = np.isin(np.arange(10), [4, 5, 6, 8])[None]
  batch = Batch(state, weights=weights)
  query = Query(state, np.float32(state == mask), 0, needs, batch, state)
  memory = RolledOut(None, state, log_prob, worth)

  def read(**options):
    reader = RollOutCache(masked=2, share=0.5, width=1.0, **options)
    return np.asarray(reader._chosen(state == mask, changed, memory, query))[0].tolist()

  # Place 8 is far from what is known, and place 4 beside it.
  assert read(queries=10) == [2, 4, 5, 1, 6, 8, 0, 3, 7, 9]
  assert read(queries=3) == [2, 4, 5]


def test_positions_are_as_the_formulas_say():
  """For windows of b positions behind a prompt of P, at s calls each: dual Σ (L + (s - 1) b),
  prefix Σ (L + (s - 1)(L - P - j b)), both over the whole row.
  """
  model, params = transformer()
  size, calls, again, layers = 4, 3, 2, 3
  starts = range(size, LENGTH, size)
  state = np.zeros((2, LENGTH), np.int32)
  batch = Batch(state, np.zeros(state.shape, bool))

  def query(start):
    needs = np.ones((2, size), bool)
    return Query(state, np.ones(state.shape, np.float32), start, needs, batch, state)

  def spent(reader):
    """Of all calls, as the loop makes them."""
    total = [reader.cost(model, params, None, query(0), "init")]
    for start in range(0, LENGTH, size):
      for call in range(calls if start in starts else 0):
        during = "read" if call % reader.every else "refresh"
        total.append(reader.cost(model, params, None, query(start), during))
      total.append(reader.cost(model, params, None, query(start), "finish"))
    return NOTHING.plus(*total)

  expected = {
    WholeRow(): len(starts) * calls * LENGTH,
    WindowCache(): sum(LENGTH + again * size for _ in starts),
    WindowCache(every=2): sum(2 * LENGTH + (again - 1) * size for _ in starts),
    SuffixCache(): sum(LENGTH + again * (LENGTH - start) for start in starts),
    SuffixCache(prefix="kept"): 2 * LENGTH + sum(calls * (LENGTH - start) for start in starts),
    DelayedCache(queries=5, every=99): sum(LENGTH + again * 5 for _ in starts),
    SimilarCache(share=0.2, every=99): sum(LENGTH + again * 3 for _ in starts),
    # The first of three layers whole.
    LayerCache(share=0.2, every=99): sum(LENGTH + again * (LENGTH + 2 * 3) / 3 for _ in starts),
    RollOutCache(queries=5, every=99): sum(LENGTH + again * 5 for _ in starts),
    ClassifierFree(WindowCache(), 2.0): 2 * sum(LENGTH + again * size for _ in starts),
  }
  for reader, positions in expected.items():
    cost = spent(reader)
    assert cost.token_layers == pytest.approx(layers * positions), reader
    assert cost.attention == pytest.approx(LENGTH * layers * positions), reader


@member
class WritesIdleRows(SuffixCache):
  """A row that is done is written again as long as another is not."""

  def read(self, model, params, memory, query, *, refresh=True):
    """All rows write."""
    query = query._replace(needs=jnp.ones_like(query.needs))
    return SuffixCache.read(self, model, params, memory, query, refresh=refresh)


def among_idle_mates(reader):
  """((log-probabilities, positions read) of two rows among others, the same among rows of which
  nothing is generated)."""
  one, which = batch_of(), np.array([1, 2])
  idle = np.ones_like(one.observed)
  idle[which] = one.observed[which]
  first, again = confident(reader, BLOCK, one), confident(reader, BLOCK, Batch(one.ids, idle))
  if first.row_calls.max() == first.row_calls[which].max():
    raise ValueError("no row is idle while another is not")
  return [(made.log_prob[which], made.token_layers[which]) for made in (first, again)]


@pytest.mark.parametrize(
  "reader",
  [
    SuffixCache(prefix="kept"),
    DelayedCache(queries=6, every=2),
    SimilarCache(share=0.5, every=2),
    LayerCache(share=0.5, every=2),
    RollOutCache(queries=8, every=2),
  ],
  ids=lambda each: type(each).__name__,
)
def test_what_is_kept_does_not_depend_on_other_rows(reader):
  (log_prob, read), (among_idle, read_among_idle) = among_idle_mates(reader)
  np.testing.assert_allclose(log_prob, among_idle, atol=1e-4)
  assert (read == read_among_idle).all()


def test_slots_that_depend_on_other_rows_would_be_noticed():
  (log_prob, _), (among_idle, _) = among_idle_mates(WritesIdleRows(prefix="kept"))
  assert np.abs(log_prob - among_idle).max() > 1e-3


# --- the wave of a hyperschedule -----------------------------------------------------------------


@functools.cache
def waved(reader, context):
  """(ids, positions read in all layers) along a wave of 4 places that moves by one per call."""
  process, timing = Masked(vocab_size=9), Hyperschedule(kind="wave", width=4)
  network = small_transformer(
    layers=3,
    width=32,
    heads=2,
    mlp_width=32,
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  model = Model(network, process, timing, context, chunk=64)
  groups = {"process": {}, "timing": timing.init(jax.random.key(0), DataFacts(16, 9))}
  params = {"network": noisy_parameters(network, scale=0.5), **groups}
  how = {"rows": 32, "length": 16, "reader": reader}
  made = sample(model, params, Grid(steps=20), row_keys(0, 32), **how)
  return np.asarray(made.ids), float(made.token_layers[0])


def test_a_wave_is_decoded_over_a_cache():
  """Of what has settled nothing is read again, and in a causal row nothing is lost by it."""
  want, whole = waved(None, Causal())
  got, read = waved(DelayedCache(queries=6, every=10**6, moving=True), Causal())
  np.testing.assert_array_equal(got, want)
  # One row of 16, then 19 calls of 6.
  assert read == 3 * (16 + 19 * 6) and whole == 3 * 20 * 16
  full, _ = waved(None, Full())
  assert (waved(DelayedCache(queries=6, every=10**6, moving=True), Full())[0] != full).any()


def test_a_wave_by_its_committed_tokens_alone_would_be_noticed():
  """A token that was drawn before those in front of it keeps what it saw of the masks there."""
  want, _ = waved(None, Causal())
  assert (waved(DelayedCache(queries=6, every=10**6), Causal())[0] != want).any()
