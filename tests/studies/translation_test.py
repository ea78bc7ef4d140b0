"""Scores of translations: sacrebleu's own numbers with its signature, and a consensus that can see
no reference.
"""

import inspect

import pytest

from diffusion_text.studies import translation

pytest.importorskip("sacrebleu", reason="sacrebleu is in the extras 'metrics' and 'test'")


def test_bleu_takes_any_number_of_references_and_signs():
  texts = ["the cat sat on the mat", "a dog ran in the park today"]
  score, signature = translation.bleu(texts, [["the cat sat on a mat", texts[0]], [texts[1]]])
  assert score == pytest.approx(100.0)
  assert signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
  one, signature = translation.bleu(texts, [["the cat sat on a mat"], [texts[1]]])
  assert 50 < one < 90 and signature.startswith("nrefs:1|")
  assert translation.exact_match(texts, [["the cat"], ["x", texts[1]]]) == 0.5


@pytest.mark.parametrize("texts, references", [([], []), (["a"], []), (["a", "b"], [["a"], []])])
def test_texts_and_references_must_match(texts, references):
  for score in (translation.bleu, translation.exact_match):
    with pytest.raises(
      ValueError, match=f"{len(texts)} texts for {len(references)} lists of references"
    ):
      score(texts, references)


@pytest.mark.parametrize("scorer", translation.SCORERS)
def test_the_consensus_is_the_sample_that_the_others_agree_with(scorer):
  samples = [
    "a completely different thing",
    "the cat sat on the mat",
    "the cat sat on a mat",
    "the cat sits on the mat",
  ]
  assert translation.consensus(samples, scorer) == 1
  assert translation.consensus(samples[::-1], scorer) == 2
  assert translation.consensus(["a", "b"], scorer) == 0 == translation.consensus(["one"], scorer)
  # Trap 15: "best of n" against the reference cannot be asked for, as there is nowhere to put a
  # reference.
  assert list(inspect.signature(translation.consensus).parameters) == ["samples", "scorer"]


def test_consensus_errors():
  with pytest.raises(ValueError, match=r"scorer='rouge' is unknown; use one of bleu, chrf"):
    translation.consensus(["a"], "rouge")
  with pytest.raises(ValueError, match="consensus of no samples"):
    translation.consensus([])
