"""--help of every command fits a screen and has an example, and what is mistyped is answered with
what is nearest; all commands are asked in one process.
"""

import re

import pytest
from absl import flags

from diffusion_text.experiment import catalogue, help
from tests.conftest import ROOT
from tests.helps import answers

COMMANDS = [*catalogue.commands(ROOT / "experiments")]
ALONE = "--num_processes=1"
MISTAKES = {
  ("train", "--config=configs/mdlm.py:no_such_size", "--workdir=x"): (
    "^--config=configs/mdlm.py:no_such_size: size 'no_such_size' is unknown; use one of micro"
  ),
  ("train", "--config=configs/mdlm.py:tinny", "--workdir=x"): "did you mean 'tiny'",
  ("train", "--workdir=x", "--config.trian.steps=3"): 'Did you mean "train"',
  ("train", "--workdir=x", ALONE, "--config.train.stepz=3"): "did you mean 'steps'",
  ("train", "--workdir=x", ALONE, "--config.process.name=maskd"): "did you mean 'masked'",
  ("sample", "--workdr=x"): "did you mean --workdir",
  ("sample", "--workdir=x", "--order=entropi"): "--order=entropi: did you mean entropy\\? use one",
  ("sample", ALONE, "--workdir=nowhere"): "no checkpoint in nowhere.*experiments.train",
  ("sample", ALONE): "--workdir is not set; give the workdir",
  ("evaluate", "--workdir=x", "--num_draws=0"): "--num_draws=0: 0 is not a positive integer",
  ("inspect", "--options=proces"): "did you mean 'process'",
  ("tasks", "--task=countdwn3"): "did you mean 'countdown3'",
  ("tasks", "--task=countdown3", "--option=tain_size=3"): "did you mean 'train_size'",
  ("compare", ALONE, "--configs=mdlmm", "--workdir=x"): "'mdlmm' is unknown; did you mean 'mdlm'",
  ("decoders", "--workdir=x", "--chain=phras"): "did you mean 'phrase'",
  ("faults", "--workdir=x", "--kinds=trian"): "did you mean 'train'",
  ("recurrent_depth", "--workdir=x", "--tasks=txt"): "--tasks=txt is unknown; did you mean 'text'",
  ("compare", ALONE, "--workdir=x", "--tasks=scan", "--steps=1", "--mbr=1,z"): (
    "--mbr=1,z: each must be"
  ),
  ("costs", "--workdir=x", "--workdirs=y", "--bounds=3,z"): "--bounds=3,z: each must be a number",
  ("rare_tokens", "--workdir=x"): "--workdirs is empty; name one run or more",
  ("cost_profile", "--workdir=x", "--workdirs=a,a/"): "--workdirs=a,a/ names a run twice",
  ("repairs", "--workdir=x", "--workdirs=y", "--chain=branchy"): "--chain=branchy is for networks",
  ("calibration", "--workdir=x", "--powers=1,z"): "--powers=1,z: rows must be whole numbers, and",
  ("judge", "--judge=x", "--temperatures=z"): "--temperatures=z: each must be a number",
  ("export", "--workdir=nowhere", "--output=x"): "no checkpoint in nowhere",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
  """(exit code, output, errors) of a command line."""
  lines = [*((name, "--help") for name in COMMANDS), *MISTAKES]
  return dict(zip(lines, answers(lines, tmp_path_factory.mktemp("home"))))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_has_an_example(said, name):
  code, out, _ = said[name, "--help"]
  lines = out.splitlines()
  assert code == 0 and len(lines) <= 40, len(lines)
  assert all(len(line) <= 100 or "://" in line for line in lines)
  assert f"python -m experiments.{name}" in out
  shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", out, re.M))
  own = {flag.strip("-=") for flag in catalogue.flags(ROOT / "experiments", name)}
  meeting = {flag.strip("-=") for flag in catalogue.flags(ROOT / "experiments", "processes")}
  assert shown == own - meeting or name == "lm_eval"
  assert ("launch/local" in out) == bool(own & meeting)


def test_a_flag_is_shown_with_its_default_and_its_choices():
  values = flags.FlagValues()
  flags.DEFINE_integer("num", 4, "rows", flag_values=values)
  flags.DEFINE_boolean("quick", True, "skip calls", flag_values=values)
  flags.DEFINE_list("calls", ["8", "32"], "of the network", flag_values=values)
  flags.DEFINE_enum("order", None, ["left", "random"], "which first", flag_values=values)
  flags.DEFINE_multi_string("prompt", [], "a beginning", flag_values=values)
  flags.DEFINE_integer("port", 1, "to meet at", flag_values=values)
  shown = help.text("Does it.", [values[name] for name in values], ["port"], 60)
  assert shown.splitlines() == [
    "Does it.",
    "",
    "  --calls=8,32          of the network",
    "  --num=4               rows",
    "  --order=…             which first: left, random",
    "  --prompt=…            a beginning (may be repeated)",
    "  --[no]quick           skip calls",
    "",
    help.MEETING,
    help.LAST,
  ]


@pytest.mark.parametrize("line", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_with_what_is_nearest(said, line):
  code, _, errors = said[line]
  assert code == 2 and re.search(MISTAKES[line], errors.removeprefix("error: ")), errors
  assert errors.count("\n") == 1 and "Traceback" not in errors
