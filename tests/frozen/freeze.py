# ruff: noqa: E501, E731, F401
"""Freezes the functions of the OLD code (commit 3aad1fc) before the rebuild: one .npz of inputs and outputs per case.

  cd /tmp/old && PYTHONPATH=/tmp/old JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 python /tmp/frozen/freeze.py [--all] [--only=NAME,…] [--out=DIR]

Without flags: one case for each (process x objective) pair that occurs in configs/*.py. --all: every config (written to DIR/more unless it is
one of those). The fields of a file are described in README beside this script.

What is patched while the objective runs (and nowhere else):
  drawn_times     returns the stored t, network_time and values of the speed; gradients of a learned timing flow through its own speed
  corrupted       returns the stored state (reinforce: the stored state, then state2)
  weighted_ends   0: no prior and no reconstruction term beside the rates ("zeroed" in the file's meta)
  reconstruction, EmbeddingLosses.rounding   0, for the Gaussian processes; their prior term stays, where the objective adds it itself

Exempt: judged by the oracle
  - objectives of the configs with a learned path (cdcd, plaid; DESIGN 9.5): process functions only, at the path's start parameters. The same
    config on a fixed path of the same window (cdcd_fixed, plaid_fixed) is frozen whole.
  - gaussian_curriculum (duo) while its tokens are soft: the soft tokens are drawn inside the objective. Frozen after the curriculum
    (progress.step = train.steps), where it is the bound of the hard tokens.
  - mask_agnostic with more than one appended mask: their number is drawn inside. Frozen with objective.appended = 1, where it is 1.
  - reinforced_conditioning's reward, its two reported sums and its share of the gradient: two rows of tokens are drawn inside. Frozen with
    objective.reward_weight = 1e-12, which leaves the losses, their values and their gradient. (Its total never held the reward.)
  - reconstruction and rounding draws of Gaussian processes, as said above: keyed per position later.
  - corrupt, prior, renoise, guess, draw, leap, arrival: draws, whose streams are renamed. The laws of corrupt and of step are frozen instead
    (corrupt_law, step_law; Gaussian: means and standard deviations); `step` and `moves` of the stored keys are there too, for as long as the
    new code draws with fold(key, 0), fold(key, 1), … as the old one did.
  - the draw of the times: stored with what the clock was, and not asked for again.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np

B, L, V = 4, 16, 11
SEED = 0

# --- copied into the test: parameters from names ---------------------------------------------------------------------------------


def leaf_value(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """The float32 value of a free parameter, from its path ("network/blocks/attention/query/kernel") and shape alone."""
  normal = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape)
  name = path.rsplit("/", 1)[-1]
  mean, std = 0.0, 0.3
  if name == "scale":  # of norms
    mean, std = 1.0, 0.1
  elif path == "process/embedding":
    std = 1.0
  elif path == "process/power":
    mean = 0.5
  elif path == "timing/size":
    std = 0.03
  return (mean + std * normal).astype(np.float32)


def paths_of(tree) -> dict[str, object]:
  """{"a/b/c": leaf} of a nested dict."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {"/".join(str(part.key) for part in path): leaf for path, leaf in flat}


def filled(shapes, process):
  """Parameters for a tree of shapes; those that are not free (information, a path's levels) are from `process`, the process's own start."""
  start = paths_of({"process": process})

  def one(path, shape):
    name = "/".join(str(part.key) for part in path)
    fixed = name.endswith("/information") or name == "process/schedule/levels"
    return jnp.asarray(start[name]) if fixed else jnp.asarray(leaf_value(name, shape.shape))

  return jax.tree_util.tree_map_with_path(one, shapes)


# --- the cases -------------------------------------------------------------------------------------------------------------------

# One per process x objective; the first that has no learned path, or says more than the others.
PAIRS = {
  ("masked", "bound"): "mdlm",
  ("masked", "cross_entropy"): "llada",
  ("masked", "anchored"): "adlm",
  ("masked", "mask_agnostic"): "mask_agnostic",
  ("mixed", "bound"): "hdlm",
  ("mixed", "reweighted"): "gidd",
  ("uniform", "bound"): "udlm",
  ("uniform", "gaussian_curriculum"): "duo",
  ("token_masked", "bound"): "diffusionbert",
  ("token_masked", "reinforce"): "genmd4",
  ("embedding", "bound"): "plaid",
  ("embedding", "cross_entropy"): "cdcd",
  ("embedding", "mse_rounding"): "diffusion_lm",
  ("embedding", "reinforced_conditioning"): "trec",
  ("simplex", "cross_entropy"): "tess",
  ("distance", "cross_entropy"): "smoothie",
}
FIXED = {
  "plaid_fixed": "plaid",
  "cdcd_fixed": "cdcd",
}  # a learned path replaced by the line through its window
SECTIONS = ("data", "process", "schedule", "timing", "objective", "model")


