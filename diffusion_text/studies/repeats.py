"""What text is worth that is read again and again: autoregressive and masked models on the same few
characters, for many epochs.

Published (arXiv 2507.15857): where text is short, masked diffusion goes on learning from repeats
long after an autoregressive model has begun to learn them by heart, and ends below it. Repeats are
worth D' = U + U R* (1 - exp(-R / R*)) characters, with U of them different and R epochs after the
first, and the bound falls as E + A / D'^a; R* is the number of repeats after which little is left
to learn, 31 there for autoregressive models and 494 for masked ones.

The bound of a masked model is an upper one, and the autoregressive bound is exact: a masked model
that comes out below is better by at least so much.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.core.options import member, option
from diffusion_text.data.corpora import Austen
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import train_workdir
from diffusion_text.studies.compare import Comparison, config_files
from diffusion_text.studies.measures import check_rising, markdown, write

HEADER = ("characters", "system", "best, bits/char", "after epochs", "last, bits/char")
HEADER = (*HEADER, "last on its own text, bits/char")
TRIED = tuple(np.geomspace(0.5, 50_000, 21).tolist())  # R*, for what the curves allow
TINY = 1e-9  # squares that are rounding, bits² per character


@member
class Settings:
  """How the study is run."""

  characters: tuple[int, ...] = option((10_000, 20_000, 40_000), "of different text, U")
  epochs: int = option(200, "times that each text is read", ge=2)
  evaluations: int = option(50, "of each run, at equal distances", ge=2)
  foretold: int | None = option(
    None, "characters whose crossing is told from all shorter texts; None: of the longest", ge=1
  )


@dataclasses.dataclass(frozen=True)
class Curve:
  """The evaluations of one run, in their order.

  Attributes:
    epochs: Times that the text had been read.
    bounds: Bits per character of validation text.
    errors: Standard errors of the bounds.
    own: Bits per character of the text that is learned, at the same updates.
  """

  epochs: tuple[float, ...]
  bounds: tuple[float, ...]
  errors: tuple[float, ...]
  own: tuple[float, ...]

  @property
  def best(self) -> int:
    """The number of the lowest evaluation."""
    return int(np.argmin(self.bounds))


@dataclasses.dataclass(frozen=True)
class Law:
  """What a bound falls to by text and repeats.

  Attributes:
    floor: E, bits per character.
    scale: A.
    power: a.
    repeats: R*, after which repeats are worth little.
  """

  floor: float
  scale: float
  power: float
  repeats: float

  def bound(
    self, unique: float | Float[np.ndarray, " n"], epochs: float | Float[np.ndarray, " n"]
  ) -> float | Float[np.ndarray, " n"]:
    """Bits per character after so many epochs of so many characters."""
    again = np.maximum(np.subtract(epochs, 1.0), 0.0)
    worth = unique * (np.minimum(epochs, 1.0) - self.repeats * np.expm1(-again / self.repeats))
    return self.floor + self.scale * worth**-self.power


def points_of(curves: Mapping[int, Curve]) -> list[tuple[int, float, float]]:
  """(U, epochs, bound) of the evaluations of each curve up to its best.

  curves: U -> the curve of one system.
  """
  return [
    (unique, epochs, bound)
    for unique, curve in curves.items()
    for epochs, bound in list(zip(curve.epochs, curve.bounds))[: curve.best + 1]
  ]


def nearest(
  points: Sequence[tuple[int, float, float]], repeats: float | None = None
) -> tuple[Law, float]:
  """(the law that is nearest to the points in squares, the sum of these squares).

  Args:
    points: (U, epochs, bound).
    repeats: R* of the law; None: it is found like the other three numbers.
  """
  from scipy.optimize import least_squares  # here, because it is slow to import

  unique, epochs, bounds = np.array(points, float).T
  lowest = float(bounds.min())

  def law(x: np.ndarray) -> Law:
    found = math.exp(x[3]) if repeats is None else repeats
    return Law(lowest / (1 + math.exp(-x[0])), math.exp(x[1]), math.exp(x[2]), found)

  def away(x: np.ndarray) -> Float[np.ndarray, " n"]:
    return law(x).bound(unique, epochs) - bounds

  limits = np.array([[-8.0, -20.0, -5.0, -2.0], [8.0, 20.0, 1.5, 12.0]])
  if repeats is None:
    starts = [(0.0, 2.0, -1.0, start) for start in (1.0, 3.5, 6.0)]
  else:
    limits, starts = limits[:, :3], [(0.0, 2.0, -1.0)]
  found = [least_squares(away, start, bounds=limits) for start in starts]
  best = min(found, key=lambda each: each.cost)
  return law(best.x), 2 * float(best.cost)


def fitted(curves: Mapping[int, Curve]) -> Law | None:
  """The law that is nearest to the curves in squares, each up to its best evaluation. None: these
  are fewer than five, while the law has four numbers, or there is one text only.

  curves: U -> the curve of one system.
  """
  points = points_of(curves)
  return None if len(points) < 5 or len(curves) < 2 else nearest(points)[0]


def plausible(curves: Mapping[int, Curve]) -> tuple[float, float]:
  """(least, largest) R* among TRIED with which, the other three numbers refitted, the squares are
  at most 1 + 4 / (n - 4) times the least, for n evaluations: two standard errors if evaluations
  were wrong independently of each other, which those of one run are not. 0 or inf: also the
  smallest, or the largest, that is tried.

  curves: those of a system that has a law.
  """
  points = points_of(curves)
  best, least = nearest(points)
  allowed = least * (1 + 4 / (len(points) - 4)) + TINY
  near = [each for each in TRIED if nearest(points, each)[1] <= allowed]
  low, high = min([best.repeats, *near]), max([best.repeats, *near])
  return 0.0 if low <= TRIED[0] else low, math.inf if high >= TRIED[-1] else high


def without_one(curves: Mapping[int, Curve]) -> dict[int, float]:
  """U -> R* of the law of all other texts, where they have one."""
  laws = {u: fitted({v: c for v, c in curves.items() if v != u}) for u in curves}
  return {unique: law.repeats for unique, law in laws.items() if law is not None}


def crossing(first: Curve, second: Curve) -> float | None:
  """The epochs from which on the lowest bound so far of `second` is that of `first` or below; the
  logarithm of the epochs is a line between two evaluations. None: it is above at the last one.
  """
  ahead = np.minimum.accumulate(second.bounds) - np.minimum.accumulate(first.bounds)
  above = np.flatnonzero(ahead > 0)
  if not len(above):
    return first.epochs[0]
  place = int(above[-1]) + 1
  if place == len(ahead):
    return None
  share = ahead[place - 1] / (ahead[place - 1] - ahead[place])
  earlier, later = np.log(first.epochs[place - 1 : place + 1])
  return float(np.exp(earlier + share * (later - earlier)))


def predicted(crossings: Mapping[int, float], unique: int) -> float | None:
  """The epochs of the crossing with another U, by a power law through the given ones. None: fewer
  than two are given.
  """
  if len(crossings) < 2:
    return None
  power, start = np.polyfit(np.log(list(crossings)), np.log(list(crossings.values())), 1)
  return float(np.exp(start + power * np.log(unique)))


def law_crossing(first: Law, second: Law, unique: float, most: float = 1e5) -> float | None:
  """The epochs from which on one law is below another, up to `most`; None: it is above there."""
  epochs = np.geomspace(1.0, most, 20_001)
  above = np.flatnonzero(second.bound(unique, epochs) > first.bound(unique, epochs))
  place = int(above[-1]) + 1 if len(above) else 0
  return None if place == len(epochs) else float(epochs[place])


def text_of(folder: pathlib.Path, characters: int) -> pathlib.Path:
  """A folder with the first characters of the bundled novels, and their held-out parts.

  Raises:
    ValueError: If there is less text.
  """
  corpus = Austen()
  for split in ("train", "validation", "test"):
    text = "\n".join(corpus.documents(split))
    if split == "train":
      if characters > len(text):
        raise ValueError(f"characters={characters}: the bundled text has {len(text)}; use fewer")
      text = text[:characters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text(text)
  return folder


def steps_of(characters: int, epochs: float, config: ConfigDict) -> int:
  """The updates that read so many characters so many times; a token is a byte."""
  return max(1, round(characters * epochs / (config.train.batch_size * config.data.length)))


def config_of(
  system: str,
  base: ConfigDict,
  files: Mapping[str, pathlib.Path],
  text: pathlib.Path,
  steps: int,
  evaluations: int,
) -> ConfigDict:
  """The config of a run: the base on the text of a folder, and what the system owns, which are also
  the values that its name gives, as in autoregressive@model.dropout=0.1.
  """
  shared = ConfigDict(base.to_dict())
  shared.data.update({"corpus": "folder", "path": str(text), "tokenizer": "bytes"})
  shared.data.vocab_size = None
  config, _ = Comparison(text, shared, files, steps=steps).system(system)
  config.train.update({"steps": steps, "save_every": steps, "keep": 1, "log_every": 1})
  config.train.evaluate_every = max(1, steps // evaluations)
  return config


def measure(config: ConfigDict, workdir: pathlib.Path, epoch: float) -> Curve:
  """Trains a run, or goes on with it, and returns its evaluations.

  Args:
    config: Of the run.
    workdir: Of the run.
    epoch: Updates of one epoch.

  Raises:
    SystemExit: If training was stopped, with the exit code of the loop.
  """
  result = train_workdir(build(config), str(workdir), terminal=False)
  if result.status != "finished":
    raise SystemExit(result.exit_code)
  rows = train.read_metrics(workdir)
  name, every = "validation_bits_per_character", config.train.evaluate_every
  scored = {row["step"]: row for row in rows if row["step"] and name in row}
  learned = {row["step"]: row["bound"] / math.log(2) for row in rows if "bound" in row}
  # The mean over the updates since the last evaluation, as one batch is little text.
  own = [[learned[s] for s in learned if step - every < s <= step] for step in scored]
  return Curve(
    epochs=tuple(step / epoch for step in scored),
    bounds=tuple(row[name] for row in scored.values()),
    errors=tuple(row[f"{name}_error"] for row in scored.values()),
    own=tuple(float(np.mean(each)) for each in own),
  )


def lines(curves: Mapping[str, Mapping[int, Curve]]) -> list[tuple[str, ...]]:
  """The cells of the table, one line for each U and system."""
  found = []
  for unique in next(iter(curves.values())):
    for system, each in curves.items():
      curve = each[unique]
      best, cell = curve.best, f"{curve.bounds[curve.best]:.3f} ± {curve.errors[curve.best]:.3f}"
      last = (f"{curve.bounds[-1]:.3f} ± {curve.errors[-1]:.3f}", f"{curve.own[-1]:.3f}")
      found.append((f"{unique:,}", system, cell, f"{curve.epochs[best]:.1f}", *last))
  return found


def law_line(curves: Mapping[int, Curve]) -> str:
  """What the law of a system says, and how firmly the curves say it."""
  law = fitted(curves)
  if law is None:
    return "too few texts, or evaluations before the best, for a law"
  low, high = plausible(curves)
  unique, epochs, bounds = np.array(points_of(curves)).T
  away = float(np.sqrt(np.mean((law.bound(unique, epochs) - bounds) ** 2)))
  text = f"E = {law.floor:.2f}, A = {law.scale:.3g}, a = {law.power:.2f}, {away:.3f} bits away on"
  text += f" average, R* = {law.repeats:.3g} ({low:.3g} to {high:.3g} fit about as well)"
  others = [f"{each:.3g} without U = {u:,}" for u, each in without_one(curves).items()]
  return "; R* = ".join([text, *others])


def crossing_line(
  first: Mapping[int, Curve], second: Mapping[int, Curve], foretold: int | None
) -> str:
  """After how many epochs `second` is below `first` with each text, and what follows for `foretold`
  characters, or for the longest text, from the texts that are shorter.
  """
  places = {each: crossing(first[each], curve) for each, curve in second.items()}
  said = ", ".join(f"U = {u:,}: {epochs_of(at)}" for u, at in places.items())
  asked = max(places) if foretold is None else foretold
  shorter = [each for each in places if each < asked]
  known = {each: places[each] for each in shorter if places[each] is not None}
  guesses = {}
  if len(known) > 1:
    guesses["a power law of their crossings"] = predicted(known, asked)
  laws = [fitted({each: curves[each] for each in shorter}) for curves in (first, second)]
  if None not in laws:
    guesses["their two laws"] = law_crossing(*laws, asked)
  found = ", ".join(f"{epochs_of(at)} by {how}" for how, at in guesses.items())
  return f"{said}; for U = {asked:,} from shorter texts {found}" if found else said


def epochs_of(at: float | None) -> str:
  """The cell of a crossing."""
  return "never" if at is None else f"{at:.3g}"


def report(curves: Mapping[str, Mapping[int, Curve]], foretold: int | None = None) -> str:
  """The table, what the law says of each system, and where each other system crosses the first,
  and is told to cross it with `foretold` characters.
  """
  parts = [markdown(HEADER, lines(curves), left=(1,))]
  parts += [f"{system}: {law_line(each)}" for system, each in curves.items()]
  (first, own), *others = curves.items()
  for system, each in others:
    said = crossing_line(own, each, foretold)
    parts.append(f"{system} is below {first} after epochs: {said}")
  return "\n\n".join(parts)


def run(
  settings: Settings,
  systems: Sequence[str],
  base: ConfigDict,
  configs: pathlib.Path,
  workdir: pathlib.Path,
) -> str:
  """Trains every system on every text, the short texts first, and returns the report, which is
  written to repeats.md and repeats.json too.

  Args:
    settings: How much text, and for how long.
    systems: Names of configs, with values after @; the first is what the others are held against.
    base: What all share.
    configs: The folder of configs.
    workdir: Where everything is written. A run that was stopped goes on.

  Raises:
    ValueError: For unknown names and values, and for numbers of characters that do not rise,
      before anything is trained.
  """
  check_rising("characters", settings.characters, "10000,20000")
  files = config_files(systems, configs)
  runs = []
  for characters in settings.characters:
    text = text_of(workdir / f"text_{characters}", characters)
    steps = steps_of(characters, settings.epochs, base)
    for system in files:
      config = config_of(system, base, files, text, steps, settings.evaluations)
      build(config)  # refuses now what would be refused later
      runs.append((system, characters, config, workdir / f"{system}_{characters}"))
  curves: dict[str, dict[int, Curve]] = {system: {} for system in files}
  for system, characters, config, where in runs:
    curves[system][characters] = measure(config, where, config.train.steps / settings.epochs)
  text = report(curves, settings.foretold)
  plain = {s: {u: dataclasses.asdict(c) for u, c in each.items()} for s, each in curves.items()}
  write(workdir, "repeats", text, curves=plain)
  return text
