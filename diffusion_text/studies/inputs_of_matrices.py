"""What the inputs of matrices are like on noisy text, and a network's matrices as integers by it.

The rows of text are corrupted and read as in training. Their times are those of the model's own
timing, all noise levels, or one level for all tokens: published calibrations read clean text, which
a diffusion model hardly ever sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import make_key, stream
from diffusion_text.core.trees import merge
from diffusion_text.model import linear_maps
from diffusion_text.model.quantized import methods
from diffusion_text.model.quantized.gptq import DAMPING
from diffusion_text.model.quantized.observed import together
from diffusion_text.model.quantized.stored import Quantized, kernel_of
from diffusion_text.objective import engine
from diffusion_text.types import Array, Batch, Key, Model, Params, Progress, Times

Statistics = dict[str, dict[str, Array]]  # name of a matrix -> statistics, stacked over layers


class Calibration(NamedTuple):
  """Rows of text, and how noisy they are.

  Attributes:
    batches: rows of tokens, read in this order.
    level: the time of all tokens; None: those that the model's timing draws.
    seed: of times and noise.
  """

  batches: tuple[Batch, ...]
  level: float | None = None
  seed: int = 0


class Watcher:
  """Statistics of the inputs of all linear maps of the layers, from one compiled program."""

  def __init__(self, model: Model, calibration: Calibration):
    """model: of a network without integers and low ranks, its maps stacked over its layers."""
    names = linear_maps.names_of(jax.eval_shape(model.network.init, make_key(0)))
    wrong = [name for name in names if not name.startswith(f"{linear_maps.LAYERS}/")]
    if wrong:
      raise ValueError(
        f"{wrong[0]} is not of one stack of layers, each of which is run once; use"
        " model.name='transformer'"
      )
    self.names, self.calibration = names, calibration
    watching = dataclasses.replace(model.network, observed=True)
    self._model = model._replace(network=watching)
    shapes = jax.eval_shape(watching.init, make_key(0))
    self._zeros = _observed_only(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    self._seen = jax.jit(jax.grad(self._features))

  def statistics(self, params: Params) -> Statistics:
    """name -> statistics (model/quantized/observed.py), arrays [layers, …], over all batches."""
    total = None
    for number, batch in enumerate(self.calibration.batches):
      key = jax.random.fold_in(make_key(self.calibration.seed), number)
      seen = jax.device_get(self._seen(self._zeros, params, key, batch))
      total = seen if total is None else together(total, seen)
    return linear_maps.statistics(total)

  def _features(self, zeros: Params, params: Params, key: Key, batch: Batch) -> Array:
    """A scalar that depends on every matrix of the layers, differentiable in `zeros`."""
    model, progress = self._model, Progress()
    whole = {**params, "network": merge(params["network"], zeros)}
    times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
    if self.calibration.level is not None:
      times = _at_level(model, batch, times, self.calibration.level)
    noised = engine.read(model, whole, key, batch, times, progress, dropout=False)
    return jnp.sum(noised.prediction.features.astype(jnp.float32))


def _at_level(model: Model, batch: Batch, times: Times, level: float) -> Times:
  """The times with every token that is not observed at one level."""
  positions = model.process.in_positions(batch)
  t = model.process.round_time(jnp.full(times.t.shape, level, jnp.float32))
  t = t if positions.observed is None else jnp.where(positions.observed, 0.0, t)
  return times._replace(t=t, network_time=t)


def _observed_only(tree: Any) -> Params:
  if not isinstance(tree, dict):
    return {}
  kept = {
    name: inner if name == linear_maps.OBSERVED else _observed_only(inner)
    for name, inner in tree.items()
  }
  return {name: inner for name, inner in kept.items() if inner}


class How(NamedTuple):
  """A method and what it takes; see `model.quantized.methods`.

  Attributes:
    method: one of `methods.METHODS`.
    bits, group: of the stored numbers; ignored by "smoothquant" as far as it fixes them.
    damping: of GPTQ.
    seed: of the coins of "random".
  """

  method: str
  bits: int
  group: int
  damping: float = DAMPING
  seed: int = 0

  @property
  def options(self) -> Quantized:
    """How the result is stored."""
    return methods.options_of(self.method, self.bits, self.group)


def quantized(params: Params, how: How, watcher: Watcher) -> Params:
  """The parameters of the network with integers in place of its chosen matrices.

  GPTQ goes layer by layer and observes each layer behind the integers of the layers before it, all
  matrices of a layer at once, as published code does. The other methods observe the float network.

  Args:
    params: all parameters of the float network.
    how: the method.
    watcher: of this network.
  """
  options, network = how.options, params["network"]
  names = linear_maps.chosen(options.matrices, watcher.names, "quantized")
  for name in names:
    options.check(linear_maps.get(network, name)["kernel"].shape, name)
  layers = linear_maps.get(network, names[0])["kernel"].shape[0]
  coins = np.random.default_rng(how.seed)
  calibrated = how.method in methods.CALIBRATED
  seen = watcher.statistics(params) if calibrated else None
  found: dict[str, list[dict[str, Array]]] = {name: [] for name in names}
  for layer in range(layers):
    if how.method == "gptq" and layer:
      seen = watcher.statistics({**params, "network": network})
    for name in names:
      group = linear_maps.get(network, name)
      kernel = np.asarray(group["kernel"])[layer]
      here = None if seen is None else {key: np.asarray(x[layer]) for key, x in seen[name].items()}
      taken = {"damping": how.damping, "random": coins}
      arrays = methods.quantize_matrix(kernel, here, options, how.method, **taken)
      found[name].append(arrays)
      rounded = np.array(group["kernel"])
      rounded[layer] = kernel_of(arrays, options)
      network = linear_maps.put(network, name, {**group, "kernel": rounded})
  for name in names:
    group = linear_maps.get(network, name)
    stacked = jax.tree.map(lambda *layers: np.stack(layers), *found[name])
    rest = {key: leaf for key, leaf in group.items() if key != "kernel"}
    stacked = jax.tree.map(jnp.asarray, stacked)
    network = linear_maps.put(network, name, {**rest, "quantized": stacked})
  return {**params, "network": network}


def outliers(seen: Statistics) -> dict[str, np.ndarray]:
  """name -> float [layers]: the largest |x| of all inputs over the median of their largest |x|."""
  return {
    name: np.asarray(each["peak"]).max(axis=1) / np.median(np.asarray(each["peak"]), axis=1)
    for name, each in seen.items()
  }


def take(batches: Iterable[Batch], count: int) -> tuple[Batch, ...]:
  """The first `count` batches."""
  iterator = iter(batches)
  return tuple(next(iterator) for _ in range(count))
