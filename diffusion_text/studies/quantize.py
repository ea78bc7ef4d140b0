"""A trained network with integers in place of its matrices, and what that costs: the bound of text
beside that of the float network, on the same draws of time and noise.

Differences are paired: the standard error is that of the difference of each row. Samples of both
are drawn with the same keys; "same tokens" is the share of positions at which they agree, and one
early difference changes what follows. The control rounds every number up or down by a fair coin.
For a run on a task the table also has the share of right answers, its difference to the share of
the float network on the same prompts (paired by prompt), and the entropy of the answers.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.core.options import member, option
from diffusion_text.evaluate.likelihood import by_row, estimate
from diffusion_text.evaluate.text_metrics import token_entropy
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import Experiment, build
from diffusion_text.experiment.run import Trained
from diffusion_text.model import linear_maps
from diffusion_text.model.quantized.methods import bytes_of
from diffusion_text.model.quantized.stored import NAME
from diffusion_text.studies import tasks
from diffusion_text.studies.inputs_of_matrices import (
  Calibration,
  How,
  Watcher,
  outliers,
  quantized,
  take,
)
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.studies.workdirs import check_new, save
from diffusion_text.types import Batch, Params

COPIED = ("pretrained.json", "tokenizer")  # of a workdir that was made of pretrained weights
HEADER = (
  *("matrices", "calibrated at", "bits per number", "MiB", "nats per token", "more than float"),
  *("same tokens", "entropy"),
)
ANSWERS = ("right answers", "more than float", "entropy of answers")
TABLE = (
  *(("nearest", bits, group) for bits in (8, 4, 3) for group in (0, 64)),
  *((method, bits, 64) for bits in (8, 4, 3) for method in ("gptq", "awq", "random")),
  ("smoothquant", 8, 0),
)
LEVELS = (0.1, 0.5, 0.9)  # of calibration, against all of them
PARTS = ("methods", "calibration", "inputs")
Overrides = Sequence[tuple[str, Any]]


@member
class Settings:
  """How a network is calibrated, and how the quantised network is measured."""

  rows: int = option(32, "rows of training text for calibration, rounded up to batches", ge=1)
  level: float | None = option(None, "time of these rows; unset: as in training", ge=0, le=1)
  split: Literal["train", "validation", "test", "all"] = option("test", "the text that is scored")
  max_rows: int = option(128, "rows that are scored, rounded up to batches", ge=1)
  num_draws: int = option(2, "draws of time and noise for each of them", ge=1)
  samples: int = option(16, "texts that are drawn; 0: none", ge=0)
  prompts: int = option(0, "prompts of the run's task that are answered; 0: none", ge=0)
  seed: int = option(0, "of calibration, coins, samples and answers", ge=0)


class Scores(NamedTuple):
  """The bounds of a network on held-out rows, its samples and its answers.

  Attributes:
    nats: float64 [R], the bound of each row, the mean over draws.
    weight: float64 [R], the scored tokens of each row.
    ids: int32 [rows, L], samples; None without samples.
    right: float64 [P], 1 for a right answer and 0 for a wrong one; None without prompts.
    spread: The entropy of the answers, in nats; None without prompts.
  """

  nats: Float[np.ndarray, " R"]
  weight: Float[np.ndarray, " R"]
  ids: np.ndarray | None
  right: Float[np.ndarray, " P"] | None = None
  spread: float | None = None


def scores(trained: Trained, settings: Settings) -> Scores:
  """The bound on held-out rows, drawn as `experiments.evaluate` draws, samples, and answers."""
  experiment = trained.experiment
  key = train.named_key(experiment.config.seed, "evaluate", 0)
  with jax.set_mesh(experiment.mesh):
    batches = runs.held_out(experiment, settings.split, settings.max_rows)
    found = by_row(experiment.nats_fn, trained.params, batches, key, settings.num_draws)
  ids = None
  if settings.samples:
    rows = runs.open_rows(experiment.tokenizer, settings.samples, experiment.data.length)
    drawn = runs.generate(trained, rows, num=settings.samples, seed=settings.seed)[1]
    ids = np.asarray(drawn.ids)
  right = spread = None
  if settings.prompts:
    asked = {"split": settings.split, "num": settings.prompts, "seed": settings.seed}
    answered = tasks.answered(trained, **asked)[0]
    right = np.array([not reason for reason in answered.reasons], np.float64)
    spread = answered.scores["entropy"].value
  return Scores(found.nats, found.weight, ids, right, spread)


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of the table: a network beside the float network.

  Attributes:
    name, level: of the matrices, and where they were calibrated.
    bits: bytes of the matrices of the layers as stored, times 8, per number.
    size: MiB of these matrices.
    bound, bound_error: nats per token.
    more, more_error: nats per token above the float network, paired by rows.
    same: share of the tokens of samples that are those of the float network.
    entropy: nats, of the tokens of a sample.
    right, right_error: share of right answers to the prompts of a task.
    right_more, right_more_error: the share above that of the float network, paired by prompts.
    spread: entropy of the answers, in nats.
  """

  name: str
  level: str
  bits: float
  size: float
  bound: float
  bound_error: float
  more: float
  more_error: float
  same: float | None
  entropy: float | None
  right: float | None = None
  right_error: float | None = None
  right_more: float | None = None
  right_more_error: float | None = None
  spread: float | None = None

  def cells(self) -> tuple[str, ...]:
    """The cells of HEADER, and after them the cells of ANSWERS if prompts were answered."""
    shown = [self.name, self.level, f"{self.bits:.2f}", f"{self.size:.2f}"]
    shown += [f"{self.bound:.4f} ± {self.bound_error:.4f}"]
    shown += [f"{self.more:+.4f} ± {self.more_error:.4f}"]
    drawn = self.same is not None
    shown += [f"{self.same:.3f}" if drawn else "—", f"{self.entropy:.3f}" if drawn else "—"]
    if self.right is not None:
      shown += [f"{self.right:.3f} ± {self.right_error:.3f}"]
      shown += [f"{self.right_more:+.3f} ± {self.right_more_error:.3f}", f"{self.spread:.3f}"]
    return tuple(shown)


