"""The sampling loop, driven by the host one read at a time: for watching text appear, and for
whatever must happen between two reads. The tokens are those of `sampler.loop.sample`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffusion_text.sampler.loop import Loop, prepared
from diffusion_text.sampler.records import Carry, Fixed, Frame, Sample
from diffusion_text.types import Batch, Canvas, Keys, Model, Params, Reader, Sampler


def host_sample(
  model: Model,
  params: Params,
  sampler: Sampler,
  key: Keys,
  *,
  batch: Batch | None = None,
  rows: int | None = None,
  length: int | None = None,
  reader: Reader | None = None,
  block: int | None = None,
  end_id: int | None = None,
  trace: bool = False,
  features: bool = False,
) -> Generator[Canvas, None, Sample]:
  """A generator of canvases, one after each read, that returns the `Sample`: the tokens are those
  of `sample`.

  For watching text appear, and for whatever must happen between two reads. The arguments are those
  of `sample`.
  """
  kept = {"trace": trace, "features": features, "block": block, "end_id": end_id}
  loop, keys, batch = prepared(model, sampler, reader, key, batch, (rows, length), **kept)
  fixed = _fixed(loop, params, keys, batch)
  return (yield from _watched(loop, params, fixed, lambda carry: _canvas(loop, fixed, carry)))


def stream(
  model: Model,
  params: Params,
  sampler: Sampler,
  key: Keys,
  *,
  batch: Batch | None = None,
  rows: int | None = None,
  length: int | None = None,
  reader: Reader | None = None,
  block: int | None = None,
  end_id: int | None = None,
  trace: bool = False,
) -> Generator[Frame, None, Sample]:
  """A generator of the rows as they stand, first as the prior drew them and then after each read,
  that returns the `Sample`: the tokens are those of `sample`.

    for frame in dt.stream(model, params, sampler, key, batch=batch):
      show(frame.ids, frame.open)

  The arguments are those of `sample`.
  """
  kept = {"trace": trace, "features": False, "block": block, "end_id": end_id}
  loop, keys, batch = prepared(model, sampler, reader, key, batch, (rows, length), **kept)
  fixed = _fixed(loop, params, keys, batch)
  shown = functools.partial(_frame, loop, params, fixed)
  yield shown(_start(loop, params, fixed))
  return (yield from _watched(loop, params, fixed, shown))


def _watched(
  loop: Loop, params: Params, fixed: Fixed, show: Callable[[Carry], Any]
) -> Generator[Any, None, Sample]:
  """What `show` makes of the carry after each read; returns the `Sample`."""
  carry = _start(loop, params, fixed)
  for number in range(loop.units(fixed)):
    here, turn = loop.at(number), 0
    while bool(_more(loop, params, fixed, carry)):
      carry = _advance(here, turn % loop.reader.every == 0, params, fixed, carry)
      turn += 1
      yield show(carry)
    if loop.units(fixed) > 1:
      carry = _next_unit(here, params, fixed, carry)
  return _finish(loop, params, fixed, carry)


@functools.partial(jax.jit, static_argnums=0)
def _fixed(loop: Loop, params: Params, keys: Keys, batch: Batch) -> Fixed:
  return loop.fixed(params, keys, batch)


@functools.partial(jax.jit, static_argnums=0)
def _start(loop: Loop, params: Params, fixed: Fixed) -> Carry:
  return loop.start(params, fixed)


@functools.partial(jax.jit, static_argnums=0)
def _more(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Bool[Array, ""]:
  return jnp.any(loop.needs(params, fixed, carry))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _advance(loop: Loop, refresh: bool, params: Params, fixed: Fixed, carry: Carry) -> Carry:
  return loop.advance(params, fixed, carry, refresh)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _next_unit(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Carry:
  return loop.next_unit(params, fixed, carry)


@functools.partial(jax.jit, static_argnums=0)
def _canvas(loop: Loop, fixed: Fixed, carry: Carry) -> Canvas:
  # A copy: the carry is donated to the next read, and a jit hands on what it does not change.
  return jax.tree.map(jnp.copy, loop.canvas(fixed, carry))


@functools.partial(jax.jit, static_argnums=0)
def _frame(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Frame:
  return loop.frame(params, fixed, carry)


@functools.partial(jax.jit, static_argnums=0)
def _finish(loop: Loop, params: Params, fixed: Fixed, carry: Carry) -> Sample:
  return loop.finish(params, fixed, carry)
