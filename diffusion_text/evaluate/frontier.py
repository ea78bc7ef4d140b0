"""Quality of samples against their entropy, over temperatures: a curve, never one number.

The nats per token that a judge (an autoregressive model) gives to samples fall when a sampler
writes less varied text: at temperature 0 most models repeat themselves, and their "generative
perplexity" is excellent (arXiv 2409.02908). So two systems are compared at equal entropy, on their
curves.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Point:
  """Samples at one temperature.

  Attributes:
    temperature: Of the sampler.
    nats: Nats per token that the judge gives, its own tokens; lower is better.
    nats_error: Its standard error over samples.
    entropy: Of the samples' token frequencies in nats (`text_metrics.token_entropy`); higher is
      more varied.
  """

  temperature: float
  nats: float
  nats_error: float
  entropy: float


def frontier(points: Sequence[Point]) -> list[Point]:
  """The points that no other point beats in both: none has fewer nats and at least the entropy, or
  more entropy and at most the nats. In the order of entropy."""
  best: list[Point] = []
  for point in sorted(points, key=lambda each: (-each.entropy, each.nats)):
    if not best or point.nats < best[-1].nats:
      best.append(point)
  return best[::-1]


def nats_at(points: Sequence[Point], entropy: float) -> tuple[float, float] | None:
  """(nats per token, standard error) at an entropy, say that of held-out text, on the line between
  the two neighbours of the frontier; None outside of its range, where nothing was measured.

  The error is that of the weighted mean of two independent points.
  """
  line = frontier(points)
  for low, high in itertools.pairwise(line):
    if low.entropy <= entropy <= high.entropy:
      share = (entropy - low.entropy) / (high.entropy - low.entropy)
      nats = (1 - share) * low.nats + share * high.nats
      error = (((1 - share) * low.nats_error) ** 2 + (share * high.nats_error) ** 2) ** 0.5
      return nats, error
  exact = [point for point in line if point.entropy == entropy]
  return (exact[0].nats, exact[0].nats_error) if exact else None