def line(name: str, level: str, size: tuple[int, int], found: Scores, reference: Scores) -> Line:
  """The line of a network. size: (bytes, numbers) of its matrices."""
  bound, error = estimate(found.nats, found.weight)
  more, more_error = estimate(found.nats - reference.nats, found.weight)
  same = entropy = None
  if found.ids is not None:
    same = float(np.mean(found.ids == reference.ids))
    entropy = token_entropy(list(found.ids))
  bits, size_in_mib = 8 * size[0] / size[1], size[0] / 2**20
  answers: tuple[float, ...] = ()
  if found.right is not None:
    differences = mean_and_error(found.right - reference.right)
    answers = (*mean_and_error(found.right), *differences, found.spread)
  measured = bound, error, more, more_error, same, entropy
  return Line(name, level, bits, size_in_mib, *measured, *answers)


class Bench:
  """A trained network without a low rank, ready to be calibrated, quantised and scored."""

  def __init__(self, workdir: str, settings: Settings, overrides: Overrides = ()):
    """Raises ValueError for a workdir without a checkpoint, for a network that is quantised, and
    for settings with prompts where the run is on no task.

    overrides: (dotted key, value) pairs that are set in its config first.
    """
    loaded = runs.load(workdir, overrides)
    experiment = loaded.experiment
    if experiment.model.network.quantized is not None:
      raise ValueError(f"{workdir} holds integers already; quantise the run that they were made of")
    if settings.prompts:
      tasks.task_of(loaded)
    merged = linear_maps.plain(experiment.model.network, loaded.params["network"])[1]
    self.settings, self.tokenizer, self.step = settings, experiment.tokenizer, loaded.step
    self.config = ConfigDict(experiment.config.to_dict())
    self.config.model.low_rank = None
    self.config.train.ema_decay = 0.0
    self.experiment = self._built({})
    self.params = {**loaded.params, "network": merged}
    self.reference = scores(Trained(self.experiment, self.params, self.step), settings)
    self._watchers: dict[float | None, Watcher] = {}
    iterator = runs.training_data(self.experiment)[1]
    self._batches: tuple[Batch, ...] = take(
      iterator, -(-settings.rows // self.experiment.train.batch_size)
    )

  def _built(self, integers: dict[str, Any]) -> Experiment:
    config = ConfigDict(self.config.to_dict())
    if integers:
      runs.override(config, [("model.quantized", {"name": "integers", **integers})])
    return build(config, tokenizer=self.tokenizer, devices=jax.devices()[:1])

  def watcher(self, level: float | None) -> Watcher:
    """Calibration at a level, or at all of them (None)."""
    if level not in self._watchers:
      calibration = Calibration(self._batches, level, self.settings.seed)
      self._watchers[level] = Watcher(self.experiment.model, calibration)
    return self._watchers[level]

  def quantized(self, how: How, level: float | None) -> Trained:
    """The network of integers."""
    params = quantized(self.params, how, self.watcher(level))
    return Trained(self._built(dataclasses.asdict(how.options)), params, self.step)

  def line(self, how: How, level: float | None, found: Trained) -> Line:
    """Its line of the table.

    Where only matrices are integers, they are scored as floats of the same values, which is the
    same network and needs no other program.
    """
    network = found.params["network"]
    name = f"{how.method}, {how.options.bits} bits, " + (
      f"groups of {how.options.group}" if how.options.group else "one scale per output"
    )
    name += ", activations of 8 bits" if how.options.symmetric else ""
    at = "—" if how.method in ("nearest", "random") else _level(level)
    scored = found
    if not how.options.symmetric:
      plain = linear_maps.plain(found.experiment.model.network, network)[1]
      scored = Trained(self.experiment, {**found.params, "network": plain}, self.step)
    return line(name, at, self.sizes(network), scores(scored, self.settings), self.reference)

  def float_line(self) -> Line:
    """The line of the float network."""
    size = self.sizes(self.params["network"])
    return line("float32", "—", size, self.reference, self.reference)

  def sizes(self, network: Params) -> tuple[int, int]:
    """(bytes, numbers) of the matrices of the layers; all of them are integers, or none."""
    floats = self.params["network"]
    names = linear_maps.names_of(floats)
    groups = [linear_maps.get(network, name) for name in names]
    stored = [group[NAME] if NAME in group else {"kernel": group["kernel"]} for group in groups]
    numbers = sum(linear_maps.get(floats, name)["kernel"].size for name in names)
    return sum(bytes_of(each) for each in stored), numbers


def _level(level: float | None) -> str:
  return "all times" if level is None else f"t = {level:g}"


def quantize(
  workdir: str, output: str, how: How, settings: Settings, overrides: Overrides = ()
) -> str:
  """A table of the float network, the integers and the control. Writes the workdir of integers.

  Raises:
    ValueError: for an output that holds a run, a workdir without a checkpoint, and a method that
      has no such bits or groups.
  """
  place = check_new(output)
  control = how._replace(method="random", bits=how.options.bits, group=how.options.group)
  control = control._replace(seed=settings.seed)
  bench = Bench(workdir, settings, overrides)
  made = bench.quantized(how, settings.level)
  files = {}
  for name in COPIED:
    source = pathlib.Path(workdir).expanduser() / name
    if source.exists():
      files[name] = source.read_bytes()
  save(made.experiment, made.params, place, files)
  lines = [bench.float_line(), bench.line(how, settings.level, made)]
  lines.append(bench.line(control, None, bench.quantized(control, None)))
  text = f"step {bench.step} of {workdir} in {place}:\n{_shown(lines)}"
  write(place, "quantized", text, lines=[dataclasses.asdict(each) for each in lines])
  return text


def tables(
  workdir: str,
  output: str,
  parts: Sequence[str],
  settings: Settings,
  overrides: Overrides = (),
) -> str:
  """Tables of several methods, written to a folder. parts: of `PARTS`.

  methods: all methods and bits. calibration: all times against one. inputs: the largest input of
  each matrix over the median of its inputs' largest values.

  Raises:
    ValueError: for a part that is unknown.
  """
  wrong = [part for part in parts if part not in PARTS]
  if wrong or not parts:
    raise ValueError(f"--tables={','.join(parts)} must be some of {', '.join(PARTS)}")
  bench = Bench(workdir, settings, overrides)
  lines, texts = [bench.float_line()], []
  if "methods" in parts:
    hows = [How(*each)._replace(seed=settings.seed) for each in TABLE]
    lines += [bench.line(how, None, bench.quantized(how, None)) for how in hows]
  if "calibration" in parts:
    for how in (How("gptq", 3, 64), How("awq", 3, 64)):
      lines += [bench.line(how, at, bench.quantized(how, at)) for at in (None, *LEVELS)]
  if len(lines) > 1:
    texts.append(_shown(lines))
  if "inputs" in parts:
    seen = {at: outliers(bench.watcher(at).statistics(bench.params)) for at in LEVELS}
    texts.append(_outlier_table(seen))
  text = "\n\n".join(texts)
  numbers = [dataclasses.asdict(each) for each in lines]
  write(pathlib.Path(output).expanduser(), "_".join(parts), text, lines=numbers)
  return text


def _shown(lines: Iterable[Line]) -> str:
  rows = [each.cells() for each in lines]
  return markdown((*HEADER, *ANSWERS)[: len(rows[0])], rows, left=(0, 1))


def _outlier_table(seen: dict[float, dict[str, np.ndarray]]) -> str:
  """Largest over median size of the inputs, per matrix, layer and time."""
  header = ("inputs of", *(f"{_level(level)}, by layer" for level in seen))
  names = next(iter(seen.values()))
  rows = [
    (name, *(" ".join(f"{value:.1f}" for value in each[name]) for each in seen.values()))
    for name in names
  ]
  return markdown(header, rows)
