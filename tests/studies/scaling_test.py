"""How cost grows: the exponents by known numbers, and a measurement of real steps and
checkpoints.
"""

import json
import math

import pytest

from configs import base
from diffusion_text.studies import scaling as growth


def test_exponents_of_known_costs():
  assert growth.exponent([1, 2, 4], [3, 6, 24]) == pytest.approx(2)  # the last stretch
  assert growth.exponent([10, 100], [5, 5]) == 0
  assert math.isnan(growth.exponent([1, 2], [None, 3]))


def test_an_axis_is_measured_and_a_checkpoint_removed(tmp_path):
  """Real steps and real checkpoints of four float32 numbers a parameter (itself, two moments, the
  average), none of them left on disk.
  """
  config = base.config("micro")
  config.update_from_flattened_dict({"data.length": 16, "model.layers": 1})
  table = growth.run(config, {"parameters": (64, 128), "batch": (8, 16)}, 1, tmp_path)
  points = json.loads((tmp_path / "growth.json").read_text())["points"]
  assert [(p["axis"], p["value"], p["tokens"]) for p in points] == [
    *(("parameters", 64, 128), ("parameters", 128, 128), ("batch", 8, 128), ("batch", 16, 256))
  ]
  for p in points[:2]:
    assert 14 * p["parameters"] < p["checkpoint_bytes"] < 17 * p["parameters"] + 200_000
    assert (
      p["start_seconds"] > p["compile_seconds"] > 0
      and p["seconds"] > 0
      and p["save_seconds"] > 0 < p["restore_seconds"]
    )
  assert (
    points[2]["save_seconds"] is None
    and points[3]["temporary_bytes"] > points[2]["temporary_bytes"]
  )
  assert "| parameters: exponent |" in table and sorted(
    path.name for path in tmp_path.iterdir()
  ) == [
    "growth.json",
    "growth.png",
  ]


def test_points_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match="--axes has 'depth'; use some of length"):
    growth.point(base.config("micro"), "depth", 2)
  with pytest.raises(ValueError, match="64 devices are to be compared, but there are 8"):
    growth.point(base.config("micro"), "devices", 64)
