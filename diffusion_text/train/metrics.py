"""Metrics on disk (JSON lines and TensorBoard), and the share of the hardware that a run uses."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax

from diffusion_text.train.storage import as_path, is_remote

FILE = "metrics.jsonl"
WANDB_ID = "wandb_id"  # a file of the workdir
UPLOAD_EVERY = 60.0  # seconds between two uploads of files on a network


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a metrics file, or of the file in a directory. Each is {"step": int, name: float}.

  The last line may be incomplete after a kill; it is then left out.

  Raises:
    ValueError: If a line other than the last is not JSON.
  """
  path = as_path(path)
  path = path / FILE if path.is_dir() else path
  lines = path.read_text().splitlines()
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f"{path}:{number} is not JSON: {line[:80]!r}; delete that line") from error
  return rows


def check_wandb(project: str | None) -> None:
  """Raises ValueError if rows are to be sent to Weights & Biases and its package is not here."""
  if project is not None and importlib.util.find_spec("wandb") is None:
    raise ValueError(
      f"train.wandb={project!r} needs the package wandb: pip install -e '.[wandb]', or leave it"
      " unset; metrics.jsonl and TensorBoard files are written in any case"
    )


def start_wandb(
  project: str, directory: str | os.PathLike, config: Mapping[str, Any], *, new: bool
) -> Any:
  """A run of Weights & Biases. A workdir is one run there, however often it is continued: its name
  is kept in the workdir. new: the run begins anew.
  """
  import wandb  # here, because few have it

  place = as_path(directory)
  place.mkdir(parents=True, exist_ok=True)
  name = place / WANDB_ID
  if new or not name.exists():
    name.write_text(uuid.uuid4().hex)
  return wandb.init(
    project=project,
    id=name.read_text(),
    name=place.name,
    dir=tempfile.gettempdir() if is_remote(directory) else str(place),
    config=dict(config),
    resume="allow",
  )


class MetricsWriter:
  """Appends rows to `directory/metrics.jsonl` and to TensorBoard files in the same directory, and
  sends them to Weights & Biases if asked to.

  Does nothing on processes other than 0.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    resume_step: int | None = None,
    tensorboard: bool = True,
    wandb: str | None = None,
    config: Mapping[str, Any] | None = None,
  ):
    """Opens the files.

    Args:
      directory: It is made if absent. If it is on a network, such as gs://, the files are written
        to a local directory and copied once a minute, and at the end.
      resume_step: The step of the checkpoint that the run continues from. Later rows are removed
        from the file, because they will be written again. None for a new run: an older file is kept
        as `metrics.jsonl.old`.
      tensorboard: True to write event files too.
      wandb: The project at Weights & Biases that the rows are sent to; None: they are not sent.
      config: What Weights & Biases shows beside them.

    Raises:
      ValueError: For a project without the package wandb.
    """
    self._file = self._board = self._remote = self._wandb = None
    if jax.process_index() != 0:
      return
    check_wandb(wandb)
    if wandb is not None:
      self._wandb = start_wandb(wandb, directory, config or {}, new=resume_step is None)
    if is_remote(directory):
      self._remote = as_path(directory)
      self._uploaded = time.monotonic()
      self._remote.mkdir(parents=True, exist_ok=True)
      directory = tempfile.mkdtemp(prefix="metrics-")
      if (self._remote / FILE).exists():
        pathlib.Path(directory, FILE).write_bytes((self._remote / FILE).read_bytes())
    self._directory = directory = pathlib.Path(as_path(directory))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    if path.exists() and resume_step is None:
      os.replace(path, path.with_name(FILE + ".old"))
    elif path.exists():
      kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= resume_step]
      temporary = path.with_name(FILE + ".tmp")
      temporary.write_text("".join(kept))
      os.replace(temporary, path)  # atomic: a kill in between loses nothing
    self._file = path.open("a")
    if tensorboard:
      from tensorboardX import SummaryWriter  # here, because it is slow to import

      self._board = SummaryWriter(
        str(directory), purge_step=None if resume_step is None else resume_step + 1
      )

  def __call__(self, step: int, row: Mapping[str, float]) -> None:
    """Writes one row at once, so that a kill loses no row."""
    if self._file is None:
      return
    self._file.write(
      json.dumps({"step": int(step)} | {name: float(value) for name, value in row.items()}) + "\n"
    )
    self._file.flush()
    if self._board is not None:
      for name, value in row.items():
        self._board.add_scalar(name, float(value), int(step))
    if self._wandb is not None:
      self._wandb.log({name: float(value) for name, value in row.items()}, step=int(step))
    if self._remote is not None and time.monotonic() - self._uploaded >= UPLOAD_EVERY:
      self._upload()

  def _upload(self) -> None:
    for path in self._directory.iterdir():
      (self._remote / path.name).write_bytes(path.read_bytes())
    self._uploaded = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the files. Further calls have no effect."""
    for sink in (self._file, self._board):
      if sink is not None:
        sink.close()
    if self._remote is not None:
      self._upload()
    if self._wandb is not None:
      self._wandb.finish()
    self._file = self._board = self._remote = self._wandb = None

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()


# Peak dense bfloat16 FLOP/s of one jax device, by the beginning of `device_kind`. A longer name
# comes before a shorter name that it begins with.
PEAK_FLOPS = {
  "TPU v4 lite": 138e12,  # v4i: Jouppi et al., ISCA 2021
  "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4; a device is a megacore chip
  "TPU v5 lite": 197e12,  # cloud.google.com/tpu/docs/v5e
  "TPU v5e": 197e12,  # the same chip, as some runtimes call it
  "TPU v5p": 459e12,  # cloud.google.com/tpu/docs/v5p
  "TPU v5": 459e12,  # what libtpu calls v5p
  "TPU v6 lite": 918e12,  # cloud.google.com/tpu/docs/v6e (Trillium)
  "TPU v6e": 918e12,  # the same chip
  "TPU7x": 2307e12 / 2,  # docs.cloud.google.com/tpu/docs/tpu7x; a device is half of a chip
  "NVIDIA A100": 312e12,  # NVIDIA A100 data sheet, without sparsity
  "NVIDIA H100 PCIe": 756e12,  # NVIDIA H100 data sheet, half of the figure with sparsity
  "NVIDIA H100": 989e12,  # SXM, same sheet
  "NVIDIA H200": 989e12,  # NVIDIA H200 data sheet, the same cores as H100 SXM
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a kind of device, e.g. of `jax.devices()[0].device_kind`.

  None if the peak is not known (CPUs, new chips).
  """
  return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def mfu(flops_per_token: float, tokens_per_second: float, peak: float | None) -> float | None:
  """Model FLOP/s utilisation as a fraction (arXiv:2204.02311, appendix B).

  None if the peak is not known.

  Args:
    flops_per_token: FLOPs of the model, forward and backward, without rematerialisation.
    tokens_per_second: Speed of the whole run.
    peak: FLOP/s of all devices together, see `peak_flops`.
  """
  return None if peak is None else flops_per_token * tokens_per_second / peak
