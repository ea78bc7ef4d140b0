"""What repeated text is worth, by curves whose law is known, and runs whose metrics are given."""

import json
import pathlib

import numpy as np
import pytest

from configs import comparison
from diffusion_text import train
from diffusion_text.studies import repeats

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def curve(epochs, bounds):
  return repeats.Curve(tuple(epochs), tuple(bounds), (0.1,) * len(bounds), (1.0,) * len(bounds))


def test_the_law_of_known_curves_is_found():
  """Their rise after the best evaluation is left out. Mutant: repeats are worth new text."""
  law = repeats.Law(1.5, 40.0, 0.4, 20.0)
  epochs = [1, 2, 4, 8, 16, 32, 64]
  curves = {
    unique: curve([*epochs, 128], [*(law.bound(unique, each) for each in epochs), 9.0])
    for unique in (1000, 4000)
  }
  found = repeats.fitted(curves)
  assert found.repeats == pytest.approx(20, rel=0.02) and found.power == pytest.approx(
    0.4, rel=0.02
  )
  assert found.floor == pytest.approx(1.5, rel=0.02)
  always_new = {
    unique: curve(epochs, [1.5 + 40 * (unique * each) ** -0.4 for each in epochs])
    for unique in (1000, 4000)
  }
  assert repeats.fitted(always_new).repeats > 1000
  assert repeats.fitted({1000: curve([1, 2, 3], [3.0, 2.0, 1.0])}) is None


def bent(law, epochs):
  """Curves of a law, each bound wrong by 0.1 in turn."""
  return {
    unique: curve(
      epochs,
      [law.bound(unique, each) + 0.1 * (-1) ** place for place, each in enumerate(epochs)],
    )
    for unique in (1000, 2000, 4000)
  }


def test_how_firmly_curves_say_their_r_star():
  """Curves that end long before R* say a range without end. Mutant: the other numbers are not
  refitted."""
  law, epochs = repeats.Law(1.5, 40.0, 0.4, 20.0), [1, 3, 9, 27, 81, 82]
  low, high = repeats.plausible(bent(law, epochs))
  assert 5 < low < 19 and 40 < high < 80
  assert "0.096 bits away on average, R* = 20.2 (15.8 to 50 fit" in repeats.law_line(
    bent(law, epochs)
  )
  early = bent(law, [0.25, 0.5, 1, 2, 2.1, 2.2])
  assert repeats.plausible(early)[1] == np.inf
  without = repeats.without_one(bent(law, epochs))
  assert list(without) == [1000, 2000, 4000]
  assert all(each == pytest.approx(20, rel=0.5) for each in without.values())


def test_an_epoch_is_worth_its_text_and_endless_ones_r_star_more():
  law = repeats.Law(0.0, 1.0, 1.0, 30.0)
  assert 1 / law.bound(100, 1) == pytest.approx(100) and 1 / law.bound(100, 0.5) == pytest.approx(
    50
  )
  assert 1 / law.bound(100, 1e6) == pytest.approx(100 * (1 + 30))


def test_crossings_by_hand():
  """Of the lowest bounds so far: where a curve rises again, what was reached counts."""
  first = curve([1, 4, 16, 64], [5.0, 3.0, 4.0, 6.0])
  assert repeats.crossing(first, curve([1, 4, 16, 64], [6.0, 3.5, 5.0, 2.5])) == pytest.approx(32)
  assert repeats.crossing(first, curve([1, 4, 16, 64], [6.0, 5.0, 3.5, 3.1])) is None
  assert repeats.crossing(first, curve([1, 4, 16, 64], [4.0, 5.0, 3.5, 3.1])) is None  # at first
  assert repeats.crossing(first, curve([1, 4, 16, 64], [4.0, 2.0, 3.5, 3.1])) == 1
  assert repeats.predicted({10: 4.0, 20: 8.0}, 40) == pytest.approx(16)
  assert repeats.predicted({10: 4.0}, 40) is None


def test_the_crossing_of_two_laws_by_hand():
  """A / D' of R* = 1 and 1e9 with twice the A: the second is worth all epochs, and is level where
  R = 1 + 2 · (1 - e^-R), at 2.72 + 1 epochs. Mutant: the first epoch counts as a repeat."""
  few, many = repeats.Law(0.0, 1.0, 1.0, 1.0), repeats.Law(0.0, 2.0, 1.0, 1e9)
  epochs = repeats.law_crossing(few, many, 100)
  again = epochs - 1
  assert 1 + again == pytest.approx(2 * (2 - np.exp(-again)), rel=2e-3)
  assert repeats.law_crossing(many, few, 100, most=2.0) == 1
  assert repeats.law_crossing(few, repeats.Law(0.6, 2.0, 1.0, 1e9), 1, most=10.0) is None


def trained(experiment, workdir, terminal):
  """Stands for training: the bound falls to its best in the middle, later with dropout."""
  assert not terminal
  steps, every = experiment.train.steps, experiment.train.evaluate_every
  best = steps / 2 if experiment.config.model.get("dropout") else steps / 4
  rows = []
  for step in range(steps + 1):
    rows.append({"step": step, "bound": np.log(2) * (1 + step / steps)})
    if step % every == 0:
      bound = 2 + abs(step - best) / steps - 0.2 * bool(experiment.config.model.get("dropout"))
      name = "validation_bits_per_character"
      rows.append({"step": step, name: bound, f"{name}_error": 0.01})
  pathlib.Path(workdir).mkdir(parents=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (pathlib.Path(workdir) / "metrics.jsonl").write_text(text)
  return train.Result(None, steps, "finished")


def test_each_system_learns_each_text_for_as_many_epochs(tmp_path, monkeypatch):
  monkeypatch.setattr(repeats, "train_workdir", trained)
  base = comparison.get_config()
  base.data.length, base.train.batch_size = 16, 8
  systems = ["autoregressive", "autoregressive@model.dropout=0.25"]
  settings = repeats.Settings(characters=(1280, 2560), epochs=8, evaluations=8)
  text = repeats.run(settings, systems, base, CONFIGS, tmp_path)
  assert len((tmp_path / "text_1280" / "train.txt").read_text()) == 1280
  kept = json.loads((tmp_path / "repeats.json").read_text())["curves"]
  assert kept[systems[0]]["1280"]["epochs"] == [1, 2, 3, 4, 5, 6, 7, 8]
  assert (
    "| 2,560 | autoregressive@model.dropout=0.25 | 1.800 ± 0.010 | 4.0 | 2.300 ± 0.010 |" in text
  )
  assert "| 1,280 | autoregressive | 2.000 ± 0.010 | 2.0 | 2.750 ± 0.010 | 1.944 |" in text
  assert "is below autoregressive after epochs: U = 1,280: 2.35, U = 2,560: 2.35" in text
  assert (tmp_path / "repeats.md").read_text().strip() == text


def test_what_cannot_be_run_is_refused_before_training(tmp_path):
  base = comparison.get_config()

  def run(systems, characters=(1000,)):
    settings = repeats.Settings(characters=characters, epochs=2, evaluations=2)
    return repeats.run(settings, systems, base, CONFIGS, tmp_path)

  with pytest.raises(ValueError, match=r"characters=\(2000, 1000\) must be positive and rise; 10"):
    run(["mdlm"], (2000, 1000))
  with pytest.raises(ValueError, match="did you mean 'mdm'"):
    run(["mdml"])
  with pytest.raises(ValueError, match="dropuot"):
    run(["mdlm@model.dropuot=0.1"])
  with pytest.raises(ValueError, match=r"has \d+; use fewer"):
    run(["mdlm"], (10**9,))
