"""What bounds cost, and best sizes, by curves whose answer is known."""

import dataclasses
import json
import math

import numpy as np
import pytest

from diffusion_text.studies import costs


def run(name, parameters, bounds, flops, cpu=1.0):
  points = [
    costs.Point(step, 8 * step, cpu * step, spent, bound)
    for step, (spent, bound) in enumerate(zip(flops, bounds), start=1)
  ]
  return costs.Run(name, parameters, tuple(points))


def test_costs_of_a_bound_by_hand():
  """Halfway between two evaluations in bits is halfway in the logarithm of the cost. Mutant: it is
  halfway in the cost, 1.5 updates."""
  one = run("one", 10, [3.0, 2.0, 2.5, 1.0], [10, 40, 160, 640])
  assert costs.cost_to(one, 2.5, "updates") == pytest.approx(2**0.5)
  assert costs.cost_to(one, 2.5, "tokens") == pytest.approx(8 * 2**0.5)
  assert costs.cost_to(one, 2.5, "flops") == pytest.approx(20)
  assert costs.cost_to(one, 2.0, "updates") == 2  # the first time, whatever comes after
  assert costs.cost_to(one, 4.0, "updates") == 1 and costs.cost_to(one, 0.5, "updates") is None
  assert costs.bound_at(one, 20) == pytest.approx(2.5)
  assert costs.bound_at(one, 9) is None and costs.bound_at(one, 641) is None


def sizes_of_a_law(budgets):
  """Runs of five sizes whose bound at C operations is (log N - log(3 C^0.4))² + 1: the best size is
  3 C^0.4 and its bound 1."""
  flops = np.array(budgets)
  best = np.log(3) + 0.4 * np.log(flops)
  return [
    run(f"size {size}", size, (math.log(size) - best) ** 2 + 1, flops.tolist())
    for size in (30, 100, 300, 1000, 3000)
  ]


def test_best_sizes_of_a_known_law():
  runs = sizes_of_a_law([1e4, 1e5, 1e6])
  best = [costs.best_size(runs, budget) for budget in (1e4, 1e5, 1e6)]
  assert [each.parameters for each in best] == pytest.approx([3 * c**0.4 for c in (1e4, 1e5, 1e6)])
  assert all(each.bound == pytest.approx(1) for each in best)
  assert costs.power_law(best) == pytest.approx((3, 0.4))
  with pytest.raises(ValueError, match=r"--budgets=100: 0 of 5 sizes were evaluated"):
    costs.best_size(runs, 100)
  with pytest.raises(ValueError, match="2 of 2 sizes were evaluated before and after so many"):
    costs.best_size(runs[:2], 1e5)
  with pytest.raises(ValueError, match="the best size is not among 30 to 300 parameters"):
    costs.best_size(runs[:3], 1e6)
  hills = [
    dataclasses.replace(each, points=tuple(p._replace(bound=-p.bound) for p in each.points))
    for each in runs
  ]
  with pytest.raises(ValueError, match="the best size is not among 30 to 3,000 parameters"):
    costs.best_size(hills, 1e5)  # the parabola is highest there
  with pytest.raises(ValueError, match="1 best sizes make no power law"):
    costs.power_law(best[:1])


def test_the_report(tmp_path):
  runs = sizes_of_a_law([1e4, 1e5, 1e6])
  text = costs.report(runs, [], [1e4, 1e6], tmp_path)
  assert "best size = 3 · operations^0.400" in text
  assert "not reached" not in text, "the bound is one that all runs have"
  assert "| size 30 | 30 |" in text and (tmp_path / "costs.png").stat().st_size > 1000
  assert json.loads((tmp_path / "costs.json").read_text())["size 30"]["points"][0]["updates"] == 1
  never = costs.table([run("one", 10, [3.0], [10], cpu=math.nan)], [2.0, 3.0])
  assert "not reached (3.000)" in never and "| ≤ 1 | ≤ 8 |  | ≤ 10 |" in never
