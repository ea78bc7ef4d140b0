"""Scores: each is its formula, in the order of whole texts too; one token at a time is exact on
chains, in whatever order, and an order by the tokens that were drawn is not.
"""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.sampler.budget import Count
from diffusion_text.sampler.history import Averaged, Divergence
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import (
  Calibrated,
  Density,
  Entropy,
  LeftToRight,
  Likeliest,
  MaxProb,
  Random,
)
from diffusion_text.testing import MarkovChain
from tests.sampler.chains import BRANCHY, bigram_distance, draw, invalid, model_of, nats
from tests.sampler.windows import MODEL, candidates_of, drawn, view_of

ONE = Count(tokens=1)

# --- the first gate -----------------------------------------------------------------------------


def check_exact(result):
  """One token per call: every text is possible, and the law is that of the chain."""
  assert (result.row_calls == BRANCHY.length).all() and invalid(result.ids, BRANCHY) == 0
  mean, error = nats(result.ids, BRANCHY)
  assert abs(mean - BRANCHY.entropy) < 0.01 * BRANCHY.entropy + 2 * error
  assert bigram_distance(result.ids, BRANCHY) < 0.02, "as many exact draws have 0.011"
  said = result.log_prob.sum(1)
  np.testing.assert_allclose(said, BRANCHY.log_likelihood(result.ids), atol=2e-3)


@pytest.mark.parametrize("score", [Random(), LeftToRight(), MaxProb(), Entropy()], ids=repr)
def test_one_token_per_call_has_the_law_of_a_chain(score):
  check_exact(draw(Reveal(score=score, budget=ONE), BRANCHY, 512, trace=True))


class ByTheDraw(Reveal):
  """The usual mistake: the confidence is that of the token that was drawn."""

  draws_all = True

  def propose(self, view, t):
    proposal = super().propose(view, t)
    return proposal._replace(score=proposal.log_prob)


def test_an_order_by_drawn_tokens_would_be_noticed():
  result = draw(ByTheDraw(score=MaxProb(), budget=ONE), BRANCHY, 512, trace=True)
  with pytest.raises(AssertionError):
    check_exact(result)
  assert invalid(result.ids, BRANCHY) == 0, "each text is possible, and the law is another"
  assert nats(result.ids, BRANCHY)[0] < 0.9 * BRANCHY.entropy
  assert bigram_distance(result.ids, BRANCHY) > 0.15


# --- scores are their formulas ------------------------------------------------------------------


def entropies(p):
  return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def test_the_divergence_of_two_calls():
  log_p, _, _ = drawn(0)
  other, _, _ = drawn(1)
  view = view_of(np.ones(log_p.shape[:2], bool))
  last = Divergence().init(MODEL, {}, view.canvas)
  first = np.asarray(Divergence()(candidates_of(view, other, last)))
  assert (first <= -200).all()
  np.testing.assert_allclose(first + 200, other.max(-1), atol=1e-4)
  last = Divergence().remember(candidates_of(view, other, last))
  p = np.exp(np.float64(log_p))
  want = (p * (np.float64(log_p) - other)).sum(-1)
  got = Divergence()(candidates_of(view, log_p, last))
  np.testing.assert_allclose(-got, np.minimum(want, 100), rtol=1e-4, atol=1e-6)
  assert (np.abs(want - (np.exp(np.float64(other)) * (other - log_p)).sum(-1)) > 1e-3).any()
  certain = np.where(np.arange(6) == 2, 0.0, -np.inf) + np.zeros(log_p.shape)
  said = Divergence()(candidates_of(view, np.float32(certain), last))
  np.testing.assert_allclose(-said, np.minimum(-other[..., 2], 100), rtol=1e-5)
  last = Divergence().remember(candidates_of(view, np.float32(certain), last))
  assert np.isfinite(Divergence()(candidates_of(view, log_p, last))).all()


@pytest.mark.parametrize("width", [0.7, 4.0])
def test_the_density_of_what_is_known(width):
  """As a sum over the line: known on the left, unknown on the right if the last token waits."""
  _, _, waiting = drawn(2, rows=6, length=9)
  lengths = np.array([9, 9, 4, 7, 9, 1])
  waiting &= np.arange(9) < lengths[:, None]
  waiting[0, -1], waiting[1, -1] = True, False
  got = np.asarray(Density(width=width).density(view_of(waiting, lengths=lengths)))
  line = np.arange(-60, 80)
  for row in range(6):
    known = np.zeros(len(line), bool)
    known[line < 0] = True
    for j, place in enumerate(line):
      if 0 <= place < lengths[row]:
        known[j] = not waiting[row, place]
      elif place >= lengths[row]:
        known[j] = not waiting[row, lengths[row] - 1]
    for i in range(lengths[row]):
      weight = np.exp(-((line - i) ** 2) / (2 * width**2))
      assert got[row, i] == pytest.approx((weight * known).sum() / weight.sum(), rel=1e-4)


def test_density_times_confidence():
  log_p, _, waiting = drawn(4)
  view = view_of(waiting)
  score = Density(width=2.0)
  got = score.across(view, score(candidates_of(view, log_p)))
  want = np.exp(log_p.max(-1)) * np.asarray(score.density(view))
  np.testing.assert_allclose(np.exp(got), want, rtol=1e-4)


