"""A linear language model with a noise-dependent loss, small enough to train in every test.

It is also a program, see `main`.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffusion_text import train as tr
from diffusion_text.core.trees import merge, split
from diffusion_text.train import checkpoint
from diffusion_text.types import Batch, Loss

V, L, D, ROWS = 11, 6, 8, 16
SEED = 3


def init_params():
  a, b = jax.random.split(tr.named_key(SEED, "init", 0))
  return {
    "embedding": {"embedding": jax.random.normal(a, (V + 1, D))},
    "layers": {"mlp": {"kernel": 0.3 * jax.random.normal(b, (2, D, D)), "scale": jnp.ones((2, D))}},
    "head": {"kernel": jax.random.normal(b, (D, V)), "bias": jnp.zeros(V)},
  }


def init():
  """(params, frozen) of the toy, with all parameters trained."""
  return init_params(), {}


def init_with_frozen_head():
  """(params, frozen) of the toy with a frozen head."""
  return split(init_params(), lambda path: path[0] != "head")


def _nll(params, inputs_BxL, ids_BxL):
  h = params["embedding"]["embedding"][inputs_BxL]
  for kernel, scale in zip(params["layers"]["mlp"]["kernel"], params["layers"]["mlp"]["scale"]):
    h = h + jnp.tanh(h @ kernel) * scale
  logits = h @ params["head"]["kernel"] + params["head"]["bias"]
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids_BxL[..., None], -1)[..., 0]


def noisy_loss(params, frozen, key, batch, progress):
  """A masked-token loss, whose noise depends on the key and the microbatch."""
  params = merge(params, frozen)
  a, b = jax.random.split(jax.random.fold_in(key, progress.part))
  t = jax.random.uniform(a, (batch.ids.shape[0], 1))
  masked = jax.random.uniform(b, batch.ids.shape) < t
  weight = batch.weights * masked
  nll = _nll(params, jnp.where(masked, V, batch.ids), batch.ids) * weight
  return Loss(nll.sum(), weight.sum(), {"masked_fraction": (masked * batch.weights).sum()})


def plain_loss(params, frozen, key, batch, progress):
  """A deterministic loss: each token is predicted from the token before it."""
  del key, progress
  params = merge(params, frozen)
  nll = _nll(params, jnp.roll(batch.ids, 1, axis=1), batch.ids) * batch.weights
  return Loss(nll.sum(), batch.weights.sum(), {"squares": (nll**2).sum()})


class Rows:
  """A `DataIterator` whose n-th batch depends on n alone; rows have unequal numbers of tokens."""

  def __init__(self, rows: int = ROWS):
    self.n, self.rows = 0, rows

  def __next__(self) -> Batch:
    rng = np.random.default_rng((SEED, self.n))
    self.n += 1
    lengths = rng.integers(1, L + 1, (self.rows, 1))
    ids = (rng.integers(0, 3, (self.rows, 1)) + np.arange(L)) % V
    return Batch(ids=ids.astype(np.int32), weights=(np.arange(L) < lengths).astype(np.float32))

  def get_state(self) -> bytes:
    return json.dumps(self.n).encode()

  def set_state(self, state: bytes) -> None:
    self.n = json.loads(state)


def spec(path, shape):
  """A partition table for the toy."""
  if path[-1] == "embedding":  # [V + 1, D]
    return PartitionSpec(None, "fsdp")
  if path[-2:] == ("mlp", "kernel"):  # [layers, D, D]
    return PartitionSpec(None, "fsdp", "tensor")
  return PartitionSpec()


def optimizer(steps=50):
  return tr.make_optimizer(learning_rate=0.02, steps=steps, warmup_steps=2)


@functools.cache
def build(loss_fn=noisy_loss, *, accumulation=1, ema_decay=0.9, mesh=None, opt=None, start=init):
  """(fresh, abstract state, jitted step, mesh) of the toy, for `train`, the same ones for the same
  arguments: they are compiled once.
  """
  opt = optimizer() if opt is None else opt
  mesh = tr.make_mesh(fsdp=1, devices=jax.devices()[:1]) if mesh is None else mesh

  def create():
    return tr.create_state(start, opt, ema=ema_decay is not None)

  abstract = jax.eval_shape(create)
  shardings = tr.state_shardings(abstract, spec, mesh)
  step = tr.make_train_step(
    loss_fn, opt, seed=SEED, accumulation=accumulation, ema_decay=ema_decay, mesh=mesh
  )
  fresh = jax.jit(create, out_shardings=shardings)
  return (
    fresh,
    tr.with_shardings(abstract, shardings),
    tr.jit_train_step(step, shardings, mesh),
    mesh,
  )


def main():
  """Trains the toy in a separate process, which can be killed."""
  parser = argparse.ArgumentParser()
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--kill_at_draw", type=int, default=-1)
  parser.add_argument("--seconds_per_step", type=float, default=0.0)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--process", type=int, default=0)
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--no_data", type=int, default=0)
  args = parser.parse_args()
  logging.basicConfig(level=logging.INFO)
  logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs a lot
  if args.processes > 1:
    tr.multihost.connect(
      f"localhost:{args.port}", args.processes, args.process, heartbeat_timeout=10
    )
  try:
    _main(args)
  except Exception as error:
    message, code = tr.multihost.verdict(error, isinstance(error, ValueError))
    print(f"error: {message}", flush=True)
    tr.multihost.leave(code)


def _find_data(missing):
  if missing:
    raise ValueError("there is no data on this host")


def _main(args):
  tr.multihost.check_same({"the number of steps": str(args.steps)})
  tr.multihost.together(lambda: _find_data(args.no_data))
  directory = str(args.workdir / "checkpoints")
  args.workdir.mkdir(exist_ok=True)
  mesh = tr.make_mesh()
  places = tr.row_places(mesh, ROWS)

  class Watched(Rows):
    """Records every draw, and kills the process at one of them, like a power cut."""

    def __next__(self):
      time.sleep(args.seconds_per_step)
      if self.n == args.kill_at_draw:
        while 5 not in checkpoint.steps_in(directory):
          time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
      with open(args.workdir / f"drawn{args.process}.txt", "a") as f:
        f.write(f"{self.n}\n")
      return jax.tree.map(lambda x: x[places], super().__next__())

  fresh, abstract, step, _ = build(mesh=mesh)
  data, clock = Watched(), tr.Clock()
  restored = tr.restore(directory, abstract, data=data, clock=clock, fresh=fresh)
  with (
    tr.Checkpointer(directory) as checkpointer,
    tr.MetricsWriter(args.workdir, resume_step=restored.resume_step, tensorboard=False) as writer,
    tr.reporter(args.steps) as report,
  ):
    result = tr.train(
      restored.state,
      data,
      step,
      tr.LoopSettings(steps=args.steps, log_every=1, save_every=5),
      checkpointer=checkpointer,
      hooks=[
        tr.Hook(5, lambda step, params: {"norm": float(jnp.abs(params["head"]["kernel"]).sum())})
      ],
      clock=clock,
      place=lambda batch: tr.global_batch(batch, mesh, ROWS),
      write=writer,
      report=report,
      evaluated=restored.evaluated,
    )
  if args.processes == 1:
    np.savez(args.workdir / "final.npz", *jax.tree.leaves(result.state))
  sys.exit(result.exit_code)


if __name__ == "__main__":
  main()
