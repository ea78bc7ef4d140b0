"""How cost grows: of a training step with length, batch, vocabulary and devices; of checkpoints and
of starting with parameters.

Along each axis one thing changes. All steps of an axis are compiled first and then timed in turns,
so that what else the machine does meets them alike. What is held fixed where it is not the axis is
said in `point`; tokens are random. Companion of `experiments.growth`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from diffusion_text import train
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import Experiment, build
from diffusion_text.experiment.run import override
from diffusion_text.studies.benchmark import hardware, train_calls
from diffusion_text.studies.speed import interleaved

# axis -> (what is set, its values). Rows where it is not the axis: 1 for length, 8 otherwise.
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
  "length": ("data.length", (512, 1024, 2048, 4096, 8192)),
  "batch": ("train.batch_size", (1, 2, 4, 8, 16, 32)),
  "vocabulary": ("V", (1024, 4096, 16384, 65536)),
  "devices": ("devices", (1, 2, 4, 8)),
  "parameters": ("model.width", (64, 128, 256, 512, 1024)),
}


@dataclasses.dataclass(frozen=True)
class Point:
  """One measurement. seconds: the median step; the others are of the parameters axis only: seconds
  of saving and restoring the whole train state, its bytes on disk, and seconds from nothing to the
  end of the first step (build, initialise, compile, run).
  """

  axis: str
  value: int
  parameters: int
  tokens: int
  compile_seconds: float
  temporary_bytes: int | None
  seconds: float = math.nan
  start_seconds: float | None = None
  save_seconds: float | None = None
  restore_seconds: float | None = None
  checkpoint_bytes: int | None = None


class NoData:
  """The data position of a run that reads none."""

  def get_state(self) -> bytes:
    return b"{}"

  def set_state(self, state: bytes) -> None:
    del state


def point(config: ml_collections.ConfigDict, axis: str, value: int) -> Experiment:
  """The experiment of one point: the config with 8 rows (1 along length), V = 1024, one device,
  heads of 64, but for the axis.

  Raises ValueError for an unknown axis and for more devices than there are.
  """
  if axis not in AXES:
    raise ValueError(f"--axes has {axis!r}; use some of {','.join(AXES)}")
  config = config.copy_and_resolve_references()
  key, _ = AXES[axis]
  devices, rows, vocabulary = (
    value if axis == "devices" else 1,
    1 if axis == "length" else 8,
    value if key == "V" else 1024,
  )
  if devices > jax.device_count():
    raise ValueError(
      f"{devices} devices are to be compared, but there are {jax.device_count()}; leave the larger"
      f" values out"
    )
  override(
    config,
    [("train.batch_size", rows), ("evaluate.batch_size", devices), ("train.accumulation", 1)],
  )
  if "." in key:
    override(config, [(key, value)])
  if axis == "parameters":
    config.model.update(
      {"mlp_width": 4 * value, "heads": max(value // 64, 1), "kv_heads": max(value // 64, 1)}
    )
  return build(config, tokenizer=plan.AnyVocabulary(vocabulary), devices=jax.devices()[:devices])


def measure_axis(
  config: ml_collections.ConfigDict,
  axis: str,
  values: Sequence[int],
  rounds: int,
  workdir: pathlib.Path,
) -> list[Point]:
  """All points of an axis. workdir: where checkpoints are written, and removed again."""
  points, calls = [], {}
  for value in (
    values[0],
    *values,
  ):  # the first twice: only once does a process start its backend and load what saves
    began = time.perf_counter()
    experiment = point(config, axis, value)
    with jax.set_mesh(experiment.mesh):
      made, compiled = train_calls(experiment, {"step": experiment.loss_fn(1.0)})
      jax.block_until_ready(made["step"]())
      started, more = time.perf_counter() - began, {}
      if axis == "parameters":
        more = {
          "start_seconds": started,
          **measure_checkpoint(experiment, workdir / f"checkpoint-{value}"),
        }
    calls[value] = within(experiment, made["step"])
    tokens = experiment.train.batch_size * experiment.data.length
    sizes = (
      plan.count_parameters(experiment),
      tokens,
      compiled["step"].compile_seconds,
      compiled["step"].temp_bytes,
    )
    points.append(Point(axis, value, *sizes, **more))
  seconds = interleaved(calls, rounds)
  return [dataclasses.replace(p, seconds=seconds[p.value]) for p in points[1:]]


def within(experiment: Experiment, call: Callable[[], Any]) -> Callable[[], Any]:
  """The call, with the experiment's mesh in scope."""

  def run():
    with jax.set_mesh(experiment.mesh):
      return call()

  return run


