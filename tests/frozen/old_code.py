"""What the code of commit 3aad1fc makes of a config. Only freeze.py imports it, beside that code.

While an objective runs, these answer what is stored, and nothing else is changed:

  drawn_times      the stored times and their speed; a learned timing keeps its gradients
  corrupted        the stored state; of two draws first `state`, then `state2`
  weighted_ends    0: no prior and no reconstruction beside the rates
  reconstruction   0 for Gaussian processes, and so is the rounding term of their losses
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import old_process
from diffusion_text.draws import row_keys, token_keys
from inputs import LENGTH, ROWS, VOCABULARY, corpus_counts, leaf_name, leaf_value, texts

from diffusion_text import build, types
from diffusion_text.kernels.cross_entropy import map_rows, sum_rows
from diffusion_text.objective import bound, embedding_losses
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.timing import along_row, bind_times, by_token, learned

OBJECTIVES = (
  "anchored",
  "bound",
  "cross_entropy",
  "curriculum",
  "embedding_losses",
  "mask_agnostic",
  "reinforce",
  "reinforced",
  "reweighted",
)
UNSTORED_SUMS = ("bits_per_character", "reward", "reward_before")
Stored = dict[str, np.ndarray]


class Letters:
  """A vocabulary without a text."""

  name, vocab_size = "any", VOCABULARY


def leaves_by_name(tree: Any) -> dict[str, Any]:
  """{"a/b/c": leaf} of a nested dict."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {leaf_name(path): leaf for path, leaf in flat}


def filled(shapes: Any, process: Any) -> Any:
  """Parameters for a tree of shapes. Those that are not free, a token's information and the levels
  of a path, are taken from `process`, which is what the process starts with.
  """
  start = leaves_by_name({"process": process})

  def one(path, shape):
    name = leaf_name(path)
    fixed = name.endswith("/information") or name == "process/schedule/levels"
    return jnp.asarray(start[name]) if fixed else jnp.asarray(leaf_value(name, shape.shape))

  return jax.tree_util.tree_map_with_path(one, shapes)


def wide(x: Any) -> np.ndarray:
  """[B, L]: the same for every token where it was the same for a row."""
  return np.asarray(jnp.broadcast_to(x, (ROWS, LENGTH)))


def norm(tree: Any) -> jax.Array:
  """The root of the sum of squares of all numbers of a tree."""
  return jnp.sqrt(sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree)))


def norms(slopes: dict[str, Any], prefix: str) -> dict[str, jax.Array]:
  """{"prefix/group": norm} of those groups of parameters that have any."""
  return {
    f"{prefix}/{group}": norm(tree) for group, tree in slopes.items() if jax.tree.leaves(tree)
  }


@contextlib.contextmanager
def recorded_clocks() -> Iterator[list[Any]]:
  """A list to which each clock is added that a timing draws meanwhile."""
  clocks, real = [], along_row.low_discrepancy

  def recorded(*args):
    clocks.append(real(*args))
    return clocks[-1]

  with contextlib.ExitStack() as stack:
    for module in (along_row, by_token, learned):
      stack.enter_context(mock.patch.object(module, "low_discrepancy", recorded))
    yield clocks


