"""The estimate and its error, and statistics of texts, against hand-made corpora."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.evaluate.likelihood import Likelihood, estimate, evaluate
from diffusion_text.evaluate.text_metrics import (
  NGramModel,
  distinct_n,
  ngram_js_divergence,
  token_entropy,
  xz_bits_per_char,
)
from diffusion_text.experiment.player import as_committed
from diffusion_text.studies.report import write_report
from diffusion_text.testing.oracle import Enumerable, MarkovChain, masked_evidence
from diffusion_text.types import Batch


def test_a_bound_too_large_for_a_perplexity_is_still_told():
  """A Gaussian system had 17,274 nats per token after 500 updates."""
  result = Likelihood(17_274.0, 1.0, 100.0, 300.0, 2, 1, 310.0)
  assert math.isinf(result.perplexity) and "perplexity <= inf" in str(result)
  # JSON has no infinity: `Infinity` was written, which other readers refuse.
  assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["perplexity"] is None


@pytest.mark.parametrize("nats, text", [(2.0, "7.39"), (13.0, "442413.39"), (690.0, "4.6e+299")])
def test_a_perplexity_is_short(nats, text):
  """At 690 nats it was printed with 300 digits."""
  result = Likelihood(nats, 1.0, 100.0, 300.0, 2, 1, 310.0)
  assert f"perplexity <= {text}, " in str(result) and len(str(result)) < 260


def test_no_number_of_a_bound_has_many_digits():
  assert len(str(Likelihood(1e250, 1e240, 100.0, 300.0, 2, 1, 310.0))) < 260


def test_uniform_model_has_perplexity_v():
  def nats_fn(params, key, batch, progress):
    return jnp.full(4, 10 * np.log(7.0)), jnp.full(4, 10.0)

  result = evaluate(
    nats_fn, {}, [(Batch(jnp.zeros((4, 10))), (40, 50))] * 3, jax.random.key(0), num_draws=2
  )
  assert result.perplexity == pytest.approx(7.0) and result.standard_error < 1e-6
  assert result.bits_per_char == pytest.approx(np.log2(7.0))
  assert (result.rows, result.tokens, result.characters, result.bytes) == (12, 120.0, 120, 150)
  assert result.bits_per_byte == pytest.approx(np.log2(7.0) * 120 / 150)


def test_bits_count_characters_whatever_the_tokenizer():
  """4 characters per token: the same nats per token are a quarter of the bits per character."""
  result = Likelihood(
    nats_per_token=2.0,
    standard_error=0.1,
    tokens=100,
    characters=400,
    rows=5,
    num_draws=1,
    bytes=500,
  )
  assert result.bits_per_char == pytest.approx(2.0 / 4 / np.log(2))
  assert result.bits_per_char_error == pytest.approx(0.1 / 4 / np.log(2))


def test_standard_error_is_that_of_repeated_experiments():
  rng = np.random.default_rng(0)
  weights = rng.integers(5, 20, 400).astype(float)

  def draw():
    return estimate(weights * (2 + rng.normal(size=400)), weights)

  ratios, errors = np.array([draw() for _ in range(300)]).T
  assert errors.mean() == pytest.approx(ratios.std(), rel=0.15)
  assert ratios.mean() == pytest.approx(2.0, abs=4 * ratios.std() / 300**0.5)


def test_padding_rows_do_not_count():
  ratio, error = estimate(np.array([4.0, 6.0, 0.0]), np.array([2.0, 3.0, 0.0]))
  assert ratio == 2.0 and error == 0.0


def test_draws_are_spread_over_time():
  seen = []

  def nats_fn(params, key, batch, progress):
    seen.append((progress.part, progress.parts))
    return jnp.ones(2), jnp.ones(2)

  evaluate(nats_fn, {}, [(Batch(jnp.zeros((2, 1))), (2, 2))], jax.random.key(0), num_draws=3)
  assert seen == [(0, 3), (1, 3), (2, 3)]


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="held-out batch"):
    evaluate(lambda *_: None, {}, [], jax.random.key(0))
  with pytest.raises(ValueError, match="observed or padding"):
    estimate(np.zeros(2), np.zeros(2))
  with pytest.raises(ValueError, match="num_draws=0"):
    evaluate(lambda *_: None, {}, [], jax.random.key(0), num_draws=0)


def test_ngram_probabilities_sum_to_one_and_follow_witten_bell():
  model = NGramModel.train("abab", 2)
  # P(b) = (2 + 2/3) / 6, where 3 includes the unknown character. P(b | a) = (2 + 1 * P(b)) / 3.
  unigram = (2 + 2 / 3) / 6
  assert model.bits_per_char("ab") == pytest.approx(
    -(np.log2(unigram) + np.log2((2 + unigram) / 3)) / 2
  )
  for history in ("a", "b", "x", ""):
    total = (
      sum(
        2 ** -(2 * model.bits_per_char(history + c) - model.bits_per_char(history)) for c in "abz"
      )
      if history
      else 1
    )
    assert total == pytest.approx(1.0)


def test_longer_ngrams_cost_less_on_real_text():
  text = "it was the best of times, it was the worst of times, it was the age of wisdom. " * 30
  costs = [
    NGramModel.train(text[:1800], order).bits_per_char(text[1800:]) for order in (1, 2, 3, 5)
  ]
  assert costs == sorted(costs, reverse=True) and costs[-1] < 0.5
  assert xz_bits_per_char(text) < 1.0
  with pytest.raises(ValueError, match="empty"):
    NGramModel.train("", 2)


def test_sample_statistics():
  assert token_entropy([np.array([1, 1, 2, 2])]) == pytest.approx(np.log(2))
  assert distinct_n([np.array([1, 2, 1, 2])], 2) == pytest.approx(2 / 3)
  assert ngram_js_divergence(["abc"], "abc", 1) == pytest.approx(0.0, abs=1e-12)
  assert ngram_js_divergence(["aaa"], "bbb", 1) == pytest.approx(np.log(2))
  with pytest.raises(ValueError, match="5-gram"):
    ngram_js_divergence(["abc"], "abcdefgh", 5)


def test_report_is_one_file_that_needs_no_network(tmp_path):
  film = as_committed(["To ", "be</script>", "\n"], [-1, 0, 1], 2)
  likelihood = Likelihood(2.0, 0.1, 100, 400, 5, 1, 400)
  rows = [{"step": 1, "bits_per_character": 3.0}, {"step": 2, "validation_bits_per_character": 2.5}]
  path = tmp_path / "deep" / "report.html"
  write_report(
    path,
    title="a <title>",
    facts={"seed": "0"},
    rows=rows,
    likelihood=likelihood,
    baselines={"5-gram": 1.8},
    samples={"sample 1": "<b>not bold</b>"},
    film=film,
  )
  page = path.read_text()
  assert not re.search(r"(src|href)\s*=\s*[\"']?(http|//)", page) and "@" not in re.sub(
    r"(?s)<svg.*?</svg>", "", page
  )
  assert "&lt;b&gt;not bold" in page and "a &lt;title&gt;" in page and "0.721 ± 0.036" in page
  held = re.search(r"(?s)class=data>(.*?)</script>", page).group(1)
  assert json.loads(held) == [
    [
      [0, ["To ", None, None], []],
      [1, ["To ", "be</script>", None], [1]],
      [2, ["To ", "be</script>", "\n"], [2]],
    ]
  ]


@pytest.mark.parametrize("known", ["none", "some", "all"])
def test_markov_posterior_equals_enumeration(known):
  """Forward-backward equals a sum over all sequences of a small chain."""
  chain = MarkovChain.branchy(3, vocab_size=3, length=4, successors=2)
  grid = np.indices((3,) * 4).reshape(4, -1).T.astype(np.int32)
  law = np.exp(chain.log_likelihood(grid))
  table = Enumerable(grid, law, 3)
  assert law.sum() == pytest.approx(1.0) and table.entropy == pytest.approx(chain.entropy)
  ids = chain.sample(np.random.default_rng(0), 20)
  masked = {
    "none": np.ones((20, 4), bool),
    "some": np.random.default_rng(1).random((20, 4)) < 0.5,
    "all": np.zeros((20, 4), bool),
  }[known]
  evidence = masked_evidence(jnp.asarray(np.where(masked, 3, ids)), 3)

  def softmax(logits):
    return np.asarray(jax.nn.softmax(logits, axis=-1))

  np.testing.assert_allclose(
    softmax(chain.posterior(evidence)), softmax(table.posterior(evidence)), atol=2e-6
  )


def test_chain_samples_follow_the_chain():
  chain = MarkovChain.branchy(0, vocab_size=4, length=6)
  nll = -chain.log_likelihood(chain.sample(np.random.default_rng(0), 20_000))
  assert nll.mean() == pytest.approx(chain.entropy, abs=4 * nll.std() / 20_000**0.5)