def test_confidence_calibrated_by_frequency(tmp_path):
  counts = np.array([50, 30, 0, 10, 9, 1])
  np.save(tmp_path / "counts.npy", counts)
  score = Calibrated(decay=0.3, clip=2.0, counts=str(tmp_path / "counts.npy"))
  log_p, _, waiting = drawn(5)
  got = score(candidates_of(view_of(waiting), log_p))
  share = np.maximum(counts, 1) / counts.sum()
  confidence = -np.exp(log_p.max(-1)) * np.log(share)[log_p.argmax(-1)]
  want = np.exp(-0.3 * np.arange(log_p.shape[1])) * np.minimum(confidence, 2.0)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  score.check(MODEL)
  with pytest.raises(ValueError, match=r"holds \(6,\).*vocabulary 8"):
    score.check(model_of(BRANCHY))
  with pytest.raises(ValueError, match=r"none\.npy' does not exist; save"):
    Calibrated(counts=str(tmp_path / "none.npy")).check(MODEL)


def test_without_decay_and_counts_it_is_the_confidence():
  log_p, _, waiting = drawn(5)
  got = Calibrated(decay=0.0)(candidates_of(view_of(waiting), log_p))
  np.testing.assert_allclose(got, np.log(6) * np.exp(log_p.max(-1)), rtol=1e-5)
  ids = Likeliest()(candidates_of(view_of(waiting), log_p))
  np.testing.assert_array_equal(ids, log_p.argmax(-1))


# --- the mean over calls ------------------------------------------------------------------------


def averaged_loop(p, waiting, buffer, step, *, calls, highest, warm_up):
  """The order of CCD for one row: (scores of the waiting places, the next buffer).

  buffer: one dict {place: distribution} per earlier call, the latest first.
  """
  now = {i: -entropies(p[i]) for i in np.flatnonzero(waiting)}
  if not now:
    return {}, []
  best_first = sorted(now, key=lambda i: -now[i])
  held = {i for call in buffer for i in call} & set(now)
  scores = dict(now)
  if step >= warm_up and best_first[0] in held:
    for i in now:
      if i in held:
        scores[i] = -entropies(np.mean([p[i], *(call[i] for call in buffer if i in call)], 0))
      else:
        scores[i] = now[i] - 100
  # What is committed is forgotten, so that it counts as new if it is masked again.
  buffer = [{i: law for i, law in call.items() if i in now} for call in buffer]
  buffer = [{i: p[i] for i in best_first[:highest]}, *buffer][: calls - 1]
  return scores, buffer


def check_averaged(score, mutant=None):
  """Over several calls, with tokens that are committed on the way and masked again later."""
  _, _, waiting = drawn(6, rows=5, length=7)
  told = {"calls": score.calls, "highest": score.highest, "warm_up": score.warm_up}
  told |= mutant or {}
  buffers = [[] for _ in waiting]
  view = view_of(waiting)
  memory = score.init(MODEL, {}, view.canvas)
  for step in range(7):
    log_p, _, _ = drawn(10 + step, rows=5, length=7)
    view = view_of(waiting, step=step, memory=memory)
    flat = candidates_of(view, log_p, memory)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), flat)
    back = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(5, 7, *leaf.shape[1:]))
    got = np.asarray(score.across(view, back(score(flat))))
    memory = score.keep(view, None, back(score.remember(flat)))
    for row in range(5):
      p = np.exp(np.float64(log_p[row]))
      want, buffers[row] = averaged_loop(p, waiting[row], buffers[row], step, **told)
      for i, value in want.items():
        assert got[row, i] == pytest.approx(value, abs=1e-4), f"call {step}, row {row}, place {i}"
    best = np.where(waiting, got, -np.inf).argmax(1)
    taken = waiting & (np.arange(7) == best[:, None])
    if step % 3 == 0:
      waiting, again = waiting & ~taken, taken
    elif step % 3 == 1:
      waiting = waiting | again


AVERAGED = Averaged(calls=3, highest=3, warm_up=1)


def test_the_mean_over_calls():
  check_averaged(AVERAGED)
  for mutant in ({"calls": 2}, {"highest": 2}, {"warm_up": 3}):
    with pytest.raises(AssertionError, match="call"):
      check_averaged(AVERAGED, mutant)


def test_one_call_is_the_order_of_entropy():
  """Token by token; two calls are another order."""
  texts = {
    name: draw(Reveal(score=score, budget=ONE), BRANCHY, 48)
    for name, score in (
      ("entropy", Entropy()),
      ("one", Averaged(calls=1)),
      ("two", Averaged(calls=2)),
    )
  }
  np.testing.assert_array_equal(texts["one"].ids, texts["entropy"].ids)
  np.testing.assert_array_equal(texts["one"].committed, texts["entropy"].committed)
  assert (texts["two"].committed != texts["entropy"].committed).mean() > 0.1


def test_a_mean_of_more_tokens_than_are_kept():
  """Of 40 tokens the 32 likeliest of an earlier call count, and the mean is normalised."""
  score = Averaged(calls=2, highest=1)
  chain = MarkovChain.branchy(0, vocab_size=40, length=3)
  view = view_of(np.ones((1, 1), bool))
  memory = score.init(model_of(chain), {}, view.canvas)
  generator = np.random.default_rng(0)
  logits = np.float32(generator.normal(size=(2, 1, 40)))
  log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
  assert memory.ids.shape == (1, 1, 1, 32)

  def flat(log_p, memory):
    seen = candidates_of(view, log_p[None], memory)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)

  remembered = score.remember(flat(log_p[0], memory))
  back = functools.partial(jax.tree.map, lambda leaf: leaf[None])
  memory = score.keep(view._replace(memory=memory), None, back(remembered))
  now, mean = back(score(flat(log_p[1], memory)))
  p = np.exp(np.float64(log_p))
  kept = np.where(p[0] >= np.sort(p[0])[:, [-32]], p[0], 0)
  total = (p[1] + kept) / (p[1] + kept).sum()
  np.testing.assert_allclose(mean[0], -entropies(total), rtol=1e-4)
  np.testing.assert_allclose(now[0], -entropies(p[1]), rtol=1e-4)
