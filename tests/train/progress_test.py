"""The progress that people see, and the cost of the import."""

import logging
import os
import pathlib
import subprocess
import sys

from diffusion_text.train import progress
from diffusion_text.train.progress import describe, duration, reporter


def test_describe():
  row = {
    "step": 10,
    "loss": 1.25,
    "tokens_per_second": 12345.6,
    "mfu": 0.412,
    "seconds_left": 3725.0,
  }
  assert describe(row) == "step 10  loss 1.2500  12,346 tokens/s  MFU 41.2%  1:02:05 left"
  assert (
    describe({"step": 1, "loss": 1.25, "bits_per_character": 2.0})
    == "step 1  bits per character 2.0000"
  )
  assert duration(65.4) == "1:05"


def test_plain_lines_off_a_terminal(caplog):
  with caplog.at_level(logging.INFO), reporter(10, terminal=False) as report:
    report({"step": 3, "loss": 0.5})
  assert "step 3  loss 0.5000" in caplog.text


def test_live_line_on_a_terminal(capsys):
  with reporter(10, terminal=True) as report:
    report({"step": 10, "loss": 0.5})
  assert "step 10  loss 0.5000" in capsys.readouterr().out


def test_importing_is_light():
  heavy = {"orbax", "rich", "tensorboardX", "tensorflow"}
  code = f"import sys, diffusion_text.train; print({heavy} & sys.modules.keys())"
  env = os.environ | {"PYTHONPATH": str(pathlib.Path(progress.__file__).parents[2])}
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
  )
  assert out.stdout.strip() == "set()"
