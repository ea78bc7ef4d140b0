"""What `experiments.benchmark --what=attention` and `--what=cross_entropy` measure: implementations
side by side, in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.attention import attention
from diffusion_text.kernels.cross_entropy import cut_cross_entropy
from diffusion_text.studies.benchmark import hardware
from diffusion_text.studies.speed import compile_for, interleaved
from diffusion_text.types import Layout

LAYOUTS = {
  "bidirectional": lambda length: layouts.bidirectional(),
  "causal": layouts.causal,
  "block_causal_32": lambda length: layouts.block_causal(length, 32),
  "noisy_clean_32": lambda length: layouts.noisy_clean(length // 2, 32),
}


def dense_fraction(layout: Layout) -> float:
  """Share of all query-key pairs that the layout lets see each other."""
  mask = layouts.visible(layout, layout)
  return 1.0 if mask is None else float(jnp.mean(mask))


def _library(q, k, v, layout):
  """The framework's own attention with the dense mask, the yardstick."""
  mask = layouts.visible(layout, layout)
  return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None])


def measure_attention(
  lengths: Sequence[int],
  *,
  rows: int,
  heads: int,
  head_width: int,
  dtype: str,
  implementations: Sequence[str],
  rounds: int,
) -> Iterator[dict[str, Any]]:
  """One dict per layout × length × implementation: milliseconds forward and forward + backward,
  TFLOP/s of the pairs that are visible, their share of the dense work, the compiler's temporaries.
  Implementations that cannot run here are named with the reason.
  """
  for length in lengths:
    shape = (rows, length, heads, head_width)
    q, k, v = (jax.random.normal(jax.random.key(i), shape, jnp.dtype(dtype)) for i in range(3))
    for layout_name, make in LAYOUTS.items():
      layout = make(length)
      candidates = {"jax.nn": lambda q, k, v, layout=layout: _library(q, k, v, layout)}
      for name in implementations:
        candidates[name] = lambda q, k, v, n=name, layout=layout: attention(
          q, k, v, layout, layout, implementation=n
        )
      calls, compiled, refused = {}, {}, {}
      for name, fn in candidates.items():

        def loss(q, k, v, fn=fn):
          return jnp.sum(fn(q, k, v).astype(jnp.float32))

        try:
          compiled[name] = compile_for(jax.grad(loss, (0, 1, 2)), q, k, v), compile_for(fn, q, k, v)
        except NotImplementedError as reason:
          refused[name] = str(reason)
          continue
        for part, function in zip(("both", "forward"), compiled[name]):
          calls[name, part] = lambda run=function.call, qkv=(q, k, v): run(*qkv)
      seconds = interleaved(calls, rounds)
      fraction = dense_fraction(layout)
      for name in compiled:
        flops = (
          14 * rows * heads * length**2 * head_width * fraction
        )  # 2 matmuls forward, 5 backward
        yield {
          **{
            "what": "attention",
            "layout": layout_name,
            "length": length,
            "implementation": name,
            "dtype": dtype,
          },
          "forward_ms": round(1e3 * seconds[name, "forward"], 3),
          "forward_backward_ms": round(1e3 * seconds[name, "both"], 3),
          "tflops": round(flops / seconds[name, "both"] / 1e12, 4),
          "dense_fraction": round(fraction, 4),
          "temp_mib": round((compiled[name][0].temp_bytes or 0) / 2**20, 2),
          "over_jax_nn": round(seconds["jax.nn", "both"] / seconds[name, "both"], 3),
          **hardware(),
        }
      for name, reason in refused.items():
        yield {
          "what": "attention",
          "layout": layout_name,
          "length": length,
          "implementation": name,
          "not_here": reason,
        }


def measure_cross_entropy(
  rows: int, width: int, vocab_size: int, rounds: int
) -> Iterator[dict[str, Any]]:
  """One dict per share of rows that count: milliseconds forward + backward and temporaries, cut and
  with full logits.
  """
  features = jax.random.normal(jax.random.key(0), (rows, width))
  kernel = jax.random.normal(jax.random.key(1), (width, vocab_size)) * width**-0.5
  labels = jax.random.randint(jax.random.key(2), (rows,), 0, vocab_size)

  def full(features, kernel, count):
    logits = features @ kernel
    nats = (
      jax.nn.logsumexp(logits, axis=-1)
      - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    )
    return jnp.sum(jnp.where(count, nats, 0))

  def cut(features, kernel, count):
    return jnp.sum(cut_cross_entropy(features, kernel, labels, count))

  for share in (1.0, 0.5, 0.1):
    count = jax.random.uniform(jax.random.key(3), (rows,)) < share
    runs = {
      name: compile_for(jax.grad(fn, (0, 1)), features, kernel, count)
      for name, fn in (("full_logits", full), ("cut", cut))
    }
    seconds = interleaved(
      {
        name: lambda run=run.call, count=count: run(features, kernel, count)
        for name, run in runs.items()
      },
      rounds,
    )
    for name, run in runs.items():
      yield {
        **{
          "what": "cross_entropy",
          "implementation": name,
          "rows": rows,
          "width": width,
          "vocab": vocab_size,
          "share": share,
        },
        "forward_backward_ms": round(1e3 * seconds[name], 2),
        "temp_mib": round((run.temp_bytes or 0) / 2**20, 1),
        "over_full_logits": round(seconds["full_logits"] / seconds[name], 3),
        **hardware(),
      }
