"""The judge gives probabilities, its features have seen what they should, and the report compares
at one entropy.
"""

import dataclasses
import itertools
import runpy

import jax
import numpy as np
import pytest

from diffusion_text.evaluate.frontier import Point
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained
from diffusion_text.studies import judge
from tests.conftest import ROOT


def untrained(name, folder):
  """A run of a config that has not been trained, on a text of four characters."""
  config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]("micro")
  config.model.update({"width": 32, "mlp_width": 64, "layers": 1})
  config.data.update({"corpus": "folder", "path": str(folder / "text"), "length": 8})
  config.data.cache_dir = str(folder / "cache")
  experiment = build(config, devices=jax.devices()[:1])
  state = experiment.fresh_state()
  # Parameters start so that all logits are equal; these are not.
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape),
                        state.params)  # fmt: skip
  return Trained(experiment, params, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """name -> run."""
  folder = tmp_path_factory.mktemp("judge")
  (folder / "text").mkdir()
  rng = np.random.default_rng(0)
  for split, count in (("train", 40), ("test", 60), ("validation", 9)):
    lines = ["".join(rng.choice(list("abc"), 15)) for _ in range(count)]
    (folder / "text" / f"{split}.txt").write_text("\n".join(lines) + "\n")
  return {name: untrained(name, folder) for name in ("autoregressive", "mdlm")}


def test_the_nats_of_a_judge_are_of_a_law_over_all_texts(runs):
  """Σ p(x) over all texts of two tokens is 1, whatever the padding: nothing is seen twice or too
  early. Text that the model likes is told from text that it does not."""
  by = judge.Judge(runs["autoregressive"])
  tokenizer = by.trained.experiment.tokenizer
  every = [tokenizer.decode(np.array(pair)) for pair in
           itertools.product(range(tokenizer.vocab_size), repeat=2)]  # fmt: skip
  known = [text for text in every if len(by.ids([text])[0]) == 2]
  nats, tokens = by.nats(known)
  assert set(tokens) == {2.0} and nats.std() > 0.05
  # The unknown id stands for no text of its own, so its probability is missing from the sum.
  ids = [np.array(pair) for pair in itertools.product(range(tokenizer.vocab_size), repeat=2)]
  raw = by._nats(by.trained.params, judge.padded(ids, 32, 8))
  assert np.exp(-np.asarray(raw)[: len(ids)]).sum() == pytest.approx(1, abs=1e-4)


def test_features_have_seen_all_but_the_last_token(runs):
  by = judge.Judge(runs["autoregressive"])
  features = by.features(["abca", "abcb", "abba", "abcab"])
  assert np.allclose(features[0], features[1], atol=1e-5)
  assert not np.allclose(features[0], features[2], atol=1e-3)
  assert not np.allclose(features[0], features[3], atol=1e-3)


def test_a_model_with_a_bound_is_no_judge(runs):
  with pytest.raises(ValueError, match="the judge must be autoregressive"):
    judge.Judge(runs["mdlm"])


def test_systems_are_sampled_judged_and_compared_at_one_entropy(runs):
  by = judge.Judge(runs["autoregressive"])
  text, reference = judge.held_out_texts(by, 24)
  assert len(text) == len(reference) == 24 and not set(map(id, text)) & set(map(id, reference))
  texts = judge.sampled(runs["mdlm"], 1.0, num=24, seed=0, steps=2)
  row = judge.judged(by, "mdlm", 1.0, texts, reference)
  real = judge.judged(by, "held-out text", float("nan"), text, reference)
  assert row.point.nats > 0 and 0 < row.point.entropy < np.log(8)
  low = dataclasses.replace(row, point=Point(0.5, 1.0, 0.1, real.point.entropy - 0.1))
  high = dataclasses.replace(row, point=Point(1.0, 2.0, 0.1, real.point.entropy + 0.1))
  shown = judge.report([low, high], real)
  assert "- mdlm at the entropy of held-out text" in shown and "1.500 ± 0.071 nats/token" in shown
  assert "not reached at these temperatures" in judge.report([low], real)
  assert len(shown.splitlines()) == 2 + 3 + 2
  with pytest.raises(ValueError, match="1 texts of x are empty"):
    judge.judged(by, "x", 1.0, ["", "abc"], reference)
  with pytest.raises(ValueError, match="use num <= "):
    judge.held_out_texts(by, 10_000)
