"""What several studies share: means with their errors, the entropy of tokens, pairs of neighbours,
names of runs, tables in Markdown, and the files of a result.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def mean_and_error(values: Float[np.ndarray, " B"] | np.ndarray) -> tuple[float, float]:
  """(mean, its standard error) of one value per row."""
  return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def pooled_entropy(ids: Int[np.ndarray, "..."]) -> float:
  """The entropy in nats of the frequencies of all tokens together.

  `evaluate.text_metrics.token_entropy` is that of one row, averaged over rows.
  """
  share = np.bincount(ids.reshape(-1)) / ids.size
  return float(-(share * np.log(np.maximum(share, 1e-30))).sum())


def neighbours(ids: Int[np.ndarray, "B L"], size: int) -> Float[np.ndarray, "V V"]:
  """float64 [V, V]: the share of each pair of neighbours among all, for V = `size` tokens."""
  flat = ids[:, :-1].reshape(-1).astype(np.int64) * size + ids[:, 1:].reshape(-1)
  return (np.bincount(flat, minlength=size**2) / flat.size).reshape(size, size)


def total_variation(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> float:
  """Half the sum of |first - second| over two laws: 0 for equal ones, 1 at most."""
  return float(0.5 * np.abs(first - second).sum())


def check_rising(name: str, numbers: Sequence[int], usual: str) -> None:
  """Raises ValueError for numbers of a setting that are not positive and rising, or are none."""
  if not numbers or min(numbers) < 1 or list(numbers) != sorted(set(numbers)):
    raise ValueError(f"{name}={tuple(numbers)} must be positive and rise; {usual} is usual")


def names(workdirs: Sequence[str]) -> list[str]:
  """The last part of each workdir's path; whole paths if two would be called the same."""
  last = [workdir.rstrip("/").rpartition("/")[2] for workdir in workdirs]
  return last if len(set(last)) == len(last) else list(workdirs)


def joined(pairs: Sequence[tuple[float, float]]) -> str:
  """The cell of several (mean, standard error): the means, and the largest of the errors."""
  means = " / ".join(f"{mean:.3f}" for mean, _ in pairs)
  return f"{means} (± {max(error for _, error in pairs):.3f})"


def markdown(
  header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
  """A Markdown table. Columns whose number is in `left` are aligned left, all others right."""
  rule = ["---" if column in left else "---:" for column in range(len(header))]
  return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def write(workdir: pathlib.Path, name: str, text: str, **numbers: Any) -> None:
  """Writes a result as NAME.md, the text, and as NAME.json, the numbers that it was made of."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / f"{name}.json").write_text(json.dumps(numbers, indent=2, default=float))
  (workdir / f"{name}.md").write_text(text + "\n")
