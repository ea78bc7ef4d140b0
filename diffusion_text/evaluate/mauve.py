"""MAUVE: how far the distribution of samples is from that of text, in the features of a judge.

Pillutla et al. 2021, arXiv 2102.01454 (MAUVE), and Liu et al. 2021, arXiv 2106.07898 (frontier
integral). The constants are those of the authors' package (recalled); clusters are found by our own
k-means, so scores agree with the package in their meaning, not to the digit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

SCALING = 5.0  # of the divergences within the exponential
POINTS = 25  # of the curve
EXPLAINED = 0.9  # share of the variance that the features keep


def mauve(
  text: Float[np.ndarray, "P D"],
  samples: Float[np.ndarray, "Q D"],
  clusters: int | None = None,
  seed: int = 0,
) -> float:
  """MAUVE of features of text and of samples, in (0, 1], 1 for equal histograms.

  Args:
    text: A feature vector of each held-out text.
    samples: The same of each sample; as many as of text are usual, and thousands: with few, the
      score depends on their number.
    clusters: Of k-means. None: a tenth of the smaller set, at least 2.
    seed: Of k-means.

  Raises:
    ValueError: For fewer vectors than clusters, or fewer than 2 clusters.
  """
  p, q = histograms(text, samples, clusters, seed)
  return curve_area(p, q)


def histograms(
  text: Float[np.ndarray, "P D"],
  samples: Float[np.ndarray, "Q D"],
  clusters: int | None = None,
  seed: int = 0,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
  """The shares of text and of samples in each cluster of both together; arguments of `mauve`.

  Vectors are set to length 1, and then reduced to the main directions with 90 % of the variance.
  """
  clusters = max(2, round(min(len(text), len(samples)) / 10)) if clusters is None else clusters
  both = np.concatenate([text, samples]).astype(np.float64)
  if not 2 <= clusters <= len(both):
    raise ValueError(f"clusters={clusters} of {len(both)} vectors; use 2 … {len(both)}")
  both = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
  labels = k_means(_main_directions(both), clusters, seed)
  counts = [np.bincount(part, minlength=clusters) for part in np.split(labels, [len(text)])]
  return counts[0] / len(text), counts[1] / len(samples)


def curve_area(
  p: Float[np.ndarray, " K"], q: Float[np.ndarray, " K"], points: int = POINTS
) -> float:
  """The area under the curve of (exp(-c KL(q | r)), exp(-c KL(p | r))), r = λ p + (1 - λ) q, with
  the corners (1, 0) and (0, 1); λ in (0, 1), c = `SCALING`.
  """
  curve = [(1.0, 0.0)]
  for weight in np.linspace(1e-6, 1 - 1e-6, points):
    middle = weight * p + (1 - weight) * q
    curve.append(
      (np.exp(-SCALING * _divergence(q, middle)), np.exp(-SCALING * _divergence(p, middle)))
    )
  curve.append((0.0, 1.0))
  # Along the curve x falls and y rises, so its own order needs no sorting, nor tie-breaking.
  x, y = np.array(curve).T
  return float(-np.trapezoid(y, x))


def frontier_integral(p: Float[np.ndarray, " K"], q: Float[np.ndarray, " K"]) -> float:
  """2 ∫ λ KL(p | r) + (1 - λ) KL(q | r) dλ over [0, 1], r = λ p + (1 - λ) q; in [0, 1], 0 for equal
  histograms and 1 for those that share no cluster.

  In closed form, a sum over clusters of (p + q) / 2 - p q log(p / q) / (p - q), a limit where
  p = q or one of them is 0.
  """
  total = 0.0
  for a, b in zip(p.tolist(), q.tolist()):
    if a == 0 or b == 0:
      total += (a + b) / 2
    elif abs(a - b) > 1e-6 * (a + b):
      total += (a + b) / 2 - a * b * (np.log(a) - np.log(b)) / (a - b)
    else:  # to second order: (a - b)² / (3 (a + b))
      total += (a - b) ** 2 / (3 * (a + b))
  return float(total)


def k_means(
  points: Float[np.ndarray, "n D"], clusters: int, seed: int = 0, rounds: int = 100
) -> Int[np.ndarray, " n"]:
  """The cluster of each point: k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's rounds until
  nothing changes.

  A cluster that loses all points keeps its centre.
  """
  rng = np.random.default_rng(seed)
  centres = [points[rng.integers(len(points))]]
  nearest = _squared(points, centres[0])
  for _ in range(clusters - 1):
    total = nearest.sum()
    # Points that coincide with centres have no weight; if all do, any will serve.
    place = rng.choice(len(points), p=nearest / total) if total > 0 else rng.integers(len(points))
    centres.append(points[place])
    nearest = np.minimum(nearest, _squared(points, points[place]))
  middle = np.array(centres)
  labels = np.full(len(points), -1)
  for _ in range(rounds):
    # |x - c|² without |x|², which is the same for every centre.
    distances = (middle**2).sum(axis=1) - 2 * points @ middle.T
    new = distances.argmin(axis=1)
    if (new == labels).all():
      break
    labels = new
    for label in np.unique(labels):
      middle[label] = points[labels == label].mean(axis=0)
  return labels


def _squared(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
  return ((points - centre) ** 2).sum(axis=1)


def _main_directions(points: np.ndarray) -> np.ndarray:
  """The coordinates along the fewest main directions with `EXPLAINED` of the variance."""
  centred = points - points.mean(axis=0)
  _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
  shares = np.cumsum(sizes**2)
  if shares[-1] == 0:
    return centred
  kept = int(np.searchsorted(shares / shares[-1], EXPLAINED)) + 1
  return centred @ directions[:kept].T


def _divergence(p: np.ndarray, r: np.ndarray) -> float:
  """KL(p | r) in nats."""
  kept = p > 0
  return float((p[kept] * np.log(p[kept] / r[kept])).sum())
