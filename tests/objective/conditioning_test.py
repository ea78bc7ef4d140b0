"""What the network is told in training: its own first answer (trap 6 of continuous.md, section 22), and given tokens or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.model.recall import Recall, check_recall
from diffusion_text.objective import Bound, CrossEntropy
from diffusion_text.objective.bound import Chunks, drawn_times, noised, scored_weights
from diffusion_text.objective.conditioning import (
  Conditioning,
  TwoReadings,
  conditionings,
  row_coins,
)
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.testing.oracle import exact_prediction, masked_evidence
from diffusion_text.timing import LeftToRight, PerBlock, Shared
from diffusion_text.types import Batch, Inputs, Prediction, Progress
from tests.process.conformance_test import TOY

V, B, L = 6, 4, 8
IDS = jax.random.randint(jax.random.key(0), (B, L), 0, V)
GIVEN = jnp.broadcast_to(jnp.arange(L) < 3, (B, L))
BATCH = Batch(IDS, given=GIVEN)
SIMPLEX = Simplex(V, VPCosine(offset=1e-4))
EMBEDDING = Embedding(V, VPCosine(), width=4, norm="none")
KEY = jax.random.key(2)


def test_what_stands_in_is_no_zero_vector():
  """Trap 6: a missing answer of zero logits is half the mean of the table away from no vector; known tokens are read alone."""
  table = 0.05 + 0.02 * jax.random.normal(jax.random.key(1), (400, 64))
  noisy = jax.nn.softmax(5 * jax.random.normal(jax.random.key(2), (2, 3, 400)))
  x, t = noisy @ table, jnp.array([[0.5, 0.0, 1.0]])
  read = lambda absent, inputs: Recall("mean", absent, 400, 64).mix(x, inputs, t, table)
  uniform, zeros = read("uniform", Inputs(vectors=noisy)), read("zeros", Inputs(vectors=noisy))
  np.testing.assert_allclose(uniform[:, ::2], (0.5 * (noisy + 1 / 400) @ table)[:, ::2], atol=1e-5)
  np.testing.assert_allclose(
    (uniform - zeros)[:, ::2], jnp.broadcast_to(table.mean(0) / 2, (2, 2, 64)), atol=1e-5
  )
  assert float(jnp.linalg.norm(table.mean(0))) == pytest.approx(0.40, abs=0.01)
  np.testing.assert_array_equal(uniform[:, 1], x[:, 1])
  told = jnp.ones((2, 3, 64)), jnp.array([[True, True, False], [False, False, False]])
  mixed = read("uniform", Inputs(vectors=noisy, recalled=told[0], recalls=told[1]))
  np.testing.assert_allclose(mixed[0, 0], (x[0, 0] + 1) / 2, atol=1e-6)
  np.testing.assert_array_equal(mixed[1], uniform[1])
  np.testing.assert_array_equal(mixed[0, 1:], uniform[0, 1:])
  add = Recall("add", "zeros", 400, 64)
  np.testing.assert_array_equal(add.read(noisy, table, jnp.float32), jnp.zeros((2, 3, 64)))
  np.testing.assert_array_equal(add.mix(x, Inputs(vectors=noisy), t, table), x)


def test_a_coin_belongs_to_an_example():
  """Trap 6: one coin per row of the global batch, whatever the microbatches; 256 of them realise 0.5 to 0.031, 8 shards' to 0.177."""
  draw = jax.jit(jax.vmap(lambda key: row_coins(key, 256, Progress(), 0.5)))
  rates = np.asarray(draw(jax.random.split(KEY, 400))).mean(1)
  assert rates.std() == pytest.approx(0.03125, rel=0.15) and abs(rates.mean() - 0.5) < 0.005
  whole = row_coins(KEY, 8, Progress(), 0.5)
  parts = [row_coins(KEY, 2, Progress(part=part, parts=4), 0.5) for part in range(4)]
  np.testing.assert_array_equal(jnp.concatenate(parts), whole)
  assert not row_coins(KEY, 8, Progress(), 0.0).any() and row_coins(KEY, 8, Progress(), 1.0).all()


