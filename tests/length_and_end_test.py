"""docs/length_and_end.md, statement by statement, where no test of a room holds it already."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_text as dt
from diffusion_text.context import Blocks, Full
from diffusion_text.core.prng import row_keys
from diffusion_text.data import packing
from diffusion_text.data.tokenizers import Characters
from diffusion_text.evaluate import lengths
from diffusion_text.objective import engine
from diffusion_text.objective.bound import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.budget import Count
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight
from diffusion_text.testing.languages import MarkovChain
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, DataFacts, IdentityHead, Model, Prediction, Progress

V, LONG = 4, 32
MASKED = Masked(vocab_size=V)
TOKENIZER = Characters("\nabc", has_unknown=False)
END = TOKENIZER.special["end"]
# Documents of 2, 5 and 1 characters, each with its end.
TEXT = TOKENIZER.encode("ab\nccccc\na\n")
OFFSETS = np.array([0, 3, 9, 11])


# Training.


def test_a_stream_trains_ends_like_any_token_and_crosses_them():
  batch = packing.Stream(TEXT, length=4).rows(np.arange(3))
  assert batch.weights is None and batch.segment is None
  assert [TOKENIZER.decode(row) for row in batch.ids] == ["ab\nc", "cccc", "\na\na"]
  weights = engine.scored_weights(Batch(jnp.asarray(batch.ids)))
  assert (np.asarray(weights)[batch.ids == END] == 1).all()


def test_packed_documents_train_their_end_and_no_padding():
  rows = packing.whole_documents(TEXT, OFFSETS, length=4)
  batch = rows.rows(np.arange(rows.count))
  decoded = [TOKENIZER.decode(row[w > 0]) for row, w in zip(batch.ids, batch.weights, strict=True)]
  assert decoded == [
    "ab\n",
    "cccc",
    "c\na\n",
  ]  # the one that is too long has no end in its first row
  assert (batch.segment[2] == [1, 1, 2, 2]).all() and batch.segment[0, 3] == packing.PADDING_SEGMENT
  assert batch.weights[0, 3] == 0


# Sampling.


@functools.cache
def untrained(context, steps=4):
  """(a model of random parameters that reads the time, its parameters)."""
  network = small_transformer(
    layers=1,
    width=16,
    heads=2,
    mlp_width=16,
    time_conditioning="adaln",
    input_sizes=MASKED.input_sizes,
    output_size=V,
  )
  params = {"network": noisy_parameters(network, scale=0.5), "process": {}, "timing": {}}
  return Model(network, MASKED, Shared(), context), params


def drawn(context, length, sampler=None, **options):
  model, params = untrained(context)
  sampler = Grid(steps=4) if sampler is None else sampler
  return sample(model, params, sampler, row_keys(0, 3), rows=3, length=length, **options)


def test_blocks_go_on_past_any_length_and_full_rows_are_others():
  """Four times as long in blocks: the same beginning, and four times the calls. A full row of
  another length is another row from its first tokens on, at no more calls.
  """
  short, far = drawn(Blocks(size=4), 8), drawn(Blocks(size=4), LONG)
  np.testing.assert_array_equal(far.ids[:, :8], short.ids)
  assert (far.ids < V).all() and far.calls == 4 * short.calls == 32
  short, far = drawn(Full(), 8), drawn(Full(), LONG)
  assert (np.asarray(far.ids[:, :8]) != np.asarray(short.ids)).any()
  assert (far.ids < V).all() and far.calls == short.calls == 4


def test_all_of_a_row_is_generated_unless_it_is_told_to_end():
  free = np.asarray(drawn(Blocks(size=4), LONG).ids)
  found, ended = lengths.up_to_end(free, END)
  assert ended.all() and (free != END)[:, int(found.max()) + 1 :].any()
  told = drawn(Blocks(size=4), LONG, end_id=END)
  behind = np.arange(LONG) >= found[:, None]
  np.testing.assert_array_equal(np.asarray(told.ids)[~behind], free[~behind])
  for row, begin in zip(np.asarray(told.ids), found, strict=True):
    assert (row[begin:] == END).all()
  np.testing.assert_array_equal(lengths.up_to_end(told.ids, END)[0], found)
  assert (np.asarray(told.row_calls) <= (found // 4 + 1) * 4).all()


def test_within_a_window_reveal_stops_alone():
  """A full row is one window: a grid walks it to its last step, and Reveal may stop before."""
  walked = drawn(Full(), LONG, end_id=END)
  assert (np.asarray(walked.row_calls) == 4).all()
  order = functools.partial(Reveal, score=LeftToRight(), budget=Count(), end_id=END)
  stopped = drawn(Full(), LONG, order(stop_at_end=True))
  for made in (walked, stopped):
    found, ended = lengths.up_to_end(np.asarray(made.ids), END)
    assert ended.any()
    behind = np.arange(LONG) >= found[:, None]
    assert (np.asarray(made.ids)[behind] == END).all()
  np.testing.assert_array_equal(stopped.row_calls, np.minimum(found + 1, LONG))
  assert (np.asarray(drawn(Full(), LONG, order()).row_calls) == LONG).all()


def share_right(ids):
  """The share of tokens that follow theirs in 0 1 2 3 0 1 …, in windows of 8."""
  right = np.diff(np.asarray(ids), axis=1) % V == 1
  return [right[:, begin : begin + 8].mean() for begin in range(0, right.shape[1], 8)]


def test_what_lies_beyond_the_training_length_is_not_learned():
  """Trained on rows of 8, in blocks of 4: mostly right there, and by chance (1/4) further on."""
  network = dt.Transformer(
    layers=1, width=32, heads=2, input_sizes=MASKED.input_sizes, output_size=V
  )
  model = dt.Model(network, MASKED, Shared(), Blocks(size=4))
  rng = np.random.default_rng(0)

  def batch():
    return Batch(((rng.integers(0, V, (32, 1)) + np.arange(8)) % V).astype(np.int32))

  facts = DataFacts(length=8, vocab_size=V, steps=250)
  params = dt.fit(model, Bound(), (batch() for _ in range(250)), facts)
  ids = sample(model, params, Grid(steps=8), jax.random.key(1), rows=64, length=LONG).ids
  within, *_, beyond = share_right(ids)
  assert within > 0.45 and beyond < within - 0.15, share_right(ids)


# Scores.


def test_longer_rows_cost_less_per_token():
  """Of a chain, exactly: the first token of each row is paid for without what stands before it."""
  rng = np.random.default_rng(0)
  transition = rng.dirichlet(np.full(V, 0.3), size=V)
  law = np.linalg.matrix_power(transition, 200)[0]
  cost = [MarkovChain(law, transition, length).entropy / length for length in (1, 2, 8, 64)]
  assert all(a > b + 0.005 for a, b in itertools.pairwise(cost))


class KnowsNothing:
  """A network without an opinion."""

  remembers = False
  layers = 0

  def apply(self, params, rows, **options):
    return Prediction(jnp.zeros((*rows.t.shape, V)), IdentityHead())


@pytest.mark.parametrize("length", [8, 16])
def test_padding_is_paid_for_in_pairs_and_not_in_documents(length):
  """By a network that knows nothing a pair costs log V for each token behind its source, however
  long the row is made; a document costs log V for each of its own.
  """
  model = Model(KnowsNothing(), MASKED, AtNoise(), Full())
  params = {"network": {}, "process": {}, "timing": {}}

  def cost(batch):
    batch = jax.tree.map(jnp.asarray, batch)
    nats = engine.nats(model, params, jax.random.key(0), batch, Progress())
    return float(nats.sum()) / np.log(V)

  pairs = packing.pair_rows(TOKENIZER.encode("ab\nca\n"), np.array([0, 6]), length, END).rows(
    np.arange(1)
  )
  assert cost(pairs) == pytest.approx(length - 3, rel=1e-5)
  text = packing.without_padding(np.where(pairs.observed, 0.0, 1.0), pairs.ids, END)
  assert text.sum() == 3  # "c", "a" and its end: what the cost is divided by
  documents = packing.whole_documents(TEXT, OFFSETS, length)
  assert cost(documents.rows(np.arange(documents.count))) == pytest.approx(len(TEXT), rel=1e-5)
