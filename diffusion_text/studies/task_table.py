"""Configs × tasks × seeds: every system is trained on every task, and one table says how well it
answers, beside baselines that need no training. A task is any exam of `studies.exams`.

Each cell runs in a process of its own and leaves `results.json` (or `failed.json`) in a directory
of its own, so a table that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment, build, config_json
from diffusion_text.experiment.run import checkpoints, load, train_workdir
from diffusion_text.studies import compare, exams
from diffusion_text.studies.exam_contract import Exam, How
from diffusion_text.studies.jobs import core_groups, leave_accelerator, run_all
from diffusion_text.studies.task_report import write_table
from diffusion_text.train.multihost import is_alone
from diffusion_text.types import Sampler

BASELINE = "autoregressive"  # of the same size and tokens, in every table
EVALUATIONS = 5  # times that a cell is scored on validation rows, and saved, during its training


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training.

  Attributes:
    task: The name of the task.
    system: The name of the config.
    seed: Of the run.
  """

  task: str
  system: str
  seed: int

  @property
  def name(self) -> str:
    """The directory of the cell within the workdir."""
    return f"{self.task}/{self.system}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class TaskTable:
  """The cells of a table, and how each is trained and scored.

  Attributes:
    workdir: Where the cells and the table are written.
    base: What all systems share. Of its data section prompts with answers read cache_dir alone.
    files: Name -> config file. The autoregressive model is added if it is not there.
    tasks: Name -> options of the task.
    seeds: How many seeds, from that of the base on.
    steps: Training steps of each cell.
    calls: Network calls for an answer, if the sampler has a number of steps to set.
    num_prompts: Test prompts that are answered, at most.
    mbr: Numbers of samples that an answer is chosen from, see `exam_contract.How`.
    num_draws: Draws of the bound for each test row.
    max_rows: Test rows that are scored by the bound.
  """

  workdir: pathlib.Path
  base: ConfigDict
  files: Mapping[str, pathlib.Path]
  tasks: Mapping[str, Mapping[str, Any]]
  steps: int
  seeds: int = 1
  calls: int = 32
  num_prompts: int = 100
  mbr: tuple[int, ...] = (1,)
  num_draws: int = 2
  max_rows: int = 256

  def __post_init__(self):
    for name in ("steps", "seeds", "calls", "num_prompts", "num_draws", "max_rows"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if not self.tasks:
      raise ValueError("--tasks is empty; --tasks=? lists the names")
    How(mbr=self.mbr)  # refuses what would be refused later

  @property
  def cells(self) -> dict[str, Cell]:
    """Every cell by its name, task after task, seed after seed."""
    first = self.base.seed
    listed = [
      Cell(task, system, seed)
      for task in self.tasks
      for seed in range(first, first + self.seeds)
      for system in self.files
    ]
    return {cell.name: cell for cell in listed}

  @property
  def how(self) -> How:
    """How much is asked of each system."""
    return How(num=self.num_prompts, mbr=self.mbr)

  def exam(self, name: str) -> Exam:
    """The exam of a name. Raises ValueError for an unknown name or option."""
    return exams.made(name, self.tasks[name])

  def config(self, cell: Cell) -> ConfigDict:
    """The config of a cell: the base with what the system owns, on the task, with the seed.

    Raises:
      ValueError: For a file that gives no config.
    """
    shared = ConfigDict(self.base.to_dict())
    shared.data = ConfigDict(self.exam(cell.task).data(self.base.data.to_dict()))
    merged, _ = compare.Comparison(self.workdir, shared, self.files, steps=self.steps).system(
      cell.system
    )
    merged.seed = cell.seed
    often = max(self.steps // EVALUATIONS, 1)
    merged.train.update({"steps": self.steps, "keep": 1, "save_every": often})
    merged.train.evaluate_every = often  # for `experiments.costs`
    return merged

  def claim(self) -> None:
    """Checks every cell, and writes the choices of the table to the workdir. More tasks, systems
    and seeds may be added later.

    Raises:
      ValueError: If the workdir holds another table or results of a cell whose config has changed,
        or if a system cannot be trained on a task.
    """
    refused = []
    for name, cell in self.cells.items():
      config = self.config(cell)  # reads the file of the system, and the task
      if (self.workdir / name / "results.json").exists():
        train.check_workdir(str(self.workdir / name), config_json(config), ("train",), write=False)
      elif cell.seed == self.base.seed:  # a system fits a task with all seeds or with none
        try:
          self.exam(cell.task).check(build(config))
        except ValueError as error:
          refused.append(f"{cell.system} on {cell.task}: {error}")
    if refused:
      raise ValueError(
        f"leave systems out of --configs, or tasks out of --tasks: {'; '.join(refused)}"
      )
    chosen = ("steps", "calls", "num_prompts", "mbr", "num_draws", "max_rows")
    everything = {name: getattr(self, name) for name in chosen}
    everything["base"] = json.loads(config_json(self.base))
    train.check_workdir(str(self.workdir), json.dumps(everything))

  def run_one(self, name: str) -> None:
    """Measures one cell in this process: results.json, or failed.json with the reason."""
    directory = self.workdir / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "failed.json").unlink(missing_ok=True)
    try:
      found = measure(self, self.cells[name])
      compare.write(directory / "results.json", json.dumps(found, indent=2))
    except Exception as error:
      why = f"{type(error).__name__}: {error}"
      compare.write(directory / "failed.json", json.dumps({"error": why}))
      raise

  def run_all(self, command: Sequence[str], jobs: int, shown: str) -> tuple[str, Mapping[str, str]]:
    """(the tables as markdown, what failed and why) of all cells, see `Comparison.run_all`.

    Raises ValueError for several processes, which answer no prompts together.
    """
    core_groups(jobs)  # refused now, if there are too few
    leave_accelerator()
    if not is_alone():
      raise ValueError(
        f"--tasks is answered by one process, and this run has {jax.process_count()}; start it"
        " once, as in srun --ntasks=1"
      )
    self.claim()
    names = list(self.cells)
    failed = run_all(names, self.workdir, lambda name: [*command, f"--only={name}"], jobs)
    return report(self, failed, shown), failed


def of_flags(
  names: Sequence[str],
  options: Sequence[str],
  systems: Sequence[str],
  configs: pathlib.Path,
  calls: Sequence[str],
  budget: float | None,
  mbr: Sequence[str] = ("1",),
  **choices: Any,
) -> TaskTable:
  """The table that a command line asks for.

  Args:
    names: Tasks.
    options: Options of tasks, as in "countdown3.train_size=5000".
    systems: Names or paths of configs; the autoregressive baseline is added.
    configs: The folder of configs.
    calls: One number, as text.
    budget: Must be None: tasks are compared at equal steps.
    mbr: Numbers of samples, as text.
    **choices: Attributes of `TaskTable`; those that are None have their default.

  Raises:
    ValueError: For several numbers of calls, a budget, no steps, an option of no task, and unknown
      names.
  """
  if len(calls) != 1:
    raise ValueError(f"--calls={','.join(calls)} with --tasks; give one number")
  if budget is not None or choices.get("steps") is None:
    raise ValueError("--tasks compares at equal updates; give --steps, and no --budget")
  sections: dict[str, dict[str, Any]] = {name: {} for name in names}
  for text in options:
    name, _, option = text.partition(".")
    if name not in sections:
      raise ValueError(f"--task_option={text} is of no task of --tasks={','.join(names)}")
    key, value = registry.named_value(option, "task_option")
    sections[name][key] = value
  chosen = systems if BASELINE in systems else [*systems, BASELINE]
  files = compare.config_files(chosen, configs)
  kept = {name: value for name, value in choices.items() if value is not None}
  samples = tuple(map(int, mbr))
  return TaskTable(files=files, tasks=sections, calls=int(calls[0]), mbr=samples, **kept)


def sampler_with(experiment: Experiment, calls: int) -> Sampler:
  """The system's own sampler with as many network calls per answer as may be set; calls are shared
  out over blocks."""
  unit = experiment.model.context.unit
  blocks = 1 if unit is None else -(-experiment.data.length // unit)
  section = experiment.config.sampler.to_dict()
  if registry.counts_steps("sampler", section):
    section = registry.with_steps("sampler", section, max(1, calls // blocks))
  return registry.construct("sampler", section)


def measure(table: TaskTable, cell: Cell) -> dict[str, Any]:
  """Trains a cell (or goes on with it), scores the bound of the test answers and the answers.

  Raises SystemExit with the loop's exit code if training was stopped, and what training raises.
  """
  directory = str(table.workdir / cell.name)
  experiment = build(table.config(cell))
  done = train.latest_step(checkpoints(directory))
  before = (0.0, 0.0) if done is None else compare.used(train.read_metrics(directory), done)
  result = train_workdir(
    experiment, directory, terminal=False, wrap_step=lambda step: compare.metered(step, *before)
  )
  if result.status != "finished":
    raise SystemExit(result.exit_code)
  trained = load(directory)
  numbers, text = exams.measured(
    table.exam(cell.task),
    trained,
    table.how,
    seed=cell.seed,
    sampler=sampler_with(trained.experiment, table.calls),
    num_draws=table.num_draws,
    max_rows=table.max_rows,
  )
  (table.workdir / cell.name / "answers.txt").write_text(text + "\n")
  cpu, wall = compare.used(train.read_metrics(directory), table.steps)
  return {
    **dataclasses.asdict(cell),
    **numbers,
    "steps": table.steps,
    "rows": table.steps * experiment.train.batch_size,
    "train_cpu_seconds": cpu,
    "train_wall_seconds": wall,
  }


def baseline_rows(table: TaskTable) -> list[dict[str, Any]]:
  """Rows of the baselines of every task, kept in the workdir as they are made."""
  rows = []
  for name, options in table.tasks.items():
    path = table.workdir / name / "baselines.json"
    key = json.dumps([table.num_prompts, dict(options)], default=str)
    cell = next(cell for cell in table.cells.values() if cell.task == name)
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("key") != key:
      make = functools.partial(build, table.config(cell))
      made = table.exam(name).baselines(table.how, make)
      found = [
        {"task": name, "system": system, "scores": {n: list(s) for n, s in scores.items()}}
        for system, scores in made.items()
      ]
      kept = {"key": key, "rows": found}
      path.parent.mkdir(parents=True, exist_ok=True)
      compare.write(path, json.dumps(kept, indent=2))
    rows += kept["rows"]
  return rows


def report(table: TaskTable, failed: Mapping[str, str], command: str) -> str:
  """Writes tasks.md, tasks.csv and tasks.png in the workdir; returns the markdown.

  failed: name of a cell -> reason; command: how it was run.
  """
  names = [name for name in table.cells if name not in failed]
  paths = [table.workdir / name / "results.json" for name in names]
  rows = [row for path in paths for row in exams.lines(json.loads(path.read_text()))]
  taken = {name: table.exam(name) for name in table.tasks}
  columns = {name: exam.columns for name, exam in taken.items()}
  settings = {
    "steps": table.steps,
    "batch_size": table.base.train.batch_size,
    "seeds": table.seeds,
    "calls": table.calls,
    "legends": dict.fromkeys(exam.legend(table.how) for exam in taken.values()),
  }
  return write_table(
    table.workdir, rows, baseline_rows(table), columns, dict(failed), command, settings
  )
