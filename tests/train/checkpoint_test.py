"""Checkpoints: exact, kept as configured, and never silently wrong."""

import dataclasses
import functools
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text import train as tr
from diffusion_text.train import checkpoint
from diffusion_text.train.checkpoint import CheckpointError

from . import object_store, toy

# orbax leaves its reads of the other arrays unfinished when one array is damaged.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@functools.cache
def _fresh(ema):
  return jax.jit(lambda: tr.create_state(toy.init, toy.optimizer(), ema=ema))()


def _state(step=0, ema=True):
  state = _fresh(ema)
  marked = jax.tree.map(lambda x: x + step, state.params)
  return dataclasses.replace(state, step=jnp.int32(step), params=marked)


def _save(directory, steps, *, metrics=None, ema=True, **options):
  with tr.Checkpointer(directory, **options) as checkpointer:
    for step in steps:
      scores = None if metrics is None else metrics.get(step)
      checkpointer.save(
        step, _state(step, ema), data=b"%d" % step, clock=_clock(step), metrics=scores
      )


def _clock(seconds=0.0):
  clock = tr.Clock()
  clock.from_dict({"seconds": seconds, "device_seconds": 2 * seconds})
  return clock


def _abstract(ema=True):
  return jax.eval_shape(lambda state: state, _state(ema=ema))


def _restore(directory, **options):
  data = toy.Rows()
  options = {"fresh": _state, "clock": tr.Clock()} | options
  return tr.restore(directory, options.pop("abstract", _abstract()), data=data, **options), data


def _equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y)


