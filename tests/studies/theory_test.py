"""The two predictions of theory hold on exact chains, fail for wrong variants, and what is computed
in closed form is what enumeration and the sampler find.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_text.studies import theory
from diffusion_text.studies.chains import Chain, branchy
from diffusion_text.studies.opened_chains import (
  bridges,
  costs_by_distance,
  entropy,
  even_calls,
  given_calls,
  possible_shares,
  uniform_calls,
)

SETTINGS = theory.Settings(lengths=(8, 16, 24), calls=4, gap_length=32, gap_calls=(4, 8, 16, 32))


def short(length):
  """A chain of 3 tokens, each of which has 2 successors."""
  step = np.array([[0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])
  return Chain("short", np.array([0.2, 0.3, 0.5]), step, length)


def by_enumeration(chain, calls, same_call=False):
  """E[-Σ log p(x_i | tokens of earlier calls)] of one order, over all texts. same_call: the mutant
  that is told the tokens of the same call, too.
  """
  size, length = len(chain.initial), chain.length
  texts = np.array(list(itertools.product(range(size), repeat=length)))
  p = chain.initial[texts[:, 0]] * chain.transition[texts[:, :-1], texts[:, 1:]].prod(1)
  cost = 0.0
  for i in range(length):
    told = [j for j in range(length) if calls[j] < calls[i] + (same_call and j != i)]
    for number, text in enumerate(texts):
      alike = (texts[:, told] == text[told]).all(1)
      both = alike & (texts[:, i] == text[i])
      if p[number]:
        cost -= p[number] * np.log(p[both].sum() / p[alike].sum())
  return cost


def test_costs_are_those_of_all_texts():
  """Mutant: tokens of the same call are known."""
  chain = short(4)
  costs = costs_by_distance(chain)
  for calls in ((0, 0, 0, 0), (1, 0, 1, 0), (2, 0, 1, 1)):
    (found,) = given_calls(costs, np.array([calls]))
    np.testing.assert_allclose(found, by_enumeration(chain, calls), rtol=1e-12)
    assert abs(found - by_enumeration(chain, calls, same_call=True)) > 0.05
  np.testing.assert_allclose(given_calls(costs, np.arange(4)[None]), entropy(costs), rtol=1e-12)


def test_expected_costs_are_means_over_all_orders():
  """Mutant: orders with as many tokens at each call in place of uniformly drawn calls."""
  costs = costs_by_distance(branchy()._replace(length=4), unigram=0.1)
  for calls in (1, 2, 4):
    every = np.array(list(itertools.product(range(calls), repeat=4)))
    counts = np.stack([(every == call).sum(1) for call in range(calls)])
    found = given_calls(costs, every)
    np.testing.assert_allclose(uniform_calls(costs, calls).sum(), found.mean(), rtol=1e-12)
    even = found[(counts == 4 // calls).all(0)].mean()
    np.testing.assert_allclose(even_calls(costs, calls).sum(), even, rtol=1e-12)
    assert calls == 1 or found.mean() - even > 0.05
  with pytest.raises(ValueError, match="calls=3 must divide the 4 tokens"):
    even_calls(costs, 3)


def drawn_possible(chain, calls):
  """The share of possible texts among those that are drawn in one order, over all draws."""
  size, length = len(chain.initial), chain.length
  chances = bridges(chain)
  texts = {(): 1.0}  # (place, token) pairs -> probability
  for call in range(max(calls) + 1):
    for i in [place for place in range(length) if calls[place] == call]:
      told, texts = texts, {}
      for text, p in told.items():
        earlier = {place: token for place, token in text if calls[place] < call}
        left = max((j for j in earlier if j < i), default=-1)
        right = min((j for j in earlier if j > i), default=length)
        l, r = earlier.get(left, size), earlier.get(right, size)
        law = chances[i - left, l, :size] * chances[right - i, :size, r]
        for token in np.flatnonzero(law):
          texts[*text, (i, int(token))] = p * law[token] / law.sum()
  rows = np.array([[token for _, token in sorted(text)] for text in texts])
  return (np.array(list(texts.values())) * ~chain.invalid(rows)).sum()


def test_the_share_of_possible_texts_is_that_of_all_draws():
  """Mutant: calls that open runs of neighbours."""
  chain = short(4)
  shares = possible_shares(chain, 3)
  for number, share in enumerate(shares[:, -1], 1):
    orders = itertools.product(range(number), repeat=4)
    np.testing.assert_allclose(
      share, np.mean([drawn_possible(chain, o) for o in orders]), rtol=1e-5
    )
  assert abs(shares[1, -1] - drawn_possible(chain, (0, 0, 1, 1))) > 0.02
  np.testing.assert_allclose(shares[:, 2], possible_shares(short(3), 3)[:, -1], rtol=1e-5)


def test_what_the_sampler_draws_is_counted(monkeypatch):
  """In as many calls as were asked for; half of these texts repeat a token, which is impossible."""

  def stub(model, params, sampler, keys, rows, length):
    assert (model, params, sampler.steps, len(keys), length) == ("model", {}, 3, rows, 4)
    return SimpleNamespace(ids=np.array([[0, 1, 0, 2], [0, 0, 1, 0]] * (rows // 2)))

  monkeypatch.setattr(theory, "sample", stub)
  settings = theory.Settings(rows=4)
  (share, error), tokens = theory.sampled(short(4), 3, lambda *_: ("model", {}), settings)
  assert share == 0.5 and 0.2 < error < 0.3
  np.testing.assert_allclose(tokens, 5 / 8 * np.log(8 / 5) + 0.25 * np.log(4) + np.log(8) / 8)


def test_perplexity_needs_few_calls_and_whole_texts_need_many():
  """Mutant: calls that open runs of neighbours, whose excess grows with the length."""
  lines = theory.by_length(SETTINGS, branchy())
  length, excess, runs, needed, impossible = zip(*lines, strict=True)
  assert abs(theory.slope(length, excess)) < 0.1 < theory.slope(length, runs)
  assert abs(theory.slope(length, needed) - 1) < 0.15
  assert max(impossible) <= 0.3
  with pytest.raises(ValueError, match=r"impossible=0\.001: 16 calls leave more than that"):
    theory.by_length(theory.Settings(lengths=(6, 8), calls=4, impossible=0.001), branchy())


def test_the_cost_gap_falls_as_one_over_the_calls():
  """It is Σ I / 2T, whatever the coupling; a wrong denoiser keeps its training error. Mutants: runs
  of neighbours, and the gap without that error.
  """
  *right, even, runs, wrong = theory.gaps(SETTINGS, branchy())
  calls = np.array(SETTINGS.gap_calls)
  assert len({gap.information for gap in right}) == len(SETTINGS.couplings) == 3
  for gap in right:
    assert abs(theory.slope(calls, gap.nats) + 1) < 0.05 and abs(gap.error) < 1e-9
    np.testing.assert_allclose(calls * gap.nats / gap.information, 0.5, atol=0.02)
  # With as many tokens at each call the gap is 0 at one call per token: 1 / T - 1 / L.
  ratio = np.array(even.nats[:3]) / (1 / calls[:3] - 1 / 32) / even.information
  np.testing.assert_allclose(ratio, 0.5, atol=0.03)
  assert theory.slope(calls, runs.nats) > -0.7
  left = np.array(wrong.nats) - wrong.error
  assert abs(theory.slope(calls, left) + 1) < 0.1 < theory.slope(calls, wrong.nats) + 0.9
  assert 0 < left[-1] < wrong.error


def test_a_table_says_the_slopes():
  settings = theory.Settings(lengths=(8, 16), calls=4, gap_length=8, gap_calls=(2, 4, 8), rows=4)
  lengths, found = theory.by_length(settings, branchy()), theory.gaps(settings, branchy())
  text = theory.table(settings, lengths, [((0.25, 0.01), 1.5)] * 2, found)
  assert "Slopes over L: excess at 4 calls 0." in text and "| 0.250 ± 0.010 | 1.500 |" in text
  assert text.count("\n| coupling") == 6


@pytest.mark.parametrize(
  ("wrong", "said"),
  (
    ({"lengths": (8, 16)}, r"lengths=\(8, 16\), calls=8, .* two lengths above the calls"),
    ({"gap_calls": (4,)}, r"gap_calls=\(4,\): a slope needs .* two numbers of calls"),
    ({"gap_calls": (0, 4)}, r"gap_calls=\(0, 4\): .* from 1 on"),
    ({"couplings": (0.0, 1.0)}, r"couplings=\(0.0, 1.0\) must be above 0"),
  ),
)
def test_settings_without_a_slope_are_refused(wrong, said):
  theory.check(theory.Settings())
  with pytest.raises(ValueError, match=said):
    theory.check(theory.Settings(**wrong))
