"""Overlap and diversity of texts equal the reference libraries and values worked out by hand."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.evaluate import diversity, overlap
from diffusion_text.evaluate.task_metrics import METRICS, Answers, Score, mean_score

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


@settings(max_examples=80, deadline=None)
@given(WORDS, WORDS)
def test_sentence_bleu_is_that_of_sacrebleu(text, reference):
  """For tokens of any kind, on texts shorter than four tokens and empty ones, too."""
  metrics = pytest.importorskip("sacrebleu.metrics")
  metric = metrics.BLEU(effective_order=True, tokenize="none")
  theirs = metric.sentence_score(" ".join(text), [" ".join(reference)]).score
  assert 100 * diversity.sentence_bleu(text, reference) == pytest.approx(theirs, abs=1e-9)


def test_sentence_bleu_by_hand():
  """3 of 4 words, 2 of 3 pairs, 1 of 2 triples; no fours of 1, smoothed to a half."""
  expected = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
  assert diversity.sentence_bleu("abcx", "abcde") == pytest.approx(expected * math.exp(1 - 5 / 4))


def test_self_bleu_is_over_ordered_pairs():
  """Mutant: unordered pairs. Brevity makes BLEU(a, b) another number than BLEU(b, a)."""
  texts = ["abcde", "abcd", "xyz"]
  ordered = [diversity.sentence_bleu(a, b) for a, b in itertools.permutations(texts, 2)]
  unordered = [diversity.sentence_bleu(a, b) for a, b in itertools.combinations(texts, 2)]
  assert diversity.self_bleu(texts) == pytest.approx(sum(ordered) / 6)
  assert abs(sum(unordered) / 3 - sum(ordered) / 6) > 0.01
  assert diversity.self_bleu(["abcd"] * 3) == 1
  with pytest.raises(ValueError, match="self-BLEU of 1 text"):
    diversity.self_bleu(["abcd"])


def test_rep_n_by_hand():
  """ "aaab": pairs aa, aa, ab, so 1 - 2/3; "abab": ab, ba, ab, so 1 - 2/3; "x" has none."""
  assert diversity.rep_n(["aaab", "abab", "x"], 2) == pytest.approx(1 / 3)
  assert diversity.rep_n(["abcd"], 2) == 0
  # Mutant: the share over all texts together is another number.
  assert diversity.rep_n(["aaab", "ab"], 2) == pytest.approx(1 / 6) != 1 - 2 / 4
  with pytest.raises(ValueError, match="shorter than 3"):
    diversity.rep_n(["ab"], 3)


def test_rouge_by_hand():
  """Common words: 3 of 4 and 3 of 5; the longest common subsequence is "the cat", 2."""
  text, reference = "The cat, sat the!", "cat the cat sits the"
  assert overlap.rouge_n(text, [reference], 1) == pytest.approx(2 * 3 / 9)
  assert overlap.rouge_n(text, [reference], 2) == pytest.approx(2 * 1 / 7)
  assert overlap.rouge_l(text, [reference]) == pytest.approx(2 * 3 / 9)
  assert overlap.rouge_l("a b c", ["c b a", "a c"]) == pytest.approx(2 * 2 / 5)
  assert overlap.rouge_l("", ["a"]) == overlap.rouge_n("a", ["b"], 1) == 0


def test_rouge_is_that_of_the_library():
  scorer = pytest.importorskip("rouge_score.rouge_scorer")
  names = ("rouge1", "rouge2", "rougeL")
  theirs = scorer.RougeScorer(list(names), use_stemmer=False)
  rng = random.Random(0)
  for _ in range(30):
    text, reference = (" ".join(rng.choices("abcde", k=rng.randint(0, 9))) for _ in range(2))
    expected = [theirs.score(reference, text)[name].fmeasure for name in names]
    ours = [overlap.rouge_n(text, [reference], n) for n in (1, 2)]
    assert [*ours, overlap.rouge_l(text, [reference])] == pytest.approx(expected)


def test_bleu_chrf_and_exact_match():
  metrics = pytest.importorskip("sacrebleu.metrics")
  texts, references = ["a b c d e", "x y"], [["a b c d f"], ["x y", "z"]]
  streams = [["a b c d f", "x y"], [None, "z"]]
  for ours, theirs in ((overlap.bleu, metrics.BLEU()), (overlap.chrf, metrics.CHRF())):
    score, signature = ours(texts, references)
    assert score == theirs.corpus_score(texts, streams).score
    assert signature == str(theirs.get_signature())
  assert overlap.exact_match(texts, references) == 0.5
  with pytest.raises(ValueError, match="1 texts for 2 lists"):
    overlap.exact_match(["a"], [["a"], ["b"]])


def answers():
  return Answers(
    prompts=["p", "q", "r", "s"],
    texts=["12", "21", "21", "s"],
    references=[["12"], ["22", "21"], ["12"], ["34"]],
    rewards=[1.0, 1.0, 0.1, 0.0],
    forms=[True, True, True, False],
  )


def test_metrics_of_answers_by_hand():
  values = {name: METRICS[name](answers()) for name in METRICS if name not in ("bleu", "chrf")}
  assert values["right"].value == 0.5 and values["valid"].value == 0.75
  assert values["right"].error == pytest.approx(((4 * 0.25) / 3 / 4) ** 0.5)
  assert values["reward"].value == pytest.approx(2.1 / 4)
  assert values["exact_match"].value == 0.5  # the second known answer counts
  assert values["positions"].value == pytest.approx((1 + 0.5 + 0 + 0) / 4)
  assert values["copied"].value == 0.25 and values["distinct"].value == 0.75
  shares = (3 / 7, 3 / 7, 1 / 7)
  assert values["entropy"].value == pytest.approx(-sum(p * math.log(p) for p in shares))
  assert values["rouge_1"].value == 0.5 and values["rouge_2"].value == 0
  assert mean_score([0.25]) == Score(0.25, 0.0)
  with pytest.raises(ValueError, match="no answers"):
    mean_score([])