class Old:
  """A config, built with the old code and filled with parameters.

  Attributes:
    leaf_names: of the parameters that have gradients; known once the objective has run.
  """

  def __init__(self, config: Any):
    build.token_counts = corpus_counts_of
    self.config = config
    self.experiment = build.build(config, tokenizer=Letters())
    self.process, self.timing = self.experiment.process, self.experiment.timing
    self.key = jax.random.key(0)
    self.progress = types.Progress(step=self.experiment.train.steps)
    shapes = jax.eval_shape(self.experiment.init_params, jax.random.key(0))
    self.params = filled(shapes, self.process.init(jax.random.key(0)))
    self.batch = types.Batch(**{name: jnp.asarray(value) for name, value in texts().items()})
    self.learned_path = config.schedule.name == "learned"
    self.gaussian = hasattr(self.process, "prior_cost")
    self.leaf_names: list[str] = []

  def stored(self) -> Stored:
    """What the functions are asked about: the batch, times as the timing draws them, and states."""
    with recorded_clocks() as clocks:
      timing = bind_times(self.timing, self.params)
      times = bound.drawn_times(self.process, timing, self.key, self.batch, self.progress)
    key = bound.noise_key(self.key, self.progress)
    t = wide(times.t)
    out = texts() | {"t": t, "speed": wide(times.speed), "state": self._corrupted(key, t)}
    out["network_time"] = wide(times.t if times.told is None else times.told)
    if times.expected is not None:
      out["expected"] = wide(times.expected)
    if len(clocks) == 1 and not isinstance(clocks[0], jax.core.Tracer):
      out["tau"] = np.asarray(clocks[0]).reshape(ROWS, -1)
    if self.config.objective.name == "reinforce":
      out["state2"] = self._corrupted(jax.random.fold_in(key, 7), t)
    out["s"] = np.maximum(t - np.float32(0.3), 0).astype(np.float32)
    out["step_keys"] = np.asarray(jax.random.key_data(token_keys(row_keys(0, ROWS), LENGTH)))
    return out

  def _corrupted(self, key: Any, t: np.ndarray) -> np.ndarray:
    """A draw of the state at these times."""

    def draw(params, key, t):
      return bound.corrupted(self.process, params, key, self.batch, t)

    return np.asarray(jax.jit(draw)(self.params["process"], key, t))

  def stored_params(self) -> Stored:
    """The parameters that names and shapes alone do not give."""
    kept = {"process": self.params["process"]}
    if set(self.params.get("timing", {})) == {"levels", "size"}:
      kept["timing"] = self.params["timing"]
    return {name: np.asarray(leaf) for name, leaf in leaves_by_name(kept).items()}

  def predictions(self, stored: Stored) -> dict[str, jax.Array]:
    """The network's answers to the rows that the timing asks for, [B, L, V] each."""

    def run(params):
      def predict(inputs, t, layout):
        return self.experiment.network.apply(params["network"], inputs, t, layout, None)

      told = self.experiment.told.predict(predict, self.key, self.batch, self.progress)
      prediction = bound.noised(
        self.process,
        bind_times(self.timing, params),
        params["process"],
        self.key,
        self.batch,
        self.progress,
        told,
      ).prediction
      out = {"logits": prediction.logits}
      if prediction.before is not None:
        out["logits_first"] = prediction.before[0].logits
      if prediction.anchor is not None:
        out["logits_anchor"] = prediction.anchor.unembed(prediction.anchor.features[:, :LENGTH])
      return out

    with stored_draws(self, stored, {}):
      return jax.jit(run)(self.params)

  def process_functions(self, stored: Stored, logits: Any) -> dict[str, jax.Array]:
    """Functions of the process at the stored inputs and these logits, under one jit."""

    def run(params, inputs, keys):
      return old_process.functions(self.process, params, inputs, jax.random.wrap_key_data(keys))

    names = ("ids", "state", "t", "s")
    inputs = [jnp.asarray(stored[name]) for name in names]
    keys = jnp.asarray(stored["step_keys"])
    return jax.jit(run)(self.params["process"], [*inputs, jnp.asarray(logits)], keys)

  def objective(self, stored: Stored) -> dict[str, jax.Array]:
    """total, count, sums, terms per token and gradient norms of the training loss.

    `stored` holds `signal`, too, for a Gaussian process: of `grad_norm_pathwise` the state has a
    gradient of its own, and of `grad_norm` it is constant.
    """
    loss_fn = self.experiment.loss_fn(1.0)

    def total(params, pathwise):
      tokens = {}
      with stored_draws(self, stored, tokens, pathwise):
        loss = loss_fn(params, self.key, self.batch, self.progress)
      return loss.total, (loss, tokens)

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (loss, tokens)), slopes = run(self.params, jnp.float32(0))
    out = {"total": loss.total, "count": loss.count}
    out |= {f"sums/{k}": v for k, v in loss.sums.items() if k not in UNSTORED_SUMS}
    out |= {f"tokens/{name}": value.reshape(ROWS, LENGTH) for name, value in tokens.items()}
    out |= norms(slopes, "grad_norm")
    leaves = leaves_by_name(slopes)
    self.leaf_names = sorted(leaves)
    out["leaf_grad_norms"] = jnp.stack([norm(leaves[name]) for name in self.leaf_names])
    if self.gaussian:
      out |= norms(run(self.params, jnp.float32(1))[1], "grad_norm_pathwise")
    return out