def _largest_file(directory):
  # orbax merges what each process wrote (ocdbt.process_N) into `d`, and reads that.
  files = [
    p
    for p in pathlib.Path(directory).rglob("*")
    if p.parent.name == "d" and "ocdbt.process" not in str(p)
  ]
  return max(files, key=os.path.getsize)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A directory with checkpoints 3 and 6; tests work on copies."""
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  _save(
    directory,
    [3, 6],
    metrics={6: {"bpc": 1.0}},
    assets={"tokenizer": b"\x00\xffabc", "config.json": b"{}"},
  )
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "checkpoints")


def test_everything_comes_back_bitwise(copy):
  restored, data = _restore(copy)
  _equal(restored.state, _state(6))
  assert (restored.step, restored.source, restored.evaluated, data.n) == (6, "workdir", True, 6)
  assert restored.resume_step == 6


def test_the_clock_goes_on_in_the_same_run_only(copy, tmp_path):
  same, other = _clock(), _clock()
  _restore(copy, clock=same)
  _restore(tmp_path / "new", restore_from=copy, clock=other)
  assert (same.to_dict(), other.seconds) == ({"seconds": 6.0, "device_seconds": 12.0}, 0.0)


def test_without_an_average(tmp_path):
  _save(f"file://{tmp_path}", [2], ema=False)
  restored, _ = _restore(f"file://{tmp_path}", abstract=_abstract(ema=False))
  assert restored.state.ema is None and not restored.evaluated
  with pytest.raises(CheckpointError, match="ema"):
    _restore(tmp_path)  # a run with an average does not get a wrong one


def test_precedence(copy, tmp_path):
  never = None
  restored, _ = _restore(copy, restore_from=str(tmp_path / "absent"), fresh=never)  # 1.
  assert (restored.step, restored.source) == (6, "workdir")
  new = tmp_path / "new"
  restored, data = _restore(new, restore_from=copy, fresh=never)  # 2.
  assert (restored.step, restored.source, data.n) == (6, "restore_from", 6)
  assert not restored.evaluated and restored.resume_step is None
  restored, _ = _restore(new, fresh=lambda: _state(80))  # 3.
  assert (int(restored.state.step), restored.source) == (80, "fresh")
  with pytest.raises(
    CheckpointError, match=r"there is no checkpoint in .*absent; is the path right"
  ):
    _restore(new, restore_from=tmp_path / "absent")


@pytest.mark.parametrize("how", ["truncate", "delete", "flip"])
def test_a_damaged_newest_falls_back_and_says_so(copy, caplog, how):
  victim = _largest_file(copy / "6")
  if how == "truncate":
    os.truncate(victim, os.path.getsize(victim) // 2)
  elif how == "delete":
    victim.unlink()
  else:
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(bytes(content))
  with caplog.at_level(logging.WARNING):
    restored, data = _restore(copy)
  _equal(restored.state, _state(3))
  assert restored.step == data.n == 3
  assert f"checkpoint {copy}/6 cannot be read" in caplog.text and "step 3 is used" in caplog.text
  _save(copy, [6])  # the run comes to step 6 again
  assert checkpoint.steps_in(copy) == [3, 6] and (copy / "damaged-6").exists()
  assert _restore(copy)[0].step == 6


def test_a_checksum_catches_what_the_files_do_not_show(copy, monkeypatch):
  """Mutant: without the comparison the wrong numbers would be accepted."""
  real = checkpoint.checksums
  monkeypatch.setattr(
    checkpoint, "checksums", lambda items: real(jax.tree.map(lambda x: x + 1, items))
  )
  with pytest.raises(CheckpointError, match="does not match its checksum"):
    _restore(copy)


def test_nothing_good_is_an_error_and_not_a_fresh_start(copy):
  for step in (3, 6):
    os.truncate(_largest_file(copy / str(step)), 1)
  with pytest.raises(
    CheckpointError,
    match=r"none of the checkpoints .* can be read, and a run does not start afresh",
  ):
    _restore(copy, fresh=_state)
  assert checkpoint.steps_in(copy) == [3, 6]  # and nothing is moved


def test_another_model_is_refused(copy):
  def bigger():
    state = _state()
    return dataclasses.replace(
      state, params=state.params | {"head": {"kernel": jnp.zeros((8, 12)), "bias": jnp.zeros(12)}}
    )

  with pytest.raises(
    CheckpointError, match="If the model or the optimizer changed, use a new workdir"
  ):
    _restore(copy, abstract=jax.eval_shape(bigger))


def test_a_kill_during_the_first_save_leaves_nothing_to_resume(tmp_path):
  (tmp_path / "5.orbax-checkpoint-tmp-1").mkdir()
  assert tr.latest_step(tmp_path) is None
  assert _restore(tmp_path)[0].source == "fresh"
  _save(tmp_path, [1])
  assert os.listdir(tmp_path) == ["1"]


def test_keeps_the_newest_and_the_best(tmp_path):
  scores = {
    1: {"bpc": 3.0},
    2: {"bpc": 1.0},
    3: {"bpc": 2.0},
    5: {"bpc": float("nan")},
    6: {"bpc": 1.5},
  }
  _save(tmp_path, range(1, 7), metrics=scores, max_to_keep=2, keep_best="bpc")
  assert checkpoint.steps_in(tmp_path) == [2, 5, 6]
  # As if by another process, which must know the earlier scores.
  _save(tmp_path, [7], metrics={7: {"bpc": 0.5}}, max_to_keep=2, keep_best="bpc")
  assert checkpoint.steps_in(tmp_path) == [6, 7]


def test_keep_best_must_be_a_metric(tmp_path):
  with pytest.raises(
    ValueError, match=r"keep_best='bpc' is not an evaluation metric; use one of \['loss'\]"
  ):
    _save(tmp_path, [1], metrics={1: {"loss": 1.0}}, keep_best="bpc")


def test_errors_of_the_disk_are_raised(tmp_path):
  directory = tmp_path / "checkpoints"
  checkpointer = tr.Checkpointer(directory)
  shutil.rmtree(directory)
  directory.write_text("a file where the directory was")
  with pytest.raises(
    CheckpointError, match=rf"could not save step 1 in {directory}: .*Is the disk full"
  ):
    checkpointer.save(1, _state(), data=b"", clock=tr.Clock())


def test_errors_of_the_disk_in_the_background_are_raised(tmp_path, monkeypatch):
  from orbax.checkpoint import JsonCheckpointHandler

  async def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(JsonCheckpointHandler, "_save_fn", full)
  checkpointer = tr.Checkpointer(tmp_path)
  with pytest.raises(CheckpointError, match=r"No space left on device"):
    checkpointer.save(1, _state(), data=b"", clock=tr.Clock())
    checkpointer.wait()
  assert checkpoint.steps_in(tmp_path) == []


def test_parameters_and_assets_for_sampling(saved):
  abstract = _abstract().params
  _equal(tr.restore_params(saved, abstract), _state(0).params)  # the average
  _equal(tr.restore_params(saved, abstract, ema=False), _state(6).params)
  _equal(tr.restore_params(saved, abstract, ema=False, step=3), _state(3).params)
  assert tr.read_asset(saved, "tokenizer") == b"\x00\xffabc"
  with pytest.raises(
    CheckpointError, match=r"no asset 'vocab'; it has \['config.json', 'tokenizer'\]"
  ):
    tr.read_asset(saved, "vocab")
  with pytest.raises(CheckpointError, match=r"no checkpoint 4 in .*; it has \[3, 6\]"):
    tr.restore_params(saved, abstract, step=4)
  with pytest.raises(CheckpointError, match="there is no checkpoint"):
    tr.restore_params(saved / "absent", abstract)


def test_what_is_frozen_is_saved_and_comes_back(tmp_path):
  fresh, abstract, step, _ = toy.build(start=toy.init_with_frozen_head)
  state, _ = step(fresh(), next(toy.Rows()))
  with tr.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, data=b"1", clock=tr.Clock())
  _equal(_restore(tmp_path, abstract=abstract)[0].state, state)
  merged = tr.restore_params(tmp_path, abstract.params, abstract.frozen)
  _equal(merged, state.eval_params)


# Saved on 4 devices; restored on fewer, more, and other shapes.
TARGETS = {
  "one device": (1, {}),
  "two, tensor": (2, {"tensor": 2}),
  "eight": (8, {"fsdp": 4, "tensor": 2}),
  "eight, replicas": (8, {"replica": 4, "fsdp": 2}),
}


def test_a_checkpoint_moves_between_meshes(tmp_path):
  """Arrays that the table splits are never whole: a device holds its part, saved and restored."""
  four = tr.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
  fresh, _, step, _ = toy.build(mesh=four)
  state, _ = step(fresh(), tr.global_batch(next(toy.Rows()), four))
  with tr.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, state, data=b"1", clock=tr.Clock())
  for devices, sizes in TARGETS.values():
    mesh = tr.make_mesh(**sizes, devices=jax.devices()[:devices])
    target = toy.build(mesh=mesh)[1]
    restored, data = _restore(tmp_path, abstract=target)
    _equal(restored.state, state)
    assert data.n == 1
    for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target)):
      assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    kernel = restored.state.params["layers"]["mlp"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {
      kernel.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    }
    half = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), target.params
    )
    params = tr.restore_params(tmp_path, half, ema=False)
    _equal(params, jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), state.params))
    for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(half)):
      assert leaf.dtype == jnp.bfloat16 and leaf.sharding.is_equivalent_to(
        wanted.sharding, leaf.ndim
      )
    assert (
      params["layers"]["mlp"]["kernel"].addressable_shards[0].data.size
      == kernel.addressable_shards[0].data.size
    )


def test_no_weight_is_whole_while_it_is_made():
  """The compiled initialisation has no array with the full shape of a split weight."""
  fresh, *_ = toy.build(mesh=tr.make_mesh(fsdp=4, tensor=2))
  text = fresh.lower().compile().as_text()
  assert "f32[2,2,4]" in text  # [layers, D, D] over fsdp = 4 and tensor = 2
  assert "f32[2,8,8]" not in text and f"f32[{toy.V + 1},{toy.D}]" not in text


def test_checkpoints_of_a_bucket(monkeypatch, caplog):
  """Written and read by gs://, over HTTP. One that a kill left half-written is none, as its mark is
  missing, and one that is damaged is set aside; the run saves at both steps again. Mutant: with its
  mark it would be the newest.
  """
  directory = "gs://bucket/a run/checkpoints"
  with object_store.served(monkeypatch) as bucket:
    _save(directory, [3, 6], assets={"tokenizer": b"\x00\xffabc"})
    restored, data = _restore(directory)
    _equal(restored.state, _state(6))
    assert (restored.step, data.n) == (6, 6)
    assert checkpoint.read_asset(directory, "tokenizer") == b"\x00\xffabc"
    begin = directory.removeprefix("gs://")
    half = [name for name in bucket.beginning(f"{begin}/6/") if "commit_success" not in name]
    for name in half:
      bucket.write(name.replace("/6/", "/9/"), bucket.objects[name][0])
    assert checkpoint.steps_in(directory) == [3, 6]
    mark = f"{begin}/9/commit_success.txt"
    bucket.write(mark, b"")
    assert checkpoint.latest_step(directory) == 9
    del bucket.objects[mark]
    largest = max(half, key=lambda name: len(bucket.objects[name][0]) * ("/d/" in name))
    bucket.write(largest, bucket.objects[largest][0][:99])
    with caplog.at_level(logging.WARNING):
      restored, _ = _restore(directory)
    _equal(restored.state, _state(3))
    assert "step 3 is used" in caplog.text and bucket.beginning(f"{begin}/damaged-6/")
    _save(directory, [6, 9])
    assert checkpoint.steps_in(directory) == [3, 6, 9] and _restore(directory)[0].step == 9
    assert not bucket.refused
