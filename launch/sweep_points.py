"""The points of a sweep: their names, commands, records on disk and the table of their metrics.

Standard library only, like the scripts.
"""

import csv
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import subprocess

RECORDS = "sweep.jsonl"
HANDED_OVER = "handed over"  # in place of an exit code: another script has taken the run


@dataclasses.dataclass(frozen=True)
class Point:
  """One combination of values.

  Attributes:
    values: (flag without dashes, value) in the order of the grid.
    name: Of its workdir, as in seed=0,learning_rate=1e-3.
    command: What is run for it.
    workdir: Where its run is kept.
  """

  values: tuple[tuple[str, str], ...]
  name: str
  command: list[str]
  workdir: str


def points(workdir, grid, command):
  """All combinations of a grid, the last flag fastest.

  Args:
    workdir: The folder of the sweep, also on a network (gs://…).
    grid: Lists [flag, value, value, …].
    command: What is run, without --workdir and without the flags of the grid.

  Raises:
    ValueError: for a flag without values or given twice, flags of the command that the sweep sets,
      and two combinations with one name.
  """
  flags = [row[0] for row in grid]
  for flag, *values in grid:
    if not values:
      raise ValueError(f"--grid {flag} has no values; use --grid {flag} VALUE VALUE")
    if flag.startswith("-") or "=" in flag:
      raise ValueError(f"--grid {flag}: give the flag without dashes and '=', then its values")
    if flags.count(flag) > 1:
      raise ValueError(f"--grid {flag} is given twice; name all its values at once")
  for flag in ("workdir", *flags):
    given = [word for word in command if word == f"--{flag}" or word.startswith(f"--{flag}=")]
    if given:
      raise ValueError(f"{given[0]} is set by the sweep for every run; remove it from the command")
  result = []
  for chosen in itertools.product(*(row[1:] for row in grid)):
    values = tuple(zip(flags, chosen))
    name = ",".join(f"{flag.rpartition('.')[2]}={in_a_name(value)}" for flag, value in values)
    place = f"{workdir.rstrip('/')}/{name}"
    settings = [f"--{flag}={value}" for flag, value in values]
    result.append(Point(values, name, [*command, *settings, f"--workdir={place}"], place))
  names = [point.name for point in result]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"two runs of the grid would be called {twice[0]}; use values that differ")
  return result


def in_a_name(value):
  """A value as it stands in the name of a folder."""
  return "".join(c if c.isalnum() or c in ".+-" else "_" for c in value)


class Records:
  """Which points have ended with which exit code, in a file of one line per end."""

  def __init__(self, folder):
    self.path = pathlib.Path(folder) / RECORDS
    self.codes = {}  # name -> (command, exit code) of the last end
    for number, line in enumerate(self._lines(), start=1):
      try:
        row = json.loads(line)
        self.codes[row["name"]] = (row["command"], row["code"])
      except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
          f"{self.path}:{number} is no record of a run: {line[:80]!r}; delete that line"
        ) from error

  def _lines(self):
    """The lines that are whole: the last one of a sweep that was killed may not be."""
    text = self.path.read_text() if self.path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()

  def code(self, point):
    """The exit code of a point, or HANDED_OVER; None if this command has not ended."""
    command, code = self.codes.get(point.name, (None, None))
    return code if command == point.command else None

  def done(self, point):
    """True for a point that has finished or was handed over."""
    return self.code(point) in (0, HANDED_OVER)

  def add(self, point, code):
    """Writes down that a point has ended, or was handed over."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    text = self.path.read_text() if self.path.exists() else ""
    if text and not text.endswith("\n"):
      self.path.write_text(text[: text.rfind("\n") + 1])
    with self.path.open("a") as file:
      file.write(json.dumps({"name": point.name, "command": point.command, "code": code}) + "\n")
    self.codes[point.name] = (point.command, code)


def metrics(workdir):
  """The text of metrics.jsonl of a run, empty if there is none. gs:// is read by gcloud."""
  if "://" not in workdir:
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return path.read_text() if path.exists() else ""
  command = ["gcloud", "storage", "cat", f"{workdir}/metrics.jsonl"]
  return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def last_values(workdir, metric):
  """(step, value, standard error) of the last row of a run's metrics.jsonl that has the metric.

  None for what is not there.
  """
  last = (None, None, None)
  for line in metrics(workdir).splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that is being written
      continue
    if metric in row:
      last = (row["step"], row[metric], row.get(f"{metric}_error"))
  return last


def over_seeds(rows, flags, seed):
  """Rows (values…, runs, mean, standard error) of the rows that differ in the seed only.

  The standard error is None for one run.
  """
  groups = {}
  for values, _, value, _ in rows:
    if value is not None:
      key = tuple(values[flag] for flag in flags if flag != seed)
      groups.setdefault(key, []).append(value)
  result = []
  for key, found in groups.items():
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    result.append((*key, len(found), statistics.fmean(found), error))
  return result


def shown(value):
  """A cell of a table."""
  if value is None:
    return "–"
  return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(head, rows):
  """Lines of a markdown table."""
  lines = [head, ["---"] * len(head), *([shown(value) for value in row] for row in rows)]
  return [f"| {' | '.join(line)} |" for line in lines]


def report(runs, records, metric, seed):
  """(lines of text, rows for a file) with the last value of a metric of each run, and with the
  metric's own standard error where the run wrote one.

  Args:
    runs: All points.
    records: Their exit codes.
    metric: A name in metrics.jsonl.
    seed: The flag over whose values a second table takes means, if the grid has it.
  """
  flags = [flag for flag, _ in runs[0].values]
  found = [(dict(point.values), *last_values(point.workdir, metric)) for point in runs]
  codes = {None: "not ended", 0: "finished", HANDED_OVER: HANDED_OVER}
  ends = [codes.get(code := records.code(point), f"exit code {code}") for point in runs]
  head = [*flags, "run", "step", metric, "its standard error"]
  rows = [(*values.values(), end, *last) for (values, *last), end in zip(found, ends)]
  lines = table(head, rows)
  if seed in flags:
    others = [flag for flag in flags if flag != seed]
    means = over_seeds(found, flags, seed)
    lines += ["", *table([*others, "runs", f"mean of {metric}", "error over seeds"], means)]
  return lines, [head, *rows]


def write(folder, lines, rows):
  """Writes table.md and table.csv."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "table.md").write_text("\n".join(lines) + "\n")
  with (folder / "table.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)
