"""Timing that can be trusted: everything compared runs in one process, interleaved, and medians are
reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Compiled(NamedTuple):
  """A compiled function, the seconds its compilation took, and the bytes of temporaries that the
  compiler plans (None: unknown).
  """

  call: Callable[..., Any]
  compile_seconds: float
  temp_bytes: int | None


def compile_for(fn: Callable[..., Any], *args: Any) -> Compiled:
  """Lowers and compiles `fn` (jitted or not) for these arguments."""
  started = time.perf_counter()
  compiled = (fn if hasattr(fn, "lower") else jax.jit(fn)).lower(*args).compile()
  seconds = time.perf_counter() - started
  analysis = compiled.memory_analysis()
  return Compiled(compiled, seconds, None if analysis is None else int(analysis.temp_size_in_bytes))


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, float]:
  """Median seconds of each call over `rounds` rounds, in each of which every call runs once; one
  warm-up round is left out.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for number in range(rounds + 1):
    for name, call in calls.items():
      started = time.perf_counter()
      jax.block_until_ready(call())
      if number:
        seconds[name].append(time.perf_counter() - started)
  return {name: float(np.median(times)) for name, times in seconds.items()}


def matmul(
  rows: int, inner: int, columns: int, dtype: Any = jnp.float32, repeats: int = 1
) -> tuple[Callable[[], Any], float]:
  """(call, FLOPs of the call): `repeats` plain [rows, inner] × [inner, columns] products, this
  machine's own yardstick.
  """
  a = jax.random.normal(jax.random.key(0), (rows, inner), dtype)
  b = jax.random.normal(jax.random.key(1), (inner, columns), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: [product(a, b) for _ in range(repeats)], 2.0 * rows * inner * columns * repeats


def peak_bytes(device: jax.Device) -> int | None:
  """Most bytes that were in use on the device since the process started; None where the backend
  does not tell (CPU).
  """
  return (device.memory_stats() or {}).get("peak_bytes_in_use")
