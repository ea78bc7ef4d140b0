"""A comparison of systems that are trained on the same corpus with the same tokenizer, network,
batches, optimizer and seed, as one table and one plot.

Each system runs in a process of its own, which leaves `results.json` (or `failed.json`) in a
directory of its own. So the memory, compiled code and CPU time of one run never count in another,
and a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import runpy
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_text import train
from diffusion_text.data.pipeline import evaluation_batches
from diffusion_text.data.token_arrays import token_arrays
from diffusion_text.data.tokenizers import tokenizer_from_bytes
from diffusion_text.experiment import registry
from diffusion_text.experiment import summary as plan
from diffusion_text.experiment.build import Experiment, build, config_json
from diffusion_text.experiment.run import (
  Trained,
  checkpoints,
  generate,
  load,
  open_rows,
  override,
  read_run_config,
  score,
  train_workdir,
)
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.studies.benchmark import hardware
from diffusion_text.studies.bound_variance import chosen_decoding
from diffusion_text.studies.comparison import caption, notes, plot, quality, table
from diffusion_text.studies.jobs import core_groups, leave_accelerator, run_all, run_together
from diffusion_text.train.multihost import everywhere, is_alone, is_first
from diffusion_text.train.workdir import flatten
from diffusion_text.types import Batch

FEWEST_STEPS = 20  # below this a budget trains nothing
MARK = "@"  # between the name of a config and the values in which a system differs from it


def config_files(names: Sequence[str], directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> config file, for names of files in `directory` and paths of any other files. Each may
  have values behind it that differ from the file's, as in mdm@objective.focusing=0, which are part
  of its name. Raises ValueError for a name that is unknown or given twice, and for no names at all.
  """
  known = {
    path.stem: path
    for path in sorted(directory.glob("*.py"))
    if path.stem not in ("__init__", "base")
  }
  files: dict[str, pathlib.Path] = {}
  for system in names:
    name, *values = system.split(MARK)
    path = known.get(name, pathlib.Path(name))
    if name not in known and not (path.suffix == ".py" and path.is_file()):
      raise ValueError(
        f"--configs: {name!r} is unknown{registry.nearest(name, known)}; use some of"
        f" {', '.join(known)}, or the path of a config file"
      )
    own = MARK.join([path.stem, *values])
    if own in files:
      raise ValueError(f"--configs has {own!r} twice; each needs a name of its own")
    files[own] = path
  if not files:
    raise ValueError(f"--configs is empty; use some of {', '.join(known)}")
  return files


def merge(base: ConfigDict, system: ConfigDict) -> ConfigDict:
  """The base with the sections and keys that the system owns (`config.owns`, see configs/base.py).

  Raises:
    ValueError: for a key that the system says to own and does not have.
  """
  merged, own = ConfigDict(base.to_dict()), ConfigDict(system.to_dict())
  for key in system.owns:
    section, _, rest = key.partition(".")
    if section not in own or (rest and rest not in own[section]):
      raise ValueError(f"config.owns names {key!r}, which the config does not have")
    if rest:
      merged[section][rest] = own[section][rest]
    else:
      merged[section] = own[section]
  merged.owns = system.owns
  return merged


def is_own(key: str, owns: Sequence[str]) -> bool:
  """True if a dotted config key comes from the system rather than from the base."""
  return key == "owns" or any(key == name or key.startswith(f"{name}.") for name in owns)


