"""The weights of another run as the start: what is taken, what is not, and what is said of it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text import train as tr
from tests.train import toy


def _fresh(start=toy.init, ema=True):
  return tr.create_state(start, toy.optimizer(), ema=ema)


def _moved(state, by):
  """The state after updates: parameters and their average are somewhere else, each by its own."""

  def shifted(tree, amount):
    return jax.tree.map(lambda leaf: leaf + amount, tree)

  return dataclasses.replace(
    state,
    step=jnp.int32(7),
    params=shifted(state.params, by),
    ema=None if state.ema is None else shifted(state.ema, by / 2),
  )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Checkpoints of a run with everything trained, whose arrays are those of the start plus 1."""
  directory = str(tmp_path_factory.mktemp("source") / "checkpoints")
  with tr.Checkpointer(directory, asynchronous=False) as saver:
    saver.save(7, _moved(_fresh(), 1.0), data=b"the data position", clock=tr.Clock(devices=1))
  return directory


def test_weights_and_their_average_are_taken_and_nothing_else(source):
  fresh = _fresh()
  state, report = tr.initialize(source, _fresh())
  assert int(state.step) == 0
  for leaf, start in zip(jax.tree.leaves(state.params), jax.tree.leaves(fresh.params)):
    np.testing.assert_array_equal(leaf, start + 1.0)
  for leaf, start in zip(jax.tree.leaves(state.ema), jax.tree.leaves(fresh.ema)):
    np.testing.assert_array_equal(leaf, start + 0.5)
  for leaf, start in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(fresh.opt_state)):
    np.testing.assert_array_equal(leaf, start)
  assert len(report.loaded) == 5 and not (report.missing or report.reshaped or report.unused)
  assert "5 arrays loaded" in str(report)


def _another_head():
  """(params, frozen): a wider head, one array more, and no bias."""
  params = toy.init_params()
  params["head"] = {"kernel": jnp.zeros((toy.D, toy.V + 2)), "scale": jnp.zeros(3)}
  return params, {}


def test_what_does_not_fit_starts_afresh_and_is_told(source):
  state, report = tr.initialize(source, _fresh(_another_head))
  assert report.missing == ("head/scale",) and report.unused == ("head/bias",)
  assert report.reshaped == (("head/kernel", (toy.D, toy.V), (toy.D, toy.V + 2)),)
  assert np.all(state.params["head"]["kernel"] == 0) and np.all(state.ema["head"]["kernel"] == 0)
  table = toy.init_params()["embedding"]["embedding"] + 1.0
  np.testing.assert_array_equal(state.params["embedding"]["embedding"], table)
  for text in ("head/kernel: (8, 11) there and (8, 13) here", "head/scale: missing", "not used"):
    assert text in str(report)
  shapes = jax.eval_shape(lambda: _fresh(_another_head))
  saved = tr.newest_shapes(source)[1]
  assert tr.compared(f"{source}/7", saved, shapes) == report, "a dry run says what the run will do"


def test_what_was_trained_may_be_frozen_and_an_average_may_begin(source, tmp_path):
  state, report = tr.initialize(source, _fresh(toy.init_with_frozen_head, ema=False))
  assert len(report.loaded) == 5 and state.ema is None
  np.testing.assert_array_equal(state.frozen["head"]["bias"], np.ones(toy.V))
  directory = str(tmp_path / "checkpoints")
  with tr.Checkpointer(directory, asynchronous=False) as saver:
    moved = _moved(_fresh(toy.init_with_frozen_head, ema=False), 1.0)
    saver.save(7, moved, data=b"", clock=tr.Clock(devices=1))
  state, _ = tr.initialize(directory, _fresh())
  bias = toy.init_params()["head"]["bias"]
  np.testing.assert_array_equal(state.params["head"]["bias"], bias)
  table = toy.init_params()["embedding"]["embedding"] + 1.0
  np.testing.assert_array_equal(state.ema["embedding"]["embedding"], table)


def test_another_kind_of_model_and_no_model_are_refused(source, tmp_path):
  with pytest.raises(ValueError, match="no array of the name and shape"):
    tr.initialize(source, _fresh(lambda: ({"other": {"kernel": jnp.zeros((2, 2))}}, {})))
  with pytest.raises(tr.CheckpointError, match="there is no checkpoint"):
    tr.initialize(str(tmp_path), _fresh())


def test_a_damaged_checkpoint_is_passed_over(source, tmp_path):
  """Its arrays, as a full disk leaves them, or its metadata too: the one before it is taken."""
  copy = shutil.copytree(source, tmp_path / "checkpoints")
  shutil.copytree(copy / "7", copy / "9")
  for path in (copy / "9" / "params").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(b"")
  _, report = tr.initialize(str(copy), _fresh())
  assert report.source == f"{copy}/7"
  shutil.rmtree(copy / "9" / "params")
  (copy / "9" / "params").mkdir()
  _, report = tr.initialize(str(copy), _fresh())
  assert report.source == f"{copy}/7" and tr.newest_shapes(str(copy))[0] == 7