class Letters:
  """A vocabulary without a text."""

  name, vocab_size = "any", V


def corpus_counts(data=None, tokenizer=None) -> np.ndarray:
  """[V]: what stands for the token counts of a corpus; ties and a token that was never seen among them."""
  return np.array([40, 25, 25, 13, 8, 8, 5, 3, 2, 1, 0])


def configured(case: str):
  """The config of a case, shrunk, and with its coins fixed."""
  name = FIXED.get(case, case)
  c = importlib.import_module(f"configs.{name}").get_config("micro")
  c.data.update({"length": L, "tokenizer": "characters", "vocab_size": None})
  c.model.update(
    {
      "layers": 2,
      "width": 32,
      "heads": 2,
      "kv_heads": 2,
      "mlp_width": 64,
      "time_width": 16,
      "dropout": 0.0,
    }
  )
  c.objective.chunk = 8
  if c.process.width is not None:
    c.process.width = 8
  if c.model.anchor_layers is not None:
    c.model.anchor_layers = 1
  if c.model.experts is not None:
    c.model.update({"experts": 4, "expert_width": 32})
  if c.timing.block_size is not None:
    c.timing.block_size = 4
  if c.timing.width is not None:
    c.timing.width = 4
  if c.objective.self_conditioning is not None:
    c.objective.self_conditioning = 1.0
  if c.objective.name == "mask_agnostic":
    c.objective.appended = 1
  if c.objective.name == "reinforced_conditioning":
    c.objective.reward_weight = 1e-12
  if case in FIXED:
    window = {"log_snr_max": c.schedule.log_snr_max, "log_snr_min": c.schedule.log_snr_min}
    for key in c.schedule:
      with c.ignore_type():
        c.schedule[key] = None
    c.schedule.update({"name": "log_snr", **window})
  return c


def differing(c) -> dict[str, object]:
  """{"section.key": value} where a config says something else than configs/base.py at size micro."""
  base = importlib.import_module("configs.base").config("micro")
  return {
    f"{section}.{key}": value
    for section in SECTIONS
    for key, value in c[section].items()
    if value != base[section][key]
  }


def texts() -> dict[str, np.ndarray]:
  """ids, given, weights and segment of the batch: a prompt, padding, two documents in a row, one row that is plain."""
  ids = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)
  given, weights, segment = (
    np.zeros((B, L), bool),
    np.ones((B, L), np.float32),
    np.zeros((B, L), np.int32),
  )
  given[0, :3] = given[2, 9:11] = True
  segment[2, 9:] = 1
  weights[3, 12:] = 0.0
  segment[3, 12:] = 2
  return {"ids": ids, "given": given, "weights": weights, "segment": segment}


# --- the old code ----------------------------------------------------------------------------------------------------------------


