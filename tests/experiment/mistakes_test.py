"""Mistakes on a command line are told in one line, with what is nearest."""

import ast
import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from diffusion_text.experiment import mistakes
from tests.conftest import ROOT


@pytest.fixture
def said(monkeypatch):
  """What is said of words on a command line with --config and --steps; None if nothing."""
  monkeypatch.chdir(ROOT)

  def run(*words):
    # Overrides of a config are read from sys.argv when the flag is defined.
    monkeypatch.setattr(sys, "argv", ["command", *words])
    return mistake(words)

  return run


def mistake(words, required=False):
  """What is said of words; the flags are made anew."""
  values = flags.FlagValues()
  flags.DEFINE_integer(
    "steps", 1, "", flag_values=values, lower_bound=1, module_name="experiments.any"
  )
  flags.DEFINE_string("place", None, "", flag_values=values, required=required)
  config_flags.DEFINE_config_file(
    "config",
    "configs/mdlm.py:micro",
    flag_values=values,
    lock_config=False,
    accept_new_attributes=True,
  )
  try:
    mistakes.parse(["command", *words], ["config"], values)
  except mistakes.Mistake as error:
    assert "\n" not in str(error)
    return str(error)
  return None


@pytest.mark.parametrize(
  "words, message",
  [
    (["--config=configs/mdlmm.py:tiny"], "no file configs/mdlmm.py; did you mean .*mdlm.py:tiny"),
    (["--config", "mdlm"], "--config=mdlm: there is no file mdlm; did you mean .*/mdlm.py$"),
    (["--config=zzz"], "use one of .*mdlm.*, as in --config=configs/[a-z0-9_]*.py$"),
    (["--config=configs/mdlmm.py", "--config.train.steps=3"], "did you mean"),
    (["--config=configs/base.py"], "the file has no function get_config"),
    (["--config=configs/mdlm.py:huge"], "^--config=configs/mdlm.py:huge: size 'huge' is unknown"),
    (["--stpes=3"], "^--stpes is no flag of this command; did you mean --steps, or see --help$"),
    (["--lenth=3"], "did you mean --config.data.length"),
    (["--trian=3"], "did you mean --config.train"),
    (["--qqqqqq=3"], "^--qqqqqq is no flag of this command; see --help$"),
    (["--config.train.steps=many"], "^--config.train.steps=many: must be a whole number$"),
    (["--config.optimizer.learning_rate=x"], "learning_rate=x: must be a number$"),
    (["--steps=0"], "^--steps=0: 0 is not a positive integer$"),
  ],
)
def test_what_was_typed_is_quoted_with_what_is_nearest(words, message, said):
  assert re.search(message, said(*words))


def test_what_is_right_is_not_complained_of(said):
  assert said("--config=configs/md4.py:micro", "--config.train.steps=3", "--steps=2") is None


def test_a_flag_that_must_be_set_is_named():
  assert mistake([], required=True) == "--place is not set; give --place=…, which --help explains"


def test_elsewhere_the_folder_of_configs_is_named(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(mistakes.Mistake, match="no folder configs/ here; run it in the repository"):
    mistakes.check_file("config", "configs/mdlm.py")


def test_a_key_that_a_config_lacks_is_told_without_the_quotes_of_a_key_error():
  error = KeyError("'trian'\nDid you mean \"train\"?")
  assert mistakes.override(error) == (
    "the config has no 'trian'; Did you mean \"train\"?; its sections are in configs/base.py"
  )


def test_a_package_that_is_missing_is_named_with_its_extra():
  """As setup.py has them; of any other module nothing is known."""
  setup = (ROOT / "setup.py").read_text()
  assert all(f'"{extra}": ' in setup for extra in mistakes.EXTRAS.values())
  extras = re.search(r"^PRETRAINED = (\[.*\])$", setup, re.M)[1]
  assert {name for name, extra in mistakes.EXTRAS.items() if extra == "pretrained"} == set(
    ast.literal_eval(extras)
  )
  said = mistakes.told(ModuleNotFoundError("No module named 'gguf'", name="gguf"))
  assert said == ("this needs the package gguf; pip install -e '.[pretrained]'", 2)
  assert mistakes.told(ModuleNotFoundError("No module named 'ours'", name="ours")) is None
