"""What `experiments.benchmark` measures: a training step against this machine's matmul rate,
sampling against its bare forward passes, and both against the same work with full logits. Every
figure of one run is interleaved with the others; quote ratios.
"""

from __future__ import annotations

import os
import platform
import resource
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text import train
from diffusion_text.core.prng import fold, position_keys, row_keys, stream, token_keys
from diffusion_text.core.trees import merge
from diffusion_text.experiment.build import Experiment
from diffusion_text.model.flops import flops_per_token
from diffusion_text.objective import engine
from diffusion_text.sampler.grid import Grid
from diffusion_text.studies.speed import compile_for, interleaved, matmul, peak_bytes
from diffusion_text.timing.clock import clock_of_steps
from diffusion_text.types import Batch, Layout, Loss, Progress, Rows, Span


def hardware() -> dict[str, Any]:
  """What the figures were measured on."""
  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cores": os.cpu_count(),
    "cpu": platform.machine(),
    "jax": jax.__version__,
  }


def _random_batch(experiment: Experiment) -> Batch:
  shape = (experiment.train.batch_size, experiment.data.length)
  return Batch(
    np.random.default_rng(0).integers(0, experiment.facts.vocab_size, shape).astype(np.int32)
  )


def full_logits_loss(experiment: Experiment):
  """The bound with [B, L, V] logits of every position, as most codebases compute it: the yardstick
  for scoring few positions.
  """
  model = experiment.model
  process = model.process

  def loss(params, frozen, key, batch: Batch, progress: Progress) -> Loss:
    params = merge(params, frozen)
    own = params["process"]
    times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
    clean, state = engine.corrupted(model, params, key, batch, times, progress)
    rows = whole_rows(experiment, process.inputs(own, state, times.t), times.t)
    prediction = model.network.apply(params["network"], rows)
    rates = process.nelbo_rate(own, clean, state, times.t, prediction.logits)
    total = jnp.sum(times.dt_dtau * rates)
    return Loss(total, jnp.float32(batch.ids.size), {"bound": total})

  return loss


def whole_rows(experiment: Experiment, inputs: Any, t: Any) -> Rows:
  """The rows of a bidirectional network: every token is read and answered."""
  everything = Span(0, experiment.data.length)
  return Rows(inputs, t, Layout(), None, copies=1, tokens=everything, answers=everything)