class Old:
  """A case, built with the old code. The imports are here so that the test can copy what is above."""

  def __init__(self, case: str):
    import diffusion_text
    from diffusion_text import build, types

    if hasattr(build, "token_counts"):
      build.token_counts = corpus_counts
    self.where, self.case, self.config = diffusion_text.__file__, case, configured(case)
    self.experiment = build.build(self.config, tokenizer=Letters())
    self.process, self.timing = self.experiment.process, self.experiment.timing
    self.key = jax.random.key(SEED)
    self.progress = types.Progress(step=self.experiment.train.steps)
    shapes = jax.eval_shape(self.experiment.init_params, jax.random.key(0))
    self.params = filled(shapes, self.process.init(jax.random.key(0)))
    self.batch = types.Batch(**{name: jnp.asarray(value) for name, value in texts().items()})
    self.learned_path = self.config.schedule.name == "learned"
    self.gaussian = hasattr(self.process, "prior_cost")

  # What is stored.

  def draws(self) -> dict[str, np.ndarray]:
    """The times as the timing draws them, and the states."""
    from diffusion_text.objective import bound
    from diffusion_text.timing import along_row, bind_times, by_token, learned

    clocks, real = [], along_row.low_discrepancy

    def recorded(*args):
      clocks.append(real(*args))
      return clocks[-1]

    modules = (along_row, by_token, learned)
    for module in modules:
      module.low_discrepancy = recorded
    try:
      timing = bind_times(self.timing, self.params)
      times = bound.drawn_times(self.process, timing, self.key, self.batch, self.progress)
    finally:
      for module in modules:
        module.low_discrepancy = real
    wide = lambda x: np.asarray(jnp.broadcast_to(x, (B, L)))
    key = bound.noise_key(self.key, self.progress)
    corrupted = jax.jit(
      lambda params, key, t: bound.corrupted(self.process, params, key, self.batch, t)
    )
    draw = lambda key: np.asarray(corrupted(self.params["process"], key, wide(times.t)))
    out = {"t": wide(times.t), "speed": wide(times.speed), "state": draw(key)}
    out["network_time"] = wide(times.t if times.told is None else times.told)
    if times.expected is not None:
      out["expected"] = wide(times.expected)
    if len(clocks) == 1 and not isinstance(clocks[0], jax.core.Tracer):
      out["tau"] = np.asarray(clocks[0]).reshape(B, -1)
    if self.config.objective.name == "reinforce":
      out["state2"] = draw(jax.random.fold_in(key, 7))
    return out

  def patched(self, stored, tokens: dict, pathwise=None):
    """A context in which the objectives read the stored times and states, and leave their tokens' terms in `tokens`."""
    return _Patches(self, stored, tokens, pathwise)

  def predictions(self, stored) -> dict[str, jax.Array]:
    """What the network answers, reading the rows that the timing asks for: [B, L, V] each."""
    from diffusion_text.objective import bound
    from diffusion_text.timing import bind_times

    def run(params):
      timing = bind_times(self.timing, params)
      predict = lambda inputs, t, layout: self.experiment.network.apply(
        params["network"], inputs, t, layout, None
      )
      predict = self.experiment.told.predict(predict, self.key, self.batch, self.progress)
      args = self.process, timing, params["process"], self.key, self.batch, self.progress, predict
      prediction = bound.noised(*args).prediction
      out = {"logits": prediction.logits}
      if prediction.before is not None:
        out["logits_first"] = prediction.before[0].logits
      if prediction.anchor is not None:
        out["logits_anchor"] = prediction.anchor.unembed(prediction.anchor.features[:, :L])
      return out

    with self.patched(stored, {}):
      return jax.jit(run)(self.params)

  # Functions of the process.

  def process_functions(self, stored) -> dict[str, jax.Array]:
    """Elementwise functions of the stored inputs, under one jit."""
    names = ("ids", "state", "t", "s", "logits", "step_keys")
    run = jax.jit(lambda params, inputs: self._process_functions(params, *inputs))
    return run(self.params["process"], [jnp.asarray(stored[name]) for name in names])

  def _process_functions(self, params, ids, state, t, s, logits, step_keys):
    process, keys = self.process, jax.random.wrap_key_data(step_keys)
    rate = lambda logits: process.rate(params, ids, state, t, logits)
    slope = jax.grad(lambda logits: jnp.sum(rate(logits)))(logits)
    out = {
      "nelbo_rate": rate(logits),
      "nelbo_rate_slope": jnp.linalg.norm(slope, axis=-1),
      "has_loss": process.scored(params, state, t),
      "may_change": process.moves(params, keys, state, t, s),
      "step": process.step(params, keys, state, logits, t, s),
      "estimate": process.estimate(params, state, t, logits),
      "decoded": process.decode(params, state),
    }
    if hasattr(process, "posterior"):
      out["posterior"] = jax.nn.log_softmax(process.posterior(params, state, t, logits), axis=-1)
    elif hasattr(process, "mask_id"):
      out["posterior"] = jax.nn.log_softmax(
        logits, axis=-1
      )  # where masked; a clean token is itself
    if hasattr(process, "leave_one_out"):
      out["leave_one_out"] = process.leave_one_out(state, t, logits)
    if hasattr(process, "log_corruption"):
      out["log_corruption"] = process.log_corruption(params, ids, state, t)
    if hasattr(process, "divergence") and process.mixing == "gidd" and process.grid is None:
      out["divergence"] = process.divergence(params, ids, state, t, logits)
      out["dynamic_weight"] = process.dynamic_weight(params, ids, state, t)
    inputs = process.inputs(params, state, t)
    if inputs.vectors is not None:
      out["input_vectors"] = inputs.vectors
    return out | (self._gaussian_laws if self.gaussian else self._discrete_laws)(
      params, ids, state, t, s, logits
    )

  def _discrete_laws(self, params, ids, state, t, s, logits):
    from diffusion_text.process.mixed import Mixed
    from diffusion_text.process.token_masked import LEAST, TokenMasked
    from diffusion_text.schedules import on_grid, reveal_probability

    process, n = self.process, self.process.input_size
    hot = lambda ids: jax.nn.one_hot(ids, n)
    padded = lambda p: jnp.pad(p, ((0, 0), (0, 0), (0, n - V)))
    if isinstance(process, Mixed):
      grid_t = on_grid(t, process.grid)
      clean, mask, uniform = (share[..., None] for share in process.shares(grid_t))
      flat, at_mask = padded(jnp.full((*ids.shape, V), 1 / V)), hot(V)
      corrupt = clean * hot(ids) + mask * at_mask + uniform * flat
      now, before = process._survivors(t), process._survivors(s)
      fresh = process._fresh(now, before, state, process._predicted(now, state, t, logits))
      clean, mask, uniform = (share[..., None] for share in before)
      mask = jnp.zeros_like(mask) if process.absorbing else mask
      law = (
        clean * padded(jnp.exp(process.leave_one_out(state, t, logits)))
        + mask * at_mask
        + uniform * flat
      )
      chance = jnp.where(t > s, fresh, 0.0)[..., None]
      step = chance * law / (clean + mask + uniform) + (1 - chance) * hot(state)
      return {"corrupt_law": corrupt, "step_law": step}
    masked = (state == V)[..., None]
    if isinstance(process, TokenMasked):
      shape = process._shape(params)
      noise = jnp.exp(process._log_noise(shape[ids], process.schedule(t)))[..., None]
      chance = process._reveal(shape, t[..., None], s[..., None])
      total = jnp.sum(jax.nn.softmax(logits) * chance, axis=-1, keepdims=True)
      total = jnp.clip(
        total, chance.min(axis=-1, keepdims=True), chance.max(axis=-1, keepdims=True)
      )
      token = jax.nn.softmax(logits + jnp.log(jnp.maximum(chance, LEAST)), axis=-1)
    else:
      noise = process.schedule(on_grid(t, process.grid)).noise[..., None]
      total, token = (
        reveal_probability(process.schedule, t, s)[..., None],
        jax.nn.softmax(logits, axis=-1),
      )
    corrupt = noise * hot(V) + (1 - noise) * hot(ids)
    step = jnp.where(masked, total * padded(token) + (1 - total) * hot(V), hot(state))
    return {"corrupt_law": corrupt, "step_law": step}

  def _gaussian_laws(self, params, ids, state, t, s, logits):
    process = self.process
    gain = process.gain(params, t)
    noisy = (t > 0)[..., None]
    out = {
      "prior_cost": process.prior_cost(params, ids),
      "squared_error": process.squared_error(params, ids, state, t, logits),
      "predicted": process.predicted(params, state, t, logits),
      "signal": jnp.where(noisy, gain.alpha, 1.0)[..., 0],
      "noise_std": jnp.where(noisy, process.noise_scale * gain.sigma, 0.0)[..., 0],
      "log_snr": gain.log_snr[..., 0],
    }
    law = process.posterior(params, state, t, logits)
    p = jax.nn.softmax(law, axis=-1)
    table = process.encode(params, jnp.arange(V))
    mean_of = lambda of_token: jnp.einsum(
      "blv,blve->ble", p, jnp.broadcast_to(of_token, (B, L, V, process.size))
    )
    zeros = jnp.zeros((B, L, process.size))
    after = jnp.maximum(s, 1e-3)  # where s = 0 the token is drawn, below
    towards = lambda target, noise: process.towards(params, target, state, t, after, noise)
    if process.projection == "sample":
      each = jnp.stack(
        [towards(jnp.broadcast_to(row, zeros.shape), zeros) for row in table], axis=2
      )
      spread = towards(zeros, zeros + 1) - towards(zeros, zeros)
      mean = mean_of(each)
      variance = mean_of((each - mean[:, :, None]) ** 2) + spread**2
    else:
      target = process.project(params, law)
      if process.score_temperature != 1:
        alpha = process.walk(params)(t[..., None]).alpha
        target = target + (1 - 1 / process.score_temperature) * (state / alpha - target)
      mean, variance = (
        towards(target, zeros),
        (towards(target, zeros + 1) - towards(target, zeros)) ** 2,
      )
    last = mean_of(table)
    mean = jnp.where(s[..., None] > 0, mean, last)
    variance = jnp.where(s[..., None] > 0, variance, mean_of((table - last[:, :, None]) ** 2))
    moves = (t > s)[..., None]
    out["step_mean"] = jnp.where(moves, mean, state)
    out["step_std"] = jnp.sqrt(
      jnp.mean(jnp.where(moves, variance, 0.0), axis=-1)
    )  # over the numbers of a vector
    return out

  # The objective.

  def objective(self, stored) -> dict[str, jax.Array]:
    """total, count, sums, per-token terms and gradient norms of the training loss, at the stored times and states."""
    loss_fn = self.experiment.loss_fn(1.0)

    def total(params, pathwise):
      tokens = {}
      with self.patched(stored, tokens, pathwise):
        loss = loss_fn(params, self.key, self.batch, self.progress)
      return loss.total, (loss, tokens)

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (loss, tokens)), slopes = run(self.params, jnp.float32(0))
    sums = {
      k: v
      for k, v in loss.sums.items()
      if k not in ("bits_per_character", "reward", "reward_before")
    }
    out = {"total": loss.total, "count": loss.count} | {
      f"sums/{name}": value for name, value in sums.items()
    }
    out |= {f"tokens/{name}": value.reshape(B, L) for name, value in tokens.items()}
    norm = lambda tree: jnp.sqrt(
      sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree))
    )
    out |= {
      f"grad_norm/{group}": norm(tree) for group, tree in slopes.items() if jax.tree.leaves(tree)
    }
    leaves = paths_of(slopes)
    self.leaf_names = sorted(leaves)
    out["leaf_grad_norms"] = jnp.stack([norm(leaves[name]) for name in self.leaf_names])
    if self.gaussian:
      slopes = run(self.params, jnp.float32(1))[1]
      out |= {
        f"grad_norm_pathwise/{group}": norm(tree)
        for group, tree in slopes.items()
        if jax.tree.leaves(tree)
      }
    return out