def set_aside(system: ConfigDict, defaults: ConfigDict, merged: ConfigDict) -> dict[str, Any]:
  """Dotted key -> value, for what the file of a system sets and the comparison replaces by a value
  of the base. The report lists these keys.
  """
  theirs, usual, ours = (
    flatten(json.loads(config_json(config))) for config in (system, defaults, merged)
  )
  return {
    key: value
    for key, value in theirs.items()
    if not is_own(key, system.owns) and value != usual.get(key) and value != ours.get(key)
  }


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Which systems are compared, and how they are trained, scored and sampled.

  Attributes:
    workdir: Where everything is written.
    base: The config of which all systems take what they do not own.
    files: Name of a system -> its config file.
    budget: CPU-seconds that each system is trained for; None if `steps` is given.
    steps: Training steps of each system; None if `budget` is given.
    calls: Each number of network calls with which samples are drawn.
    num_samples: Samples that are drawn for each number of calls.
    num_draws: Draws of time and noise for each row of the test split that is scored.
    max_rows: Rows of the test split that are scored; None: all.

  Raises:
    ValueError: For values with which nothing can be compared.
  """

  workdir: pathlib.Path
  base: ConfigDict
  files: Mapping[str, pathlib.Path]
  budget: float | None = None
  steps: int | None = None
  calls: tuple[int, ...] = (8, 32, 128)
  num_samples: int = 16
  num_draws: int = 2
  max_rows: int | None = None

  def __post_init__(self):
    if (self.budget is None) == (self.steps is None):
      raise ValueError(
        f"budget={self.budget} and steps={self.steps}: give one, CPU-seconds or training steps of"
        f" each system"
      )
    for name, value in self.choices.items():
      if name != "calls" and value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
    for name in ("max_seconds", "restore_from"):
      if (value := self.base.train.get(name)) is not None:
        raise ValueError(
          f"base.train.{name}={value!r} would make the training of the systems unequal; leave it"
          f" None"
        )
    if not self.calls or min(self.calls) < 1:
      raise ValueError(
        f"calls={self.calls} must be network calls, each at least 1, such as 8,32,128"
      )

  @property
  def choices(self) -> dict[str, Any]:
    """Name -> value of every choice that changes results, besides the base. A workdir holds the
    results of one set of choices only.
    """
    return {
      "budget": self.budget,
      "steps": self.steps,
      "calls": self.calls,
      "num_samples": self.num_samples,
      "num_draws": self.num_draws,
      "max_rows": self.max_rows,
    }

  @property
  def amount(self) -> str:
    """How long each system is trained, as a phrase of the report."""
    return (
      f"about {self.budget:g} CPU-seconds of training each"
      if self.steps is None
      else f"{self.steps} training steps each"
    )

  def system(self, name: str) -> tuple[ConfigDict, dict[str, Any]]:
    """(merged config, what of the system's file is set aside). A file may have a function
    `fit_to_size(config)`, which is called once the sizes are those of the base. The values of the
    name come last, and are the system's own. Raises ValueError for a file that gives no config, and
    for a value of no section.
    """
    path = self.files[name]
    try:
      module = runpy.run_path(str(path))
      system = module["get_config"]()
      merged = merge(self.base, system)
      if "fit_to_size" in module:  # what a system owns may depend on the sizes of the base
        module["fit_to_size"](merged)
    except Exception as error:
      raise ValueError(
        f"{path} gives no config ({type(error).__name__}: {error}); see configs/mdlm.py for what"
        f" one is"
      ) from error
    usual = module["base"].config() if "base" in module else self.base
    aside = set_aside(system, usual, merged)
    values = [registry.named_value(value, "configs") for value in name.split(MARK)[1:]]
    override(merged, values)
    merged.owns = (*merged.owns, *(key for key, _ in values))
    return merged, aside

  def claim(self, *, write: bool = True) -> None:
    """Raises ValueError if the workdir holds another comparison, or results of a system whose
    config has changed since.
    """
    for name in self.files:
      merged, _ = self.system(name)  # every file is read now, before any compute
      if (self.workdir / name / "results.json").exists():
        train.check_workdir(str(self.workdir / name), config_json(merged), ("train",), write=False)
    everything = json.dumps({**self.choices, "base": json.loads(config_json(self.base))})
    train.check_workdir(str(self.workdir), everything, write=write)

  def run_one(self, name: str) -> None:
    """Measures one system in this process, as the function `run_one` does."""
    run_one(self, name)

  def run_all(self, command: Sequence[str], jobs: int, shown: str) -> tuple[str, Mapping[str, str]]:
    """(the table as markdown, what failed and why) of all systems, each in a process of its own; or
    by all processes of this run together, one system after the other.

    command: of such a process, to which --only is added; jobs: processes at a time; shown: the
    command of the whole, for the table.

    Raises ValueError for more jobs than cores, and for a budget of several processes.
    """
    core_groups(jobs)  # refused now, if there are too few
    leave_accelerator()
    if not is_alone() and self.budget is not None:
      raise ValueError(
        f"--budget={self.budget:g} counts the CPU time of one process, and this run has"
        f" {jax.process_count()}; use --steps"
      )
    self.claim(write=False)
    corpus = corpus_quality(self)
    self.claim()
    names = list(self.files)
    if is_alone():
      failed = run_all(names, self.workdir, lambda name: [*command, f"--only={name}"], jobs)
    else:
      failed = run_together(names, self.workdir, self.run_one)
    return report(self, failed, corpus, shown), failed

  def data(self) -> DataSettings:
    """The data that all systems share."""
    return registry.settings(DataSettings, self.base.data.to_dict(), "base.data")

  def tokenizer(self) -> Any:
    """The one tokenizer of all systems; made on the first call, kept in the workdir under a name
    that changes with `base.data`.
    """
    path = self.workdir / f"tokenizer-{zlib.crc32(config_json(self.base.data).encode()):08x}"
    if not everywhere(path.exists()):
      self.workdir.mkdir(parents=True, exist_ok=True)
      write(path, self.data().make_tokenizer().to_bytes())
      everywhere(True)  # the others read what process 0 has written
    return tokenizer_from_bytes(path.read_bytes())


def write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file whole or not at all. Of several processes the first one writes."""
  if not is_first():
    return
  draft = path.with_name(path.name + ".tmp")
  draft.write_bytes(content.encode() if isinstance(content, str) else content)
  draft.replace(path)


def metered(step: Any, cpu: float = 0.0, wall: float = 0.0) -> train.TrainStep:
  """A train step that compiles off the clock, waits for its result, and reports the seconds used by
  all steps so far.

  Its metrics gain "cpu_seconds", the process time over all threads, and "wall_seconds". cpu, wall:
  where to count from.
  """
  compiled = None

  def call(state, batch):
    nonlocal compiled, cpu, wall
    compiled = compiled or step.lower(state, batch).compile()
    began_cpu, began_wall = time.process_time(), time.monotonic()
    state, metrics = jax.block_until_ready(compiled(state, batch))
    cpu, wall = cpu + time.process_time() - began_cpu, wall + time.monotonic() - began_wall
    return state, {**metrics, "cpu_seconds": cpu, "wall_seconds": wall}

  return call


def used(metrics: Sequence[Mapping[str, Any]], step: int) -> tuple[float, float]:
  """(CPU, wall) seconds of the first `step` training steps, by the last row of metrics up to that
  step that has both; (0, 0) if no row has.

  metrics: The rows of a run, as `train.read_metrics` gives them.
  """
  timed = [row for row in metrics if "cpu_seconds" in row and row["step"] <= step]
  if not timed:
    return 0.0, 0.0
  last = timed[-1]
  return last["cpu_seconds"] * step / last["step"], last["wall_seconds"] * step / last["step"]


def steps_within(experiment: Experiment, budget: float, trial: int = 24) -> int:
  """How many training steps `budget` CPU-seconds are, by the median of `trial` steps of random
  tokens, compilation left out.

  Raises ValueError where the budget is too small for any training, and on a GPU or TPU, whose work
  the CPU time does not count.
  """
  if jax.default_backend() != "cpu":
    raise ValueError(
      f"--budget counts CPU time, which says nothing about {jax.devices()[0].device_kind}; use"
      f" --steps"
    )
  settings, rng = experiment.train, np.random.default_rng(0)
  with jax.set_mesh(experiment.mesh):
    state, step = experiment.fresh_state(), metered(experiment.jitted_step(experiment.loss_fn(1.0)))
    ids = rng.integers(
      0, experiment.facts.vocab_size, (settings.batch_size, experiment.data.length)
    ).astype(np.int32)
    batch, spent = train.global_batch(Batch(ids), experiment.mesh), []
    for _ in range(trial + 1):
      state, metrics = step(state, batch)
      spent.append(metrics["cpu_seconds"])
  each = float(np.median(np.diff(spent)))
  if budget < FEWEST_STEPS * each:
    least = math.ceil(FEWEST_STEPS * each)
    raise ValueError(
      f"budget={budget:g} is {int(budget / each)} steps of {each:.3g} CPU-seconds; use at least"
      f" {least}"
    )
  return int(budget / each)


def reference_text(data: DataSettings) -> str:
  """The test split, each document followed by a newline."""
  return "".join(document + "\n" for document in data.make_corpus().documents("test"))


def corpus_quality(comparison: Comparison) -> dict[str, float]:
  """`quality` of as many rows of real text: spread over the validation split, which is neither
  trained on nor the reference.

  It also writes the token cache of every split, so that the systems find it. Raises ValueError if
  the split has too few rows.
  """
  data, tokenizer, num = comparison.data(), comparison.tokenizer(), comparison.num_samples
  splits = {
    name: token_arrays(data.make_corpus(), tokenizer, name, data.cache)
    for name in ("train", "validation", "test")
  }
  batches = evaluation_batches(
    splits["validation"], length=data.length, batch_size=1, packing_kind=data.packing
  )
  rows = [
    batch.ids[0] for batch in batches if batch.weights is None or batch.weights.all()
  ]  # as long as samples
  if len(rows) < num:
    raise ValueError(
      f"num_samples={num}: the validation split has only {len(rows)} full rows to compare with;"
      f" use that many"
    )
  chosen = [rows[i * len(rows) // num] for i in range(num)]
  return quality(chosen, [tokenizer.decode(row) for row in chosen], reference_text(data))


def sampled(
  trained: Trained, comparison: Comparison, directory: pathlib.Path
) -> list[dict[str, Any]]:
  """The quality of samples, one dict for each number of network calls; the texts are written to a
  file. A system that writes block by block spends an equal share of the calls on each block.

  A system that makes the same number of steps for two entries of `calls` (one token per block) is
  sampled once, and so is a system whose sampler has no number of steps to set.
  """
  experiment, data, rows = trained.experiment, trained.experiment.data, []
  unit = experiment.model.context.unit
  blocks = 1 if unit is None else -(-data.length // unit)
  reference = reference_text(data)
  batch = open_rows(experiment.tokenizer, comparison.num_samples, data.length)
  section = experiment.config.sampler.to_dict()
  numbers = dict.fromkeys(max(1, calls // blocks) for calls in comparison.calls)
  if registry.counts_steps("sampler", section):
    plans = [(steps, registry.with_steps("sampler", section, steps)) for steps in numbers]
  else:
    plans = [(None, section)]
  for steps, section in plans:
    sampler = registry.construct("sampler", section)
    texts, result = generate(
      trained, batch, num=comparison.num_samples, seed=experiment.config.seed, sampler=sampler
    )
    calls = int(result.calls)
    write(
      directory / f"samples_{calls}_calls.txt",
      "".join(f"--- sample {i}\n{text}\n" for i, text in enumerate(texts)),
    )
    rows.append({"steps": steps, "calls": calls, **quality(list(result.ids), texts, reference)})
  return rows


def measure(comparison: Comparison, name: str) -> dict[str, Any]:
  """The results of one system, which is trained in its directory (or goes on there), scored and
  sampled. The noise level at which a Gaussian system decodes is chosen on validation text.

  Raises SystemExit with the loop's exit code if training was stopped, and whatever training raises.
  """
  directory = comparison.workdir / name
  (config, aside), saved = comparison.system(name), read_run_config(str(directory))
  config.train.keep = 1
  tokenizer = comparison.tokenizer()
  steps = comparison.steps if saved is None else saved.train.steps
  steps = steps or steps_within(build(config, tokenizer=tokenizer), comparison.budget)
  config.train.steps = steps
  config.train.save_every = max(config.train.save_every, steps // 5)  # saving is CPU time too
  experiment = build(config, tokenizer=tokenizer)
  if is_first():
    print(plan.summary(experiment), flush=True)
  done = train.latest_step(checkpoints(str(directory)))
  before = (0.0, 0.0) if done is None else used(train.read_metrics(directory), done)
  result = train_workdir(
    experiment, str(directory), terminal=False, wrap_step=lambda step: metered(step, *before)
  )
  if result.status != "finished":
    raise SystemExit(result.exit_code)
  how = {"num_draws": comparison.num_draws, "max_rows": comparison.max_rows}
  trained = load(str(directory), all_devices=not is_alone())
  trained, decode_at = chosen_decoding(trained, **how)
  bound = score(trained.experiment, trained.params, split="test", **how)
  if not math.isfinite(bound.nats_per_token):
    raise ValueError(f"the bound on the test split is {bound.nats_per_token} nats per token")
  cpu, wall = used(train.read_metrics(directory), steps)
  tokens = steps * experiment.train.batch_size * experiment.data.length
  return {
    "name": name,
    "bits_per_char": bound.bits_per_char,
    "bits_per_char_error": bound.bits_per_char_error,
    "likelihood": dataclasses.asdict(bound),
    "decode_at": decode_at,
    "steps": steps,
    "train_tokens": tokens,
    "train_cpu_seconds": cpu,
    "train_wall_seconds": wall,
    "train_tokens_per_cpu_second": tokens / cpu,
    "parameters": plan.count_parameters(experiment),
    "samples": sampled(trained, comparison, directory),
    "set_aside": aside,
    "hardware": {**hardware(), "cores_used": len(core_groups(1)[0])},
  }


def run_one(comparison: Comparison, name: str) -> None:
  """Measures one system and writes what `measure` returns to results.json, or the reason why it
  failed to failed.json.
  """
  directory = comparison.workdir / name
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "failed.json").unlink(missing_ok=True)
  try:
    write(directory / "results.json", json.dumps(measure(comparison, name), indent=2))
  except Exception as error:
    write(directory / "failed.json", json.dumps({"error": f"{type(error).__name__}: {error}"}))
    raise


def report(
  comparison: Comparison, failed: Mapping[str, str], corpus: Mapping[str, float], command: str
) -> str:
  """Writes comparison.md, comparison.json and comparison.png in the workdir; returns the markdown.

  failed: name -> reason; corpus: `corpus_quality`; command: how it was run.
  """
  finished = [
    comparison.workdir / name / "results.json" for name in comparison.files if name not in failed
  ]
  rows = [json.loads(path.read_text()) for path in finished]
  places = {
    f"{row['hardware']['cores_used']} of {row['hardware']['cores']} cores of"
    f" {row['hardware']['cpu']}"
    f" ({row['hardware']['device']}), jax {row['hardware']['jax']}"
    for row in rows
  }
  where = "; ".join(sorted(places)) or "nothing finished"
  how = {"num_draws": comparison.num_draws, "num_samples": comparison.num_samples}
  vocab_size = comparison.tokenizer().vocab_size
  above = caption(
    comparison.amount, where, command, base=comparison.base, vocab_size=vocab_size, **how
  )
  text = "\n\n".join(filter(None, (table(rows, corpus, failed), above, notes(rows))))
  summary = {
    "command": command,
    "caption": above,
    "corpus": dict(corpus),
    "results": rows,
    "failed": dict(failed),
  }
  write(comparison.workdir / "comparison.json", json.dumps(summary, indent=2))
  write(comparison.workdir / "comparison.md", text + "\n")
  if is_first():
    plot(
      comparison.workdir / "comparison.png",
      rows,
      corpus,
      f"{comparison.amount}, seed {comparison.base.seed}\n{where}",
    )
  return text
