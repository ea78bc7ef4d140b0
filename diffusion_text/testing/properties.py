"""What the checks share: properties by name, and errors that say what was found and expected."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_text.testing.exact_model import Estimate


def expect(holds: Any, law: str, found: Any, expected: Any) -> None:
  """Raises AssertionError with the law, what was found and what was expected, unless it holds."""
  if not np.all(holds):
    raise AssertionError(f"{law}: found {_short(found)}, expected {_short(expected)}")


def expect_same(found: Any, expected: Any, law: str, tolerance: float = 0.0) -> None:
  """Raises AssertionError unless two trees of arrays are equal, to within the tolerance."""
  paths = jax.tree_util.tree_leaves_with_path(found)
  want = jax.tree_util.tree_leaves(expected)
  expect(len(paths) == len(want), law, f"{len(paths)} arrays", f"{len(want)} arrays")
  for (path, got), other in zip(paths, want, strict=True):
    got, other = np.asarray(got), np.asarray(other)
    name = law + jax.tree_util.keystr(path)
    expect(got.shape == other.shape, name, f"shape {got.shape}", f"shape {other.shape}")
    inexact = np.issubdtype(got.dtype, np.inexact)
    if tolerance and inexact:
      equal = np.isclose(got, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
      equal = got == other
    if not np.all(equal):
      where = tuple(int(i) for i in np.argwhere(~equal)[0])
      count = f"{np.sum(~equal)} of {equal.size} differ, the first at {where}"
      expect(False, name, f"{got[where]} ({count})", other[where])


def expect_mean(estimate: Estimate, expected: float, law: str, largest_error: float) -> None:
  """Raises AssertionError unless the mean is as expected within 4 standard errors.

  Also raises if 4 standard errors exceed `largest_error`: the estimate would say too little.
  """
  found = f"{estimate.mean:+.4f} ± {estimate.error:.4f}"
  near = abs(estimate.mean - expected) < 4 * estimate.error + 1e-3
  expect(near, law, found, f"{expected:+.4f}")
  if 4 * estimate.error > largest_error:
    raise AssertionError(
      f"{law}: {found} is too noisy, as 4 standard errors exceed {largest_error:.4f};"
      " use more rows or draws"
    )


def run(
  properties: Mapping[str, Callable[[], None]],
  only: Collection[str] | None,
  leave_out: Collection[str] = (),
) -> None:
  """Runs the properties in their order: all of them, or those that are named."""
  unknown = set(only or ()) - set(properties)
  if unknown:
    raise ValueError(f"only={sorted(unknown)} is unknown; use some of {list(properties)}")
  for name, check in properties.items():
    if (name in only) if only is not None else (name not in leave_out):
      check()


def check_equal_options(member: Any) -> None:
  """Raises AssertionError unless equal members hash alike and are compiled once."""
  twin = copy.copy(member)
  try:
    hashes = hash(member), hash(twin)
  except TypeError as error:
    raise AssertionError(f"members hash: found {error}, expected a number, of {member}") from None
  expect(hashes[0] == hashes[1], "equal members hash alike", hashes[1], hashes[0])
  expect(member == twin, "members of equal options are equal", twin, member)
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def traced(choice, x):
    traces.append(choice)
    return x

  traced(member, 0.0)
  traced(twin, 0.0)
  expect(len(traces) == 1, "equal members are compiled once", f"{len(traces)} times", "once")


def _short(value: Any) -> str:
  if isinstance(value, np.ndarray | jax.Array):
    return np.array2string(np.asarray(value), precision=4, threshold=20)
  return str(value)
