"""Two readings against the formula with all logits in memory; texts whose every token is drawn
anew; mutants that fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.contrib.unrolled import Redraw, Unrolled
from diffusion_text.core.prng import row_keys, stream
from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.loop import sample
from diffusion_text.testing.check_sampler import check_sampler
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 7, 8, 12
UNIFORM = Uniform(vocab_size=V, prediction="posterior")
IDS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
BATCH = Batch(
  IDS,
  observed=np.broadcast_to(np.arange(L) < 3, (B, L)),
  weights=np.broadcast_to((np.arange(L) < 10).astype(np.float32), (B, L)),
)
NET = TableNetwork.params(jax.random.key(1), InputSizes(ids=V), V, V)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def check_formula(objective, second=1.0):
  """Value and gradient are those of CE(first) + CE(second) over all tokens that are not observed,
  the second reading being of the likeliest tokens of the first."""
  network = TableNetwork()
  model = Model(network, UNIFORM, Shared(), Full(), chunk=5)

  def ours(net):
    params, key = {"network": net, "process": {}, "timing": {}}, jax.random.key(9)
    times = engine.draw_times(model, params, stream(key, "times"), BATCH, Progress())
    loss, _ = objective(model, params, key, BATCH, times, Progress())
    return loss.total, (loss.sums, [rows.inputs.ids for rows, _, _ in network.calls])

  (value, (sums, read)), gradient = jit(jax.value_and_grad(ours, has_aux=True))(NET)
  noisy, made = (np.asarray(ids) for ids in (read * 2)[:2])
  scored = BATCH.weights * ~BATCH.observed
  table, out = np.asarray(NET["table"]), np.asarray(NET["out"])
  likeliest = np.argmax(table[noisy] @ out, axis=-1)
  if second:
    np.testing.assert_array_equal(made, np.where(scored > 0, likeliest, noisy))
  assert (noisy[:, :3] == IDS[:, :3]).all() and (noisy[:, 3:] != IDS[:, 3:]).any()
  assert set(sums) == ({"first", "second"} if second else {"first"}), "no bound is reported"

  def nll(net, ids):
    logits = jnp.asarray(net["table"])[ids] @ net["out"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), IDS[..., None], -1)[..., 0]

  def formula(net):
    return jnp.sum(scored * (nll(net, noisy) + second * nll(net, made)))

  theirs, slope = jit(jax.value_and_grad(formula))(NET)
  np.testing.assert_allclose(value, theirs, rtol=1e-5)
  for name in ("table", "out"):
    np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-3, atol=1e-3)


def test_the_loss_is_the_published_one():
  check_formula(Unrolled())
  check_formula(Unrolled(second=0.0), second=0.0)


class OfNoisyTokens(Unrolled):
  """Only tokens that are noise count."""

  def __call__(self, model, params, key, batch, times, progress):
    clean, state = engine.corrupted(model, params, key, batch, times, progress)
    weights = batch.weights * (clean != state)
    batch = Batch(batch.ids, batch.observed, weights=weights)
    return super().__call__(model, params, key, batch, times, progress)


class PromptsAreGuessed(Unrolled):
  def guesses(self, model, params, key, batch, noised, progress):
    bare = Batch(batch.ids, weights=batch.weights)
    return super().guesses(model, params, key, bare, noised, progress)


@pytest.mark.parametrize("mutant", [
  OfNoisyTokens(), PromptsAreGuessed(), Unrolled(second=0.5), Unrolled(draws=True)
])  # fmt: skip
def test_mutants_are_noticed(mutant):
  with pytest.raises(AssertionError):
    check_formula(mutant)


TOY = Enumerable.dirichlet(0, 0.5, 3, 4)


def test_laws_of_the_sampler():
  """Observed tokens stay, a row alone is the row in a batch, host loop and compiled loop agree."""
  model, params = exact_model(Uniform(3, prediction="posterior"), TOY)
  sampler = Redraw(steps=3, temperature=0.7, share=0.5)
  check_sampler(sampler, model, params, TOY, exact_law=False, calls=3, rows=32)


def texts(sampler, rows=2000):
  """The drawn rows of a network that reads nothing but the token at a place."""
  model = Model(TableNetwork(), UNIFORM, Shared(), Full(), chunk=4096)
  params = {"network": NET, "process": {}, "timing": {}}
  return np.asarray(sample(model, params, sampler, row_keys(0, rows), rows=rows, length=2).ids)


def check_law(sampler, temperature):
  """Two calls move each token twice by the matrix softmax(logits / temperature), from any token."""
  logits = np.asarray(NET["table"]) @ np.asarray(NET["out"]) / temperature
  moved = np.exp(logits - logits.max(1, keepdims=True))
  moved /= moved.sum(1, keepdims=True)
  want = np.full(V, 1 / V) @ moved @ moved
  found = np.bincount(texts(sampler).reshape(-1), minlength=V) / 4000
  assert np.abs(found - want).sum() / 2 < 0.03, (found, want)


def test_each_call_draws_from_the_answers_at_the_temperature():
  check_law(Redraw(steps=2, temperature=0.8), 0.8)
  for mutant in (Redraw(steps=2, temperature=0.2), Redraw(steps=1, temperature=0.8)):
    with pytest.raises(AssertionError):
      check_law(mutant, 0.8)


def test_what_is_no_token_is_refused():
  model = Model(None, Masked(V), Shared(), Full())
  for member in (Unrolled(), Redraw()):
    with pytest.raises(ValueError, match=r"use process.name='uniform' with prediction='posterior'"):
      member.check(model)
    with pytest.raises(ValueError, match=r"prediction='posterior'"):
      member.check(model._replace(process=Uniform(V)))
  with pytest.raises(ValueError, match=r"use context.name='full'"):
    Unrolled().check(model._replace(process=UNIFORM, context=Blocks(size=2)))
