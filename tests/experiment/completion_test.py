"""The index of commands, and what bash completes."""

import shutil
import subprocess
import sys

import pytest
from absl import flags

from diffusion_text.experiment import catalogue, completion
from diffusion_text.studies import guided
from experiments.settings import settings_flags
from tests.conftest import ROOT

HERE = ROOT / "experiments"


def test_every_command_is_listed_with_what_it_does():
  commands = catalogue.commands(HERE)
  assert {"train", "sample", "evaluate", "complete"} <= commands.keys()
  assert not {"flags", "parts", "paths", "catalogue", "mistakes"} & commands.keys()
  assert all(commands.values())
  assert commands["sample"] == "Samples from a trained model"


def test_the_index_has_every_purpose_whole():
  environment = {"COLUMNS": "60", "PATH": ""}
  command = [sys.executable, "-m", "experiments"]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
  )
  words = " ".join(done.stdout.split())
  for name, purpose in catalogue.commands(HERE).items():
    assert f" {name} {purpose}" in words
  assert max(map(len, done.stdout.splitlines()[3:])) <= 60


def test_flags_are_those_that_the_command_has_and_its_help_explains():
  """Read from the text of the files; help_test.py holds them against what commands show."""
  assert "--dry_run" in catalogue.flags(HERE, "train")
  assert "--config=" in catalogue.flags(HERE, "train")
  assert "--base=" in catalogue.flags(HERE, "compare")  # a config under another name


def test_options_of_a_study_are_flags():
  """By type, default and limits; a list that holds no numbers is one line."""
  values = flags.FlagValues()
  typed = settings_flags("guided", values)
  assert {f"--{name}=" for name in values} < set(catalogue.flags(HERE, "guided"))
  values([""])
  assert guided.Settings(**typed()) == guided.Settings()
  values(["", "--puzzle=sudoku", "--shares=0,1", "--rows=3"])
  assert guided.Settings(**typed()) == guided.Settings(puzzle="sudoku", shares=(0.0, 1.0), rows=3)
  with pytest.raises(flags.IllegalFlagValueError, match="rows=1: 1 is not integer >= 2"):
    values(["", "--rows=1"])
  values(["", "--shares=0,a", "--rows=2"])
  with pytest.raises(ValueError, match=r"^--shares=0,a must be numbers .*as in --shares=0,0.5"):
    typed()


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
  """What bash offers for a line."""
  if shutil.which("bash") is None:
    pytest.skip("there is no bash here")
  path = tmp_path_factory.mktemp("bash") / "script"
  commands = {name: catalogue.flags(HERE, name) for name in catalogue.commands(HERE)}
  path.write_text(completion.script(commands, ["configs/mdlm.py:tiny", "configs/md4.py:tiny"]))

  def run(line):
    program = f'source {path}; COMP_LINE="$1"; COMP_POINT=${{#1}}; _diffusion_text'
    program += '; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", program, "bash", line]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

  return run


@pytest.mark.parametrize(
  "line, offered",
  [
    ("python -m experiments.tra", ["experiments.train", "experiments.translate"]),
    ("python -m experiments.train --dry", ["--dry_run"]),
    ("python -m experiments.train --dry_run --wor", ["--workdir="]),
    ("python -m experiments.train --config=configs/md4", ["configs/md4.py:tiny"]),
    ("python -m experiments.train --config=configs/md4.py:t", ["tiny"]),
    ("python -m experiments.train --config.train.batch", ["--config.train.batch_size="]),
    ("python -m experiments.train --config.process.name=mask", ["masked"]),
    ("python -m experiments.sample --decoder=wi", ["wino"]),
    ("python -m experiments.train --decod", []),  # a flag of another command
    ("python -m pytest tes", []),  # completed as files are
    ("ls experiments.tra", []),
  ],
)
def test_bash_completes_what_is_typed(completed, line, offered):
  assert completed(line) == offered


def test_keys_are_all_that_a_config_may_set():
  keys = completion.config_keys()
  assert {"seed", "train.steps", "process.name", "sampler.score", "optimizer.eps"} <= set(keys)
  assert "process.vocab_size" not in keys  # build gives it
  assert len(keys) == len(set(keys))