def linear(net, seen=None, constant=None):
  """A linear network [size, V] that adds what it recalls by the map net["recall"]; `constant`: told these estimates instead."""

  def predict(inputs, t, layout):
    if seen is not None:
      seen.append((inputs, jnp.broadcast_to(t, inputs.shape)))
    features = inputs.vectors @ net["in"]
    if inputs.recalled is not None:
      recalled = inputs.recalled if constant is None else constant @ net["recall"]
      features = features + jnp.where(
        inputs.recalls[..., None], recalled[:, : features.shape[1]], 0.0
      )
    return Prediction(
      features,
      lambda features: features @ net["out"],
      None,
      lambda estimates: estimates @ net["recall"],
    )

  return predict


def net_for(process, width=5):
  keys = jax.random.split(jax.random.key(7), 3)
  shapes = {
    "in": (process.input_size, width),
    "recall": (process.estimate_size, width),
    "out": (width, process.vocab_size),
  }
  return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())}


def check_gradient(readings, process):
  """Trap 6: the gradient is that of one reading which is told a constant."""
  params, net = process.init(jax.random.key(1)), net_for(process)
  objective = CrossEntropy(process, Shared(), chunks=Chunks(7))
  coins = jnp.array([True, False, True, True])

  def loss(p, constant=None):
    predict = readings(linear(p["net"], constant=constant), coins, 7, 1)
    return objective(p["process"], KEY, BATCH, Progress(), predict).total

  @jax.jit
  def both(p):
    plain = noised(process, Shared(), p["process"], KEY, BATCH, Progress(), linear(p["net"]))
    estimate = process.estimate(
      p["process"], plain.state, jnp.broadcast_to(plain.times.t, IDS.shape), plain.prediction.logits
    )
    return jax.grad(loss)(p), jax.grad(loss)(p, jax.lax.stop_gradient(estimate))

  ours, constant = both({"net": net, "process": params})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), ours, constant)
  assert float(jnp.abs(ours["net"]["recall"]).max()) > 1e-3, (
    "the map by which the answer is read must be trained"
  )


class Differentiates(TwoReadings):
  """The first reading's graph is kept, as where `detach` is a no-op."""

  def told(self, process, params, state, t, answer):
    recalls = process.scored(params, state, jnp.broadcast_to(t, IDS.shape)) & self.coins[:, None]
    return answer.recall(
      process.estimate(params, state, jnp.broadcast_to(t, IDS.shape), answer.logits)
    ), recalls


def test_no_gradient_through_the_first_answer():
  check_gradient(TwoReadings, EMBEDDING)


def test_a_gradient_through_the_first_answer_would_be_noticed():
  with pytest.raises(AssertionError):
    check_gradient(Differentiates, EMBEDDING)


def test_what_is_told():
  """The estimate of the first reading, at the same state and time, of noisy tokens in the rows whose coin says so; blocks included."""
  net, told = net_for(SIMPLEX), Conditioning(PerBlock(4), self_conditioning=0.5, chunk=5)

  @jax.jit
  def run(batch):
    seen = []
    predict = told.predict(linear(net, seen), KEY, batch, Progress())
    noise = noised(SIMPLEX, told.timing, {}, KEY, batch, Progress(), predict)
    return predict.coins, seen, noise.prediction.features

  coins, ((first, t1), (second, t2)), features = jax.tree.map(np.asarray, run(BATCH))
  np.testing.assert_array_equal(first.vectors, second.vectors)
  np.testing.assert_array_equal(t1, t2)
  assert first.recalled is None and 0 < coins.sum() < B
  np.testing.assert_array_equal(second.recalls[:, :L], coins[:, None] & ~GIVEN)
  assert not second.recalls[:, L:].any()
  estimate = np.exp(first.vectors[:, :L] @ net["in"] @ net["out"])
  want = np.where(
    second.recalls[:, :L, None], estimate / estimate.sum(-1, keepdims=True) @ net["recall"], 0.0
  )
  np.testing.assert_allclose(second.recalled[:, :L], want, rtol=1e-4, atol=1e-4)
  assert features.shape == (B, L, 5)


