"""Progress shown to people: one live line on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

Report = Callable[[Mapping[str, Any]], None]

log = logging.getLogger(__name__)


def describe(row: Mapping[str, Any]) -> str:
  """A row of numbers as one line: step, bits per character or loss, speed, MFU, time left."""
  quality = next((name for name in ("bits_per_character", "loss") if name in row), None)
  parts = [f"step {row['step']}"]
  if quality:
    parts.append(f"{quality.replace('_', ' ')} {row[quality]:.4f}")
  if "tokens_per_second" in row:
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
  if "mfu" in row:
    parts.append(f"MFU {row['mfu']:.1%}")
  if "seconds_left" in row:
    parts.append(f"{duration(row['seconds_left'])} left")
  return "  ".join(parts)


def duration(seconds: float) -> str:
  """Seconds as text: 3725 -> "1:02:05", 65 -> "1:05"."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def reporter(steps: int, *, terminal: bool | None = None) -> Iterator[Report]:
  """The `report` callback of the loop: `with reporter(steps) as report: train(…, report=report)`.

  Processes other than 0 show nothing.

  Args:
    steps: Number of updates of the whole run.
    terminal: True to draw a live line. None: True if stdout is a terminal.
  """
  if jax.process_index() != 0:
    yield lambda row: None
  elif not (sys.stdout.isatty() if terminal is None else terminal):
    yield lambda row: log.info("%s", describe(row))
  else:
    # Here, because it is slow to import.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    with Progress(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}")) as progress:
      task = progress.add_task("compiling", total=steps)
      yield lambda row: progress.update(task, completed=row["step"], description=describe(row))
