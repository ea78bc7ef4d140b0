"""What texts cost: the formulas of positions and attention, per row, in both loops."""

import jax
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.process.masked import Masked
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.classifier_free import ClassifierFree
from diffusion_text.reader.mixture import Mixture
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.accounting import cost_report
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.types import Batch

V, L, SIZE, PROMPT, STEPS, ROWS = 3, 6, 2, 2, 2, 4
LANGUAGE = Enumerable.dirichlet(0, 0.5, V, L)
ONE_PER_CALL = Reveal(budget=EvenShare(steps=STEPS))
IDS = LANGUAGE.sample(np.random.default_rng(0), ROWS)
BATCH = Batch(IDS, np.broadcast_to(np.arange(L) < PROMPT, IDS.shape))
STARTS = range(PROMPT, L, SIZE)


def drawn(context, reader, sampler=ONE_PER_CALL, batch=BATCH, **options):
  model, params = exact_model(Masked(vocab_size=V), LANGUAGE, context=context)
  key = jax.random.key(0)
  result = sample(model, params, sampler, key, batch=batch, reader=reader, **options)
  return model, jax.tree.map(np.asarray, result), (params, key)


def test_whole_rows():
  """Every call reads the row, which is what the others are compared with."""
  model, result, _ = drawn(Full(), WholeRow(), block=SIZE)
  calls = len(STARTS) * STEPS
  np.testing.assert_array_equal(result.row_calls, calls)
  np.testing.assert_array_equal(result.token_layers, calls * L)
  np.testing.assert_array_equal(result.attention, calls * L * L)
  report = cost_report(result, model, batch=BATCH)
  assert (report.relative_layers, report.relative_attention, report.fills) == (1, 1, 0)
  assert report.tokens_per_call == 1 and report.tokens == report.useful_tokens == L - PROMPT
  assert "1.00 tokens a call, 1.000 of the token-layers" in report.line()


def test_a_cache_that_is_only_appended_to():
  """P + Σ (s · b + b): the prompt, and each block at its calls and once more when it is clean.

  Both loops say the same.
  """
  model, result, (params, key) = drawn(Blocks(size=SIZE), Cached())
  np.testing.assert_array_equal(
    result.token_layers, PROMPT + sum(STEPS * SIZE + SIZE for _ in STARTS)
  )
  pairs = sum((STEPS + 1) * SIZE * (start + SIZE) for start in STARTS) + PROMPT * PROMPT
  np.testing.assert_array_equal(result.attention, pairs)
  assert result.fills == L // SIZE and (result.row_calls == len(STARTS) * STEPS).all()
  steps = host_sample(model, params, ONE_PER_CALL, key, batch=BATCH, reader=Cached())
  while True:
    try:
      next(steps)
    except StopIteration as stop:
      jax.tree.map(np.testing.assert_array_equal, stop.value, result)
      break


def test_readers_that_ask_several_times_add_up():
  guided = ClassifierFree(WholeRow(), 2.0)
  for reader, number in ((guided, 2), (Mixture((WholeRow(), guided), (0.5, 0.5)), 3)):
    _, result, _ = drawn(Full(), reader)
    assert result.calls == number * STEPS and (result.row_calls == number * STEPS).all()
    np.testing.assert_array_equal(result.attention, number * STEPS * L * L)


def test_a_row_pays_for_its_own_calls():
  """And not for those that its mates need; what ends it is not useful."""
  observed = np.array(BATCH.observed)
  observed[1, :-1] = True
  ends = Batch(np.where(observed, IDS, 0), observed)
  model, result, _ = drawn(Full(), WholeRow(), Grid(steps=8, skip=True), ends)
  assert result.row_calls[1] == 1 and result.token_layers[1] == L
  np.testing.assert_array_equal(result.token_layers, result.row_calls * L)
  assert result.calls == result.row_calls.max()
  end = 1
  report = cost_report(result, model, batch=ends, end_id=end)
  useful, entropies = [], []
  for ids, known in zip(result.ids, observed, strict=True):
    text = ids[~known].tolist()
    text = text[: text.index(end)] if end in text else text
    useful.append(len(text))
    p = np.unique(text, return_counts=True)[1] / max(len(text), 1)
    entropies += [-(p * np.log(p)).sum()] if text else []
  assert report.useful_tokens == pytest.approx(np.mean(useful)) and sum(useful) < (~observed).sum()
  assert report.entropy == pytest.approx(np.mean(entropies))
  assert report.tokens_per_call == pytest.approx((~observed).sum() / result.row_calls.sum())