def train_calls(
  experiment: Experiment, loss_fns: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """({name: call of one training step}, {name: Compiled}) for several losses over the same network
  and batch.
  """
  calls, compiled = {}, {}
  for name, loss_fn in loss_fns.items():
    state, batch = (
      experiment.fresh_state(),
      train.global_batch(_random_batch(experiment), experiment.mesh),
    )
    compiled[name] = compile_for(experiment.jitted_step(loss_fn), state, batch)
    holder = [state]

    def call(holder=holder, batch=batch, run=compiled[name].call):
      holder[0], metrics = run(holder[0], batch)
      return metrics

    calls[name] = call
  return calls, compiled


def sample_calls(experiment: Experiment, steps: int) -> dict[str, Any]:
  """Calls that draw one batch in `steps` network calls: our sampler, the bare forward passes, and a
  loop with full logits.

  Contexts in blocks: our sampler alone, with at most `steps` calls per block.
  """
  model, process = experiment.model, experiment.model.process
  made = jax.jit(experiment.init)(jax.random.key(0))
  params = merge(*made)
  rows, length = experiment.train.batch_size, experiment.data.length
  keys = row_keys(0, rows)
  batch = Batch(jnp.zeros((rows, length), jnp.int32))
  if model.context.unit is not None:
    blocks = Grid(steps=min(steps, model.context.unit))
    return {"sample": lambda: experiment.sample(params, keys, batch, sampler=blocks).ids}
  ours = Grid(steps=steps)
  lengths = jnp.full(rows, length)
  grid = model.timing.grid(params["timing"], clock_of_steps(steps), lengths, length)

  def features(state, t):
    rows = whole_rows(experiment, process.inputs(params["process"], state, t), t)
    return model.network.apply(params["network"], rows)

  @jax.jit
  def bare(state):
    # Each pass reads the last one's features, so that none is dropped or hoisted out of the loop.
    def body(k, carry):
      shifted = jnp.where(carry > 1e30, 0, state)
      return carry + jnp.sum(features(shifted, grid[:, k]).features.astype(jnp.float32))

    return jax.lax.fori_loop(0, steps, body, jnp.float32(0))

  @jax.jit
  def full(state, keys):
    keys = token_keys(keys, length)

    def body(k, state):
      t, s = grid[:, k], grid[:, k + 1]
      return process.step(params["process"], fold(keys, k), state, features(state, t).logits, t, s)

    return jax.lax.fori_loop(0, steps, body, state)

  prior = process.prior(params["process"], position_keys(jax.random.key(0), rows, length))
  return {
    "sample": lambda: experiment.sample(params, keys, batch, sampler=ours).ids,
    "bare_forward": lambda: bare(prior),
    "sample_full_logits": lambda: full(prior, keys),
  }


def measure(
  experiment: Experiment, *, rounds: int, sample_steps: int, full_logits: bool
) -> dict[str, Any]:
  """All figures of one config as a flat dict; seconds are medians, ratios compare calls of this run
  only.

  Bare forward passes and full logits are compared for rows of one block only; ValueError if full
  logits are asked for others.
  """
  one_block = experiment.model.context.unit is None
  if full_logits and not one_block:
    raise ValueError(
      f"--full_logits compares rows of one block, not"
      f" context.name={experiment.config.context.name!r}; leave it out"
    )
  settings, data, network = experiment.train, experiment.data, experiment.model.network
  tokens = settings.batch_size * data.length
  losses = {"train": experiment.loss_fn(1.0)} | (
    {"train_full_logits": full_logits_loss(experiment)} if full_logits else {}
  )
  calls, compiled = train_calls(experiment, losses)
  # Large and square: the best that this machine does.
  product, product_flops = matmul(2048, 2048, 2048, jnp.dtype(network.dtype), repeats=4)
  samplers = sample_calls(experiment, sample_steps)
  if not full_logits:
    samplers.pop("sample_full_logits", None)
  seconds = interleaved({**calls, "matmul": product}, rounds) | interleaved(
    samplers, max(rounds // 2, 2)
  )
  matmul_rate = product_flops / seconds["matmul"]
  read = experiment.model.context.positions_read(data.length)
  forward = flops_per_token(network, data.length, read=read, answered=0.5 * data.length)
  step_flops = 3 * tokens * forward
  row = {
    "train_tokens_per_second": tokens / seconds["train"],
    "train_seconds_per_step": seconds["train"],
    "train_fraction_of_matmul_rate": step_flops / seconds["train"] / matmul_rate,
    "matmul_gflops": matmul_rate / 1e9,
    "sample_tokens_per_second": tokens / seconds["sample"],
    "sample_over_bare_forward": seconds["sample"] / seconds["bare_forward"] if one_block else None,
    "compile_seconds": compiled["train"].compile_seconds,
    "train_temp_mib": (compiled["train"].temp_bytes or 0) / 2**20,
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "device_peak_mib": None
    if peak_bytes(jax.devices()[0]) is None
    else peak_bytes(jax.devices()[0]) / 2**20,
  }
  if full_logits:
    row |= {
      "train_speedup_over_full_logits": seconds["train_full_logits"] / seconds["train"],
      "sample_speedup_over_full_logits": seconds["sample_full_logits"] / seconds["sample"],
      "train_full_logits_temp_mib": (compiled["train_full_logits"].temp_bytes or 0) / 2**20,
    }
  sizes = {
    "layers": network.layers,
    "width": network.width,
    "length": data.length,
    "batch": settings.batch_size,
    "vocab": experiment.facts.vocab_size,
  }
  return (
    {name: value if value is None else round(value, 4) for name, value in row.items()}
    | sizes
    | {"sample_steps": sample_steps}
    | hardware()
  )