def measure_checkpoint(experiment: Experiment, directory: pathlib.Path) -> dict[str, Any]:
  """Saves the whole train state, reads it back, and removes it. Its numbers are drawn: zeros would
  be compressed away.
  """
  leaves, tree = jax.tree.flatten(experiment.fresh_state())

  def draw(i, x):
    return (
      jax.random.normal(jax.random.key(i), x.shape, x.dtype)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    )

  state = jax.block_until_ready(
    jax.tree.unflatten(tree, [draw(i, x) for i, x in enumerate(leaves)])
  )
  try:
    began = time.perf_counter()
    with train.Checkpointer(str(directory)) as saver:
      saver.save(1, state, data=NoData().get_state(), clock=train.Clock())
    saved = time.perf_counter() - began
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    del state
    began = time.perf_counter()
    found = train.restore(
      str(directory),
      experiment.abstract_state(),
      data=NoData(),
      clock=train.Clock(),
      fresh=experiment.fresh_state,
    )
    jax.block_until_ready(found.state)
    restored = time.perf_counter() - began
  finally:
    shutil.rmtree(directory, ignore_errors=True)
  return {"save_seconds": saved, "restore_seconds": restored, "checkpoint_bytes": size}


def exponent(sizes: Sequence[float], costs: Sequence[float | None]) -> float:
  """Slope between the last two points of log cost against log size: 1 is linear, 2 quadratic; nan
  without two costs.
  """
  pairs = [(size, cost) for size, cost in zip(sizes, costs) if cost]
  if len(pairs) < 2:
    return math.nan
  (small, less), (large, more) = pairs[-2:]
  return math.log(more / less) / math.log(large / small)


def size_of(p: Point) -> float:
  """What a point is plotted against: parameters on their axis, else the value."""
  return p.parameters if p.axis == "parameters" else p.value


COSTS = {
  "seconds": "step time",
  "temporary_bytes": "temporaries",
  "compile_seconds": "compilation",
  "start_seconds": "start",
}
COSTS |= {
  "save_seconds": "save",
  "restore_seconds": "restore",
  "checkpoint_bytes": "checkpoint bytes",
}


def table(points: Sequence[Point]) -> str:
  """Markdown: each point's costs over those of its axis's first point, and the exponents of the
  last stretch.
  """
  lines = [("axis", "value", "parameters", *COSTS.values()), ("---", *["---:"] * (len(COSTS) + 2))]
  for axis in dict.fromkeys(p.axis for p in points):
    of_axis = [p for p in points if p.axis == axis]
    columns = [[getattr(p, name) for p in of_axis] for name in COSTS]
    shown = [
      [f"{cost / column[0]:.2f} ×" if cost and column[0] else "" for cost in column]
      for column in columns
    ]
    lines += [
      (axis, f"{p.value:,}", f"{p.parameters:,}", *row) for p, row in zip(of_axis, zip(*shown))
    ]
    slopes = [exponent([size_of(p) for p in of_axis], column) for column in columns]
    lines.append(
      (
        f"{axis}: exponent",
        "",
        "",
        *("" if math.isnan(slope) else f"{slope:.2f}" for slope in slopes),
      )
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(path: pathlib.Path, points: Sequence[Point], title: str) -> None:
  """Writes a png: step time and temporaries along each axis, both over the first point, and
  checkpoints and start over parameters.
  """
  from matplotlib.figure import Figure  # here, because it is slow to import

  axes = list(dict.fromkeys(p.axis for p in points))
  figure = Figure(figsize=(4 * len(axes), 4), layout="constrained")
  panels = figure.subplots(1, len(axes), squeeze=False)[0]
  for panel, axis in zip(panels, axes):
    of_axis = [p for p in points if p.axis == axis]
    sizes = [size_of(p) for p in of_axis]
    for (name, label), marker in zip(COSTS.items(), "osDv^<>"):
      if getattr(of_axis[0], name):
        panel.plot(
          sizes,
          [getattr(p, name) / getattr(of_axis[0], name) for p in of_axis],
          marker=marker,
          label=label,
        )
    panel.plot(sizes, [size / sizes[0] for size in sizes], "k--", linewidth=1, label="linear")
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"cost over that of the first {axis}")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def run(
  config: ml_collections.ConfigDict,
  values: Mapping[str, Sequence[int]],
  rounds: int,
  workdir: pathlib.Path,
) -> str:
  """Measures every axis, writes growth.json and growth.png in the workdir, returns the table."""
  workdir.mkdir(parents=True, exist_ok=True)
  points: list[Point] = []
  for axis, chosen in values.items():
    points += measure_axis(config, axis, chosen, rounds, workdir)
    summary = {
      "hardware": hardware(),
      "rounds": rounds,
      "points": [dataclasses.asdict(p) for p in points],
    }
    (workdir / "growth.json").write_text(
      json.dumps(summary, indent=2)
    )  # after each, so that what was measured stays
  where = hardware()
  plot(
    workdir / "growth.png",
    points,
    f"{where['device']}, {where['cores']} cores, jax {where['jax']}, medians of {rounds} rounds",
  )
  return table(points)
