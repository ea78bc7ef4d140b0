"""Two times of a row under one noise: the mean of two losses, and masks within masks."""

import functools

import jax
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.contrib.coupled import Coupled
from diffusion_text.core.prng import stream
from diffusion_text.objective import CrossEntropy, engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 7, 16, 12
IDS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
BATCH = Batch(IDS, observed=np.broadcast_to(np.arange(L) < 3, (B, L)))
NET = TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V)
PLAIN = CrossEntropy(weighting="linear", linear_steps=50)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def check_coupled(objective):
  """The loss is the mean of those of `CrossEntropy` at the two times that were read, whose masks
  are one within the other."""
  network = TableNetwork(mask_id=V)
  model = Model(network, Masked(V), Shared(), Full(), chunk=64)

  def both(net):
    params, key = {"network": net, "process": {}, "timing": {}}, jax.random.key(9)
    times = engine.draw_times(model, params, stream(key, "times"), BATCH, Progress())
    loss, _ = objective(model, params, key, BATCH, times, Progress())
    read = [rows for rows, _, _ in network.calls]
    other = times._replace(t=read[-1].t, network_time=read[-1].t)
    alone = [PLAIN(model, params, key, BATCH, at, Progress())[0] for at in (times, other)]
    return loss, alone, read

  loss, alone, read = jit(both)(NET)
  np.testing.assert_allclose(loss.total, np.mean([each.total for each in alone]), rtol=1e-6)
  mean = np.mean([each.sums["bound"] for each in alone])
  np.testing.assert_allclose(loss.sums["bound"], mean, rtol=1e-6)
  assert loss.count == B * (L - 3)
  t = [np.asarray(rows.t)[:, 5] for rows in read]
  masks = [np.asarray(rows.inputs.ids) == V for rows in read]
  assert len(t) == 2 and np.abs(t[0] - t[1]).mean() > 0.1
  later = (t[0] > t[1])[:, None]
  assert (np.where(later, masks[0], masks[1]) >= np.where(later, masks[1], masks[0])).all()


def test_two_times_share_their_noise():
  check_coupled(Coupled(weighting="linear", linear_steps=50))


class Apart(Coupled):
  """Each time has noise of its own."""

  def __call__(self, model, params, key, batch, times, progress):
    first, costs = PLAIN(model, params, key, batch, times, progress)
    again = engine.draw_times(model, params, stream(key, "second times"), batch, progress)
    second, _ = PLAIN(model, params, stream(key, "other"), batch, again, progress)
    return jax.tree.map(lambda a, b: (a + b) / 2, first, second), costs


class OneTime(Coupled):
  def __call__(self, model, params, key, batch, times, progress):
    found = PLAIN(model, params, key, batch, times, progress)
    return PLAIN(model, params, key, batch, times, progress)[0], found[1]


@pytest.mark.parametrize("mutant", [Apart(), OneTime()])
def test_mutants_are_noticed(mutant):
  with pytest.raises(AssertionError):
    check_coupled(mutant)
