"""The exams by name, and the numbers of a system that has taken one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from diffusion_text.data.tasks import TASKS
from diffusion_text.experiment import registry
from diffusion_text.experiment.run import Trained
from diffusion_text.experiment.run import score as bound_of
from diffusion_text.studies import tasks
from diffusion_text.studies.bound_variance import chosen_decoding
from diffusion_text.studies.control_exam import ControlExam
from diffusion_text.studies.exam_contract import Exam, How, Line
from diffusion_text.types import Sampler

EXAMS: dict[str, type] = {"control": ControlExam}  # beside the tasks


def made(name: str, options: Mapping[str, Any]) -> Exam:
  """The exam of a name with these options. Raises ValueError for an unknown name or option."""
  if name in EXAMS:
    return registry.settings(EXAMS[name], options, f"task_option.{name}")
  if ":" not in name:
    registry.check_names("--tasks", [name], [*TASKS, *EXAMS])
  return tasks.TaskExam(tasks.made(name, options), {"name": name, **options})


def listing() -> str:
  """The names of all exams, with one line each."""
  return "\n".join(tasks.described(name, cls) for name, cls in sorted({**TASKS, **EXAMS}.items()))


def measured(
  exam: Exam,
  trained: Trained,
  how: How,
  *,
  seed: int,
  sampler: Sampler,
  num_draws: int,
  max_rows: int | None = None,
) -> tuple[dict[str, Any], str]:
  """(the numbers of a trained system, what it wrote).

  The numbers are plain, as JSON has them: those of the first line, and under "more" those of the
  others. The noise level at which a Gaussian system decodes is chosen on validation text.

  Raises:
    ValueError: For a bound that is not finite.
  """
  rows = {"num_draws": num_draws, "max_rows": max_rows}
  scored, decode_at = chosen_decoding(trained, **rows)
  bound = bound_of(scored.experiment, scored.params, split=how.split, **rows)
  if not math.isfinite(bound.nats_per_token):
    raise ValueError(f"the bound on the {how.split} split is {bound.nats_per_token} nats per token")
  taken = exam.taken(scored, how, seed, sampler)
  first, *others = map(_plain, taken.lines)
  numbers = {
    "bound": [bound.nats_per_token, bound.standard_error],
    "tokens": bound.tokens,
    "decode_at": decode_at,
    **first,
    **taken.numbers,
    "length": scored.experiment.data.length,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    "more": others,
  }
  return numbers, taken.text


def _plain(line: Line) -> dict[str, Any]:
  scores = {name: list(value) for name, value in line.scores.items()}
  return {**line._asdict(), "scores": scores}


def lines(numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Each line of a system's numbers as numbers of its own, whose system has the label, too."""
  for line in (numbers, *numbers.get("more", ())):
    named = f"{numbers['system']}, {line['label']}" if line.get("label") else numbers["system"]
    yield {**numbers, **line, "system": named}
