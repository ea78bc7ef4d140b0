"""What decoding costs: caches against whole rows, the loop against its bare forward passes, and a
token against the length of its context.

The network is untrained, as the cost of a call does not depend on its answers. Calls that are
compared run in turns in one process; the numbers are medians and their ratios.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_text.context import Blocks, Full
from diffusion_text.core.prng import make_key, row_keys
from diffusion_text.model.transformer import Transformer
from diffusion_text.process.masked import Masked
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.delayed_cache import DelayedCache
from diffusion_text.reader.similar_cache import SimilarCache
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import SuffixCache, WindowCache
from diffusion_text.sampler.accounting import cost_report
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import Loop, sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import MaxProb, Random, Score
from diffusion_text.studies.measures import markdown
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Context, Model, Params, Reader


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Name -> median processor seconds of the call, over `rounds` rounds after one warm-up. Processor
  seconds depend less on other processes than seconds of the clock.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for number in range(rounds + 1):
    for name, call in calls.items():
      started = time.process_time()
      jax.block_until_ready(call())
      if number:
        seconds[name].append(time.process_time() - started)
  return {name: float(np.median(times)) for name, times in seconds.items()}


class Sizes(NamedTuple):
  """The network and the work: V, D, layers, heads, rows, block, network calls per block."""

  vocab_size: int = 512
  width: int = 256
  layers: int = 4
  heads: int = 2
  rows: int = 4
  block: int = 32
  calls: int = 8


def model_of(sizes: Sizes, context: Context) -> tuple[Model, Params]:
  """(a masked model of these sizes, its untrained parameters)."""
  process = Masked(vocab_size=sizes.vocab_size)
  network = Transformer(
    layers=sizes.layers,
    width=sizes.width,
    heads=sizes.heads,
    input_sizes=process.input_sizes,
    output_size=process.output_size,
  )
  params = {"network": jax.jit(network.init)(make_key(0)), "process": {}, "timing": {}}
  return Model(network, process, Shared(), context), params


def caches(sizes: Sizes, length: int) -> dict[str, tuple[Context, int, Reader]]:
  """Name -> (context, positions of a window, reader), for each cache, and for whole rows of both
  contexts. A bidirectional row has four windows, as a suffix cache compiles each of them.
  """
  blocks, full, quarter = Blocks(size=sizes.block), Full(), length // 4
  often = max(quarter // 8, 2)
  return {
    "blocks, whole rows": (blocks, sizes.block, WholeRow()),
    "blocks, exact cache": (blocks, sizes.block, Cached()),
    "full, whole rows": (full, quarter, WholeRow()),
    "full, window cache": (full, quarter, WindowCache()),
    "full, suffix cache": (full, quarter, SuffixCache()),
    "full, suffix cache, prefix kept": (full, quarter, SuffixCache(prefix="kept")),
    "full, delayed cache": (full, quarter, DelayedCache(queries=quarter, every=often)),
    "full, similar cache": (full, quarter, SimilarCache(share=0.25, every=often)),
  }


def cache_speed(
  sizes: Sizes, length: int, rounds: int, names: Collection[str] = ()
) -> list[dict[str, Any]]:
  """One line per cache: seconds, and speed, positions and attention relative to whole rows of the
  same context. All caches make `calls` calls per block.

  names: of caches, with whole rows of their contexts among them; all by default.
  """
  calls, reports, contexts = {}, {}, {}
  for name, (context, size, reader) in caches(sizes, length).items():
    if names and name not in names:
      continue
    model, params = model_of(sizes, context)
    sampler = Reveal(score=MaxProb(), budget=EvenShare(steps=sizes.calls * size // sizes.block))
    how = {"rows": sizes.rows, "length": length, "reader": reader, "block": size}
    draw = functools.partial(sample, model, params, sampler, make_key(0), **how)
    calls[name], contexts[name] = draw, context
    reports[name] = cost_report(draw(), model)
  seconds = interleaved(calls, rounds)
  whole = {contexts[name]: time for name, time in seconds.items() if "whole" in name}
  return [
    {
      "what": name,
      "calls": reports[name].calls,
      "seconds": time,
      "times_as_fast": whole[contexts[name]] / time,
      "token_layers": reports[name].relative_layers,
      "attention": reports[name].relative_attention,
    }
    for name, time in seconds.items()
  ]


def loop_overhead(sizes: Sizes, length: int, rounds: int) -> list[dict[str, Any]]:
  """One line per pair of a loop and bare passes: the loop over whole rows against as many forward
  passes, with the logits of all tokens, or without.

  In a random order the loop computes logits and draws only for the tokens that it commits. With the
  likeliest token first it does so for all waiting tokens, with V random numbers for each.
  """
  model, params = model_of(sizes, Full())
  calls = {
    "loop, random order": _loop(sizes, model, params, length, Random()),
    "loop, likeliest first": _loop(sizes, model, params, length, MaxProb()),
  }
  loops = tuple(calls)
  for name, logits in (("with", True), ("without", False)):
    passes = jax.jit(functools.partial(_passes, sizes, model, length, logits))
    calls[f"bare passes {name} logits"] = functools.partial(passes, params)
  seconds = interleaved(calls, rounds)
  return [
    {"what": f"{each} / {name}", "seconds": time, "ratio": seconds[each] / time}
    for each in loops
    for name, time in seconds.items()
    if name not in loops
  ]


def _loop(
  sizes: Sizes, model: Model, params: Params, length: int, score: Score
) -> Callable[[], Any]:
  sampler = Reveal(score=score, budget=EvenShare(steps=sizes.calls))
  how = {"rows": sizes.rows, "length": length}
  return functools.partial(sample, model, params, sampler, make_key(0), **how)


def _passes(sizes: Sizes, model: Model, length: int, logits: bool, params: Params) -> Array:
  """The sum over `calls` forward passes. Each depends on the one before, so none is skipped."""
  masks = jnp.full((sizes.rows, length), model.process.mask_id)
  times = jnp.ones(masks.shape)

  def one(_, total):
    ids = jnp.where(total > 1e30, 0, masks)
    noisy = model.process.inputs({}, ids, times)
    said = model.network.apply(
      params["network"], model.context.sampling_rows(noisy, noisy, times, Batch(ids))
    )
    return total + jnp.sum(said.logits if logits else said.features)

  return jax.lax.fori_loop(0, sizes.calls, one, jnp.float32(0))


def context_cost(sizes: Sizes, lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
  """One line per length of context: microseconds per token of a call of the exact cache in the last
  block of the row, and their growth, measured and predicted by 24 D² + 4 D · context.
  """
  sampler = Reveal(score=MaxProb(), budget=EvenShare(steps=sizes.calls))
  model, params = model_of(sizes, Blocks(size=sizes.block))
  drawn = Loop(model, sampler, Cached())
  calls = {}
  for length in lengths:
    ids = jnp.zeros((sizes.rows, length), jnp.int32)
    batch = Batch(ids, jnp.broadcast_to(jnp.arange(length) < length - sizes.block, ids.shape))
    fixed = jax.jit(drawn.fixed)(params, row_keys(0, sizes.rows), batch)
    carry = jax.jit(functools.partial(_at_last_block, drawn))(params, fixed)
    calls[length] = _repeated(drawn, params, fixed, carry, sizes.calls)
  seconds = interleaved(calls, rounds)
  tokens, first = sizes.rows * sizes.block * sizes.calls, lengths[0]

  def predicted(length):
    return 24 * sizes.width**2 + 4 * sizes.width * length

  return [
    {
      "context": length,
      "microseconds_per_token": 1e6 * seconds[length] / tokens,
      "growth": seconds[length] / seconds[first],
      "predicted": predicted(length) / predicted(first),
    }
    for length in lengths
  ]


def _at_last_block(drawn: Loop, params, fixed):
  """The carry once all blocks but the last are in the cache."""
  carry = drawn.start(params, fixed)

  def one(_, carry):
    return drawn.next_unit(params, fixed, carry)

  return jax.lax.fori_loop(0, drawn.units(fixed) - 1, one, carry)


def _repeated(drawn: Loop, params, fixed, carry, times: int):
  """A function that advances the loop by `times` more calls, over the same cache in place."""
  holder = [carry]

  @functools.partial(jax.jit, donate_argnums=2)
  def advanced(params, fixed, carry):
    return jax.lax.fori_loop(0, times, lambda _, x: drawn.advance(params, fixed, x), carry)

  def call():
    holder[0] = advanced(params, fixed, holder[0])
    return holder[0].calls

  return call


def run(
  sizes: Sizes,
  *,
  length: int,
  lengths: tuple[int, ...],
  rounds: int,
  workdir: Any,
  names: Collection[str] = (),
) -> str:
  """All three measurements as tables, written to the workdir (table.md and lines.json), too."""
  parts = {
    "Caches": cache_speed(sizes, length, rounds, names),
    "The loop": loop_overhead(sizes._replace(calls=4 * sizes.calls), length, rounds),
    "A token of the exact cache": context_cost(sizes, lengths, rounds),
  }
  text = f"{sizes}, length={length}, processor seconds, medians of {rounds} rounds"
  for title, lines in parts.items():
    text += f"\n\n{title}\n\n" + _table(lines)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "lines.json").write_text(json.dumps({"sizes": sizes._asdict(), **parts}, indent=1))
  (workdir / "table.md").write_text(text + "\n")
  return text


def _table(lines: list[dict[str, Any]]) -> str:
  """The lines in Markdown, a column per name."""

  def shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)

  rows = [[shown(value) for value in line.values()] for line in lines]
  return markdown(list(lines[0]), rows)