class _Patches:
  """See the module; on leaving, everything is as it was."""

  def __init__(self, old: Old, stored, tokens: dict, pathwise):
    self.old, self.stored, self.tokens, self.pathwise, self.undo = old, stored, tokens, pathwise, []

  def _set(self, thing, name, value):
    if name in vars(thing):
      self.undo.append((thing, name, vars(thing)[name]))
      setattr(thing, name, value)

  def __enter__(self):
    from diffusion_text.kernels.cross_entropy import map_rows, sum_rows
    from diffusion_text.objective import bound, embedding_losses
    from diffusion_text.process.gaussian import Gaussian

    stored, tokens, calls = {k: jnp.asarray(v) for k, v in self.stored.items()}, self.tokens, []
    real_times, real_rates = bound.drawn_times, bound.weighted_rates

    def drawn_times(process, timing, key, batch, progress):
      times = real_times(process, timing, key, batch, progress)
      speed = jnp.broadcast_to(times.speed, (B, L))
      speed = stored["speed"] + (speed - jax.lax.stop_gradient(speed))
      told = None if times.told is None else stored["network_time"]
      return times._replace(t=stored["t"], speed=speed, told=told)

    def corrupted(process, params, key, batch, t):
      calls.append(None)
      state = stored["state2"] if "state2" in stored and len(calls) % 2 == 0 else stored["state"]
      if not self.old.gaussian or self.pathwise is None:
        return state
      moved = stored["signal"][..., None] * process.encode(params, batch.ids)
      return state + self.pathwise * (moved - jax.lax.stop_gradient(moved))

    def recorded_sum(score, count, rows, *, chunk, shards=1):
      total, rest = map_rows(score, count, rows, chunk=chunk, shards=shards)
      tokens["total"] = total
      names = {"anchored": ("bound", "anchored")}.get(self.old.config.objective.name, ("bound",))
      named = (
        rest
        if isinstance(rest, dict)
        else dict(zip(names, rest if isinstance(rest, tuple) else (rest,)))
      )
      tokens.update(named)
      return sum_rows(score, count, rows, chunk=chunk, shards=shards)

    def recorded_rates(*args):
      rates = real_rates(*args)
      tokens["bound2" if "bound" in tokens else "bound"] = rates
      return rates

    zeros = lambda process, timing, params, key, batch, progress, predict: jnp.zeros(
      batch.ids.shape
    )
    names = (
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
    for name in names:
      module = importlib.import_module(f"diffusion_text.objective.{name}")
      self._set(module, "drawn_times", drawn_times)
      self._set(module, "corrupted", corrupted)
      self._set(module, "weighted_ends", zeros)
      self._set(module, "sum_rows", recorded_sum)
    self._set(
      importlib.import_module("diffusion_text.objective.reinforce"),
      "weighted_rates",
      recorded_rates,
    )
    nothing = lambda self, params, key, ids: jnp.zeros(ids.shape)
    self._set(Gaussian, "reconstruction", nothing)
    self._set(embedding_losses.EmbeddingLosses, "rounding", nothing)
    return self

  def __exit__(self, *_):
    for thing, name, value in reversed(self.undo):
      setattr(thing, name, value)


def frozen(case: str) -> dict[str, np.ndarray]:
  """Everything of one case, by field."""
  from diffusion_text.draws import row_keys, token_keys

  old = Old(case)
  assert str(old.where).startswith("/tmp/old/"), old.where
  stored = texts() | old.draws()
  stored["s"] = np.maximum(stored["t"] - np.float32(0.3), 0).astype(np.float32)
  stored["step_keys"] = np.asarray(jax.random.key_data(token_keys(row_keys(0, B), L)))
  kept = {path: leaf for path, leaf in paths_of({"process": old.params["process"]}).items()}
  if set(old.params.get("timing", {})) == {"levels", "size"}:
    kept |= paths_of({"timing": old.params["timing"]})
  fields = {f"in/{name}": value for name, value in stored.items()}
  fields |= {f"params/{path}": np.asarray(leaf) for path, leaf in kept.items()}
  predictions = old.predictions(stored)
  fields |= {f"network/{name}": np.asarray(value) for name, value in predictions.items()}
  stored["logits"] = np.asarray(predictions["logits"])
  functions = {name: np.asarray(value) for name, value in old.process_functions(stored).items()}
  fields |= {f"process/{name}": value for name, value in functions.items()}
  meta = {
    "case": case,
    "config": FIXED.get(case, case),
    "differs": differing(old.config),
    "learned_path": old.learned_path,
  }
  meta |= {
    "progress_step": old.experiment.train.steps,
    "corpus_counts": corpus_counts().tolist(),
    "vocab_size": V,
    "zeroed": ["weighted_ends"],
  }
  if old.gaussian:
    stored["signal"] = functions["signal"]
    meta["zeroed"] += ["reconstruction", "rounding"]
  if not old.learned_path:
    result = {name: np.asarray(value) for name, value in old.objective(stored).items()}
    scalars = sorted(name for name, value in result.items() if value.ndim == 0)
    fields |= {f"objective/{name}": value for name, value in result.items() if value.ndim}
    fields["objective/scalars"] = np.array([result[name] for name in scalars], np.float32)
    meta |= {"leaf_names": old.leaf_names, "scalar_names": scalars}
  fields["meta"] = np.array(json.dumps(meta, sort_keys=True))
  return {name: checked(name, value) for name, value in fields.items()}


def checked(name: str, value: np.ndarray) -> np.ndarray:
  value = np.asarray(value)
  assert value.dtype in (np.float32, np.int32, np.uint32, np.bool_) or value.dtype.kind == "U", (
    name,
    value.dtype,
  )
  if value.dtype == np.float32 and not np.isfinite(value).all():
    print(f"  not finite: {name}: {np.sum(~np.isfinite(value))} of {value.size}")
  return value


def main(argv: list[str]) -> None:
  options = dict(arg.removeprefix("--").partition("=")[::2] for arg in argv)
  out = pathlib.Path(options.get("out") or pathlib.Path(__file__).parent)
  configs = pathlib.Path("configs")
  names = sorted(
    path.stem for path in configs.glob("*.py") if path.stem not in ("__init__", "base")
  )
  found = {}
  for name in names:
    c = configured(name)
    found.setdefault((c.process.name, c.objective.name), []).append(name)
  assert set(found) == set(PAIRS), set(found) ^ set(PAIRS)
  first = [*PAIRS.values(), *FIXED]
  cases = first + ([name for name in names if name not in first] if "all" in options else [])
  if options.get("only"):
    cases = options["only"].split(",")
  for case in cases:
    folder = out if case in first else out / "more"
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    np.savez_compressed(folder / f"{case}.npz", **frozen(case))
    print(
      f"{time.time() - begun:.0f} s, {case}: {(folder / f'{case}.npz').stat().st_size} bytes",
      flush=True,
    )
    jax.clear_caches()


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path.cwd()))  # configs
  main(sys.argv[1:])
