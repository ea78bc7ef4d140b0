"""Published larger settings are configs that build, without their data."""

import importlib

import jax
import pytest

from diffusion_text.experiment.build import build
from diffusion_text.experiment.summary import AnyVocabulary
from tests.conftest import ROOT

LM1B = {"data.length": 128, "train.batch_size": 512}
# File, choice, vocabulary, and what the docstring of the file states: option -> value.
SETTINGS = [
  (
    *("text8", "genmd4", 27),
    {"data.length": 256, "train.steps": 10**6, "train.batch_size": 512, "model.dropout": 0.05},
  ),
  ("lm1b", "mdlm", 30_522, {**LM1B, "data.packing": "documents", "train.steps": 10**6}),
  ("lm1b", "mdlm/long", 30_522, {**LM1B, "data.packing": "documents", "train.steps": 10**7}),
  ("lm1b", "bd3lm/wrapped", 30_522, {**LM1B, "data.packing": "stream", "train.steps": 10**6}),
  (
    *("openwebtext", "udlm", 50_257),
    {"data.length": 1024, "train.steps": 10**6, "train.batch_size": 512},
  ),
  (
    *("sudoku", "mdlm", 12),
    {"model.layers": 3, "model.width": 384, "optimizer.learning_rate": 1e-3}
    | {"train.steps": 30_000, "train.batch_size": 1024},
  ),
  (
    *("qqp", "diffuseq", 30_522),
    {"data.length": 128, "optimizer.learning_rate": 1e-4}
    | {"train.steps": 50_000, "train.batch_size": 2048},
  ),
]


@pytest.mark.parametrize(
  "name,choice,vocabulary,stated",
  SETTINGS,
  ids=[f"{name}-{choice}" for name, choice, *_ in SETTINGS],
)
def test_a_setting_builds(name, choice, vocabulary, stated):
  """The system keeps what it owns, and everything fits: nothing is read and nothing computed."""
  module = importlib.import_module(f"configs.published.{name}")
  config = module.get_config(choice)
  own = importlib.import_module(f"configs.{choice.partition('/')[0]}").get_config("small")
  assert {key: config[key.split(".")[0]][key.split(".")[1]] for key in stated} == stated
  assert config.process == own.process and config.objective == own.objective
  made = build(config, tokenizer=AnyVocabulary(vocabulary), devices=jax.devices()[:1])
  assert made.train.batch_size == config.train.batch_size
  assert "not yet run" in module.__doc__ and f"configs/published/{name}.py:" in module.__doc__
  assert module.get_config("") == module.get_config()


def test_every_setting_is_here():
  files = {path.stem for path in (ROOT / "configs" / "published").glob("[!_]*.py")}
  assert files == {name for name, *_ in SETTINGS}


def test_unknown_choices_are_refused():
  lm1b = importlib.import_module("configs.published.lm1b")
  with pytest.raises(ValueError, match="names no protocol; use mdlm/ and one of padded, long, wra"):
    lm1b.get_config("mdlm/packed")
  for name in ("nobody", "base"):
    with pytest.raises(ValueError, match=f"configs/{name}.py is no system; name one of"):
      lm1b.get_config(name)