def bound_of(probability, leak=False):
  """The mean bound of the toy, nats, by a network that knows nothing until it is told; leak: that it is told the text."""
  ids = jnp.asarray(TOY.sample(np.random.default_rng(0), 8192))
  process = Masked(3, Linear())

  def predict(inputs, t, layout):
    exact = TOY.posterior(masked_evidence(inputs.ids, 3))
    known = (
      jnp.zeros_like(exact)
      if inputs.recalled is None
      else jnp.where(inputs.recalls[..., None], exact, 0.0)
    )
    known = known + 30 * jax.nn.one_hot(ids, 3) if leak and inputs.recalled is not None else known
    return exact_prediction(known)._replace(recall=lambda estimates: estimates)

  told = Conditioning(Shared(), self_conditioning=probability, chunk=ids.size)
  bound = Bound(process, Shared(), Chunks(ids.size))

  @jax.jit
  def nats(key):
    ask = told.predict(predict, key, Batch(ids), Progress())
    return bound.nats({}, key, Batch(ids), Progress(), ask).sum(1)

  return float(nats(KEY).mean())


def test_the_bound_of_two_readings():
  """It is the bound of the second answer: the entropy where that is exact."""
  assert bound_of(1.0) == pytest.approx(TOY.entropy, rel=0.03)
  assert bound_of(1.0, leak=True) < 0.5 * TOY.entropy, (
    "told of the text, it is no bound: the estimate must follow from z alone"
  )


HIDES = Conditioning(Shared(), drop_given=0.5)


@pytest.mark.parametrize("process", [SIMPLEX, Masked(V, Linear())], ids=["simplex", "masked"])
def test_hidden_tokens_are_noise_and_not_scored(process):
  hidden = HIDES.batch(KEY, BATCH, Progress())
  rows = hidden.hidden.any(1)
  assert 0 < rows.sum() < B
  np.testing.assert_array_equal(hidden.hidden, rows[:, None] & GIVEN)
  t = jnp.broadcast_to(drawn_times(process, Shared(), KEY, hidden, Progress()).t, IDS.shape)
  assert (t[hidden.hidden] == 1).all() and (t[GIVEN & ~hidden.hidden] == 0).all()
  blind = lambda inputs, t, layout: exact_prediction(jnp.zeros((B, L, V)))

  @jax.jit
  def run(ids):
    batch = dataclasses.replace(hidden, ids=ids)
    noise = noised(process, Shared(), {}, KEY, batch, Progress(), blind)
    return noise.state

  state, other = run(IDS), run(jnp.where(GIVEN, (IDS + 1) % V, IDS))
  same = np.all(np.asarray(state == other).reshape(B, L, -1), axis=-1)
  np.testing.assert_array_equal(
    same, ~GIVEN | hidden.hidden
  )  # hidden tokens leave no trace, shown ones do
  assert not scored_weights(hidden)[GIVEN].any()


def test_nothing_is_told_or_hidden_unless_asked():
  with pytest.raises(ValueError, match=r"drop_given=0\.5 .*have none"):
    HIDES.batch(KEY, Batch(IDS), Progress())
  assert Conditioning(Shared()).batch(KEY, BATCH, Progress()) is BATCH
  predict = linear(net_for(SIMPLEX))
  assert Conditioning(Shared()).predict(predict, KEY, BATCH, Progress()) is predict


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: Conditioning(Shared(), self_conditioning=1.5), r"self_conditioning=1\.5"),
    (lambda: Conditioning(Shared(), drop_given=-0.1), r"drop_given=-0\.1"),
    (lambda: Conditioning(LeftToRight(), self_conditioning=0.5), "clean tokens alone"),
    (lambda: Conditioning(PerBlock(4), drop_given=0.1), r"drop_given=0\.1.*clean copy"),
    (
      lambda: conditionings({"self_conditioning": None}, "add", None, Shared(), Chunks()),
      "'add'.*None",
    ),
    (
      lambda: conditionings({"self_conditioning": 0.5}, "none", None, Shared(), Chunks()),
      r"'none'.*0\.5",
    ),
    (
      lambda: conditionings({}, "none", 1.0, Shared(), Chunks()),
      r"evaluate.self_conditioning=1\.0",
    ),
    (lambda: check_recall("concat", "zeros", (9, 9, 9)), "'concat'"),
    (lambda: check_recall("none", "uniform", (9, 9, 9)), "'uniform'"),
    (
      lambda: check_recall("add", "uniform", (9, 4, 4)),
      "'uniform' is a distribution over the 9 tokens",
    ),
    (lambda: check_recall("mean", "zeros", (9, 4, 9)), "'mean' embeds estimates of 9"),
  ],
)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
