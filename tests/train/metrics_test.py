"""Rows on disk, restarts, and the use of the hardware."""

import importlib
import json
import sys

import pytest
from etils.epath import register_path_cls

from diffusion_text.train.metrics import (
  MetricsWriter,
  check_wandb,
  mfu,
  peak_flops,
  read_metrics,
)
from diffusion_text.train.storage import as_path, is_remote
from diffusion_text.train.workdir import check_shared, check_workdir


def _write(directory, steps, **options):
  with MetricsWriter(directory, tensorboard=False, **options) as writer:
    for step in steps:
      writer(step, {"loss": step / 2})


def test_resume_leaves_no_step_twice(tmp_path):
  _write(tmp_path, [1, 2, 3, 4])
  _write(tmp_path, [3, 4, 5], resume_step=2)
  assert read_metrics(tmp_path) == [{"step": s, "loss": s / 2} for s in (1, 2, 3, 4, 5)]


def test_a_row_cut_off_by_a_kill_is_dropped(tmp_path):
  _write(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 3, "lo')
  assert [row["step"] for row in read_metrics(path)] == [1, 2]
  _write(tmp_path, [3], resume_step=2)
  assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_damage_elsewhere_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not JSON: 'nonsense'"):
    read_metrics(tmp_path)


def test_a_new_run_keeps_the_old_file_beside(tmp_path):
  _write(tmp_path, [1])
  _write(tmp_path, [7])
  assert [row["step"] for row in read_metrics(tmp_path)] == [7]
  assert json.loads((tmp_path / "metrics.jsonl.old").read_text())["step"] == 1


def test_rows_are_on_disk_before_close(tmp_path):
  writer = MetricsWriter(tmp_path, tensorboard=False)
  writer(1, {"loss": float("nan")})
  assert read_metrics(tmp_path)[0]["loss"] != read_metrics(tmp_path)[0]["loss"]
  writer.close()
  writer.close()


def test_tensorboard_files_hold_the_values(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer(1, {"curve": 0.5})
  (file,) = tmp_path.glob("events.out.tfevents.*")
  assert b"curve" in file.read_bytes()


# In place of the package: it writes down how it is called.
WANDB = """
import json, pathlib
calls = []
class Run:
  def log(self, row, step): calls.append(["log", step, row])
  def finish(self): calls.append(["finish"])
def init(**options):
  calls.append(["init", options])
  return Run()
"""


@pytest.fixture
def wandb_calls(tmp_path, monkeypatch):
  """What the package was asked, as a list that grows."""
  folder = tmp_path / "packages"
  folder.mkdir()
  (folder / "wandb.py").write_text(WANDB)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  calls = importlib.import_module("wandb").calls
  yield calls
  sys.modules.pop("wandb")


def test_rows_go_to_weights_and_biases_too(tmp_path, wandb_calls):
  run = tmp_path / "runs" / "mdlm"
  _write(run, [1, 2], wandb="texts", config={"seed": 3})
  _write(run, [2, 3], resume_step=1, wandb="texts", config={"seed": 3})
  _write(tmp_path / "other", [1], wandb="texts")
  starts = [options for name, *rest in wandb_calls if name == "init" for options in rest]
  assert [start["name"] for start in starts] == ["mdlm", "mdlm", "other"]
  assert starts[0]["project"] == "texts" and starts[0]["config"] == {"seed": 3}
  # A workdir that is continued is the same run there, another workdir another.
  assert starts[0]["id"] == starts[1]["id"] != starts[2]["id"]
  logged = [call[1:] for call in wandb_calls if call[0] == "log"]
  assert logged == [[step, {"loss": step / 2}] for step in (1, 2, 2, 3, 1)]
  assert wandb_calls[-1] == ["finish"]
  assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]


def test_a_run_that_begins_anew_or_elsewhere_is_another_one_there(
  tmp_path, wandb_calls, monkeypatch
):
  for number, place in enumerate(("a", "a", "b")):  # the same path below two folders
    (tmp_path / place).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    _write("runs/mdlm", [number], wandb="texts")
  assert len({call[1]["id"] for call in wandb_calls if call[0] == "init"}) == 3


def test_a_project_without_the_package_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  check_wandb(None)
  with pytest.raises(ValueError, match=r"train\.wandb='texts' needs the package wandb: pip"):
    check_wandb("texts")
  with pytest.raises(ValueError, match="needs the package"):
    MetricsWriter(tmp_path / "run", wandb="texts")
  assert not (tmp_path / "run").exists()


def test_a_directory_on_a_network_gets_copies(tmp_path, monkeypatch):
  """A test scheme for a network: no file is appended to, and no local folder has the URL's name."""
  monkeypatch.chdir(tmp_path)
  register_path_cls("teststore://")(lambda url: tmp_path / str(url).removeprefix("teststore://"))
  with MetricsWriter("teststore://run", tensorboard=False) as writer:
    writer(1, {"loss": 2.0})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setattr("diffusion_text.train.metrics.UPLOAD_EVERY", 0.0)
    writer(2, {"loss": 1.0})
    assert [row["step"] for row in read_metrics("teststore://run")] == [1, 2]
  with MetricsWriter("teststore://run", resume_step=1, tensorboard=False) as writer:
    writer(2, {"loss": 0.5})
  assert [row["loss"] for row in read_metrics(tmp_path / "run")] == [2.0, 0.5]
  check_workdir("teststore://run", "{}")
  check_shared("teststore://run")
  with pytest.raises(ValueError, match="not the same directory on every host"):
    check_shared("teststore://elsewhere")
  assert {path.name for path in tmp_path.iterdir()} == {"run"}
  assert (
    as_path(f"file://{tmp_path}/run") == as_path("run")
    and is_remote("gs://bucket")
    and not is_remote("file:///a")
  )


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr("jax.process_index", lambda: 1)
  _write(tmp_path / "new", [1])
  assert not (tmp_path / "new").exists()


def test_use_of_the_hardware():
  assert peak_flops("cpu") is None and mfu(6e9, 1e4, None) is None
  assert (
    peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
  )
  assert peak_flops("TPU v4") == 275e12 and peak_flops("TPU v6 lite") == 918e12
  assert (
    peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    and peak_flops("NVIDIA H100 PCIe") == 756e12
  )
  assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
  assert mfu(6e9, 1e4, 4 * 197e12) == pytest.approx(6e13 / 7.88e14)
