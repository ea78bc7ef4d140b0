"""MAUVE, its frontier and k-means on cases with known answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.evaluate import mauve
from diffusion_text.evaluate.frontier import Point, frontier, nats_at


def test_area_of_equal_and_of_disjoint_histograms():
  """Equal: the curve is the corner (1, 1). Disjoint: KL(q | r) = -log(1 - λ), so the area is
  ∫ λ^c d(1 - (1-λ)^c) = 1 / C(2c, c) = 1/252 at c = 5."""
  p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
  assert mauve.curve_area(p, p) == pytest.approx(1)
  assert mauve.curve_area(p, q, points=20_001) == pytest.approx(1 / math.comb(10, 5), rel=1e-4)
  assert mauve.curve_area(p, q) == pytest.approx(mauve.curve_area(q, p))
  r = np.array([0.4, 0.4, 0.2])
  assert mauve.curve_area(p, q) < mauve.curve_area(r, q) < 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=4), st.lists(st.integers(0, 5), min_size=4))
def test_frontier_integral_is_the_integral(first, second):
  """In closed form and by Gauss–Legendre quadrature of the definition. Mutant: half of it."""
  p, q = (np.array(each[: len(first)], float) for each in (first, second))
  if not p.sum() or not q.sum():
    return
  p, q = p / p.sum(), q / q.sum()
  nodes, weights = np.polynomial.legendre.leggauss(60)
  value = 0.0
  for node, weight in zip((nodes + 1) / 2, weights / 2):
    r = node * p + (1 - node) * q
    value += 2 * weight * (
      node * mauve._divergence(p, r) + (1 - node) * mauve._divergence(q, r)
    )  # fmt: skip
  assert mauve.frontier_integral(p, q) == pytest.approx(value, abs=1e-5)


def test_frontier_integral_at_its_limits():
  p = np.array([0.3, 0.7])
  assert mauve.frontier_integral(p, p) == 0
  assert mauve.frontier_integral(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
  near = [mauve.frontier_integral(p, p + np.array([d, -d])) for d in (1e-4, 4e-7)]
  # 2 · Σ d² / (3 · 2p): both formulas agree where one takes over from the other.
  expected = [sum(d**2 / (6 * each) for each in p) for d in (1e-4, 4e-7)]
  assert near == pytest.approx(expected, rel=1e-3)


def test_k_means_finds_what_is_apart():
  rng = np.random.default_rng(0)
  truth = np.repeat(np.arange(4), 30)
  corners = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
  points = corners[truth] + rng.normal(0, 0.5, (120, 2))
  labels = mauve.k_means(points, 4, seed=3)
  assert len({(a, b) for a, b in zip(truth, labels)}) == 4
  assert len(set(mauve.k_means(np.zeros((5, 2)), 3))) == 1  # all in one place


def test_mauve_falls_with_the_distance():
  rng = np.random.default_rng(0)
  text = rng.normal(0, 1, (200, 6))
  same, far = (rng.normal(0, 1, (200, 6)) + np.eye(6)[0] * shift for shift in (0, 3))
  scores = [mauve.mauve(text, other, clusters=8) for other in (text, same, far)]
  assert scores[0] == pytest.approx(1) and scores[0] > scores[1] > 0.8 > scores[2] > 0
  p, q = mauve.histograms(text, far, clusters=8)
  assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1)
  with pytest.raises(ValueError, match="clusters=1 of 400"):
    mauve.mauve(text, far, clusters=1)


def test_the_frontier_keeps_what_nothing_beats():
  points = [Point(0.5, 3.0, 0.1, 4.0), Point(0.7, 3.5, 0.1, 4.2), Point(1.0, 5.0, 0.2, 4.4)]
  worse = [Point(0.9, 4.0, 0.1, 4.1), Point(1.2, 5.0, 0.1, 4.3)]
  assert frontier([*points, *worse]) == points
  # A quarter of the way from 4.0 to 4.2.
  nats, error = nats_at(points + worse, 4.05)
  assert nats == pytest.approx(3.125) and error == pytest.approx(math.hypot(0.075, 0.025))
  assert nats_at(points, 4.5) is None and nats_at(points, 3.9) is None
  assert nats_at(points[:1], 4.0) == (3.0, 0.1)
  # Mutant: the nearest temperature instead of the entropy between two.
  assert min(points, key=lambda each: abs(each.entropy - 4.05)).nats != nats
