"""log p(continuation | context) against enumeration, and against experiments.evaluate."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import base
from diffusion_text.context import Blocks, Full, NextToken
from diffusion_text.data.tokenizers import Bytes, Characters
from diffusion_text.experiment import continuations, until
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.experiment.continuations import Request, Scorer, request, request_of, windows
from diffusion_text.experiment.decoding import Decoding
from diffusion_text.experiment.run import Trained
from diffusion_text.process.masked import Masked
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.grid import Grid
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import AtNoise, ExactCount

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
PAIRS = [([0], [1, 2]), ([], [2, 0, 1, 1]), ([2, 1], [0]), ([1], [0, 0, 2])]


def micro(**data):
  """An untrained model of bytes with one layer."""
  config = base.config("micro")
  config.model.update({"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 16})
  config.data.update({"length": 16, "tokenizer": "bytes", **data})
  config.train.batch_size, config.evaluate.batch_size = 8, 1
  experiment = build(config, tokenizer=Bytes(), devices=jax.devices()[:1])
  return Trained(experiment, jax.jit(experiment.create_state)().eval_params, 0)


@pytest.fixture(scope="module")
def shell():
  """An experiment whose model is replaced."""
  return micro().experiment


def exact(shell, **members):
  """The model that knows the language, as a loaded workdir."""
  model, params = exact_model(Masked(3), LANGUAGE, **members)
  made = dataclasses.replace(shell, model=model, scoring=model, tokenizer=Characters("abc", False))
  return Trained(made, params, 0)


@pytest.fixture(scope="module")
def masked(shell):
  return exact(shell, timing=ExactCount())


@pytest.fixture(scope="module")
def next_token(shell):
  return exact(shell, timing=AtNoise(), context=NextToken(), answer_shift=1)


def enumerated(context, continuation):
  """log p(continuation | context) by summing over all sequences."""

  def log_p(ids):
    begins = (LANGUAGE.sequences[:, : len(ids)] == np.array(ids, int)).all(axis=1)
    return np.log(LANGUAGE.probabilities[begins].sum())

  return log_p(context + continuation) - log_p(context)


def requests():
  return [request(np.array(a, np.int32), np.array(b, np.int32)) for a, b in PAIRS]


WANTED = [enumerated(*pair) for pair in PAIRS]


@pytest.mark.parametrize("context", [Full(), Blocks(2)], ids=str)
def test_the_bound_of_a_pair_is_its_conditional_probability(shell, context):
  """An exact network: the mean over draws is log p itself, with the error that is reported."""
  trained = exact(shell, timing=ExactCount(), context=context)
  found = Scorer(trained, 512, 512, 4).score(requests())
  errors = np.array([each.standard_error for each in found])
  distance = np.array([each.log_prob for each in found]) - WANTED
  assert (np.abs(distance) < 4 * errors + 1e-5).all() and 0.1 < errors.max() < 0.2
  assert errors[2] == 0  # one token: every draw reads it from noise


@pytest.mark.parametrize("mutant", ["context is scored", "context is lost", "padding is scored"])
def test_other_rows_would_be_noticed(masked, monkeypatch, mutant):
  def wrong(asked, length):
    if mutant == "context is lost":
      asked = [each._replace(context=each.context[:0]) for each in asked]
    rows = made(asked, length)
    if mutant == "context is scored":
      return rows._replace(observed=rows.weights == 0)
    if mutant == "padding is scored":
      ones = np.ones_like(rows.weights)
      return rows._replace(observed=rows.observed & (rows.weights > 0), weights=ones)
    return rows

  made = continuations.rows_of
  monkeypatch.setattr(continuations, "rows_of", wrong)
  found = Scorer(masked, 512, 512, 4).score(requests())
  distance = [each.log_prob - wanted for each, wanted in zip(found, WANTED)]
  assert np.abs(distance).max() > 0.3


def test_next_tokens_are_scored_exactly_by_one_draw(next_token):
  """And is_greedy is the largest of all continuations token by token."""
  found = Scorer(next_token, 1, 4, 4).score(requests(), greedy=True)
  np.testing.assert_allclose([each.log_prob for each in found], WANTED, atol=1e-4)
  assert [each.standard_error for each in found] == [0.0] * 4
  for each, (context, continuation) in zip(found, PAIRS):
    best = [
      max(range(3), key=lambda v, c=context + continuation[:n]: enumerated(c, [v]))
      for n in range(len(continuation))
    ]
    assert each.greedy == (best == continuation)
  assert len({each.greedy for each in found}) == 2


def test_a_score_is_its_requests_own(masked):
  """Alone, in a batch, in batches of other sizes and in another order; two continuations of one
  context are read under the same noise."""
  whole = [each.log_prob for each in Scorer(masked, 8, 32, 4).score(requests())]
  alone = [Scorer(masked, 8, 8, 4).score([each])[0].log_prob for each in requests()]
  small = [each.log_prob for each in Scorer(masked, 8, 2, 4).score(requests())]
  back = [each.log_prob for each in Scorer(masked, 8, 32, 4).score(requests()[::-1])]
  np.testing.assert_allclose(alone, whole, rtol=1e-5)
  np.testing.assert_allclose(small, whole, rtol=1e-5)
  np.testing.assert_allclose(back[::-1], whole, rtol=1e-5)
  named = [request(np.array([1], np.int32), np.array(ids, np.int32)) for ids in ([0], [1])]
  assert named[0].noise == named[1].noise != requests()[0].noise
  other = Scorer(masked, 8, 32, 4, seed=1).score(requests())
  assert not np.allclose([each.log_prob for each in other], whole)


def test_noise_of_the_place_in_the_list_would_be_noticed(masked):
  """The mutant of the law above."""
  placed = [each._replace(noise=number) for number, each in enumerate(requests())]
  back = [each._replace(noise=number) for number, each in enumerate(requests()[::-1])]
  scorer = Scorer(masked, 8, 32, 4)
  whole = [each.log_prob for each in scorer.score(placed)]
  assert not np.allclose([each.log_prob for each in scorer.score(back)][::-1], whole)


def test_the_numbers_are_those_of_evaluate(tmp_path):
  """The same rows under the same keys, to rounding; four draws spread over time by both."""
  text = "".join(chr(97 + number * number % 23) for number in range(16 * 5 + 7))
  for split in ("train", "test"):
    (tmp_path / f"{split}.txt").write_text(text)
  where = {"corpus": "folder", "path": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
  trained = micro(**where)
  result = runs.score(trained.experiment, trained.params, split="test", num_draws=4)
  rows = windows(np.asarray(Bytes().encode(text), np.int32), 16, "rows")
  rows = [row._replace(noise=number) for number, row in enumerate(rows)]
  found = Scorer(trained, 4, 8, 16).score(rows)
  nats = -sum(each.log_prob for each in found)
  assert nats / result.tokens == pytest.approx(result.nats_per_token, rel=1e-5)
  assert result.tokens == len(text) == 87 and result.rows == 6


def test_a_text_is_cut_into_rows_that_score_each_token_once():
  ids = np.arange(11, dtype=np.int32)
  parts = [(list(each.context), list(each.continuation)) for each in windows(ids, 4, "context")]
  assert parts == [([], [0, 1, 2, 3]), ([], [4, 5, 6, 7]), ([7], [8, 9, 10])]
  parts = [(list(each.context), list(each.continuation)) for each in windows(ids, 4, "rows")]
  assert parts == [([], [0, 1, 2, 3]), ([], [4, 5, 6, 7]), ([], [8, 9, 10])]
  with pytest.raises(ValueError, match="without tokens cannot be scored"):
    windows(ids[:0], 4, "rows")


class Merges:
  """A tokenizer that merges "ab" across the border of two texts."""

  unknown = None

  def encode(self, text):
    return np.array([ord(c) for c in text.replace("ab", "X")], np.int32)


def test_pairs_are_tokens_of_the_whole_text():
  """Spaces at the end of a context are scored; a token across the border belongs to what is
  scored."""
  made = request_of(Bytes(), "It was  ", "best")
  assert (
    bytes(made.context.tolist()) == b"It was" and bytes(made.continuation.tolist()) == b"  best"
  )
  merged = request_of(Merges(), "xa", "b")
  assert (merged.context.tolist(), merged.continuation.tolist()) == ([ord("x")], [ord("X")])
  assert request_of(Bytes(), "", "b").context.tolist() == []
  assert made.noise == continuations.name_of(np.frombuffer(b"It was", np.uint8)) < 2**31
  with pytest.raises(ValueError, match=r"context 'a' has an empty continuation"):
    request_of(Bytes(), "a", "")


def writer(trained, batch_size=8, **options):
  options = {"sampler": Grid(steps=4), "reader": WholeRow(), **options}
  return until.Writer(trained, Decoding(**options), batch_size, 16)


def test_canvases_are_filled_row_by_row_alike(masked):
  """Texts depend on their own prompt; what stands behind an end is no text; prompts that come twice
  are drawn anew."""
  prompts = [np.array(ids, np.int32) for ids in ([0], [], [0, 1], [0], [2, 2])]
  rows = until.opened(prompts, [3, 4, 2, 3, 1])
  whole = writer(masked).write(rows)
  assert [len(ids) for ids in whole] == [3, 4, 2, 3, 1]
  for number, row in enumerate(rows):
    np.testing.assert_array_equal(writer(masked, 3).write([row])[0], whole[number])
  assert rows[0].name != rows[3].name
  cut = writer(masked, end_id=1).write(rows)
  assert all(1 not in ids for ids in cut) and any(len(a) < len(b) for a, b in zip(cut, whole))


def test_greedy_canvases_of_next_tokens(next_token):
  """Token by token the likeliest of all, by enumeration."""
  rows = until.opened([np.array([0], np.int32), np.array([2, 1], np.int32)], [3, 2])
  sampler = Grid(steps=1, temperature=0.0)
  for row, ids in zip(rows, writer(next_token, sampler=sampler, reader=Cached()).write(rows)):
    text = row.prompt.tolist()
    for _ in range(row.canvas):
      text.append(max(range(3), key=lambda v, c=text: enumerated(c, [v])))
    assert text[len(row.prompt) :] == ids.tolist()


def test_texts_end_at_the_first_stop():
  assert until.up_to_stop("a b\n\nc", ["\n\n", " b"]) == "a"
  assert until.up_to_stop("a b", ["", "x"]) == "a b"
  assert until.up_to_end(np.array([5, 1, 1, 2]), 1).tolist() == [5]
  assert until.up_to_end(np.array([5, 1]), None).tolist() == [5, 1]


def test_what_does_not_fit_is_said(masked, shell):
  long = Request(np.zeros(3, np.int32), np.zeros(2, np.int32), 0)
  with pytest.raises(ValueError, match=r"3 and continuation of 2 tokens are more than max_l"):
    Scorer(masked, 1, 8, 4).score([long])
  with pytest.raises(ValueError, match=r"a continuation after 3 tokens is empty"):
    Scorer(masked, 1, 8, 4).score([long._replace(continuation=long.context[:0])])
  with pytest.raises(ValueError, match=r"num_draws=0 must be at least 1"):
    Scorer(masked, 0, 8, 4)
  with pytest.raises(ValueError, match=r"15 tokens and max_gen_toks=2 are more than max_length=16"):
    writer(masked).write([until.Open(np.zeros(15, np.int32), 2, 0)])
  with pytest.raises(ValueError, match=r"max_gen_toks=0 leaves no token"):
    writer(masked).write([until.Open(np.zeros(1, np.int32), 0, 0)])