def corpus_counts_of(data: Any, tokenizer: Any) -> np.ndarray:
  """The same counts [V] for every corpus."""
  del data, tokenizer
  return corpus_counts()


def zero_ends(process, timing, params, key, batch, progress, predict) -> jax.Array:
  """Zeros [B, L] in place of the terms at the ends of time."""
  return jnp.zeros(batch.ids.shape)


def zero_term(self, params, key, ids) -> jax.Array:
  """Zeros [B, L] in place of a term that draws."""
  return jnp.zeros(ids.shape)


def times_reader(stored: dict[str, jax.Array]) -> Callable[..., Any]:
  """`drawn_times`, at the stored times."""
  real = bound.drawn_times

  def drawn_times(process, timing, key, batch, progress):
    times = real(process, timing, key, batch, progress)
    speed = jnp.broadcast_to(times.speed, (ROWS, LENGTH))
    speed = stored["speed"] + (speed - jax.lax.stop_gradient(speed))
    told = None if times.told is None else stored["network_time"]
    return times._replace(t=stored["t"], speed=speed, told=told)

  return drawn_times


def state_reader(old: Old, stored: dict[str, jax.Array], pathwise: Any) -> Callable[..., Any]:
  """`corrupted`, answering the stored states in turn; `pathwise` weighs their own gradient."""
  calls = []

  def corrupted(process, params, key, batch, t):
    calls.append(None)
    state = stored["state2"] if "state2" in stored and len(calls) % 2 == 0 else stored["state"]
    if not old.gaussian or pathwise is None:
      return state
    moved = stored["signal"][..., None] * process.encode(params, batch.ids)
    return state + pathwise * (moved - jax.lax.stop_gradient(moved))

  return corrupted


def sum_recorder(old: Old, tokens: dict[str, Any]) -> Callable[..., Any]:
  """`sum_rows`, leaving the terms of each token in `tokens`."""
  names = ("bound", "anchored") if old.config.objective.name == "anchored" else ("bound",)

  def recorded_sum(score, count, rows, *, chunk, shards=1):
    total, rest = map_rows(score, count, rows, chunk=chunk, shards=shards)
    tokens["total"] = total
    if not isinstance(rest, dict):
      rest = dict(zip(names, rest if isinstance(rest, tuple) else (rest,), strict=True))
    tokens.update(rest)
    return sum_rows(score, count, rows, chunk=chunk, shards=shards)

  return recorded_sum


def rates_recorder(tokens: dict[str, Any]) -> Callable[..., Any]:
  """`weighted_rates`, leaving those of the first and of the second draw in `tokens`."""
  real = bound.weighted_rates

  def recorded_rates(*args):
    rates = real(*args)
    tokens["bound2" if "bound" in tokens else "bound"] = rates
    return rates

  return recorded_rates


@contextlib.contextmanager
def stored_draws(
  old: Old, stored: Stored, tokens: dict[str, Any], pathwise: Any = None
) -> Iterator[None]:
  """Nothing; meanwhile objectives read what is stored and leave their tokens' terms in `tokens`."""
  values = {name: jnp.asarray(value) for name, value in stored.items()}
  replaced = {
    "drawn_times": times_reader(values),
    "corrupted": state_reader(old, values, pathwise),
    "weighted_ends": zero_ends,
    "sum_rows": sum_recorder(old, tokens),
  }
  rates = rates_recorder(tokens)
  with contextlib.ExitStack() as stack:
    for objective in OBJECTIVES:
      module = importlib.import_module(f"diffusion_text.objective.{objective}")
      for name, function in replaced.items():
        if name in vars(module):
          stack.enter_context(mock.patch.object(module, name, function))
    reinforce = importlib.import_module("diffusion_text.objective.reinforce")
    stack.enter_context(mock.patch.object(reinforce, "weighted_rates", rates))
    stack.enter_context(mock.patch.object(Gaussian, "reconstruction", zero_term))
    losses = embedding_losses.EmbeddingLosses
    stack.enter_context(mock.patch.object(losses, "rounding", zero_term))
    yield
