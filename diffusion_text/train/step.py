"""The one train step. It knows a `LossFn` and nothing of diffusion."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from diffusion_text.train.optimizer import Optimizer
from diffusion_text.train.sharding import ROWS, batch_sharding, replicated, row_shards
from diffusion_text.train.state import TrainState, named_key
from diffusion_text.types import Array, Batch, Loss, LossFn, Params, Progress

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def loss_metrics(loss: Loss) -> Metrics:
  """The reported values of a loss, float32 scalars: "loss" = total / count, and every sum / count.

  Raises:
    ValueError: If one of the sums is called "loss".
  """
  if "loss" in loss.sums:
    raise ValueError(
      "Loss.sums has an entry 'loss', a name that the trainer uses for total / count; rename it"
    )
  count = _at_least_something(loss.count)
  return {"loss": loss.total / count} | {name: value / count for name, value in loss.sums.items()}


def _at_least_something(count: Array) -> Array:
  # A batch without scored tokens has sums of 0 and must give 0, not 0 / 0.
  return jnp.where(count > 0, count, 1.0)


def split_rows(batch: Batch, parts: int, mesh: Mesh | None = None) -> Batch:
  """The batch [B, …] as microbatches [parts, B / parts, …]: row r goes to microbatch r % parts.

  Rows are interleaved for a reason. A device holds neighbouring rows, so each device gives every
  microbatch an equal share of its own rows: no row travels, and every microbatch is spread over all
  devices. Contiguous microbatches would put the first microbatch on the first devices and leave the
  other devices idle.

  Raises:
    ValueError: If the rows do not divide by parts (times the row shards of the mesh).
  """
  shards = 1 if mesh is None else row_shards(mesh)
  rows = batch.ids.shape[0]
  if rows % (parts * shards):
    raise ValueError(
      f"a batch of {rows} rows does not divide into accumulation={parts} microbatches over "
      f"{shards} devices (replica × fsdp); use a multiple of {parts * shards} rows"
    )

  def split(x):
    x = jnp.swapaxes(x.reshape(rows // parts, parts, *x.shape[1:]), 0, 1)
    if mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, ROWS)))

  return jax.tree.map(split, batch)


def summed_gradients(
  loss_fn: LossFn,
  params: Params,
  frozen: Params,
  key: Array,
  batch: Batch,
  step: Array,
  *,
  parts: int,
  mesh: Mesh | None = None,
) -> tuple[Params, Loss]:
  """(gradient of `Loss.total`, `Loss`), both summed over `parts` microbatches.

  The microbatches are computed one after another. They are summed and not averaged, so microbatches
  with unequal numbers of scored tokens weigh as in one big batch. Every microbatch gets the same
  key and its own `Progress.part`, so that a loss may spread its draws over the whole batch.
  """

  def microbatch(part, rows):
    def total(p):
      loss = loss_fn(p, frozen, key, rows, Progress(step=step, part=part, parts=parts))
      return loss.total, loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return gradient, loss

  if parts == 1:
    return microbatch(0, batch)
  pieces = split_rows(batch, parts, mesh)
  like = jax.eval_shape(microbatch, jnp.int32(0), jax.tree.map(lambda x: x[0], pieces))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

  def accumulate(carry, piece):
    return jax.tree.map(jnp.add, carry, microbatch(*piece)), None

  return jax.lax.scan(accumulate, zeros, (jnp.arange(parts, dtype=jnp.int32), pieces))[0]


def update_ema(ema: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
  """The new average: ema + (1 - d) (params - ema), d = min(decay, (1 + n) / (10 + n)).

  n is the number of earlier updates. This warm-up lets the average forget the initial weights,
  which would otherwise dominate for 1 / (1 - decay) steps.
  """
  n = step.astype(jnp.float32)
  d = jnp.minimum(decay, (1 + n) / (10 + n))
  return jax.tree.map(lambda e, p: e + ((1 - d) * (p - e)).astype(e.dtype), ema, params)


def make_train_step(
  loss_fn: LossFn,
  optimizer: Optimizer,
  *,
  seed: int,
  accumulation: int = 1,
  ema_decay: float | None = None,
  mesh: Mesh | None = None,
) -> TrainStep:
  """The pure train step `(state, batch) -> (state, metrics)`; `jit_train_step` compiles it.

  The metrics are float32 scalars: loss, each of `Loss.sums` per count, grad_norm (of the gradients
  that are clipped, before clipping), param_norm (after the update, so that it is not finite if the
  update was not) and learning_rate. The loss gets the key `named_key(seed, "loss", step)`, the same
  for all microbatches (see `summed_gradients`).

  Args:
    loss_fn: See `types.LossFn`; it returns sums over tokens.
    optimizer: See `optimizer.make_optimizer`.
    seed: The seed of the run.
    accumulation: Number of microbatches per update; must divide the rows of the batch.
    ema_decay: Decay of the average of the parameters. None if the state keeps no average. An
      optimizer that averages (`Optimizer.evaluated`) fills the average of the state in its own way.
    mesh: The mesh that the batch is sharded over. None on one device.

  Raises:
    ValueError: For values out of range. When traced: if the state has an average and ema_decay is
      None, or the reverse.
  """
  if accumulation < 1:
    raise ValueError(f"accumulation={accumulation} must be at least 1; 1 means no accumulation")
  if ema_decay is not None and not 0 < ema_decay < 1:
    raise ValueError(
      f"ema_decay={ema_decay} must lie in (0, 1), e.g. 0.9999; None keeps no average"
    )

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    averages = ema_decay is not None or optimizer.evaluated is not None
    if (state.ema is None) == averages:
      held = "no" if state.ema is None else "an"
      raise ValueError(
        f"ema_decay={ema_decay} but the state has {held} average; create it with ema={averages}"
      )
    key = named_key(seed, "loss", state.step)
    gradient, loss = summed_gradients(
      loss_fn, state.params, state.frozen, key, batch, state.step, parts=accumulation, mesh=mesh
    )
    gradient = jax.tree.map(lambda g: g / _at_least_something(loss.count).astype(g.dtype), gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if optimizer.evaluated is not None:
      ema = optimizer.evaluated(opt_state, params)
    elif ema is not None:
      ema = update_ema(ema, params, ema_decay, state.step)
    own = {
      "grad_norm": optimizer.norm(gradient),
      "param_norm": optax.tree.norm(params),
      "learning_rate": jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
    }
    if clash := own.keys() & loss.sums.keys():
      raise ValueError(
        f"Loss.sums has entries {sorted(clash)}, names that the trainer uses; rename them"
      )
    after = TrainState(state.step + 1, params, ema, opt_state, state.frozen)
    return after, loss_metrics(loss) | own

  return train_step


def jit_train_step(train_step: TrainStep, shardings: TrainState, mesh: Mesh) -> TrainStep:
  """The train step, compiled over a mesh. The memory of the old state is reused for the new state.

  Args:
    train_step: See `make_train_step`.
    shardings: See `sharding.state_shardings`.
    mesh: See `sharding.make_mesh`. The code is the same for one device and for thousands.
  """
  return jax.jit(
    train_step,
    in_shardings=(shardings, batch_sharding(mesh)),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )
