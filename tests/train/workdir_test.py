"""A workdir refuses another configuration and lists the differences."""

import json

import pytest

from diffusion_text.train.workdir import check_workdir, flatten

CONFIG = {
  "train": {"steps": 10, "rate": 0.1},
  "model": {"width": 8, "names": ["a"]},
  "logging": {"every": 5},
}


def _changed(**changes):
  config = json.loads(json.dumps(CONFIG))
  for path, value in changes.items():
    *parents, leaf = path.split("__")
    node = config
    for parent in parents:
      node = node[parent]
    node[leaf] = value
  return json.dumps(config)


def test_the_same_configuration_is_welcome_again(tmp_path):
  check_workdir(tmp_path / "run", _changed())
  check_workdir(tmp_path / "run", _changed().encode())
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


def test_another_configuration_is_refused_with_every_difference(tmp_path):
  check_workdir(tmp_path, _changed())
  before = (tmp_path / "config.json").read_text()
  with pytest.raises(ValueError) as error:
    changed = _changed(
      model__width=16, model__names=["a", "b"], train__extra=False, train__steps=20
    )
    check_workdir(tmp_path, changed, ["train.steps"])
  text = str(error.value)
  assert "model.width: 8 → 16" in text and 'model.names: ["a"] → ["a", "b"]' in text
  assert "train.extra: (absent) → false" in text
  assert "train.steps: 10" not in text and "new workdir" in text and str(tmp_path) in text
  assert (tmp_path / "config.json").read_text() == before


def test_allowed_differences_are_written(tmp_path):
  check_workdir(tmp_path, _changed())
  check_workdir(tmp_path, _changed(train__steps=20, logging__every=1), ["train.steps", "logging"])
  assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 20


def test_allowing_a_key_does_not_allow_longer_names(tmp_path):
  check_workdir(tmp_path, json.dumps({"a": {"step": 1, "steps": 1}}))
  with pytest.raises(ValueError, match=r"a.steps: 1 → 2"):
    check_workdir(tmp_path, json.dumps({"a": {"step": 1, "steps": 2}}), ["a.step"])


def test_a_key_that_did_not_exist_yet_is_one_that_is_none(tmp_path):
  check_workdir(tmp_path, _changed())
  before = (tmp_path / "config.json").read_text()
  check_workdir(tmp_path, _changed(train__extra=None))
  assert (tmp_path / "config.json").read_text() == before
  check_workdir(tmp_path / "newer", _changed(train__extra=None))
  check_workdir(tmp_path / "newer", _changed())  # and back, with the older code's config


def test_flatten():
  assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
