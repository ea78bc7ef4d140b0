"""Whether the reported standard error of a bound is right: how often its 95 % interval holds the
truth, for a small language of which the truth is known.

The bound of an exact network is tight, so the truth is the entropy of the language. Each repetition
draws rows of the language, times and noise, and reports (estimate, standard error) as
`evaluate.likelihood` does. The interval should hold the truth in 95 % of the repetitions.

With evenly drawn times it does so less often for uniform and mixed noise: at a small time t a
random token has a probability of about t and a rate of about 1 / t, so the second moment of the
rates is the integral of 1 / t, which diverges, and the error that a few rows show is too small. For
Gaussian noise it does so less often as well, because few of these times are where the integrand of
the bound is large. Bounds are therefore reported at the times that the process asks for
(`Process.bound_times`).

Every line is kept in the workdir, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import make_key
from diffusion_text.evaluate.likelihood import estimate
from diffusion_text.experiment import registry
from diffusion_text.objective import engine
from diffusion_text.studies.measures import markdown
from diffusion_text.timing.along_row import Shared
from diffusion_text.types import Batch, Model, Params, Process, Progress, Timing

SIDES = 1.96  # standard errors on each side of a 95 % interval
PROCESSES: dict[str, dict[str, Any]] = {
  "masked": {},
  "uniform": {},
  "mixed": {"share": 0.1},
  "embedding": {"width": 3},
}
HEADER = (
  *("process", "times", "rows × draws", "intervals with the truth", "with half the error"),
  *("mean - truth, nats/token", "spread of estimates", "mean standard error"),
)


class Known(NamedTuple):
  """A small language and networks that compute its exact posterior. They are in `testing`, which a
  study may not import, so the command passes them in.

  Attributes:
    language: `testing.languages.Enumerable`.
    model: (process, timing) -> (model, parameters), `testing.exact_model.exact_model`.
  """

  language: Any
  model: Callable[[Process, Timing], tuple[Model, Params]]


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Repeated estimates of one bound with their standard errors, and the truth.

  Attributes:
    estimates: float64 [repeats], nats per token.
    errors: float64 [repeats], their standard errors.
    truth: The entropy of the language in nats per token.
  """

  estimates: np.ndarray
  errors: np.ndarray
  truth: float

  def coverage(self, scale: float = 1.0) -> float:
    """The share of intervals of `scale` times the error that hold the truth."""
    return float(np.mean(np.abs(self.estimates - self.truth) < SIDES * scale * self.errors))

  def cells(self) -> list[str]:
    """The last columns of HEADER."""
    repeats = len(self.estimates)

    def share(value: float) -> str:
      return f"{100 * value:.1f} ± {100 * (value * (1 - value) / repeats) ** 0.5:.1f} %"

    bias = self.estimates - self.truth
    return [
      share(self.coverage()),
      share(self.coverage(0.5)),
      f"{bias.mean():.4f} ± {bias.std(ddof=1) / repeats**0.5:.4f}",
      f"{bias.std(ddof=1):.4f}",
      f"{self.errors.mean():.4f}",
    ]


def calibration(
  known: Known,
  process: str,
  options: Mapping[str, Any],
  *,
  power: float | None = None,
  rows: int,
  draws: int = 1,
  repeats: int = 200,
  seed: int = 0,
) -> Calibration:
  """The estimates of a process on a small language, whose network is exact.

  Args:
    known: The language and its networks.
    process: The name of the process.
    options: The options of the process.
    power: The times are t = τ^power with τ drawn evenly (`timing.Shared`); None: the times of
      reported bounds.
    rows: Rows of held-out text of each repetition.
    draws: Draws of times and noise for each row.
    repeats: The number of repetitions.
    seed: The seed of everything.
  """
  language = known.language
  section = {"name": process, **options}
  member = registry.construct("process", section, vocab_size=language.vocab_size)
  asked = Shared().for_bound(member.bound_times())
  model, params = known.model(member, asked if power is None else Shared(power=power))
  rng = np.random.default_rng(seed)
  ids = np.stack([language.sample(rng, rows) for _ in range(repeats)])
  keys = jax.random.split(make_key(seed), repeats)

  @jax.jit
  def nats(keys, ids, part):
    def one(repetition):
      key, text = repetition
      progress = Progress(part=part, parts=draws)
      return jnp.sum(engine.nats(model, params, key, Batch(text), progress), axis=1)

    return jax.lax.map(one, (keys, ids))

  drawn = [np.asarray(nats(keys, jnp.asarray(ids), part), np.float64) for part in range(draws)]
  weights = np.full(rows, float(language.length))
  found = np.array([estimate(values, weights) for values in np.mean(drawn, axis=0)])
  return Calibration(found[:, 0], found[:, 1], language.entropy / language.length)


def table(
  known: Known,
  workdir: pathlib.Path,
  *,
  repeats: int,
  rows: tuple[int, ...],
  powers: tuple[float | None, ...],
  seed: int,
) -> str:
  """The table of all PROCESSES in Markdown. Lines that the workdir holds are not drawn again."""
  lines = []
  for name, options in PROCESSES.items():
    for power in powers:
      for count in rows:
        how = {"power": power, "rows": count, "repeats": repeats, "seed": seed}
        path = workdir / "lines" / f"{name}-{power}-{count}-{repeats}-{seed}.json"
        if not path.exists():
          found = calibration(known, name, options, **how)
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_text(json.dumps([name, times(power), f"{count} × 1", *found.cells()]))
        lines.append(json.loads(path.read_text()))
  return markdown(HEADER, lines)


def times(power: float | None) -> str:
  """The name in the table of the times of a power."""
  if power is None:
    return "as reported"
  return "even" if power == 1 else f"τ^{power:g}"
